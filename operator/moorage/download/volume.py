"""The folder on the volume: who may write, how much room there is, where bytes lie until they are published.

DEST/<commit>/...                      published by one rename: what lies there is complete, always
DEST/<commit>/manifest.json            what it is
DEST/.moorage/lock                     held (flock) by the one run that may write
DEST/.moorage/parts/<key>[.state|.live]   bytes on their way, and what is known of them
DEST/.moorage/files/<key>              verified bytes that wait for the others
DEST/.moorage/stage-<commit>/          the tree being put together
"""

import ctypes
import errno
import fcntl
import json
import os
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from moorage.download.content import Content, Identity
from moorage.download.pieces import Layout, LiveMap, PieceMap, layout
from moorage.errors import SourceError
from moorage.planning import text
from moorage.sources import Reason, source_error
from moorage.sources.files import STAGE_FOLDER, check_name

MANIFEST = "manifest.json"
OWN_MANIFEST = ".moorage-manifest.json"  # where the repository itself has a manifest.json
_FULL = (errno.ENOSPC, errno.EDQUOT)
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
_RESERVE = 4 << 20
_libc = ctypes.CDLL(None, use_errno=True)


def storage_error(error: OSError, name: str = "") -> SourceError:
    """A failed file operation as a SourceError; `name` is the file of the repository it was about."""
    about, why = f" for {name}" if name else "", error.strerror or str(error)
    if error.errno in _FULL:
        return source_error(
            Reason.INSUFFICIENT_STORAGE,
            f"no space left on the volume{about} ({why}): something else has filled it, or it has a quota",
        )
    return source_error(Reason.STORAGE_ERROR, f"the volume cannot be used{about}: {why}")


@contextmanager
def storage(name: str = "") -> Iterator[None]:
    """Turn OSError of file operations into SourceError; `name` is the file of the repository they are about."""
    try:
        yield
    except OSError as error:
        raise storage_error(error, name) from error


