"""The repositories that the local hub's image serves: `<organisation>/<name>/<file>`, as `e2e.hub` reads them."""

from pathlib import Path

from e2e.tinymodels.gguf_file import write_gguf
from e2e.tinymodels.safetensors_dir import write_safetensors

ORGANISATION = "moorage"


def write_hub(folder: str | Path) -> list[Path]:
    """Write models of several sizes and layouts, about 105 MB, and return their weight files.

    - `tiny-llama-GGUF`: 0.3 MB, served within a second.
    - `harbor-llama-GGUF`: 64 MiB, long enough to watch its download.
    - `fleet-llama-GGUF`: 24 MiB in three parts.
    - `tiny-llama`, `fleet-llama`: safetensors, in one file and in three with an index.
    """
    root = Path(folder) / ORGANISATION
    for name in ("tiny-llama-GGUF", "harbor-llama-GGUF", "fleet-llama-GGUF"):
        (root / name).mkdir(parents=True, exist_ok=True)
    return [
        *write_gguf(root / "tiny-llama-GGUF/tiny-llama-F16.gguf"),
        *write_gguf(root / "harbor-llama-GGUF/harbor-llama-F16.gguf", seed=1, pad_to_bytes=64 << 20),
        *write_gguf(root / "fleet-llama-GGUF/fleet-llama-F16.gguf", seed=2, pad_to_bytes=24 << 20, split=3),
        *write_safetensors(root / "tiny-llama", seed=3),
        *write_safetensors(root / "fleet-llama", seed=4, shards=3, weight_bytes=12 << 20),
    ]
