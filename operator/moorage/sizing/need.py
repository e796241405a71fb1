"""The answer of every estimate: how much memory, where, and how sure."""

import math
from dataclasses import dataclass, replace
from typing import Any, Final

from moorage.sizing.model import Confidence

MIB: Final = 1 << 20
GIB: Final = 1 << 30


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


def nearest_mib(size: float) -> int:
    """Bytes as MiB, rounded to nearest."""
    return math.floor(size / MIB + 0.5)


def up_mib(size: float) -> int:
    """Bytes as MiB, rounded up."""
    return math.ceil(size / MIB)
