"""What status keeps of a model's header: a few facts for people, and the numbers that its memory need follows from."""

import json
from typing import Any

from moorage.sizing.gguf import GgufHeader
from moorage.sizing.gguf_model import model_of
from moorage.sizing.model import LlamaModel
from moorage.sizing.transformer import TransformerModel

HEADER_LIMIT = 6144
"""Characters of `header` that status keeps; a file with a type of its own for every tensor can take more."""


def _kept(model: LlamaModel | TransformerModel) -> str | None:
    text = json.dumps(model.to_json(), separators=(",", ":"))
    return text if len(text) <= HEADER_LIMIT else None


def header_facts(header: GgufHeader) -> dict[str, Any]:
    """`architecture`, `contextLength` (tokens), `parameters`, `quantization`, `layers` and `header`.

    What is unknown is left out. `header` is LlamaModel's JSON, from which the need follows without the file.
    Raises HeaderError where a tensor makes no sense.
    """
    found = {
        "architecture": header.architecture,
        "contextLength": header.context_length,
        "parameters": header.parameters,
        "quantization": header.quantization,
        "layers": header.block_count,
        "header": _kept(model_of(header)),
    }
    return {k: v for k, v in found.items() if v}


def transformer_facts(model: TransformerModel) -> dict[str, Any]:
    """The same of a safetensors model; `header` is TransformerModel's JSON, some six hundred characters."""
    found = {
        "architecture": model.architecture,
        "contextLength": model.context_length,
        "parameters": model.parameters,
        "quantization": model.quantization,
        "layers": model.full_layers + model.window_layers,
        "header": _kept(model),
    }
    return {k: v for k, v in found.items() if v}
