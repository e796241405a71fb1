"""Settings of the engines, in each engine's own words."""

from enum import StrEnum
from typing import ClassVar

from pydantic import Field

from moorage.api.common import Rule, SpecPart


class KVCacheType(StrEnum):
    """Number format of the KV cache, in llama.cpp's words."""

    F16 = "f16"
    Q8_0 = "q8_0"
    Q4_0 = "q4_0"


class LlamaCpp(SpecPart):
    """Settings of the llama.cpp server."""

    rules: ClassVar = (
        Rule(
            "self.ubatchSize <= self.batchSize",
            "spec.llamaCpp.ubatchSize (absent: 512) must be at most batchSize (absent: 2048)",
        ),
    )

    threads: int | None = Field(
        default=None,
        ge=1,
        le=64,
        description="CPU threads for generating (n_threads). Absent: by the CPU request or node.",
    )
    batch_size: int = Field(
        default=2048, ge=1, le=65536, description="Prompt tokens taken in one logical batch (n_batch)."
    )
    ubatch_size: int = Field(
        default=512,
        ge=1,
        le=65536,
        description="Prompt tokens computed at once (n_ubatch); the compute buffer grows with it.",
    )
    keep: int = Field(
        default=0, ge=-1, le=16777216, description="Prompt tokens kept when the context overflows (n_keep); -1: all."
    )
    predict: int = Field(
        default=-1,
        ge=-1,
        le=16777216,
        description="Tokens generated at most where a request sets no limit; -1: no limit.",
    )
    gpu_layers: int | None = Field(
        default=None, ge=0, le=1024, description="Layers held in GPU memory, the rest in host memory. Absent: all."
    )
    flash_attention: bool = Field(default=True, description="Whether to use Flash Attention.")
    unified_kv_cache: bool = Field(
        default=False, description="One KV cache for all sequences instead of an equal share for each."
    )
