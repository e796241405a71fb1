"""Settings of the engines, in each engine's own words."""

from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import Field

from moorage.api.common import ObjectName, Rule, SpecPart

AUTO_PARSER = "Auto"


class KVCacheType(StrEnum):
    """Number format of the KV cache, in the engines' words."""

    F16 = "f16"
    Q8_0 = "q8_0"
    Q4_0 = "q4_0"
    FP8 = "fp8"


class DType(StrEnum):
    """Number format of vLLM's weights and activations, in its words."""

    AUTO = "auto"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"
    FLOAT32 = "float32"


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
        description="Prompt tokens computed at once (n_ubatch); the compute buffer grows with it. Where a text becomes "
        "one vector or score (embeddings, rerank), at least the context length.",
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


class VLLM(SpecPart):
    """Settings of the vLLM server."""

    dtype: DType = Field(
        default=DType.AUTO, description="Number format of weights and activations. auto: as the model is stored."
    )
    max_batched_tokens: int = Field(
        default=2048,
        ge=16,
        le=1048576,
        description="Tokens computed in one step, prompts and answers together. More make long prompts faster and take "
        "more memory.",
    )
    enforce_eager: bool = Field(
        default=False, description="No compiled graphs: starts faster, takes about 1 GiB less, answers slower."
    )
    trust_remote_code: bool = Field(
        default=False,
        description="Run programs that come with the model. Refused unless the installation allows it "
        "(vllm.allowRemoteCode in the chart's values).",
    )


# Name of a parser as vLLM lists them, such as hermes or qwen3_coder.
_ParserName = Annotated[
    str,
    Field(min_length=1, max_length=64),
    Rule("self.matches('^[A-Za-z0-9][A-Za-z0-9._-]*$')", "write a parser's name as vLLM lists it, such as hermes"),
]
ReasoningParser = _ParserName


class ToolCalling(SpecPart):
    """Whether the model may call the tools that a request offers."""

    rules: ClassVar = (
        Rule(
            f"self.enabled || self.parser == '{AUTO_PARSER}'",
            "spec.toolCalling.parser has no effect with enabled: false; remove one of the two",
        ),
    )

    enabled: bool = Field(default=True, description="Whether tool calls in answers are recognised.")
    parser: _ParserName = Field(
        default=AUTO_PARSER,
        description="How vLLM reads the model's tool calls, such as hermes, mistral or llama3_json. Auto: by the chat "
        "template. llama.cpp needs none.",
    )


class ConfigMapKey(SpecPart):
    """A key of a ConfigMap in the same namespace."""

    name: ObjectName = Field(description="Name of the ConfigMap.")
    key: Annotated[
        str,
        Field(min_length=1, max_length=253),
        Rule("self.matches('^[-._a-zA-Z0-9]+$')", "a key of a ConfigMap has only letters, digits, '-', '_' and '.'"),
    ] = Field(default="chat-template.jinja", description="Key of the template in the ConfigMap.")


class ChatTemplate(SpecPart):
    """The chat template to use instead of the model's own."""

    config_map_key_ref: ConfigMapKey = Field(description="Where the template stands, in Jinja.")
