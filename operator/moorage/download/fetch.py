"""Fetches ranges: one worker per connection, each asking the board what is next."""

import http.client
import os
import re
import time
from collections.abc import Callable

from isal.isal_zlib import crc32

from moorage.download.board import Board
from moorage.download.content import Checksums, Content
from moorage.download.pace import Bandwidth, SpeedFloor, StopError
from moorage.download.pieces import Piece, believe
from moorage.download.retry import CdnRefusal
from moorage.download.settings import Settings, Verify
from moorage.download.source import MAX_REDIRECTS, REDIRECTS, Source
from moorage.download.volume import Volume, storage
from moorage.download.walk import feed, mismatch, spoiled
from moorage.download.wire import Response, Wire
from moorage.errors import SourceError
from moorage.sources import Reason, same_origin, source_error
from moorage.sources.urls import redirect, without_query

_BUFFER = 512 << 10  # few system calls, and still in the L2 cache between socket and file
_CONTENT_RANGE = re.compile(r"^bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)$")
_STALE_LINK = (400, 401, 403, 404, 410)


class Worker:
    """One connection's worth of fetching; `run` is a thread's target."""

    def __init__(
        self,
        *,
        board: Board,
        wire: Wire,
        volume: Volume,
        source: Source,
        settings: Settings,
        bandwidth: Bandwidth,
        watch: Callable[[Content], None],
    ) -> None:
        self._board, self._wire, self._volume, self._source = board, wire, volume, source
        self._settings, self._bandwidth, self._watch = settings, bandwidth, watch
        self._buffer = memoryview(bytearray(_BUFFER))
        self._moved = 0

    def run(self) -> None:
        """Fetch until the board has nothing more."""
        while (job := self._board.next()) is not None:
            content, piece = job
            try:
                if piece is None:
                    piece = self._open(content)
                if piece is not None:
                    self._attempt(content, piece)
                if content.small:
                    self._check_small(content)
            except StopError:
                return
            except SourceError as error:
                self._board.fail(error, content.name)
            except Exception as error:
                self._board.defect(error, content.name)
            finally:
                self._board.finish(content, piece)

    def _open(self, content: Content) -> Piece | None:
        self._volume.open_part(content)
        content.patience.begin()
        if not content.small:
            self._watch(content)
        return self._board.opened(content)

    def _check_small(self, content: Content) -> None:
        """Verify and keep a small content once it is whole."""
        assert content.pieces is not None
        if not all(piece.complete for piece in content.pieces.pieces):
            return
        if self._settings.verify is Verify.FULL:
            sums = Checksums(content.identity)
            feed(sums, content, 0, content.size, self._buffer)
            if not sums.right:
                if content.refetched:
                    raise mismatch(content)
                content.refetched, content.location = True, None
                self._board.reset(content, content.pieces.pieces, mismatch(content))
                return
            content.sha256 = sums.sha256
        self._volume.keep(content)
        self._board.verified(content)

    # -- one attempt --------------------------------------------------------------------------------------------------

    def _attempt(self, content: Content, piece: Piece) -> None:
        """Fetch what is missing of `piece`; a failure goes to the board, which knows how often that may happen."""
        started, self._moved = time.monotonic(), 0
        try:
            self._settle(content, piece)
            if not piece.complete:
                self._fetch(content, piece)
        except SourceError as error:
            self._board.attempt_moved(content, self._moved, started, whole=False)
            self._board.attempt_failed(content, error, started)
        else:
            self._board.attempt_moved(content, self._moved, started, whole=True)

    def _settle(self, content: Content, piece: Piece) -> None:
        """Compare what an earlier run has left of a piece with the disk."""
        if piece.claims:
            with storage(content.name):
                kept = believe(content.fd, piece, self._buffer)
            content.note(piece)
            if not kept:
                self._board.reset(content, [piece], spoiled(content))

    def _fetch(self, content: Content, piece: Piece) -> None:
        start, end = piece.start + piece.done, piece.start + piece.size
        floor = SpeedFloor(self._settings.stall_timeout)
        with self._open_range(content, start, end) as answer:
            if answer.status == 206:
                self._body(content, piece, answer, floor)
                return
            self._whole(content, answer, floor)

    def _whole(self, content: Content, answer: Response, floor: SpeedFloor) -> None:
        """The server ignores ranges and sends the file from its beginning: drop what is there, write what is not."""
        if not self._board.only_whole(content):
            raise source_error(Reason.NETWORK, f"{content.name}: the server ignores ranges: one connection only")
        assert content.pieces is not None
        for piece in content.pieces.pieces:
            self._settle(content, piece)
            skip = piece.done
            while skip:
                skip -= self._read(answer, self._buffer[: min(skip, _BUFFER)], floor)
            self._body(content, piece, answer, floor)

    def _body(self, content: Content, piece: Piece, answer: Response, floor: SpeedFloor) -> None:
        """Write the rest of a piece from an answer that stands at its first missing byte."""
        (done, crc), fd = piece.record, content.fd
        portion = self._bandwidth.portion(_BUFFER)
        while done < piece.size:
            view = self._buffer[: min(portion, piece.size - done)]
            size = self._read(answer, view, floor)
            with storage(content.name):
                _write(fd, view[:size], piece.start + done)
            done, crc = done + size, crc32(view[:size], crc)
            piece.record = (done, crc)
            content.note(piece)
            self._moved += size
            if self._wire.stop.is_set():
                raise StopError
            self._bandwidth.take(size)

    def _read(self, answer: Response, view: memoryview, floor: SpeedFloor) -> int:
        """At least one byte into `view`; raises SourceError(Network, Stalled) or StopError."""
        begin = time.monotonic()
        try:
            size = answer.readinto(view, floor.patience)
        except TimeoutError:
            if self._wire.stop.is_set():
                raise StopError from None
            raise floor.error() from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise self._wire.failure(error, answer.url, answer.connection) from None
        if not size:
            raise self._wire.failure(ConnectionError("closed before the end"), answer.url, answer.connection)
        floor.read(size, time.monotonic() - begin)
        return size

    # -- the right answer ---------------------------------------------------------------------------------------------

    def _open_range(self, content: Content, start: int, end: int) -> Response:
        """A 206 for exactly [start, end), or a 200 that is the whole file; raises SourceError."""
        url, fresh = content.location or content.url, content.location is None
        for _ in range(MAX_REDIRECTS + 2):
            home = same_origin(url, self._source.home())
            headers = {"Range": f"bytes={start}-{end - 1}", **(self._source.access.sent() if home else {})}
            answer = self._wire.get(url, headers)
            try:
                if answer.status in (200, 206):
                    self._check(content, answer, start, end)
                    self._board.prove(content, None if url == content.url else url)
                    return answer
                if answer.status in REDIRECTS:
                    url = redirect(url, answer.headers.get("Location"))
                elif not fresh and answer.status in _STALE_LINK:
                    url, fresh = content.url, True  # the link has expired: ask for a new one
                else:
                    raise self._refusal(content, answer, linked=not home)
            except BaseException:
                answer.close()
                raise
            answer.close()
        raise source_error(Reason.UNEXPECTED_CONTENT, f"too many redirects: {content.name}")

    def _refusal(self, content: Content, answer: Response, *, linked: bool) -> SourceError:
        what, source = self._source.describe(content.name), self._source
        if not linked:
            return self._wire.refused(answer, what, access=source.access, repository=source.title)
        error = self._wire.refused(answer, f"{what}, by {without_query(answer.url)}", access=source.access)
        if answer.status in _STALE_LINK:
            return CdnRefusal(error.reason, error.message, retryable=False)
        return error

    def _check(self, content: Content, answer: Response, start: int, end: int) -> None:
        """Refuse an answer that is not the asked range of this file."""
        name, headers = content.name, answer.headers
        if (headers.get("Content-Encoding") or "identity") != "identity":
            raise _unexpected(f"{name}: the server compresses it")
        if answer.status == 200:
            page = (headers.get("Content-Type") or "").startswith("text/html")
            if page and answer.length != content.size:
                raise _unexpected(f"{name}: the server sent a web page instead of the file")
            if not answer.framed:
                raise source_error(Reason.NETWORK, f"connection broken: {name}: an answer without a length")
            if answer.length not in (None, content.size):
                raise _wrong_size(content, answer.length)
            return
        found = _CONTENT_RANGE.match(headers.get("Content-Range") or "")
        if not found:
            raise _unexpected(f"{name}: 206 without a usable Content-Range")
        first, last = int(found[1]), int(found[2])
        if found[3] not in (str(content.size), "*"):
            raise _wrong_size(content, int(found[3]))
        if (first, last) != (start, end - 1) or answer.length not in (None, end - start):
            raise _unexpected(f"{name}: asked for bytes {start}-{end - 1}, got {first}-{last}")


def _unexpected(text: str) -> SourceError:
    return source_error(Reason.UNEXPECTED_CONTENT, f"unexpected answer: {text}")


def _wrong_size(content: Content, size: int | None) -> SourceError:
    return source_error(
        Reason.SIZE_MISMATCH, f"size mismatch: {content.name} has {size} bytes, the repository says {content.size}"
    )


def _write(fd: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(fd, data, offset)
        data, offset = data[written:], offset + written
