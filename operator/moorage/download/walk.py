"""Reads what was written, in order: hashes it, compares claims of an earlier run, tells disk from network faults."""

import os
import threading
from pathlib import Path

from moorage.download.board import Board
from moorage.download.content import Checksums, Content, Identity, WrongBytes
from moorage.download.pace import StopError
from moorage.download.pieces import Piece, believe, crc_of
from moorage.download.settings import Verify
from moorage.download.volume import Volume, is_plain_file, storage, storage_error
from moorage.errors import SourceError
from moorage.sources import Reason, source_error

_BUFFER = 512 << 10
_MOST_DISK_REPAIRS = 3


def hash_file(path: Path, identity: Identity, stop: threading.Event) -> Checksums:
    """Checksums of a whole file; raises SourceError(StorageError) or StopError."""
    sums, buffer = Checksums(identity), memoryview(bytearray(_BUFFER))
    with storage(path.name), path.open("rb", buffering=0) as file:
        while got := file.readinto(buffer):
            sums.update(buffer[:got])
            if stop.is_set():
                raise StopError
    return sums


def good_file(path: Path, content: Content, verify: Verify, stop: threading.Event) -> bool:
    """Whether the right bytes lie at `path`, as far as `verify` asks; fills in the content's sha256."""
    if not is_plain_file(path, content.size):
        return False
    if verify is not Verify.FULL:
        return True
    sums = hash_file(path, content.identity, stop)
    content.sha256 = sums.sha256 if sums.right else content.sha256
    return sums.right


def feed(sums: Checksums, content: Content, start: int, size: int, buffer: memoryview) -> None:
    """Go on with `size` bytes of the open part from `start`; raises SourceError(StorageError)."""
    while size:
        view = buffer[: min(len(buffer), size)]
        with storage(content.name):
            got = os.preadv(content.fd, [view], start)
        if not got:
            raise source_error(Reason.STORAGE_ERROR, f"the volume lost bytes of {content.name}")
        sums.update(view[:got])
        start, size = start + got, size - got


class Walker:
    """Follows the pieces of one content to its end; `run` is a thread's target."""

    def __init__(self, content: Content, board: Board, volume: Volume, verify: Verify) -> None:
        self._content, self._board, self._volume, self._verify = content, board, volume, verify
        self._buffer = memoryview(bytearray(_BUFFER))
        self._repairs = 0

    def run(self) -> None:
        """Verify and keep the content, having pieces fetched again as needed; failures go to the board."""
        content = self._content
        try:
            while not self.check():
                continue
            self._volume.keep(content)
            self._board.verified(content)
        except StopError:
            return
        except SourceError as error:
            self._board.fail(error, content.name)
        except OSError as error:
            self._board.fail(storage_error(error, content.name), content.name)
        except Exception as error:
            self._board.defect(error, content.name)

    def check(self) -> bool:
        """Read it once from the beginning, waiting for pieces; False where something must be fetched again."""
        content = self._content
        assert content.pieces is not None
        sums = Checksums(content.identity)
        for piece in content.pieces.pieces:
            self._board.wait_for(piece)
            while piece.claims and not self._settle(piece):
                self._board.wait_for(piece)
            if self._verify is Verify.FULL:
                feed(sums, content, piece.start, piece.size, self._buffer)
        if self._verify is not Verify.FULL or sums.right:
            content.sha256 = sums.sha256 if self._verify is Verify.FULL else content.sha256
            return True
        self._repair(content.pieces.pieces)
        return False

    def _settle(self, piece: Piece) -> bool:
        """Compare a piece of an earlier run with the disk; False: it has to be fetched again."""
        content = self._content
        believe(content.fd, piece, self._buffer)
        content.note(piece)
        if piece.complete:
            return True
        self._board.reset(content, [piece], spoiled(content))
        return False

    def _repair(self, pieces: list[Piece]) -> None:
        """The checksum is wrong: blame the disk where it returns other bytes than were written, else the network."""
        content = self._content
        changed = [p for p in pieces if crc_of(content.fd, p.start, p.size, self._buffer) != p.record[1]]
        if changed:
            self._repairs += 1
            if self._repairs > _MOST_DISK_REPAIRS:
                raise spoiled(content)
        elif content.refetched:
            raise mismatch(content)
        else:
            content.refetched, content.location = True, None
        self._board.reset(content, changed or pieces, spoiled(content) if changed else mismatch(content))


def mismatch(content: Content) -> SourceError:
    """The bytes are wrong, the second time too."""
    expected = content.identity.sha256 or f"git blob {content.identity.git_sha1}"
    text = f"checksum mismatch: {content.name} is not the published {expected}, fetched twice"
    return WrongBytes(Reason.CHECKSUM_MISMATCH, text, on_disk=False)


def spoiled(content: Content) -> SourceError:
    """The volume has not kept what was written."""
    text = f"the volume returns other bytes than were written: {content.name}"
    return WrongBytes(Reason.STORAGE_ERROR, text, on_disk=True)
