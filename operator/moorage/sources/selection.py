"""Which files of a repository are wanted: patterns, exact names, a quantization.

Patterns are fnmatch over the whole path, `*` crossing `/`, and `folder/` meaning all below it, as in
`huggingface_hub.utils.filter_repo_objects`. GGUF part names (`-00001-of-00003.gguf`) are llama.cpp's (`gguf-split`).
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from moorage.errors import SourceError
from moorage.sources.errors import source_error
from moorage.sources.files import MAX_SIZE, RepoFile, check_names
from moorage.sources.projectors import best_projector, is_projector
from moorage.sources.reasons import Reason

_PART = re.compile(r"^(?P<stem>.+)-(?P<part>\d{5})-of-(?P<total>\d{5})\.gguf$", re.IGNORECASE)
_SHOWN = 20
_MOST_QUANTIZATIONS = 32
_MOST_GGUF_FILES = 512
_LABEL = re.compile(
    r"(?<![a-z0-9])(?:ud[-_])?(?:i?q[1-8](?:_[a-z0-9]+)*|tq[12]_0|(?:mx|nv)fp4(?:_moe)?|bf16|fp?16|f32)(?![a-z0-9])",
    re.IGNORECASE,
)
"""How files are named for their quantization: llama-quantize's types, and Unsloth's dynamic variants of them."""


@dataclass(frozen=True)
class Selection:
    """What is wanted; nothing given means every file.

    `files` are exact paths, each of which must exist. `include` and `exclude` are patterns. `quantization` (such as
    `Q4_K_M`, any case) picks one GGUF model with all of its parts, and the multimodal projector beside it if there is
    one. They narrow each other; `files` stand beside what the patterns pick.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    quantization: str | None = None


@dataclass(frozen=True)
class Quantization:
    """One quantization of a model: what `Selection.quantization` would be, and the bytes of its weight files."""

    name: str
    size: int


def quantizations(available: Sequence[RepoFile], wanted: Selection, chosen: Sequence[RepoFile]) -> list[Quantization]:
    """The quantization that `chosen` is, and the smaller ones of the same model, largest first; at most 32.

    Only those that `wanted` with another quantization would select; none where file names do not tell, and none of a
    repository with very many files.
    """
    ggufs = [
        f for f in available if f.path.lower().endswith(".gguf") and _passes(f.path, wanted.include, wanted.exclude)
    ]
    if len(ggufs) > _MOST_GGUF_FILES:
        return []
    models = _models([f for f in ggufs if not is_projector(f.path)])
    own = next((parts for parts in models if any(f in chosen for f in parts)), None)
    if own is None or not _label(own[0].path):
        return []
    same = [
        own,
        *(parts for parts in models if _bare(parts[0].path) == _bare(own[0].path) and _size(parts) < _size(own)),
    ]
    named = [(_label(parts[0].path), parts) for parts in sorted(same, key=_size, reverse=True)[:_MOST_QUANTIZATIONS]]
    found = [Quantization(name, _size(parts)) for name, parts in named if _selects(ggufs, name, parts)]
    return found if found and found[0].size == _size(own) else []


def _size(parts: Iterable[RepoFile]) -> int:
    return sum(f.size for f in parts)


def _label(path: str) -> str:
    """The quantization that a file is named for: in its own name, else in a folder's; empty for none."""
    folder, _, name = path.rpartition("/")
    return next(iter([*_LABEL.findall(name)[::-1], *_LABEL.findall(folder)[::-1]]), "")


def _bare(path: str) -> str:
    """The name of a model's file without its quantization and part: equal for all quantizations of one model."""
    name = _PART.sub(r"\g<stem>", path.rpartition("/")[2]).lower()
    return _LABEL.sub("", name.removesuffix(".gguf"))


def _models(files: Iterable[RepoFile]) -> list[list[RepoFile]]:
    """GGUF files by model, all parts of one together."""
    models: dict[tuple[str, str], list[RepoFile]] = {}
    for file in sorted(files, key=lambda f: f.path):
        part = _PART.match(file.path)
        models.setdefault((part["stem"], part["total"]) if part else (file.path, ""), []).append(file)
    return list(models.values())


def _selects(ggufs: Sequence[RepoFile], name: str, parts: Sequence[RepoFile]) -> bool:
    """Whether the quantization `name` would select exactly `parts`."""
    try:
        found = _quantized(ggufs, name) if name else []
    except SourceError:
        return False
    return {f.path for f in found if not is_projector(f.path)} == {f.path for f in parts}


