"""Header facts of a model that lies in a folder, so that nobody has to ask a hub for them."""

from pathlib import Path
from typing import Any

from moorage.download.volume import storage
from moorage.sizing.errors import HeaderError
from moorage.sizing.facts import header_facts
from moorage.sizing.reading import File, Want, drive, read_gguf
from moorage.sources import Reason, RepoFile, formats, source_error
from moorage.sources.choice import main_file, weights


def model_facts(folder: Path, files: list[dict[str, Any]]) -> dict[str, Any]:
    """`format`, `mainFile` and header facts of the model among `files` (`path`, `sizeBytes`); {} where there is none.

    Raises SourceError: AmbiguousSelection where there are several models, UnexpectedContent for a broken header.
    """
    found = [RepoFile(file["path"], file["sizeBytes"]) for file in files]
    head = main_file(found)
    if head is None:
        kinds = formats(file.path for file in found)
        return {"format": next(iter(kinds))} if kinds else {}
    parts = sorted((File(f.path, f.size) for f in found if weights(f.path)), key=lambda part: part.path)
    try:
        header = drive(read_gguf(parts), lambda want: _read(folder, want))
        return {"format": "GGUF", "mainFile": head, **header_facts(header)}
    except HeaderError as error:
        raise source_error(Reason.UNEXPECTED_CONTENT, f"not a GGUF file: {error}") from error


def _read(folder: Path, want: Want) -> bytes:
    with storage(folder), (folder / want.path).open("rb") as file:
        file.seek(want.start)
        return file.read(want.length)
