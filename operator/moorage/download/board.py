"""Who fetches what next, what became of it, and when all is done or lost. Safe for many threads."""

import threading
import time
from collections import deque

from moorage.download.content import Content
from moorage.download.pace import FLOOR_BYTES_PER_SECOND, StopError
from moorage.download.pieces import Piece
from moorage.download.progress import Progress
from moorage.errors import SourceError
from moorage.sources import Reason, source_error

_PROGRESS_BYTES = 256 << 10


class Board:
    """The contents of one run. One lock for all: it is held for bookkeeping only, never while bytes move."""

    def __init__(self, contents: list[Content], connections: int, stop: threading.Event, progress: Progress) -> None:
        self._changed = threading.Condition()
        self._waiting = deque(contents)
        self._open: list[Content] = []
        self._left = len(contents)
        self._most_open = connections + 4
        self._stop = stop
        self._progress = progress
        self.error: SourceError | None = None
        self.failed_file: str | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing is left to be done, or nothing can be."""
        return self._left == 0 or self._stop.is_set()

    def open_contents(self) -> list[Content]:
        """Contents being fetched or checked now."""
        with self._changed:
            return list(self._open)

    def fetching(self) -> bool:
        """Whether bytes are still missing anywhere."""
        with self._changed:
            return bool(self._waiting) or any(c.active or c.free_piece() for c in self._open)

    def next(self) -> tuple[Content, Piece | None] | None:
        """The next thing to fetch; a content without a piece is to be opened first. None: nothing more will come."""
        with self._changed:
            while not self.ended:
                now = time.monotonic()
                for content in self._open:
                    piece = self._claim(content, now)
                    if piece:
                        return content, piece
                if self._waiting and len(self._open) < self._most_open:
                    content = self._waiting.popleft()
                    self._open.append(content)
                    content.active = 1
                    return content, None
                due = min((c.not_before for c in self._open if c.not_before > now), default=now + 1)
                self._changed.wait(min(1.0, due - now) + 0.001)
        return None

    def _claim(self, content: Content, now: float) -> Piece | None:
        alone = not content.proven or content.whole_only
        if content.not_before > now or (alone and content.active):
            return None
        piece = content.free_piece()
        if piece:
            piece.busy = True
            content.active += 1
        return piece

    def opened(self, content: Content) -> Piece | None:
        """The first piece for whoever opened `content`, None where all claim to be there."""
        with self._changed:
            piece = content.free_piece()
            if piece:
                piece.busy = True
            return piece

    def prove(self, content: Content, location: str | None) -> None:
        """The first answer was right: others may join, straight at `location`."""
        with self._changed:
            content.location = location
            if not content.proven and not content.whole_only:
                content.proven = True
                self._changed.notify_all()

    def only_whole(self, content: Content) -> bool:
        """The server ignores ranges: from now on one at a time. True where the caller is that one."""
        with self._changed:
            content.whole_only, content.proven = True, False
            return content.active == 1

    def finish(self, content: Content, piece: Piece | None) -> None:
        """Done with a piece, whole or not."""
        with self._changed:
            if piece:
                piece.busy = False
            content.active -= 1
            self._changed.notify_all()

    def attempt_failed(self, content: Content, error: SourceError, started: float) -> None:
        """An attempt failed: later again, or never."""
        with self._changed:
            content.proven = False
            self._progress.failed(error, content.name)
            try:
                delay = content.patience.after(error, started)
            except SourceError:
                self.fail(error, content.name)
                return
            content.not_before = time.monotonic() + delay
            self._changed.notify_all()

    def attempt_moved(self, content: Content, moved: int, started: float, *, whole: bool) -> None:
        """An attempt brought `moved` bytes; few and slow ones are no progress, so that a dripping server has an end."""
        enough = max(_PROGRESS_BYTES, FLOOR_BYTES_PER_SECOND * (time.monotonic() - started))
        if whole or moved >= enough:
            with self._changed:
                content.patience.progressed()

    def fail(self, error: SourceError, file: str | None) -> None:
        """Nothing more can be won: everybody stops."""
        with self._changed:
            if self.error is None and not self._stop.is_set():
                self.error, self.failed_file = error, file
            self._stop.set()
            self._changed.notify_all()

    def defect(self, error: Exception, file: str | None) -> None:
        """A thread has come to an end that nobody thought of: better a reason than a run that waits for ever."""
        text = f"defect in Moorage: {type(error).__name__}: {error}"
        self.fail(source_error(Reason.INTERNAL_ERROR, text), file)

    def verified(self, content: Content) -> None:
        """A content is complete and right."""
        with self._changed:
            content.verified, content.safe = True, content.size
            if content in self._open:
                self._open.remove(content)
            self._left -= 1
            self._progress.file_done(content)
            self._changed.notify_all()

    def reset(self, content: Content, pieces: list[Piece], why: SourceError) -> None:
        """What is on disk of `pieces` is wrong: they are fetched again."""
        with self._changed:
            self._progress.failed(why, content.name)
            content.reset(pieces)
            content.patience.progressed()
            self._changed.notify_all()

    def wait_for(self, piece: Piece) -> None:
        """Return when nothing is missing of `piece`; raises StopError."""
        with self._changed:
            while piece.busy or not piece.complete:
                if self._stop.is_set():
                    raise StopError
                self._changed.wait(1.0)

    def wait_ended(self, timeout: float) -> bool:
        """Whether the run has ended, looked at for at most `timeout` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: self.ended, timeout)

    def wake(self) -> None:
        """Let everybody look again, such as after `stop` was set."""
        with self._changed:
            self._changed.notify_all()
