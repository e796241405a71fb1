"""Reads the hub's JSON answers. They are untrusted: whatever is odd becomes SourceError(NotAHub)."""

import json
import re
from typing import Any

from moorage.errors import SourceError
from moorage.sources.errors import source_error
from moorage.sources.files import MAX_SIZE, RepoFile
from moorage.sources.reasons import Reason

_COMMIT = re.compile(r"^[0-9a-f]{40}$")
_SHA256 = re.compile(r"^[0-9a-f]{64}$")
_MAX_LICENSE = 100
MAX_JSON = 32 << 20
_MAX_TOKENS = 2_000_000


def read_json(body: bytes) -> Any:
    """A JSON answer (at most MAX_JSON bytes); raises ValueError also for one that would take the memory of a thousand.

    Every value needs a comma or a bracket, and an object of Python takes up to thirty times its two bytes.
    """
    if sum(body.count(mark) for mark in (b",", b"[", b"{")) > _MAX_TOKENS:
        raise ValueError("too many values")
    try:
        return json.loads(body)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def parse_commit(answer: Any) -> str:
    """The commit (40 hex) in the answer of the revision API."""
    commit = answer.get("sha") if isinstance(answer, dict) else None
    if not isinstance(commit, str) or not _COMMIT.match(commit):
        raise _odd("the revision answer has no commit (sha)")
    return commit


def parse_license(answer: Any) -> str:
    """The license in the same answer, such as `apache-2.0`; empty where none is stated.

    The card names one of the hub's list, `other` with a name of its own beside it; `tags` repeat the former.
    """
    if not isinstance(answer, dict):
        return ""
    card, tags = answer.get("cardData"), answer.get("tags")
    stated = card if isinstance(card, dict) else {}
    own = stated.get("license_name") if stated.get("license") == "other" else None
    tagged = (
        [tag.removeprefix("license:") for tag in tags if str(tag).startswith("license:")]
        if isinstance(tags, list)
        else []
    )
    found = next((one for one in (own, stated.get("license"), *tagged) if isinstance(one, str) and one), "")
    return found if found.isprintable() and len(found) <= _MAX_LICENSE else ""


def parse_tree_page(answer: Any) -> list[RepoFile]:
    """The files of one page of the tree API, directories left out."""
    if not isinstance(answer, list):
        raise _odd("the tree answer is not a list")
    return [_file(item) for item in answer if not (isinstance(item, dict) and item.get("type") == "directory")]


def _file(item: Any) -> RepoFile:
    if not isinstance(item, dict) or not isinstance(item.get("path"), str):
        raise _odd("an entry of the tree has no path")
    lfs = item.get("lfs")
    size = lfs.get("size") if isinstance(lfs, dict) else item.get("size")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= MAX_SIZE:
        raise _odd(f"the tree gives {item['path'][:200]!r} no usable size")
    if isinstance(lfs, dict):
        return RepoFile(item["path"], size, sha256=_hex(lfs.get("oid") or lfs.get("sha256"), _SHA256, item["path"]))
    return RepoFile(item["path"], size, git_sha1=_hex(item.get("oid"), _COMMIT, item["path"]))


def _hex(value: Any, pattern: re.Pattern[str], path: str) -> str:
    text = value.removeprefix("sha256:").lower() if isinstance(value, str) else ""
    if not pattern.match(text):
        raise _odd(f"the tree gives {path[:200]!r} no checksum")
    return text


def _odd(what: str) -> SourceError:
    return source_error(Reason.NOT_A_HUB, f"not a Hugging Face-compatible hub: {what}")
