"""What a run of `moorage download` was asked to do."""

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from moorage.sources import HostPolicy


class Verify(StrEnum):
    """How much is checked: FULL hashes every byte, SIZE and NONE trust sizes."""

    FULL = "full"
    SIZE = "size"
    NONE = "none"


@dataclass(frozen=True)
class Settings:
    """Options that hold for every file.

    `stall_timeout` (bodies), `request_timeout` (connecting, headers, metadata) and `lock_wait` are seconds,
    `bandwidth_limit` bytes per second over all connections (None: no limit), `retries` attempts in a row without
    progress per file.
    """

    dest: Path
    connections: int = 8
    verify: Verify = Verify.FULL
    stall_timeout: float = 30.0
    retries: int = 6
    request_timeout: float = 10.0
    bandwidth_limit: int | None = None
    ca_file: str | None = None
    status_port: int = 0
    lock_wait: float = 20.0
    policy: HostPolicy = field(default_factory=HostPolicy)
