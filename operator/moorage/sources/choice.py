"""Which files make up the one model that a source is asked for, where nobody named them."""

import re
from collections.abc import Sequence

from moorage.sources.errors import source_error
from moorage.sources.files import RepoFile, formats
from moorage.sources.reasons import Reason

_PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$", re.IGNORECASE)
PARTS = re.compile(r"^(?P<stem>.+)-(\d{5})-of-(?P<total>\d{5})\.gguf$", re.IGNORECASE)
_SHOWN = 20


def main_file(files: Sequence[RepoFile]) -> str | None:
    """The GGUF file that a server is given: the only one, or the first part of a split one; projectors do not count.

    None where there is no GGUF file. Raises SourceError(AmbiguousSelection) where there are several models.
    """
    heads = sorted(p for f in files if weights(p := f.path) if not (part := _PART.search(p)) or part[1] == "00001")
    if len(heads) > 1:
        listed = ", ".join(heads[:_SHOWN]) + (f" and {len(heads) - _SHOWN} more" if len(heads) > _SHOWN else "")
        raise source_error(
            Reason.AMBIGUOUS, f"the source holds {len(heads)} models: {listed}; choose one with quantization or include"
        )
    return heads[0] if heads else None


def weights(path: str) -> bool:
    """Whether `path` is a GGUF file with weights, whole or a part."""
    return path.lower().endswith(".gguf") and not is_projector(path)


def same_split(part: re.Match[str], name: str) -> bool:
    """Whether `name` is a part of the same split GGUF as the one that `part` (a match of PARTS) is of."""
    other = PARTS.match(name)
    return other is not None and other["stem"] == part["stem"] and other["total"] == part["total"]


def is_projector(path: str) -> bool:
    """Whether `path` is a multimodal projector, by llama.cpp's naming."""
    return "mmproj" in path.rsplit("/", 1)[-1].lower()


def needed(files: Sequence[RepoFile]) -> tuple[list[RepoFile], bool]:
    """Of all files of a repository those that serve its one model, and whether they are a choice (GGUF) or everything.

    A GGUF repository's README and other extras are left out; a safetensors repository is taken whole, because
    tokenizers and configurations have no closed list of names.
    """
    if "GGUF" not in formats(f.path for f in files):
        return list(files), False
    head = main_file(files)
    part = _PART.search(head or "")
    stem = head[: part.start()] if head and part else None
    chosen = [f for f in files if f.path == head or (stem and f.path.startswith(stem) and _PART.search(f.path))]
    return chosen, True
