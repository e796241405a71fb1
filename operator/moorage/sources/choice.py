"""Which files make up the one model that a source is asked for, where nobody named them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from moorage.sources.errors import source_error
from moorage.sources.files import RepoFile
from moorage.sources.projectors import best_projector, is_projector
from moorage.sources.reasons import Reason

CONFIG = "config.json"
SAFETENSORS = ".safetensors"
TEMPLATES = ("chat_template.jinja", "chat_template.json", "tokenizer_config.json")
OTHER_WEIGHTS = (
    *("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack", "*.onnx", "*.onnx_data", "*.ot", "*.gguf", "*.nemo"),
    *("*.tflite", "*.mlmodel", "*.zip", "*.tar", "*.tar.gz", "*.tgz"),
)
"""Patterns (of lower-case names) of weights that vLLM does not read where there are safetensors."""
NOT_SERVED = (
    *OTHER_WEIGHTS,
    *("*.png", "*.jpg", "*.jpeg", "*.gif", "*.webp", "*.mp4", "*.pdf", "*.md", "*.ipynb", "*.gitattributes"),
)
"""The same with pictures and documents."""
MAX_FILES = 64
"""As many as a Model's status names; of a model in more, all that `OTHER_WEIGHTS` does not match is fetched."""
_MOST_SHARDS = 1000
_SHARD = re.compile(r"^(?P<stem>.+)-(?P<part>\d{5})-of-(?P<total>\d{5})\.safetensors$")
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
        raise source_error(Reason.AMBIGUOUS, f"the source holds {len(heads)} models: {listed}")
    return heads[0] if heads else None


def weights(path: str) -> bool:
    """Whether `path` is a GGUF file with weights, whole or a part."""
    return path.lower().endswith(".gguf") and not is_projector(path)


def same_split(part: re.Match[str], name: str) -> bool:
    """Whether `name` is a part of the same split GGUF as the one that `part` (a match of PARTS) is of."""
    other = PARTS.match(name)
    return other is not None and other["stem"] == part["stem"] and other["total"] == part["total"]


def needed(files: Sequence[RepoFile]) -> tuple[list[RepoFile], bool]:
    """Of all files of a repository those that serve its one model, and whether they are a choice or everything.

    A GGUF repository's README and other extras are left out. So are, of a safetensors repository, the same weights in
    other formats and whatever lies in other folders than the model's. Raises SourceError as `model_files` does.
    """
    found = model_files(files)
    if found is None:
        return list(files), False
    wanted = {file.path for file in (*found.weights, found.projector) if file}
    if found.config is not None:
        folder = found.config.path.rpartition("/")[0]
        wanted |= {f.path for f in files if f.path.rpartition("/")[0] == folder and not _is_beside_the_point(f.path)}
        wanted -= {f.path for f in files if f.path.endswith(SAFETENSORS)} - {f.path for f in found.weights}
    return [file for file in files if file.path in wanted], True


@dataclass(frozen=True)
class ModelFiles:
    """The files of one model: what a server is given (`main`, a GGUF file or config.json), and its weights in order.

    `config` and `template` (where the chat template stands) are those of a safetensors model, None where there is none.
    `projector` is the multimodal projector beside a GGUF model; of several the one that `best_projector` picks.
    """

    format: str
    main: str
    weights: tuple[RepoFile, ...]
    config: RepoFile | None = None
    template: RepoFile | None = None
    projector: RepoFile | None = None


def model_files(files: Sequence[RepoFile]) -> ModelFiles | None:
    """The one model among `files`; None where there is none.

    Raises SourceError: AmbiguousSelection where there are several, FileNotFound where a part is missing.
    """
    head, folders = main_file(files), _folders(files)
    if head and folders:
        raise source_error(
            Reason.AMBIGUOUS,
            f"the source holds a model as GGUF ({head}) and one as safetensors; a Model chooses by spec.engine",
        )
    if head:
        parts = tuple(sorted((f for f in files if _of(head, f.path)), key=lambda f: f.path))
        return ModelFiles("GGUF", head, parts, projector=best_projector(files, head))
    if len(folders) > 1 and "" not in folders:
        listed = ", ".join(f"{folder}/" for folder in folders[:_SHOWN])
        raise source_error(Reason.AMBIGUOUS, f"the source holds {len(folders)} models, in {listed}")
    return _in_folder(files, folders[0]) if folders else None


def _of(head: str, path: str) -> bool:
    """Whether `path` is the GGUF file `head` or another part of it."""
    part = PARTS.match(head)
    return path == head or (part is not None and same_split(part, path))


def _folders(files: Sequence[RepoFile]) -> list[str]:
    """Folders with a config.json and safetensors beside it; the root, empty, comes first."""
    with_weights = {f.path.rpartition("/")[0] for f in files if f.path.endswith(SAFETENSORS)}
    with_config = {f.path.rpartition("/")[0] for f in files if f.path.rpartition("/")[2] == CONFIG}
    return sorted(with_weights & with_config)


def _in_folder(files: Sequence[RepoFile], folder: str) -> ModelFiles:
    here = {f.path.rpartition("/")[2]: f for f in files if f.path.rpartition("/")[0] == folder}
    loaded = _loaded([name for name in here if name.endswith(SAFETENSORS)])
    template = next((here[name] for name in TEMPLATES if name in here), None)
    weights = tuple(here[name] for name in loaded)
    return ModelFiles("Safetensors", here[CONFIG].path, weights, here[CONFIG], template)


def _loaded(names: Sequence[str]) -> list[str]:
    """The weight files that vLLM loads: of a split model its parts, and no second copy in the original layout."""
    names = sorted(n for n in names if not n.startswith("consolidated")) or sorted(names)
    parts = {name: part for name in names if (part := _SHARD.match(name))}
    if not parts:
        return names
    for stem, total in {(part["stem"], int(part["total"])) for part in parts.values()}:
        there = {int(p["part"]) for p in parts.values() if p["stem"] == stem and int(p["total"]) == total}
        if missing := sorted(set(range(1, min(total, _MOST_SHARDS) + 1)) - there):
            numbers = ", ".join(map(str, missing[:_SHOWN]))
            raise source_error(
                Reason.FILE_NOT_FOUND, f"file not found: part {numbers} of {total} of {stem}{SAFETENSORS}"
            )
    stems = {part["stem"] for part in parts.values()}
    return [name for name in names if name in parts or name.removesuffix(SAFETENSORS) not in stems]


def _is_beside_the_point(path: str) -> bool:
    """Whether vLLM has no use for `path`: weights in other formats, pictures, documents."""
    return any(fnmatchcase(path.lower(), pattern) for pattern in NOT_SERVED)
