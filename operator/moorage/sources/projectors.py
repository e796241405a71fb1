"""Multimodal projectors of GGUF models: which file is one, and which of several is taken."""

import re
from collections.abc import Iterable

from moorage.sources.files import RepoFile

# A projector is small beside its model, so precision is preferred to size.
_ORDER = ("f16", "bf16", "f32", "q8_0")


def is_projector(path: str) -> bool:
    """Whether `path` is a multimodal projector, by llama.cpp's naming."""
    return "mmproj" in path.rsplit("/", 1)[-1].lower()


def best_projector(files: Iterable[RepoFile], model: str) -> RepoFile | None:
    """The one projector to serve beside the GGUF file `model`; None where there is none.

    One in the model's own folder before others; F16 before BF16 before F32 before Q8_0 before any other.
    """
    folder = model.rpartition("/")[0]

    def rank(file: RepoFile) -> tuple[bool, int, str]:
        name = file.path.lower()
        known = (i for i, kind in enumerate(_ORDER) if re.search(rf"(?<![a-z0-9]){kind}(?![a-z0-9_])", name))
        return file.path.rpartition("/")[0] != folder, next(known, len(_ORDER)), file.path

    there = (file for file in files if file.path.lower().endswith(".gguf") and is_projector(file.path))
    return min(there, key=rank, default=None)
