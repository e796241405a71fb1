"""The few header facts that status shows of a model."""

from typing import Any

from moorage.sizing.gguf import GgufHeader


def header_facts(header: GgufHeader) -> dict[str, Any]:
    """`architecture`, `contextLength` (tokens), `parameters`, `quantization`, `layers`; what is unknown is left out."""
    found = {
        "architecture": header.architecture,
        "contextLength": header.context_length,
        "parameters": header.parameters,
        "quantization": header.quantization,
        "layers": header.block_count,
    }
    return {k: v for k, v in found.items() if v}
