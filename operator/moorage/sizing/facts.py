"""What status keeps of a model's header: a few facts for people, and the numbers that its memory need follows from."""

import json
from dataclasses import replace
from typing import Any, Final

from moorage.sizing.gguf import GgufHeader
from moorage.sizing.gguf_model import model_of
from moorage.sizing.model import Confidence, Layer, LlamaModel
from moorage.sizing.transformer import TransformerModel

HEADER_LIMIT: Final = 6144
"""Characters of `header` that status keeps; some two hundred layers that all differ take more."""
STEPS: Final = 32
"""Sizes of layers that are told apart where exact ones take too many characters."""


def header_facts(header: GgufHeader) -> dict[str, Any]:
    """`architecture`, `contextLength` (tokens), `parameters`, `quantization`, `license`, `layers` and `header`.

    What is unknown is left out. `header` is LlamaModel's JSON, from which the need follows without the file.
    Raises HeaderError where a tensor makes no sense.
    """
    found = {
        "architecture": header.architecture,
        "contextLength": header.context_length,
        "parameters": header.parameters,
        "quantization": header.quantization,
        "license": header.text("general.license"),
        "layers": header.block_count,
        "header": kept(model_of(header)),
    }
    return {k: v for k, v in found.items() if v}


def transformer_facts(model: TransformerModel) -> dict[str, Any]:
    """The same of a safetensors model; `header` is TransformerModel's JSON, some seven hundred characters."""
    found = {
        "architecture": model.architecture,
        "contextLength": model.context_length,
        "parameters": model.parameters,
        "quantization": model.quantization,
        "layers": 0 if model.recurrent_layers else model.full_layers + model.window_layers,
        "header": _compact(model),
    }
    return {k: v for k, v in found.items() if v}


def kept(model: LlamaModel) -> str:
    """`model` as JSON of at most HEADER_LIMIT characters: exactly, or else with its layers rounded up."""
    if len(text := _compact(model)) <= HEADER_LIMIT:
        return text
    if len(text := _compact(_rounded(model))) <= HEADER_LIMIT:
        return text
    return _compact(_rounded(_alike(model)))


def _compact(model: LlamaModel | TransformerModel) -> str:
    return json.dumps(model.to_json(), separators=(",", ":"))


def _rounded(model: LlamaModel) -> LlamaModel:
    """Weights of each layer rounded up to a part of the heaviest."""
    step = max(1, -(-max(layer.weight_bytes for layer in model.layers) // STEPS))
    layers = (replace(layer, weight_bytes=-(-layer.weight_bytes // step) * step) for layer in model.layers)
    why = f"its layers differ too much to be kept one by one: each counts up to {step / (1 << 20):,.0f} MiB more"
    return _bounded(model, tuple(layers), why)


def _alike(model: LlamaModel) -> LlamaModel:
    """Each layer remembers as much as any."""
    window = 0 if any(layer.window == 0 for layer in model.layers) else max(layer.window for layer in model.layers)
    key, value, state = (
        max(getattr(layer, name) for layer in model.layers) for name in ("key_width", "value_width", "state")
    )
    layers = tuple(Layer(layer.weight_bytes, key, value, window, state) for layer in model.layers)
    return _bounded(model, layers, "its layers differ too much to be kept one by one: each counts the largest cache")


def _bounded(model: LlamaModel, layers: tuple[Layer, ...], why: str) -> LlamaModel:
    confidence = Confidence.BOUNDED if model.confidence == Confidence.EXACT else model.confidence
    return replace(model, layers=layers, confidence=confidence, reasons=(*model.reasons, why))