class Volume:
    """DEST and what this run keeps there for `commit`."""

    def __init__(self, dest: Path, commit: str) -> None:
        self.dest, self.commit = dest, commit
        self.home = dest / STAGE_FOLDER
        self.parts, self.files = self.home / "parts", self.home / "files"
        self.published = dest / commit
        self._lock_fd = -1

    @property
    def target(self) -> Path:
        """Where paths go: the published folder once there is one, else the stage."""
        return self.published if self.published.is_dir() else self.home / f"stage-{self.commit}"

    def open(self, lock_wait: float, stopped: Any) -> None:
        """Make the folders and take the lock; raises SourceError(VolumeBusy) after `lock_wait` seconds."""
        with storage():
            self._make_folders(self.home)
            self._lock_fd = os.open(self.home / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        deadline = time.monotonic() + lock_wait
        while not self._try_lock():
            if time.monotonic() >= deadline or stopped.wait(0.2):
                raise source_error(Reason.VOLUME_BUSY, "another download is writing to this folder of the volume")
        with storage():  # only now: the run before us may have been tidying up
            self._make_folders(self.parts, self.files)

    def close(self) -> None:
        """Let another run write."""
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    def _make_folders(self, *folders: Path) -> None:
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
            if folder.is_symlink():
                raise OSError(errno.ELOOP, f"{folder.name} is a symbolic link")

    def _try_lock(self) -> bool:
        try:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise storage_error(error) from error
            # One Job per target is the rule; where the file system has no locks the checksums are the net below it.
        return True

    def free(self) -> int:
        """Bytes that an unprivileged process may still write."""
        with storage():
            room = os.statvfs(self.dest)
            return room.f_bavail * room.f_frsize

    def sweep(self, keys: set[str]) -> None:
        """Remove partial and waiting files that the plan does not want, and other commits' stages."""
        with storage():
            (self.home / "placing").unlink(missing_ok=True)
            for path in [*self.parts.iterdir(), *self.files.iterdir()]:
                if path.name.removesuffix(".state").removesuffix(".live") not in keys:
                    path.unlink()
            for stage in self.home.glob("stage-*"):
                if stage.name != f"stage-{self.commit}":
                    shutil.rmtree(stage)

    # -- parts --------------------------------------------------------------------------------------------------------

    def part(self, content: Content) -> Path:
        """Where its bytes arrive."""
        return self.parts / content.identity.key

    def load(self, content: Content, connections: int) -> None:
        """Give `content` its piece map: the one of an earlier run, else an empty one."""
        key, size, part = content.identity.key, content.size, self.part(content)
        if content.small:
            content.pieces = PieceMap(key, size, Layout(max(1, size), size, 1))
            return
        state, live = part.with_name(key + ".state"), part.with_name(key + ".live")
        known = PieceMap.load(key, size, state, live) if part.exists() else None
        content.pieces = known or PieceMap(key, size, layout(size, connections))
        content.safe = sum(record[0] for record in content.pieces.records())

    def allocated(self, content: Content) -> int:
        """Bytes of the volume that its part already holds."""
        try:
            return min(content.size, self.part(content).stat().st_blocks * 512)
        except FileNotFoundError:
            return 0

    def check_room(self, contents: list[Content]) -> None:
        """Make sure that everything fits, before the first byte; raises SourceError(InsufficientStorage)."""
        missing = sum(c.size - self.allocated(c) for c in contents)
        needed, free = missing + (_RESERVE if missing else 0) + 4096 * len(contents), self.free()
        if missing and needed > free:
            more, there = _sizes(needed, free)
            raise source_error(
                Reason.INSUFFICIENT_STORAGE,
                f"no space left on the volume: the files need {more} more, the volume has {there} free",
            )

    def allocate(self, content: Content) -> None:
        """Take the room of a large content now, so that nobody else can."""
        if content.small:
            return
        path = self.part(content)
        with storage(content.name):
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
            try:
                # Not os.posix_fallocate: where the file system cannot, glibc would write every block instead.
                if (
                    _libc.fallocate(fd, 0, ctypes.c_long(0), ctypes.c_long(content.size))
                    and ctypes.get_errno() in _FULL
                ):
                    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
                os.ftruncate(fd, content.size)
            finally:
                os.close(fd)

    def open_part(self, content: Content) -> None:
        """Open the part for writing and, for a large content, its live map."""
        path = self.part(content)
        with storage(content.name), content.io:
            content.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
            os.ftruncate(content.fd, content.size)
            if not content.small and content.pieces:
                content.live = LiveMap(path.with_name(path.name + ".live"), content.pieces)

    def save(self, content: Content) -> None:
        """Data to disk, then the state that tells of it; sets `content.safe`."""
        path = self.part(content)
        with storage(content.name), content.io:
            if content.fd < 0 or content.pieces is None:
                return
            records = content.pieces.records()
            os.fdatasync(content.fd)
            write_durably(path.with_name(path.name + ".state"), content.pieces.encode(records))
        content.safe = sum(record[0] for record in records)

    def keep(self, content: Content) -> None:
        """Its bytes are verified: sync them and move them to where they wait for the others."""
        path = self.part(content)
        with storage(content.name):
            with content.io:
                os.fdatasync(content.fd)
            content.close()
            content.found = self.files / path.name
            path.replace(content.found)
            if not content.small:
                _sync(self.files)  # a power failure must not take the name and leave the state's removal
            for suffix in (".state", ".live"):
                path.with_name(path.name + suffix).unlink(missing_ok=True)

    # -- publication --------------------------------------------------------------------------------------------------

    def candidates(self, identity: Identity) -> Iterator[Path]:
        """Files of an earlier run that may hold these bytes: waiting ones, and those of other published commits."""
        yield self.files / identity.key
        yield from self._elsewhere.get(identity.key, ())

    @cached_property
    def _elsewhere(self) -> dict[str, list[Path]]:
        """The files of other published commits by key, as their manifests say; read once for all files."""
        found: dict[str, list[Path]] = {}
        for manifest in sorted(self.dest.glob("*/*manifest.json")):
            if manifest.parent == self.published or manifest.name not in (MANIFEST, OWN_MANIFEST):
                continue
            for file in read_manifest(manifest).get("files", []):
                git = file.get("gitSha1")
                identity = Identity(file.get("sizeBytes", -1), None if git else file.get("sha256"), git)
                with suppress(SourceError):
                    check_name(str(file.get("path")))
                    found.setdefault(identity.key, []).append(manifest.parent / str(file["path"]))
        return found

    def place(self, content: Content) -> None:
        """Put verified bytes at every path that wants them."""
        source = content.found
        if source is None:
            return
        own = source.parent == self.files
        while content.wanted:
            path = self.target / content.wanted[-1]
            with storage(content.wanted[-1]):
                self._make_parents(path)
                self._put(source, path, move=own and len(content.wanted) == 1)
            content.wanted.pop()

    def _make_parents(self, path: Path) -> None:
        """Make the folders of a path below the target, following no link out of it."""
        self.target.mkdir(exist_ok=True)
        folder = self.target
        for part in path.relative_to(self.target).parts[:-1]:
            folder /= part
            if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
                folder.unlink()
            folder.mkdir(exist_ok=True)

    def _put(self, source: Path, path: Path, *, move: bool) -> None:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        fresh = self.home / "placing"
        fresh.unlink(missing_ok=True)
        if move:
            fresh = source
        else:
            try:
                os.link(source, fresh, follow_symlinks=False)
            except OSError:  # no hard links on this file system
                shutil.copyfile(source, fresh)
                _sync(fresh)
        fresh.chmod(0o644)
        fresh.replace(path)

    def publish(self, manifest: dict[str, Any]) -> None:
        """Write the manifest and give the tree its name; nothing is visible at DEST/<commit> before."""
        target = self.target
        with storage():
            target.mkdir(exist_ok=True)
            name = manifest_name(f["path"] for f in manifest["files"])
            write_durably(target / name, json.dumps(manifest, indent=1, ensure_ascii=False).encode() + b"\n")
            for folder, _, _ in os.walk(target):
                _sync(Path(folder))
            if target != self.published:
                target.rename(self.published)
            _sync(self.dest)

    def tidy(self) -> None:
        """Nothing waits any more."""
        for used in (self.parts, self.files):
            shutil.rmtree(used, ignore_errors=True)


def _sizes(needed: int, free: int) -> tuple[str, str]:
    """Both as people read them; to the byte where they would read alike."""
    short = text.size(needed), text.size(free)
    return short if short[0] != short[1] else (f"{needed:,} bytes", f"{free:,} bytes")


def manifest_name(paths: Any) -> str:
    """The name of our manifest beside files at `paths`."""
    return OWN_MANIFEST if MANIFEST in set(paths) else MANIFEST


def read_manifest(path: Path) -> dict[str, Any]:
    """A manifest of ours; {} for anything else."""
    try:
        found = json.loads(path.read_bytes()) if path.stat().st_size < 64 << 20 else {}
    except (OSError, ValueError):
        return {}
    files = found.get("files") if isinstance(found, dict) and found.get("moorage") == 1 else None
    return found if isinstance(files, list) and all(isinstance(f, dict) for f in files) else {}


def is_plain_file(path: Path, size: int) -> bool:
    """Whether a regular file (no link) of `size` bytes lies at `path`."""
    with suppress(OSError):
        found = path.lstat()
        return stat.S_ISREG(found.st_mode) and found.st_size == size
    return False


def write_durably(path: Path, data: bytes) -> None:
    """Replace a file as a whole: the old contents or the new, also after a power failure."""
    fresh = path.with_name(path.name + ".new")
    with open(fresh, "wb", opener=no_follow) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)


def no_follow(path: str, flags: int) -> int:
    """An opener that refuses symbolic links."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o644)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
