"""Header facts of a model that lies in a folder, so that nobody has to ask a hub for them."""

from pathlib import Path
from typing import Any

from moorage.download.volume import storage
from moorage.engines.facts import broken, read_facts
from moorage.sizing.errors import HeaderError
from moorage.sizing.reading import Want, drive
from moorage.sources import Reason, RepoFile, source_error


def model_facts(folder: Path, files: list[dict[str, Any]]) -> dict[str, Any]:
    """`format`, `mainFile` and header facts of the model among `files` (`path`, `sizeBytes`); {} where there is none.

    Raises SourceError: AmbiguousSelection where there are several models, UnexpectedContent for a broken header.
    """
    found = [RepoFile(file["path"], file["sizeBytes"]) for file in files]
    try:
        return drive(read_facts(found, whole=True), lambda want: _read(folder, want))
    except HeaderError as error:
        raise source_error(Reason.UNEXPECTED_CONTENT, broken(error, found)) from error


def _read(folder: Path, want: Want) -> bytes:
    with storage(want.path), (folder / want.path).open("rb") as file:
        file.seek(want.start)
        return file.read(want.length)
