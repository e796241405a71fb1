"""Saves state once a second: data to disk first, then the state that tells of it."""

import threading
import time

from moorage.download.board import Board
from moorage.download.progress import Progress
from moorage.download.volume import Volume
from moorage.errors import SourceError

INTERVAL_SECONDS = 0.9


class Saver:
    """`run` is a thread's target; `save` may be called by anyone."""

    def __init__(self, board: Board, volume: Volume, progress: Progress, done: threading.Event) -> None:
        self._board, self._volume, self._progress, self._done = board, volume, progress, done
        self._saved: dict[str, int] = {}

    def run(self) -> None:
        """Save until the run is done."""
        due = time.monotonic()
        while True:
            due = max(time.monotonic() - INTERVAL_SECONDS / 2, due + INTERVAL_SECONDS)
            if self._done.wait(max(0.0, due - time.monotonic())):
                return
            try:
                self.save()
            except Exception as error:
                self._board.defect(error, None)
                return

    def save(self) -> None:
        """Save every large content that has moved; a full or broken volume ends the run."""
        for content in self._board.open_contents():
            if content.small or content.pieces is None:
                continue
            there = sum(record[0] for record in content.pieces.records())
            if self._saved.get(content.identity.key) == there:
                continue
            try:
                self._volume.save(content)
            except SourceError as error:
                self._board.fail(error, content.name)
                return
            self._saved[content.identity.key] = there
        self._progress.sample()
