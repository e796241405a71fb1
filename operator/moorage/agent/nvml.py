"""NVIDIA's management library: the only module that knows pynvml.

Its functions raise NVMLError where a GPU or the whole driver is gone; here that becomes a `problem` in words, because a
report that says "GPU is lost" is worth more than an agent that died of it.
"""

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import pynvml

from moorage.errors import MoorageError
from moorage.placement.gpu_report import MOST_TEXT, Gpu, Slice

MIB = 1 << 20
T = TypeVar("T")


class NoDriver(MoorageError):
    """There is no NVML here: no library, no driver, or one that refuses to start."""


class Nvml:
    """An open NVML. `path` names the library; None: libnvidia-ml.so.1 where the dynamic linker finds it.

    Raises NoDriver.
    """

    def __init__(self, path: Path | None = None) -> None:
        try:
            if path is not None:
                pynvml.nvmlLib = ctypes.CDLL(str(path))  # what pynvml would load by its own name
            pynvml.nvmlInit()
        except (pynvml.NVMLError, OSError) as error:
            where = str(path or "libnvidia-ml.so.1")
            raise NoDriver(f"NVML cannot be used ({where}): {_words(error)}") from error

    def driver(self) -> str:
        """The driver's version; raises NoDriver where it does not answer any more."""
        with _asking():
            return _text(pynvml.nvmlSystemGetDriverVersion())

    def gpus(self) -> tuple[Gpu, ...]:
        """Every GPU with its memory now; raises NoDriver where the driver itself does not answer any more."""
        with _asking():
            count = pynvml.nvmlDeviceGetCount()
        return tuple(_gpu(index) for index in range(count))

    def reopen(self) -> None:
        """Let go of a driver that was lost and look for it again; raises NoDriver where it is still away."""
        with suppress(pynvml.NVMLError):  # there may be nothing to let go of
            pynvml.nvmlShutdown()
        with _asking():
            pynvml.nvmlInit()


@contextmanager
def _asking() -> Iterator[None]:
    """What the driver as a whole refuses to answer is NoDriver."""
    try:
        yield
    except pynvml.NVMLError as error:
        raise NoDriver(f"the driver does not answer: {_words(error)}") from error


def _gpu(index: int) -> Gpu:
    uuid = ""
    try:
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        uuid = _text(pynvml.nvmlDeviceGetUUID(handle))
        return _healthy(index, handle, uuid)
    except pynvml.NVMLError as error:
        return Gpu(index=index, uuid=uuid, problem=_words(error))


def _healthy(index: int, handle: Any, uuid: str) -> Gpu:
    total, reserved, used, free = _memory(handle)
    mig = _or(lambda: pynvml.nvmlDeviceGetMigMode(handle)[0] == pynvml.NVML_DEVICE_MIG_ENABLE, False)
    return Gpu(
        index=index,
        uuid=uuid,
        minor=_or(lambda: int(pynvml.nvmlDeviceGetMinorNumber(handle)), -1),
        product=_text(pynvml.nvmlDeviceGetName(handle)),
        total_mib=total,
        reserved_mib=reserved,
        used_mib=used,
        free_mib=free,
        utilization_percent=_or(lambda: int(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu), -1),
        mig=mig,
        slices=_slices(handle) if mig else (),
    )


def _memory(handle: Any) -> tuple[int, int, int, int]:
    """Total, reserved, used and free MiB.

    The second version of the call tells the driver's own reserve apart from what programs use; drivers before 510 know
    only the first, in which the reserve counts as used.
    """
    try:
        found = pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2)
        reserved = found.reserved
    except pynvml.NVMLError as error:
        if error.value not in (pynvml.NVML_ERROR_FUNCTION_NOT_FOUND, pynvml.NVML_ERROR_NOT_SUPPORTED):
            raise
        found, reserved = pynvml.nvmlDeviceGetMemoryInfo(handle), 0
    return found.total // MIB, reserved // MIB, found.used // MIB, found.free // MIB


def _slices(handle: Any) -> tuple[Slice, ...]:
    found = []
    for index in range(_or(lambda: int(pynvml.nvmlDeviceGetMaxMigDeviceCount(handle)), 0)):
        try:
            device = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, index)
            memory = pynvml.nvmlDeviceGetMemoryInfo(device)
            found.append(Slice(_text(pynvml.nvmlDeviceGetUUID(device)), memory.total // MIB, memory.used // MIB))
        except pynvml.NVMLError:
            continue  # places for MIG devices are numbered, and most are empty
    return tuple(found)


def _or(ask: Callable[[], T], otherwise: T) -> T:
    """What `ask` says, or `otherwise` where this GPU or driver does not know such a thing."""
    try:
        return ask()
    except pynvml.NVMLError as error:
        if error.value in (pynvml.NVML_ERROR_NOT_SUPPORTED, pynvml.NVML_ERROR_FUNCTION_NOT_FOUND):
            return otherwise
        raise


def _text(value: Any) -> str:
    return (value.decode(errors="replace") if isinstance(value, bytes) else str(value))[:MOST_TEXT]


def _words(error: Exception) -> str:
    return (str(error) or type(error).__name__)[:MOST_TEXT]
