"""Every argument that an engine can be given, as command lines: held to the real programs' own parsers."""

from dataclasses import replace
from typing import Any

from moorage.api.capabilities import Capability
from moorage.api.model import ModelSpec
from moorage.engines.base import Asked, Serving, Start
from moorage.engines.llamacpp import LlamaCppEngine
from moorage.engines.vllm import VllmEngine
from tests.support.world import SAFETENSORS

TEMPLATE = "/tmp/template.jinja"
SOURCE = {"huggingFace": {"repo": "org/name"}}
START = Start("name", "/models/m", Serving(4096, 8))


def asked(**spec: Any) -> Asked:
    """A Model with this spec and Qwen2.5 7B's files."""
    facts = SAFETENSORS["facts"]
    return Asked(
        spec=ModelSpec.model_validate({"source": SOURCE, **spec}),
        header=facts["header"],
        trained_context=facts["contextLength"],
        size_bytes=15_231_233_024,
        tool_parser=facts["toolCallParser"],
        remote_code_allowed=True,
    )


def vllm() -> dict[str, tuple[str, ...]]:
    """Command lines after `vllm serve` by what they are for."""
    everything = asked(
        kvCacheType="fp8",
        vllm={"dtype": "float16", "maxBatchedTokens": 8192, "enforceEager": True, "trustRemoteCode": True},
        toolCalling={"parser": "llama3_json"},
        reasoningParser="qwen3",
        args=["--seed", "1"],
    )
    eight_bits = replace(START, serving=replace(START.serving, kv_cache_type="fp8"))
    starts = {
        "CPU": (asked(), START),
        "GPU": (asked(), replace(START, gpus=1, gpu_memory_mib=24564)),
        "GPU of unknown size": (asked(), replace(START, gpus=1)),
        "four GPUs": (asked(), replace(START, gpus=4, gpu_memory_mib=24564)),
        "everything": (everything, replace(eight_bits, gpus=1, gpu_memory_mib=81559, chat_template=TEMPLATE)),
        "embeddings": (replace(asked(), pooled=Capability.EMBEDDINGS), START),
        "float32": (asked(vllm={"dtype": "float32"}, toolCalling={"enabled": False}), START),
    }
    engine = VllmEngine()
    assert [engine.refusal(a) for a, _ in starts.values()] == [""] * len(starts)
    return {name: engine.container(*both).args for name, both in starts.items()}


def llama_cpp() -> dict[str, tuple[str, ...]]:
    """Command lines of llama-server by what they are for."""
    settings = {
        "threads": 8, "batchSize": 1024, "ubatchSize": 256, "keep": 64, "predict": 512, "gpuLayers": 20,
        "flashAttention": True, "unifiedKVCache": True,
    }  # fmt: skip
    quantized = replace(START, serving=replace(START.serving, kv_cache_type="q4_0"))
    starts = {
        "CPU": (asked(), START),
        "GPU": (asked(), replace(START, gpus=1)),
        "four GPUs": (asked(), replace(START, gpus=4)),
        "everything": (
            asked(kvCacheType="q4_0", llamaCpp=settings),
            replace(quantized, gpus=2, chat_template=TEMPLATE, projector_path="/models/mmproj-f16.gguf"),
        ),
        "embeddings": (replace(asked(), pooled=Capability.EMBEDDINGS), START),
        "reranking": (replace(asked(), pooled=Capability.RERANK), START),
        "without flash attention": (asked(llamaCpp={"flashAttention": False}), START),
    }
    engine = LlamaCppEngine()
    assert [engine.refusal(a) for a, _ in starts.values()] == [""] * len(starts)
    return {name: engine.container(*both).args for name, both in starts.items()}
