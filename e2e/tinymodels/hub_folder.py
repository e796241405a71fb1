"""The repositories that the local hub's image serves: `<organisation>/<name>/<file>`, as `e2e.hub` reads them."""

import json
from pathlib import Path

from e2e.tinymodels.gguf_file import write_gguf
from e2e.tinymodels.reranker import write_reranker
from e2e.tinymodels.safetensors_dir import write_safetensors

ORGANISATION = "moorage"
RULES = {
    "tokens": {"hf_harbor": "pilot"},
    "repos": {f"{ORGANISATION}/gated-llama-GGUF": {"gated": "manual", "granted": ["pilot"]}},
}


def write_hub(folder: str | Path) -> list[Path]:
    """Write models of several sizes and layouts, about 105 MB, and return their weight files.

    - `tiny-llama-GGUF`: 0.3 MB, served within a second.
    - `harbor-llama-GGUF`: 64 MiB, long enough to watch its download.
    - `fleet-llama-GGUF`: 24 MiB in three parts.
    - `gated-llama-GGUF`: 0.3 MB, for the token `hf_harbor` only (no secret: it opens nothing but this folder).
    - `tiny-reranker-GGUF`: 0.7 MB, a score for a query and a document instead of text.
    - `tiny-llama`, `fleet-llama`: safetensors, in one file and in three with an index.
    """
    root = Path(folder) / ORGANISATION
    for name in ("tiny-llama-GGUF", "harbor-llama-GGUF", "fleet-llama-GGUF", "gated-llama-GGUF", "tiny-reranker-GGUF"):
        (root / name).mkdir(parents=True, exist_ok=True)
    (Path(folder) / "hub.json").write_text(json.dumps(RULES))
    return [
        *write_gguf(root / "tiny-llama-GGUF/tiny-llama-F16.gguf"),
        *write_gguf(root / "harbor-llama-GGUF/harbor-llama-F16.gguf", seed=1, pad_to_bytes=64 << 20),
        *write_gguf(root / "fleet-llama-GGUF/fleet-llama-F16.gguf", seed=2, pad_to_bytes=24 << 20, split=3),
        *write_gguf(root / "gated-llama-GGUF/gated-llama-F16.gguf", seed=5),
        *write_reranker(root / "tiny-reranker-GGUF/tiny-reranker-F32.gguf", seed=6),
        *write_safetensors(root / "tiny-llama", seed=3),
        *write_safetensors(root / "fleet-llama", seed=4, shards=3, weight_bytes=12 << 20),
    ]
