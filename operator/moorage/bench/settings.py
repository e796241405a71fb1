"""What a run is asked to do, checked."""

import re
from dataclasses import dataclass
from enum import StrEnum
from urllib.parse import urlsplit

from moorage.bench.verdict import BenchError, Reason

MAX_ROWS = 5


class Profile(StrEnum):
    """The shape of the load."""

    LATENCY = "latency"
    THROUGHPUT = "throughput"
    RATE = "rate"


@dataclass(frozen=True)
class Slo:
    """Limits that a good request keeps, in milliseconds; None: no limit."""

    ttft_ms: int | None = None
    tpot_ms: int | None = None

    def __bool__(self) -> bool:
        """Whether there is any limit."""
        return self.ttft_ms is not None or self.tpot_ms is not None


@dataclass(frozen=True)
class Load:
    """One row of the result: `concurrency` streams in a closed loop, or `rate` requests per second (Poisson)."""

    concurrency: int | None = None
    rate: float | None = None

    def __str__(self) -> str:
        """In words, for messages."""
        return f"concurrency {self.concurrency}" if self.rate is None else f"{self.rate:g} requests/s"


@dataclass(frozen=True)
class Target:
    """Where the server is: scheme `http` or `https`, and the path before `/v1`."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def authority(self) -> str:
        """`host:port` as the Host header has it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    def __str__(self) -> str:
        """The URL again."""
        return f"{self.scheme}://{self.authority}{self.path}"


@dataclass(frozen=True)
class Settings:
    """One run. Times are in seconds; `requests` counts per row; `warmup` None means one per stream."""

    target: Target
    model: str
    profile: Profile
    loads: tuple[Load, ...]
    requests: int = 50
    input_tokens: int = 512
    output_tokens: int = 128
    slo: Slo = Slo()
    warmup: int | None = None
    seed: int = 0
    timeout: float = 600.0
    request_timeout: float = 120.0
    api_key: str = ""


def parse_target(url: str) -> Target:
    """A Target from a URL with or without its closing `/v1`.

    Raises BenchError (InvalidArguments) for anything that is not a plain http or https URL: what stands in it goes into
    a request head, so blanks and control characters must not.
    """
    try:
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError as error:
        raise BenchError(Reason.INVALID_ARGUMENTS, f"--url {url!r}: {error}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or re.search(r"[^!-~]", url):
        raise BenchError(Reason.INVALID_ARGUMENTS, f"--url {url!r} is not a plain http:// or https:// URL")
    if parts.username or parts.query or parts.fragment:
        raise BenchError(Reason.INVALID_ARGUMENTS, "--url must have no user, query or fragment")
    path = parts.path.rstrip("/").removesuffix("/v1")
    return Target(scheme=parts.scheme, host=parts.hostname, port=port, path=path)


def plan_loads(profile: Profile, concurrency: tuple[int, ...], rate: float | None) -> tuple[Load, ...]:
    """The rows a profile asks for. Raises BenchError (InvalidArguments) where options contradict each other."""
    if (rate is not None) != (profile is Profile.RATE):
        raise BenchError(Reason.INVALID_ARGUMENTS, "--rate belongs to --profile rate, which needs it")
    if profile is Profile.RATE:
        if concurrency:
            raise BenchError(Reason.INVALID_ARGUMENTS, "--profile rate sends by the clock: --concurrency has no place")
        return (Load(rate=rate),)
    if profile is Profile.LATENCY:
        if concurrency not in ((), (1,)):
            raise BenchError(Reason.INVALID_ARGUMENTS, "--profile latency is one stream; use --profile throughput")
        return (Load(concurrency=1),)
    distinct = tuple(dict.fromkeys(concurrency or (8,)))
    if len(distinct) > MAX_ROWS:
        raise BenchError(Reason.INVALID_ARGUMENTS, f"--concurrency may be given {MAX_ROWS} times at most")
    return tuple(Load(concurrency=n) for n in distinct)
