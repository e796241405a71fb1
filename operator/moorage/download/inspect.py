"""What a folder holds: a claim that somebody else has filled, as plain files or as a Hugging Face cache."""

import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from moorage.download.content import Identity
from moorage.download.facts import model_facts
from moorage.download.settings import Verify
from moorage.download.volume import MANIFEST, OWN_MANIFEST, read_manifest, storage
from moorage.download.walk import hash_file
from moorage.sources import Reason, formats, source_error
from moorage.sources.choice import PARTS, same_split
from moorage.sources.files import STAGE_FOLDER, check_name

_MOST_FILES = 100_000


def inspect(path: Path, revision: str, verify: Verify, stop: threading.Event) -> dict[str, Any]:
    """Files of `path` as the facts of a result; with a manifest of ours they are compared with it.

    A Hugging Face cache (`models--org--name`, with refs/ and snapshots/) is read at `revision`. Raises SourceError:
    FileNotFound, SizeMismatch, ChecksumMismatch, StorageError.
    """
    if path.is_file():
        return _one_file(path)
    if not path.is_dir():
        raise source_error(Reason.FILE_NOT_FOUND, f"not found: there is no file or folder {path}")
    folder, commit = _snapshot(path, revision)
    layout = "Plain" if folder == path else "HuggingFaceCache"
    with storage():
        files: list[dict[str, Any]] = [
            {"path": name, "sizeBytes": size, "sha256": None} for name, size in sorted(_files(folder))
        ]
    if not files:
        raise source_error(Reason.NO_FILES_MATCHED, f"no files in {folder}")
    manifest = read_manifest(folder / OWN_MANIFEST) or read_manifest(folder / MANIFEST)
    if manifest:
        files = [_compared(folder, entry, verify, stop) for entry in manifest["files"]]
    return {
        "bytes": sum(file["sizeBytes"] for file in files),
        "files": files,
        "revision": revision if layout == "HuggingFaceCache" else "",
        "commit": commit or str(manifest.get("commit", "")),
        "manifestDigest": str(manifest.get("manifestDigest", "")),
        "formats": formats(file["path"] for file in files),
        "layout": layout,
        "folder": "" if folder == path else str(folder.relative_to(path)),
        "fileCount": len(files),
        "facts": model_facts(folder, files),
    }


def _one_file(path: Path) -> dict[str, Any]:
    """A path that names one file (the first part of a split GGUF brings the others): its folder is looked at for it."""
    parts = PARTS.match(path.name)
    names = [f for f in path.parent.iterdir() if f.is_file() and (f == path or (parts and same_split(parts, f.name)))]
    files: list[dict[str, Any]] = [
        {"path": f.name, "sizeBytes": f.stat().st_size, "sha256": None} for f in sorted(names)
    ]
    return {
        "bytes": sum(file["sizeBytes"] for file in files),
        "files": files,
        "formats": formats(file["path"] for file in files),
        "layout": "Plain",
        "folder": "",
        "fileCount": len(files),
        "facts": model_facts(path.parent, files),
    }


def _snapshot(path: Path, revision: str) -> tuple[Path, str]:
    """The folder with the files, and the commit where the layout tells it."""
    snapshots = path / "snapshots"
    if not snapshots.is_dir():
        return path, ""
    ref = path / "refs" / revision
    if ".." in Path(revision).parts or not (commit := ref.read_text().strip() if ref.is_file() else revision):
        raise source_error(Reason.REVISION_NOT_FOUND, f"revision not found: {revision} in {path}")
    if not re.fullmatch(r"[0-9a-f]{40}", commit) or not (snapshots / commit).is_dir():
        raise source_error(Reason.REVISION_NOT_FOUND, f"revision not found: {revision} in {path}")
    return snapshots / commit, commit


def _files(folder: Path) -> Iterator[tuple[str, int]]:
    """Name and size of every file, links followed (a cache is made of them); dangling ones are left out."""
    count = 0
    for base, folders, names in os.walk(folder):
        folders[:] = [f for f in folders if f not in (STAGE_FOLDER, ".cache", "lost+found")]
        for name in names:
            file = Path(base, name)
            count += 1
            if count > _MOST_FILES:
                raise source_error(Reason.STORAGE_ERROR, f"over {_MOST_FILES} files in {folder}")
            if file.is_file():
                yield str(file.relative_to(folder)), file.stat().st_size


def _compared(folder: Path, entry: dict[str, Any], verify: Verify, stop: threading.Event) -> dict[str, Any]:
    name, size, sha256 = str(entry.get("path")), entry.get("sizeBytes"), entry.get("sha256")
    check_name(name)  # whoever filled the volume wrote the manifest, too
    file = folder / name
    if not file.is_file():
        raise source_error(Reason.FILE_NOT_FOUND, f"not found: {name} is in the manifest and not in {folder}")
    found = file.stat().st_size
    if found != size:
        raise source_error(Reason.SIZE_MISMATCH, f"size mismatch: {name} has {found} bytes, the manifest says {size}")
    if verify is Verify.FULL and sha256 and not hash_file(file, Identity(found, sha256, None), stop).right:
        raise source_error(Reason.CHECKSUM_MISMATCH, f"checksum mismatch: {name} is not the {sha256} of the manifest")
    return {"path": name, "sizeBytes": found, "sha256": sha256}
