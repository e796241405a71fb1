"""Files of a repository: their names, what makes a name unsafe, and which model format they are."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from moorage.sources.errors import source_error
from moorage.sources.reasons import Reason

STAGE_FOLDER = ".moorage"
_NAME_BYTES = 255
_PATH_BYTES = 2048
MAX_SIZE = 1 << 50
"""Bytes of one file, and of all files of one source together; what is more cannot be meant, nor stored in a status."""


@dataclass(frozen=True)
class RepoFile:
    """One file of a revision as the hub describes it.

    `size` is in bytes. Large files (LFS) have a `sha256`; small ones only `git_sha1`, the hash of git's blob
    (`blob <size>\\0` and the bytes). Both are lower-case hex or None.
    """

    path: str
    size: int
    sha256: str | None = None
    git_sha1: str | None = None


def check_name(path: str) -> None:
    """Refuse a name that could leave its folder or cannot be stored; raises SourceError(UnsafeName)."""
    problem = _problem(path)
    if problem:
        shown = path.encode("utf-8", "backslashreplace").decode()[:200]
        raise source_error(Reason.UNSAFE_NAME, f"unsafe file name {shown!r}: {problem}")


def _problem(path: str) -> str:
    try:
        raw = path.encode()
    except UnicodeEncodeError:
        return "it is not valid Unicode"
    parts = path.split("/")
    checks = {
        "it is empty": not path,
        "it is absolute": path.startswith("/") or re.match(r"[A-Za-z]:", path) is not None,
        "it has an empty, '.' or '..' part": any(p in ("", ".", "..") for p in parts),
        "it has a backslash or a control character": re.search(r"[\\\x00-\x1f\x7f]", path) is not None,
        "it is too long": len(raw) > _PATH_BYTES or any(len(p.encode()) > _NAME_BYTES for p in parts),
        f"{STAGE_FOLDER} is Moorage's own folder": parts[0] == STAGE_FOLDER,
    }
    return next((text for text, bad in checks.items() if bad), "")


def check_names(paths: Iterable[str]) -> None:
    """Refuse unsafe names, a name that comes twice, and a file that is another file's folder."""
    seen: set[str] = set()
    folders: set[str] = set()
    for path in paths:
        check_name(path)
        if path in seen:
            raise source_error(Reason.UNSAFE_NAME, f"unsafe file name {path!r}: it is listed twice")
        seen.add(path)
        parts = path.split("/")
        folders.update("/".join(parts[:i]) for i in range(1, len(parts)))
    if both := seen & folders:
        raise source_error(Reason.UNSAFE_NAME, f"unsafe file name {min(both)!r}: it is a file and a folder")


def formats(paths: Iterable[str]) -> dict[str, list[str]]:
    """The model files among `paths` by format, sorted: `{"GGUF": [..], "Safetensors": [..]}` less what is absent."""
    names = sorted(paths)
    found = {
        "GGUF": [n for n in names if n.lower().endswith(".gguf")],
        "Safetensors": [n for n in names if n.lower().endswith(".safetensors")],
    }
    return {name: files for name, files in found.items() if files}
