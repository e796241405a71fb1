"""What the last words of an engine that died tell about memory: whose memory ran out, by the engines' own messages.

A container's termination message holds the last 2 KiB of its log (`FallbackToLogsOnError`), or what the engine wrote
there itself (vLLM), so there is no need to read logs, for which the operator has no right. Sources of the texts:
`ggml-cuda.cu`, `ggml-alloc.c`, `ggml-vulkan.cpp` and `llama-model.cpp` of llama.cpp (its issue 20431 and ollama's 8597
show them); `v1/core/kv_cache_utils.py`, `v1/worker/utils.py` and `v1/worker/gpu_model_runner.py` of vLLM 0.32;
`CUDACachingAllocator.cpp` of PyTorch. ROCm's builds say hip or ROCm instead.
"""

import re
from dataclasses import dataclass
from enum import StrEnum

_MIB = 1 << 20
_MOST_WORDS = 240


class Ran(StrEnum):
    """What ran out."""

    GPU_MEMORY = "GPU memory"
    CACHE_MEMORY = "memory for the KV cache"
    """The engine kept to its plan, and what the plan left for the cache does not do."""
    GPU_IN_USE = "free GPU memory"
    """Somebody else's program was in the GPU: the plan may be right."""
    HOST_MEMORY = "host memory"


@dataclass(frozen=True)
class OutOfMemory:
    """What ran out, the line that says so, and the MiB of the request that failed (0: not told)."""

    ran: Ran
    words: str
    asked_mib: int = 0


_DEVICE = r"(?:CUDA|ROCm|HIP|Vulkan|MUSA|SYCL)\d*"
_PATTERNS: tuple[tuple[Ran, re.Pattern[str]], ...] = (
    (Ran.GPU_IN_USE, re.compile(r"Free memory on device.*less than desired GPU memory utilization", re.S)),
    (Ran.CACHE_MEMORY, re.compile(r"No available memory for the cache blocks")),
    (Ran.CACHE_MEMORY, re.compile(r"KV cache\)? is needed, which is larger than the available KV cache memory")),
    (Ran.GPU_MEMORY, re.compile(r"allocating (?P<mib>[\d.]+) MiB on device \d+: \w+Malloc failed: out of memory")),
    (Ran.GPU_MEMORY, re.compile(r"(?:CUDA|HIP) out of memory\. Tried to allocate (?P<number>[\d.]+) (?P<unit>[MG])iB")),
    (Ran.GPU_MEMORY, re.compile(r"(?:CUDA|HIP) out of memory occurred when warming up")),
    (Ran.GPU_MEMORY, re.compile(r"torch\.(?:cuda\.)?OutOfMemoryError")),
    (Ran.GPU_MEMORY, re.compile(r"(?:CUDA|ROCm|HIP) error: out of memory")),
    (Ran.GPU_MEMORY, re.compile(rf"failed to allocate {_DEVICE} buffer of size (?P<bytes>\d+)")),
    (Ran.GPU_MEMORY, re.compile(rf"unable to allocate {_DEVICE} buffer")),
    (Ran.GPU_MEMORY, re.compile(r"ggml_vulkan: Device memory allocation of size (?P<bytes>\d+) failed")),
    (Ran.GPU_MEMORY, re.compile(r"ErrorOutOfDeviceMemory")),
    (Ran.HOST_MEMORY, re.compile(r"failed to allocate CPU\S* buffer of size (?P<bytes>\d+)")),
    (Ran.HOST_MEMORY, re.compile(r"insufficient memory \(attempted to allocate\s+(?P<mib>[\d.]+) MB\)")),
    (Ran.HOST_MEMORY, re.compile(r"unable to allocate CPU\S* buffer|Cannot allocate memory|DefaultCPUAllocator")),
)  # fmt: skip


def out_of_memory(log: str) -> OutOfMemory | None:
    """What ran out by the end of a log; None where it tells of something else. The first pattern that is there counts:
    causes stand before their consequences, and a GPU's before the host's."""
    for ran, pattern in _PATTERNS:
        if match := pattern.search(log):
            return OutOfMemory(ran, _line_of(log, match), _asked(match))
    return None


def _line_of(log: str, match: re.Match[str]) -> str:
    start = log.rfind("\n", 0, match.start()) + 1
    end = log.find("\n", match.end())
    line = " ".join(log[start : end if end >= 0 else len(log)].split())
    return line if len(line) <= _MOST_WORDS else line[: _MOST_WORDS - 3] + "..."


def _asked(match: re.Match[str]) -> int:
    found = match.groupdict()
    if found.get("mib"):
        return int(float(found["mib"]))
    if found.get("bytes"):
        return int(found["bytes"]) // _MIB
    if found.get("number"):
        return int(float(found["number"]) * (1024 if found["unit"] == "G" else 1))
    return 0
