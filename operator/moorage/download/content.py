"""One content to fetch: equal bytes are fetched once, however many paths want them."""

import hashlib
import os
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from moorage.download.pieces import LiveMap, Piece, PieceMap
from moorage.download.retry import Patience
from moorage.errors import SourceError
from moorage.sources import Reason, RepoFile, source_error

# Below this a file is one piece without state files: losing it costs less than keeping books.
SMALL = 8 << 20


@dataclass(frozen=True)
class Identity:
    """What the bytes must be: `size` and a published checksum. Its key names them on disk, whatever the branch."""

    size: int
    sha256: str | None
    git_sha1: str | None

    @property
    def key(self) -> str:
        """File name for these bytes."""
        return f"{self.sha256 or f'git-{self.git_sha1}'}-{self.size}"


class WrongBytes(SourceError):
    """Bytes that are not what they should be; `on_disk`: the volume has changed them, else they came so."""

    def __init__(self, reason: Reason, message: str, *, on_disk: bool) -> None:
        made = source_error(reason, message)
        super().__init__(made.reason, made.message, retryable=made.retryable)
        self.on_disk = on_disk


class Checksums:
    """Running checksums of a content: always sha256, and git's blob hash where that is what was published."""

    def __init__(self, identity: Identity) -> None:
        self._identity = identity
        self._sha256 = hashlib.sha256()
        self._git = None if identity.sha256 else hashlib.sha1(b"blob %d\0" % identity.size, usedforsecurity=False)

    def update(self, data: memoryview) -> None:
        """Go on with `data`."""
        self._sha256.update(data)
        if self._git:
            self._git.update(data)

    def copy(self) -> "Checksums":
        """A second one in the same state."""
        made = Checksums.__new__(Checksums)
        made._identity, made._sha256 = self._identity, self._sha256.copy()
        made._git = self._git.copy() if self._git else None
        return made

    @property
    def sha256(self) -> str:
        """Hex sha256 so far."""
        return self._sha256.hexdigest()

    @property
    def right(self) -> bool:
        """Whether these are the published bytes."""
        if self._git:
            return self._git.hexdigest() == self._identity.git_sha1
        return self.sha256 == self._identity.sha256


class Content:
    """The bytes of one identity on their way to the volume.

    Who may touch what: `pieces[i]` belongs to the thread that holds it (`busy`), everything else to the board's lock;
    `io` guards the file descriptor against being closed while it is synced.
    """

    def __init__(self, identity: Identity, paths: tuple[str, ...], url: str, patience: Patience) -> None:
        self.identity, self.paths, self.url = identity, paths, url
        self.patience = patience
        self.pieces: PieceMap | None = None
        self.live: LiveMap | None = None
        self.fd = -1
        self.io = threading.Lock()
        self.wanted = list(paths)
        self.found: Path | None = None
        self.sha256 = identity.sha256
        self.verified = False
        self.safe = 0
        self.location: str | None = None
        self.proven = False
        self.whole_only = False
        self.refetched = False
        self.active = 0
        self.not_before = 0.0
        self._first_open = 0

    @property
    def size(self) -> int:
        """Bytes."""
        return self.identity.size

    @property
    def small(self) -> bool:
        """Whether it is fetched without state files and checked by whoever fetched it."""
        return self.size <= SMALL

    @property
    def name(self) -> str:
        """The path to name in messages."""
        return self.paths[0]

    def free_piece(self) -> Piece | None:
        """The first piece that is neither complete nor somebody's."""
        pieces = self.pieces.pieces if self.pieces else []
        while self._first_open < len(pieces) and pieces[self._first_open].complete:
            self._first_open += 1
        return next((p for p in pieces[self._first_open :] if not p.busy and not p.complete), None)

    def reset(self, pieces: Iterable[Piece]) -> None:
        """Forget what is on disk of `pieces`."""
        for piece in pieces:
            piece.reset()
            self.note(piece)
        self._first_open = 0

    def note(self, piece: Piece) -> None:
        """Let the live map follow a piece."""
        if self.live:
            self.live.put(piece.index, piece.record)

    def close(self) -> None:
        """Close the file; its state stays."""
        with self.io:
            if self.fd >= 0:
                os.close(self.fd)
                self.fd = -1
            if self.live:
                self.live.close()
                self.live = None


def contents_of(files: Iterable[RepoFile], urls: Mapping[str, str], attempts: int) -> list[Content]:
    """Files grouped by identity, in the order of their first path."""
    paths: dict[Identity, list[str]] = {}
    for file in files:
        paths.setdefault(Identity(file.size, file.sha256, file.git_sha1), []).append(file.path)
    return [Content(i, tuple(names), urls[names[0]], Patience(attempts)) for i, names in paths.items()]
