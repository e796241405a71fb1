"""The same need twice: JSON, and a table for people."""

from typing import Any

from moorage.estimate.model import Facts
from moorage.sizing.llamacpp import LlamaSettings
from moorage.sizing.need import MemoryNeed
from moorage.sizing.vllm import VllmSettings

ENGINE_NAMES = {"LlamaCpp": "llama.cpp", "VLLM": "vLLM"}


def document(facts: Facts, engine: str, need: MemoryNeed) -> dict[str, Any]:
    """The need with the model it is for, as JSON; integers are MiB."""
    model = {
        "name": facts.name,
        "architecture": facts.model.architecture,
        "parameters": facts.parameters,
        "quantization": facts.quantization,
        "contextLength": facts.model.context_length,
        **({"projector": facts.projector_file} if facts.projector else {}),
    }
    return {**need.to_json(), "engine": engine, "model": model}


def table(facts: Facts, engine: str, settings: LlamaSettings | VllmSettings, need: MemoryNeed) -> str:
    """The need for a person, a line for each part."""
    rows = [
        ("Model", _model(facts)),
        ("Engine", f"{ENGINE_NAMES[engine]}, {_serving(settings)}"),
        *([("Projector", facts.projector_file)] if facts.projector else []),
        ("", ""),
        ("Weights", _size(need.weights_mib)),
        ("KV cache", _size(need.kv_mib)),
        ("Compute", _size(need.compute_mib)),
        ("Overhead", _size(need.overhead_mib)),
        ("Margin", _size(need.margin_mib)),
        ("GPU memory", _size(need.total_mib) + _spread(need)),
        ("Host memory", _size(need.host_mib)),
        ("", ""),
        ("Confidence", ": ".join([str(need.confidence), *filter(None, ["; ".join(need.reasons)])])),
    ]
    return "\n".join(f"{name:<12} {text}".rstrip() for name, text in rows)


def _model(facts: Facts) -> str:
    told = [facts.model.architecture, _count(facts.parameters), facts.quantization]
    if facts.model.context_length:
        told.append(f"trained for {facts.model.context_length:,} tokens")
    return f"{facts.name} ({', '.join(filter(None, told))})"


def _serving(settings: LlamaSettings | VllmSettings) -> str:
    if isinstance(settings, VllmSettings):
        return f"{settings.full_sequences} x {settings.context_length:,} tokens, {settings.cache_type} cache"
    cache = dict.fromkeys((settings.cache_type_k, settings.cache_type_v))
    shared = "shared by" if settings.kv_unified else "over"
    slots = f" {shared} {settings.parallel} slots" if settings.parallel > 1 else ""
    return f"{settings.ctx_size:,} tokens{slots}, {'/'.join(cache)} cache"


def _spread(need: MemoryNeed) -> str:
    count = len(need.per_gpu_mib)
    if count < 2:
        return ""
    return f" on {count} GPUs, at most {max(need.per_gpu_mib) / 1024:.1f} GiB each"


def _count(parameters: int) -> str:
    """`8.2B`, `494M`."""
    if parameters >= 10**9:
        return f"{parameters / 10**9:.1f}B"
    return f"{parameters / 10**6:.0f}M" if parameters else ""


def _size(mib: int) -> str:
    return f"{mib:>9,} MiB  {mib / 1024:>6.1f} GiB"
