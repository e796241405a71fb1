"""Repositories in a folder: `ROOT/<org>/<name>/` is branch main, `ROOT/<org>/<name>@<branch>/` another branch.

A commit is a stable hash of a branch's content, so equal content has equal commits on every machine. `ROOT/hub.json`
(optional, read again when it changes) adds what a folder cannot say:

    {"tokens": {"hf_secret": "alice"},
     "repos": {"org/name": {
         "private": true, "allow": ["alice"],           who may see it
         "gated": "manual", "granted": ["alice"],       who may fetch files ("gatedApi": true: and read metadata)
         "tags": ["license:mit"],                       what the metadata says beside
         "disabled": true, "xet": true,                 xet: send X-Xet-Hash as a mirror that copies headers does
         "refs": {"main": "v2"},                        branch main is the folder name@v2
         "files": {"big.gguf": {"size": 40000000, "seed": 1}},         made on the fly, on every branch
         "lies": {"x.bin": {"size": 5, "sha256": "00..", "path": "../x"}}   what the metadata says instead of the truth
     }}}
"""

import hashlib
import json
import os
import random
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BLOCK = 1 << 20
LFS_SUFFIXES = (".gguf", ".safetensors", ".bin", ".pt", ".onnx", ".h5")


class DiskFile:
    """Bytes of a real file."""

    def __init__(self, path: Path, size: int) -> None:
        self.path, self.size = path, size

    def read(self, start: int, length: int) -> bytes:
        with self.path.open("rb") as handle:
            return os.pread(handle.fileno(), length, start)

    def chunks(self, start: int, length: int) -> Iterator[bytes | memoryview]:
        with self.path.open("rb") as handle:
            while length > 0:
                data = os.pread(handle.fileno(), min(BLOCK, length), start)
                if not data:
                    return
                yield data
                start, length = start + len(data), length - len(data)


class SyntheticFile:
    """Bytes made from a seed: one random block repeated, each copy beginning with its own number."""

    def __init__(self, size: int, seed: int) -> None:
        self.size = size
        self._block = random.Random(seed).randbytes(BLOCK)

    def chunks(self, start: int, length: int) -> Iterator[bytes | memoryview]:
        end = min(start + length, self.size)
        while start < end:
            number, offset = divmod(start, BLOCK)
            take = min(BLOCK - offset, end - start)
            block = struct.pack(">Q", number) + memoryview(self._block)[8:] if offset < 8 else self._block
            yield memoryview(block)[offset : offset + take]
            start += take

    def read(self, start: int, length: int) -> bytes:
        return b"".join(self.chunks(start, length))


@dataclass
class Entry:
    """One file of a revision as the metadata describes it; `content` is what is really sent."""

    path: str
    size: int
    sha256: str
    oid: str
    lfs: bool
    content: DiskFile | SyntheticFile

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.oid

    def as_tree(self, *, xet: bool) -> dict[str, Any]:
        entry: dict[str, Any] = {"type": "file", "path": self.path, "size": self.size, "oid": self.oid}
        if self.lfs:
            entry["lfs"] = {"oid": self.sha256, "size": self.size, "pointerSize": 134}
            if xet:
                entry["xetHash"] = hashlib.sha256(b"xet" + self.sha256.encode()).hexdigest()
        return entry


@dataclass
class Revision:
    """All files of one branch and the commit that names them."""

    commit: str
    entries: dict[str, Entry]
    seen: float = field(default_factory=time.monotonic)


