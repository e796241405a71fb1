"""What the agent of a node says about its GPUs: the one shape that the agent writes and the operator reads.

The reader takes nothing on trust: whoever may make a pod in the agent's namespace could answer in its place, so every
text and list is bounded and a number is a number, or the report is refused as a whole.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

T = TypeVar("T")

VERSION = 1
MOST_GPUS = 64
MOST_SLICES = 16
MOST_PODS = 64
MOST_TEXT = 300
MOST_NUMBER = 1 << 40
SILENT_MS = 60_000
"""A report older than this says nothing of now: its agent counts as silent."""


@dataclass(frozen=True, slots=True)
class Holder:
    """A container that the kubelet gave a GPU to."""

    namespace: str
    pod: str
    container: str


@dataclass(frozen=True, slots=True)
class Slice:
    """A MIG device: a part of a GPU with memory of its own (MiB)."""

    uuid: str
    total_mib: int
    used_mib: int
    pods: tuple[Holder, ...] = ()


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU, memory in MiB.

    `reserved_mib` is what the driver keeps for itself and is in neither `used_mib` nor `free_mib`; 0 where it does not
    say. `problem` is the driver's word where it cannot tell more ("GPU is lost"); the numbers are 0 then.
    `utilization_percent` is -1 where the driver does not know it (MIG), `minor` (the number of its device file, by
    which DRA drivers name it) where it has none. `hidden`: device plugins offer others of the node, and not this one.
    """

    index: int
    uuid: str
    minor: int = -1
    product: str = ""
    total_mib: int = 0
    reserved_mib: int = 0
    used_mib: int = 0
    free_mib: int = 0
    utilization_percent: int = -1
    mig: bool = False
    slices: tuple[Slice, ...] = ()
    pods: tuple[Holder, ...] = ()
    problem: str = ""
    hidden: bool = False


@dataclass(frozen=True, slots=True)
class GpuReport:
    """A node's GPUs as they were `age_ms` milliseconds before the report was handed out.

    `problem` says why nothing is known (the driver is gone), `pods_problem` why nobody knows whose the GPUs are (the
    kubelet does not answer): then `pods` are empty without meaning that a GPU is free.
    """

    node: str
    age_ms: int
    driver: str = ""
    gpus: tuple[Gpu, ...] = ()
    problem: str = ""
    pods_problem: str = ""


def totals_of(report: GpuReport) -> tuple[int, ...]:
    """MiB of each whole GPU; where all are cut up (MIG), of each part. GPUs with a problem tell nothing."""
    healthy = [gpu for gpu in report.gpus if not gpu.problem]
    whole = tuple(gpu.total_mib for gpu in healthy if not gpu.mig)
    return whole or tuple(part.total_mib for gpu in healthy for part in gpu.slices)


def used_by_pod(report: GpuReport) -> dict[tuple[str, str], tuple[int, ...]]:
    """MiB in use on each GPU that a pod (namespace, name) holds; not of GPUs that several share: whose is what then?"""
    found: dict[tuple[str, str], tuple[int, ...]] = {}
    for gpu in report.gpus:
        devices: tuple[Gpu | Slice, ...] = (gpu, *gpu.slices) if not gpu.problem else ()
        for device in devices:
            pods = {(holder.namespace, holder.pod) for holder in device.pods}
            if len(pods) == 1:
                pod = pods.pop()
                found[pod] = (*found.get(pod, ()), device.used_mib)
    return found


def to_json(report: GpuReport) -> dict[str, Any]:
    """The report as `GET /v1/gpus` answers it."""
    return {"version": VERSION, **_camel(asdict(report))}


def _camel(value: Any) -> Any:
    if isinstance(value, dict):
        return {_name(key): _camel(item) for key, item in value.items()}
    return [_camel(item) for item in value] if isinstance(value, list | tuple) else value


_UNITS = {"mib": "MiB", "ms": "Milliseconds"}


def _name(snake: str) -> str:
    first, *rest = snake.split("_")
    return first + "".join(_UNITS.get(word, word.title()) for word in rest)


def from_json(document: Any) -> GpuReport:
    """The report in an agent's answer; raises ValueError with the first thing that is wrong.

    Fields that a later version adds are passed over; a later `version` is one that this reader cannot understand.
    """
    top = _mapping(document, "the report")
    if top.get("version") != VERSION:
        raise ValueError(f"version is {str(top.get('version'))[:32]}, this operator reads version {VERSION}")
    return GpuReport(
        node=_text(top, "node"),
        age_ms=_number(top, "ageMilliseconds"),
        driver=_text(top, "driver"),
        gpus=_many(top, "gpus", MOST_GPUS, _gpu),
        problem=_text(top, "problem"),
        pods_problem=_text(top, "podsProblem"),
    )


def _gpu(raw: Any) -> Gpu:
    gpu = _mapping(raw, "a GPU")
    return Gpu(
        index=_number(gpu, "index"),
        uuid=_text(gpu, "uuid"),
        minor=_number(gpu, "minor", least=-1),
        product=_text(gpu, "product"),
        total_mib=_number(gpu, "totalMiB"),
        reserved_mib=_number(gpu, "reservedMiB"),
        used_mib=_number(gpu, "usedMiB"),
        free_mib=_number(gpu, "freeMiB"),
        utilization_percent=_number(gpu, "utilizationPercent", least=-1),
        mig=gpu.get("mig") is True,
        slices=_many(gpu, "slices", MOST_SLICES, _slice),
        pods=_many(gpu, "pods", MOST_PODS, _holder),
        problem=_text(gpu, "problem"),
        hidden=gpu.get("hidden") is True,
    )


def _slice(raw: Any) -> Slice:
    part = _mapping(raw, "a MIG device")
    return Slice(
        uuid=_text(part, "uuid"),
        total_mib=_number(part, "totalMiB"),
        used_mib=_number(part, "usedMiB"),
        pods=_many(part, "pods", MOST_PODS, _holder),
    )


def _holder(raw: Any) -> Holder:
    holder = _mapping(raw, "a holder")
    return Holder(_text(holder, "namespace"), _text(holder, "pod"), _text(holder, "container"))


def _mapping(value: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{what} is no object")
    return value


def _text(where: Mapping[str, Any], key: str) -> str:
    value = where.get(key, "")
    if not isinstance(value, str) or len(value) > MOST_TEXT:
        raise ValueError(f"{key} is no text of at most {MOST_TEXT} characters")
    return value


def _number(where: Mapping[str, Any], key: str, least: int = 0) -> int:
    value = where.get(key, 0)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= MOST_NUMBER:
        raise ValueError(f"{key} is no number from {least}")
    return value


def _many(where: Mapping[str, Any], key: str, most: int, read: Callable[[Any], T]) -> tuple[T, ...]:
    value = where.get(key, [])
    if not isinstance(value, list) or len(value) > most:
        raise ValueError(f"{key} is no list of at most {most}")
    return tuple(read(item) for item in value)
