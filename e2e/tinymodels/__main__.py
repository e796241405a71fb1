"""`python -m e2e.tinymodels gguf OUT.gguf`, `... safetensors OUTDIR` or `... hub OUTDIR`."""

import argparse
from collections.abc import Callable
from pathlib import Path

from e2e.tinymodels.gguf_file import write_gguf
from e2e.tinymodels.hub_folder import write_hub
from e2e.tinymodels.safetensors_dir import write_safetensors

_WRITERS: dict[str, Callable[..., list[Path]]] = {
    "gguf": write_gguf,
    "safetensors": write_safetensors,
    "hub": write_hub,
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m e2e.tinymodels", description="Write a tiny random-weight model.")
    kinds = parser.add_subparsers(dest="kind", required=True)
    gguf = kinds.add_parser("gguf", help="a Llama GGUF for llama.cpp")
    gguf.add_argument("out", type=Path)
    gguf.add_argument("--seed", type=int, default=0)
    gguf.add_argument("--pad-to-bytes", type=int, metavar="N", help="exact total size wanted")
    gguf.add_argument("--split", type=int, default=1, metavar="N", help="number of parts")
    safetensors = kinds.add_parser("safetensors", help="a Hugging Face folder for vLLM")
    safetensors.add_argument("out", type=Path)
    safetensors.add_argument("--seed", type=int, default=0)
    safetensors.add_argument("--shards", type=int, default=1, metavar="N")
    safetensors.add_argument("--weight-bytes", type=int, metavar="N", help="size wanted, up to 1 %% less")
    hub = kinds.add_parser("hub", help="the local hub's folder of repositories")
    hub.add_argument("out", type=Path)
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Write what the command line asks for and print each weight file with its size in bytes."""
    options = vars(_parser().parse_args(arguments))
    write = _WRITERS[options.pop("kind")]
    for path in write(options.pop("out"), **options):
        print(f"{path} {path.stat().st_size}")


if __name__ == "__main__":
    main()
