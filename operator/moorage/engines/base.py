"""What every engine tells the rest of the house: how to start it, when it is ready, how to ask it for one token."""

from dataclasses import dataclass, field
from typing import Any

MIB = 1024 * 1024


@dataclass(frozen=True)
class EngineInputs:
    """What an engine needs to know of a Model to be started; sizes in tokens, memory in MiB.

    `model_path` is the absolute path inside the container; `context_length` is what one request may use (prompt and
    answer), `max_sequences` how many are served at once; `gpus` 0 means CPU only; `cpus` are the whole CPUs the pod may
    use, None where it was given no share.
    """

    name: str
    model_path: str
    context_length: int
    max_sequences: int
    size_bytes: int
    kv_cache_type: str = "f16"
    gpus: int = 0
    cpus: int | None = None
    options: dict[str, Any] = field(default_factory=dict)
    extra_args: tuple[str, ...] = ()


@dataclass(frozen=True)
class Probe:
    """An HTTP probe as Kubernetes knows it; periods and time-outs in seconds."""

    path: str
    period: int
    timeout: int
    failures: int


@dataclass(frozen=True)
class EngineContainer:
    """The engine's container: arguments, probes and the port that answers OpenAI requests."""

    args: tuple[str, ...]
    port: int
    startup: Probe
    readiness: Probe
    liveness: Probe
    writable: tuple[str, ...]
    env: dict[str, str]


def startup_seconds(size_bytes: int) -> int:
    """How long a server may take to load `size_bytes` of weights before its start counts as failed.

    Ten minutes for what does not depend on size (image start, graph warm-up, a slow node), and a second per 10 MiB:
    slower than any network volume worth serving from.
    """
    return 600 + size_bytes // (10 * MIB)
