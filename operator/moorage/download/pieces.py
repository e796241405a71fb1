"""The piece map of a file: which bytes are on disk, and a crc32 to know them by.

Two files hold it, in one format: `.state` is written at least once a second, after the data has been synced, so it
never says more than the disk holds; `.live` is a memory mapping that follows every write, so that a killed process
loses nothing. After a power failure `.live` may be ahead of the data: a piece is believed only as far as its bytes on
disk have the recorded crc, as `.live` says or else as `.state` says.

Format: one line of JSON (version, key, size, layout), padded with spaces to 256 bytes; then per piece two little-
endian 32-bit numbers: bytes done from the start of the piece, and their crc32.
"""

import json
import mmap
import os
import struct
from dataclasses import astuple, dataclass
from pathlib import Path

from isal.isal_zlib import crc32

MIB = 1 << 20
LARGEST_PIECE = 64 * MIB
SMALLEST_PIECE = MIB
_HEAD = 256
_RECORD = struct.Struct("<II")
_EMPTY = (0, 0)

Record = tuple[int, int]


class Piece:
    """One span of a file.

    `record` is (bytes done, crc32 of them) and is replaced as a whole, so that other threads never see half of it.
    `claims` are records from an earlier run, not yet compared with the disk.
    """

    __slots__ = ("busy", "claims", "index", "record", "size", "start")

    def __init__(self, index: int, start: int, size: int) -> None:
        self.index, self.start, self.size = index, start, size
        self.record: Record = _EMPTY
        self.claims: tuple[Record, ...] = ()
        self.busy = False

    @property
    def done(self) -> int:
        """Bytes on disk, believed or claimed."""
        return self.claims[-1][0] if self.claims else self.record[0]

    @property
    def complete(self) -> bool:
        """Whether nothing is missing, as far as is known."""
        return self.done == self.size

    def reset(self) -> None:
        """Nothing of it is on disk."""
        self.record, self.claims = _EMPTY, ()


@dataclass(frozen=True)
class Layout:
    """How a file is cut: pieces of `each` bytes, from `tail` on of `last` bytes."""

    each: int
    tail: int
    last: int

    def starts(self, size: int) -> list[int]:
        """Offsets of the pieces of a file of `size` bytes."""
        return [*range(0, min(self.tail, size), self.each), *range(self.tail, size, self.last)]

    @property
    def sound(self) -> bool:
        """Whether it can be; state files are not believed blindly."""
        return 0 < self.last <= self.each <= LARGEST_PIECE and self.tail >= 0 and self.tail % self.each == 0


def layout(size: int, connections: int) -> Layout:
    """Pieces for `size` bytes over `connections`: none over 64 MiB or (but for the last) under 1 MiB.

    Rounds are even, so that the connections finish together. The pieces of the last round arrive at one time and can
    be hashed only then, and one slow connection makes all wait: where they are large they are cut into four.
    """
    rounds = -(-size // (LARGEST_PIECE * connections)) or 1
    wanted = -(-size // (rounds * connections))
    each = min(LARGEST_PIECE, max(SMALLEST_PIECE, -(-wanted // 65536) * 65536))
    if each < 16 * MIB:
        return Layout(each, -(-size // each) * each, each)
    return Layout(each, (rounds - 1) * connections * each, each // 4)


class PieceMap:
    """All pieces of one file of `size` bytes, in order."""

    def __init__(self, key: str, size: int, cut: Layout) -> None:
        self.key, self.size, self.layout = key, size, cut
        starts = cut.starts(size)
        ends = [*starts[1:], size]
        self.pieces = [Piece(i, start, end - start) for i, (start, end) in enumerate(zip(starts, ends, strict=False))]

    def records(self) -> list[Record]:
        """What is believed or claimed of each piece now."""
        return [piece.claims[-1] if piece.claims else piece.record for piece in self.pieces]

    def encode(self, records: list[Record]) -> bytes:
        """`records` as the contents of a state file."""
        head = json.dumps({"version": 1, "key": self.key, "size": self.size, "layout": astuple(self.layout)})
        return head.encode().ljust(_HEAD - 1) + b"\n" + b"".join(_RECORD.pack(*record) for record in records)

    @classmethod
    def load(cls, key: str, size: int, state: Path, live: Path) -> "PieceMap | None":
        """The map of an earlier run, nothing believed yet; None where neither file can be used."""
        found = [m for m in (_parse(key, size, state), _parse(key, size, live)) if m is not None]
        if not found:
            return None
        made = cls(key, size, found[0][0])
        for piece in made.pieces:
            claims = {records[piece.index] for cut, records in found if cut == made.layout}
            piece.claims = tuple(sorted(c for c in claims if 0 < c[0] <= piece.size))
        return made


def _parse(key: str, size: int, path: Path) -> tuple[Layout, list[Record]] | None:
    """Layout and records of a state file; None where it is missing, torn or about another file."""
    try:
        raw = path.read_bytes()
        head = json.loads(raw[:_HEAD])
        cut = Layout(*map(int, head["layout"]))
        if (head["version"], head["key"], head["size"]) != (1, key, size) or not cut.sound:
            return None
        if len(raw) - _HEAD != len(cut.starts(size)) * _RECORD.size:
            return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return cut, list(_RECORD.iter_unpack(raw[_HEAD:]))


class LiveMap:
    """The `.live` file: a mapping of the records that outlives the process."""

    def __init__(self, path: Path, pieces: PieceMap) -> None:
        fresh = path.with_name(path.name + ".new")
        fresh.unlink(missing_ok=True)
        with fresh.open("x+b") as file:
            file.write(pieces.encode(pieces.records()))
            file.flush()
            self._map = mmap.mmap(file.fileno(), 0)
        fresh.replace(path)

    def put(self, index: int, record: Record) -> None:
        """Follow the record of the piece with this index."""
        _RECORD.pack_into(self._map, _HEAD + index * _RECORD.size, *record)

    def close(self) -> None:
        """Unmap; the file stays."""
        self._map.close()


def believe(fd: int, piece: Piece, buffer: memoryview) -> bool:
    """Compare the claims of a piece with the disk and keep the largest that holds; whether any did."""
    crc, position, best = 0, 0, _EMPTY
    for claim in piece.claims:
        crc = crc_of(fd, piece.start + position, claim[0] - position, buffer, crc)
        position = claim[0]
        if crc == claim[1]:
            best = claim
    piece.record, piece.claims = best, ()
    return best is not _EMPTY


def crc_of(fd: int, start: int, length: int, buffer: memoryview, crc: int = 0) -> int:
    """crc32 of `length` bytes at `start`, going on from `crc`; where the file ends early the result is of less."""
    while length > 0:
        got = os.preadv(fd, [buffer[: min(length, len(buffer))]], start)
        if not got:
            return crc ^ 0xFFFFFFFF
        crc = crc32(buffer[:got], crc)
        start, length = start + got, length - got
    return crc
