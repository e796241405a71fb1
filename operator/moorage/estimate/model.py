"""Finds the model that was asked for and reads its headers, from disk or from a hub."""

import os
import re
from collections.abc import Awaitable, Callable, Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, TypeVar

from moorage.hub import HubClient
from moorage.sizing.errors import HeaderError, UnsizedError
from moorage.sizing.gguf import GgufHeader
from moorage.sizing.gguf_model import model_of
from moorage.sizing.model import LlamaModel
from moorage.sizing.projector import Projector, projector_of
from moorage.sizing.reading import File, Want, drive, drive_async, read_gguf, read_safetensors
from moorage.sizing.transformer import TransformerModel, transformer_of
from moorage.sources import Access, HostPolicy, RepoFile, Repository, Selection, formats, select
from moorage.sources.choice import model_files

_PART: Final = re.compile(r"^(.*)-(\d{5})-of-(\d{5})\.gguf$", re.IGNORECASE)
_MAX_ENTRIES: Final = 10_000
_TIMEOUT_SECONDS: Final = 30.0
_Answer = TypeVar("_Answer")
Reading = Generator[Want, bytes, _Answer]


@dataclass(frozen=True)
class Unsized:
    """A safetensors model of which only the bytes of its weights are known, and `why`; vLLM may load it yet."""

    why: str
    weight_bytes: int
    architecture: str = ""
    context_length: int = 0


@dataclass(frozen=True)
class Facts:
    """A model for one of the engines, with what a person knows it by; `parameters` 0 where nobody tells.

    `projector` is served beside it where there is one, from the file `projector_file`.
    """

    model: LlamaModel | TransformerModel | Unsized
    name: str
    parameters: int
    quantization: str
    projector: Projector | None = None
    projector_file: str = ""

    @classmethod
    def of_gguf(cls, header: GgufHeader, fallback_name: str) -> "Facts":
        """The facts of a GGUF model; raises HeaderError."""
        return cls(model_of(header), header.name or fallback_name, header.parameters, header.quantization)


def from_file(path: Path, projector: Path | None = None) -> Facts:
    """The model in one GGUF file, or in all parts of a split one whose first part `path` is, with a `projector`.

    Raises HeaderError.
    """
    found = _PART.match(path.name)
    names = [path.name]
    if found:
        stem, number, total = found.groups()
        if int(number) != 1:
            raise HeaderError(f"{path.name} is part {int(number)} of {int(total)}: give the first part")
        names = [f"{stem}-{part:05d}-of-{total}{path.suffix}" for part in range(1, int(total) + 1)]
    files = [File(name, _size(path.parent / name)) for name in names]
    facts = Facts.of_gguf(drive(read_gguf(files, whole=False), _read_in(path.parent)), path.stem)
    if projector is None:
        return facts
    beside = RepoFile(projector.name, _size(projector))
    return drive(_with_projector(facts, beside, whole=False), _read_in(projector.parent))


def from_folder(folder: Path, include: Sequence[str]) -> Facts:
    """The one model in `folder` among the files that `include` picks. Raises HeaderError and SourceError."""
    paths = [path for path in sorted(folder.rglob("*"))[:_MAX_ENTRIES] if path.is_file()]
    files = [RepoFile(path.relative_to(folder).as_posix(), path.stat().st_size) for path in paths]
    if not files:
        raise HeaderError(f"the folder {folder} is empty")
    chosen = select(files, Selection(include=tuple(include)))
    return drive(reading_of(chosen, folder.resolve().name, whole=False), _read_in(folder))


async def from_repository(repository: Repository, include: Sequence[str]) -> Facts:
    """The one model in `repository` among the files that `include` picks; the token comes from HF_TOKEN.

    Raises HeaderError and SourceError.
    """
    access = Access(token=os.environ.get("HF_TOKEN"))
    async with HubClient(policy=HostPolicy(allow_loopback=True), timeout=_TIMEOUT_SECONDS) as hub:
        commit = await hub.resolve(repository, access)
        files = select(await hub.tree(repository, commit, access), Selection(include=tuple(include)))

        def read(want: Want) -> Awaitable[bytes]:
            return hub.read_range(repository.file_url(commit, want.path), want.start, want.length, access)

        return await drive_async(reading_of(files, repository.repo, whole=True), read)


def reading_of(files: Sequence[RepoFile], name: str, *, whole: bool) -> Reading["Facts"]:
    """The reading that suits `files`: of their one GGUF model, else of the safetensors beside config.json.

    `whole`: headers alone do not do.
    """
    found = model_files(files)
    if found is None:
        if "Safetensors" in formats(file.path for file in files):
            raise HeaderError("there are safetensors files but no config.json beside them")
        raise HeaderError("there is no GGUF and no safetensors file")
    weights = [File(file.path, file.size) for file in found.weights]
    if found.config is None:
        facts = Facts.of_gguf((yield from read_gguf(weights, whole=whole)), name)
        return (yield from _with_projector(facts, found.projector, whole=whole))
    config, held = yield from read_safetensors(File(found.config.path, found.config.size), weights, whole=whole)
    try:
        model = transformer_of(config, held)
    except UnsizedError as error:
        return Facts(Unsized(str(error), held.data_bytes), name, 0, held.main_type)
    return Facts(model, name, model.parameters, model.quantization)


def _with_projector(facts: Facts, file: RepoFile | None, *, whole: bool) -> Reading["Facts"]:
    if file is None:
        return facts
    header = yield from read_gguf([File(file.path, file.size)], whole=whole)
    return replace(facts, projector=projector_of(header), projector_file=file.path)


def _size(path: Path) -> int:
    if not path.is_file():
        raise HeaderError(f"there is no file {path}")
    return path.stat().st_size


def _read_in(folder: Path) -> Callable[[Want], bytes]:
    """Reads ranges of the files in `folder`."""

    def read(want: Want) -> bytes:
        try:
            with (folder / want.path).open("rb") as file:
                file.seek(want.start)
                return file.read(want.length)
        except OSError as error:
            raise HeaderError(f"{error.filename}: {error.strerror}") from error

    return read