class Store:
    """Looks up repositories, revisions and people; safe for many threads."""

    def __init__(self, root: Path, *, lfs_threshold: int = 10 << 20, rescan: float = 1.0) -> None:
        self.root = Path(root)
        self.lfs_threshold = lfs_threshold
        self.rescan = rescan
        self._lock = threading.RLock()
        self._revisions: dict[Path, Revision] = {}
        self._hashes: dict[tuple[Any, ...], tuple[str, str]] = {}
        self._config: dict[str, Any] = {}
        self._config_stamp = -1

    def refresh(self) -> None:
        """Forget what was scanned: the next request sees the folder as it is."""
        with self._lock:
            self._revisions.clear()
            self._config_stamp = -1

    @property
    def config(self) -> dict[str, Any]:
        path = self.root / "hub.json"
        with self._lock:
            try:
                stamp = path.stat().st_mtime_ns
            except FileNotFoundError:
                return {}
            if stamp != self._config_stamp:
                self._config, self._config_stamp = json.loads(path.read_text()), stamp
            return self._config

    def repo(self, repo: str) -> dict[str, Any] | None:
        """The configuration of `repo`, {} where it has none, None where there is no such repository."""
        config = self.config.get("repos", {}).get(repo)
        if config is not None:
            return config
        safe = ".." not in repo.split("/") and "@" not in repo
        return {} if safe and (self.root / repo).is_dir() else None

    def branches(self, repo: str) -> dict[str, Path]:
        """Branch name -> folder."""
        base = self.root / repo
        found = {"main": base}
        for folder in base.parent.glob(f"{base.name}@*") if base.parent.is_dir() else []:
            found[folder.name.split("@", 1)[1]] = folder
        for branch, target in (self.repo(repo) or {}).get("refs", {}).items():
            found[branch] = base if target == "main" else base.with_name(f"{base.name}@{target}")
        return found

    def revision(self, repo: str, name: str) -> Revision | None:
        """The revision called `name`: a branch, a commit or `refs/heads/<branch>`."""
        branches = self.branches(repo)
        branch = name.removeprefix("refs/heads/")
        if branch in branches:
            return self._scan(repo, branches[branch])
        every = {self.root / repo, *branches.values()}
        return next((r for r in (self._scan(repo, f) for f in every) if r.commit == name), None)

    def _scan(self, repo: str, folder: Path) -> Revision:
        with self._lock:
            known = self._revisions.get(folder)
            if known and time.monotonic() - known.seen < self.rescan:
                return known
            entries = {e.path: e for e in self._entries(repo, folder)}
            text = "".join(f"{e.path}\0{e.size}\0{e.sha256}\n" for _, e in sorted(entries.items()))
            revision = Revision(hashlib.sha1(text.encode("utf-8", "surrogatepass")).hexdigest(), entries)
            self._revisions[folder] = revision
            return revision

    def _entries(self, repo: str, folder: Path) -> Iterator[Entry]:
        config = self.repo(repo) or {}
        lies = config.get("lies", {})
        for path in sorted(p for p in folder.rglob("*") if p.is_file()) if folder.is_dir() else []:
            name = str(path.relative_to(folder))
            stat = path.stat()
            key = (str(path), stat.st_size, stat.st_mtime_ns)
            yield self._entry(name, DiskFile(path, stat.st_size), key, lies.get(name, {}))
        for name, made in config.get("files", {}).items():
            content = SyntheticFile(made["size"], made.get("seed", 0))
            yield self._entry(name, content, ("seed", made["size"], made.get("seed", 0)), lies.get(name, {}))

    def _entry(self, name: str, content: DiskFile | SyntheticFile, key: tuple[Any, ...], lie: dict[str, Any]) -> Entry:
        lfs = content.size >= self.lfs_threshold or name.endswith(LFS_SUFFIXES)
        known = ("-", "-") if "sha256" in lie else self._hashes.get(key)
        if known is None:
            known = self._hashes[key] = hash_content(content)
        sha256, oid = lie.get("sha256", known[0]), lie.get("oid", known[1])
        size = lie.get("size", content.size)
        if lfs:
            pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
            oid = hashlib.sha1(b"blob %d\0" % len(pointer) + pointer).hexdigest()
        return Entry(lie.get("path", name), size, sha256, oid, lfs, content)


def hash_content(content: DiskFile | SyntheticFile) -> tuple[str, str]:
    """sha256 and git blob sha1."""
    sha256, sha1 = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % content.size)
    for chunk in content.chunks(0, content.size):
        sha256.update(chunk)
        sha1.update(chunk)
    return sha256.hexdigest(), sha1.hexdigest()