def select(available: Sequence[RepoFile], wanted: Selection) -> list[RepoFile]:
    """The wanted files sorted by path.

    Raises SourceError: FileNotFound, NoFilesMatched, AmbiguousSelection, UnsafeName (of a wanted file only: a
    repository is not refused for a name nobody asked for), NotAHub where the sizes add up to what cannot be.
    """
    by_path = {file.path: file for file in available}
    missing = [path for path in wanted.files if path not in by_path]
    if missing:
        raise source_error(Reason.FILE_NOT_FOUND, f"file not found: {', '.join(missing)}; there are {_names(by_path)}")
    chosen = {path: by_path[path] for path in wanted.files}
    if wanted.include or wanted.quantization or not wanted.files:
        rest = [f for f in available if _passes(f.path, wanted.include, wanted.exclude)]
        if wanted.quantization:
            rest = _quantized(rest, wanted.quantization)
        if not rest:
            raise source_error(
                Reason.NO_FILES_MATCHED, f"no files matched {_asked(wanted)}; the repository has {_names(by_path)}"
            )
        chosen |= {f.path: f for f in rest}
    check_names(f.path for f in available if f.path in chosen)
    if (total := _size(chosen.values())) > MAX_SIZE:
        raise source_error(Reason.NOT_A_HUB, f"not a Hugging Face-compatible hub: the files have {total:,} bytes")
    return sorted(chosen.values(), key=lambda f: f.path)


def _passes(path: str, include: Sequence[str], exclude: Sequence[str]) -> bool:
    kept = not include or any(fnmatchcase(path, _whole(p)) for p in include)
    return kept and not any(fnmatchcase(path, _whole(p)) for p in exclude)


def _whole(pattern: str) -> str:
    return f"{pattern}*" if pattern.endswith("/") else pattern


def _quantized(files: Sequence[RepoFile], quantization: str) -> list[RepoFile]:
    ggufs = [f for f in files if f.path.lower().endswith(".gguf")]
    weights = [f for f in ggufs if not is_projector(f.path)]
    models = _models(_labelled(weights, quantization))
    if not models:
        return []
    if len(models) > 1:
        listed = _names(parts[0].path for parts in models)
        raise source_error(Reason.AMBIGUOUS, f"{len(models)} models match quantization {quantization}: {listed}")
    parts = models[0]
    _check_parts(parts)
    beside = best_projector(ggufs, parts[0].path)
    return [*parts, beside] if beside else list(parts)


def _labelled(files: Sequence[RepoFile], quantization: str) -> list[RepoFile]:
    """Files of this quantization: by their own name, else by a folder's; `Q4_K_M` means UD-Q4_K_M only if alone."""
    if not re.match(r"[A-Za-z-]+\d", quantization):
        return []  # "XS" or "M" is the end of a label, not one
    label = re.escape(quantization)
    plain = re.compile(rf"(?<![a-z0-9])(?<!ud[-_]){label}(?![a-z0-9_])", re.IGNORECASE)
    dynamic = re.compile(rf"(?<![a-z0-9]){label}(?![a-z0-9_])", re.IGNORECASE)
    for pattern in (plain, dynamic):
        for by_folder in (False, True):
            named = [f for f in files if pattern.search(f.path if by_folder else f.path.rsplit("/", 1)[-1])]
            if named:
                return named
    return []


def _check_parts(parts: Sequence[RepoFile]) -> None:
    first = _PART.match(parts[0].path)
    if first is None:
        return
    total = first["total"]
    there = {int(found["part"]) for f in parts if (found := _PART.match(f.path))}
    missing = sorted(set(range(1, int(total) + 1)) - there)
    if missing:
        numbers = ", ".join(map(str, missing[:_SHOWN]))
        raise source_error(
            Reason.FILE_NOT_FOUND, f"file not found: part {numbers} of {int(total)} of split GGUF {parts[0].path}"
        )


def _asked(wanted: Selection) -> str:
    asked = {"quantization": wanted.quantization, "include": wanted.include, "exclude": wanted.exclude}
    return ", ".join(f"{k} {v if isinstance(v, str) else ' '.join(v)}" for k, v in asked.items() if v) or "anything"


def _names(by_path: Iterable[str]) -> str:
    """The first 20 names, and how many more there are."""
    names = sorted(by_path)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return (", ".join(name[:200] for name in names[:_SHOWN]) or "no files") + more
