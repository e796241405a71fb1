"""The answer of every estimate: how much memory, where, and how sure."""

import math
from dataclasses import dataclass, replace
from typing import Any, Final

from moorage.sizing.model import Confidence

MIB: Final = 1 << 20
GIB: Final = 1 << 30
BY_SIZE_OVERHEAD_MIB: Final = 2048


@dataclass(frozen=True)
class MemoryNeed:
    """Memory in MiB. All but `host_mib` is GPU memory, summed over the GPUs that `per_gpu_mib` lists.

    weights_mib    the model's tensors, rounded to nearest
    kv_mib         key-value cache and recurrent state for the whole context, rounded to nearest
    compute_mib    the engine's working buffers at their largest, rounded up
    overhead_mib   what the runtime takes for itself (CUDA context, libraries, growth while serving)
    margin_mib     room for what no estimate knows
    host_mib       the rest of the model in host memory, without the engine's own process
    """

    weights_mib: int
    kv_mib: int
    compute_mib: int
    overhead_mib: int
    margin_mib: int
    per_gpu_mib: tuple[int, ...]
    host_mib: int
    confidence: Confidence
    reasons: tuple[str, ...] = ()

    @property
    def total_mib(self) -> int:
        """GPU memory over all GPUs."""
        return self.weights_mib + self.kv_mib + self.compute_mib + self.overhead_mib + self.margin_mib

    def with_compute(self, mib: int) -> "MemoryNeed":
        """The same with `mib` more of working buffers, shared out over the GPUs in equal parts."""
        each = -(-mib // len(self.per_gpu_mib))
        per_gpu = tuple(held + each for held in self.per_gpu_mib)
        return replace(self, compute_mib=self.compute_mib + each * len(per_gpu), per_gpu_mib=per_gpu)

    def to_json(self) -> dict[str, Any]:
        """As `moorage estimate -o json` prints it and `status.memory` keeps it."""
        return {
            "weightsMiB": self.weights_mib,
            "kvMiB": self.kv_mib,
            "computeMiB": self.compute_mib,
            "overheadMiB": self.overhead_mib,
            "marginMiB": self.margin_mib,
            "totalMiB": self.total_mib,
            "perGpuMiB": list(self.per_gpu_mib),
            "hostMiB": self.host_mib,
            "confidence": str(self.confidence),
            "reasons": list(self.reasons),
        }


def need_by_size(size_bytes: int, gpus: int, why: str) -> MemoryNeed:
    """A guess for `size_bytes` of files that nothing else is known of, on `gpus` GPUs (0: CPU only).

    GPUStack's rule for models that it cannot size: a fifth more than the files, and 2 GiB on each GPU
    (gpustack/scheduler, August 2026). On CPUs a tenth more and 1 GiB for the program.
    """
    if not gpus:
        return MemoryNeed(0, 0, 0, 0, 0, (), int(size_bytes * 1.1) // MIB + 1024, Confidence.GUESS, (why,))
    each = up_mib(size_bytes / gpus)
    more = up_mib(size_bytes / gpus / 5)
    return MemoryNeed(
        weights_mib=each * gpus,
        kv_mib=0,
        compute_mib=0,
        overhead_mib=BY_SIZE_OVERHEAD_MIB * gpus,
        margin_mib=more * gpus,
        per_gpu_mib=(each + BY_SIZE_OVERHEAD_MIB + more,) * gpus,
        host_mib=int(size_bytes * 1.1) // MIB + 1024,
        confidence=Confidence.GUESS,
        reasons=(why,),
    )


def nearest_mib(size: float) -> int:
    """Bytes as MiB, rounded to nearest."""
    return math.floor(size / MIB + 0.5)


def up_mib(size: float) -> int:
    """Bytes as MiB, rounded up."""
    return math.ceil(size / MIB)
