"""Header facts of a model that lies in a folder, so that nobody has to ask a hub for them."""

from pathlib import Path
from typing import Any

from moorage.errors import SourceError
from moorage.sizing.errors import HeaderError
from moorage.sizing.facts import header_facts
from moorage.sizing.gguf import CHUNK_BYTES, MAX_HEADER_BYTES, GgufReader
from moorage.sources import Reason, RepoFile, formats, source_error
from moorage.sources.choice import main_file


def model_facts(folder: Path, files: list[dict[str, Any]]) -> dict[str, Any]:
    """`format`, `mainFile` and header facts of the model among `files` (`path`, `sizeBytes`); {} where there is none.

    Raises SourceError: AmbiguousSelection where there are several models, UnexpectedContent for a broken header.
    """
    head = main_file([RepoFile(file["path"], file["sizeBytes"]) for file in files])
    if head is None:
        kinds = formats(file["path"] for file in files)
        return {"format": next(iter(kinds))} if kinds else {}
    return {"format": "GGUF", "mainFile": head, **_read(folder / head)}


def _read(path: Path) -> dict[str, Any]:
    reader = GgufReader(full=True)
    try:
        with path.open("rb") as file:
            while reader.needs and reader.received < MAX_HEADER_BYTES:
                chunk = file.read(max(reader.needs - reader.received, CHUNK_BYTES))
                if not chunk:
                    raise _broken(path, "it ends inside its header")
                reader.feed(chunk)
    except HeaderError as error:
        raise _broken(path, str(error)) from error
    return header_facts(reader.header) if reader.header else {}


def _broken(path: Path, why: str) -> SourceError:
    return source_error(Reason.UNEXPECTED_CONTENT, f"{path.name} is not a whole GGUF file: {why}")
