"""Follows a routes file: every good version of it becomes the routing table, a bad one changes nothing."""

import asyncio
import logging
import os
from collections.abc import Callable
from pathlib import Path

from moorage.errors import InvalidSpec
from moorage.gateway.routes import Hold, Snapshot
from moorage.gateway.routes_document import read_routes

log = logging.getLogger(__name__)

_Stamp = tuple[int, int, int]


class RoutesFile:
    """Watches `path` by looking at it every `poll` seconds, which works for mounted ConfigMaps and network shares too.

    A change is read when the file has stood still for one more look, so that a writer in the middle of its work is not
    believed: at 20 ms it is in force within 60 ms.
    """

    def __init__(
        self, path: Path, own_hold: Hold, apply: Callable[[Snapshot], None], poll: float, *, closed: bool = False
    ) -> None:
        self._path = path
        self._own_hold = own_hold
        self._apply = apply
        self._poll = poll
        self._closed = closed
        self._read: _Stamp | None = None  # of the version that was read last, good or bad

    def load(self) -> None:
        """Put the file as it is in force. Raises InvalidSpec or OSError."""
        self._read = self._stamp()
        snapshot, unknown = read_routes(self._path.read_bytes(), self._own_hold, closed=self._closed)
        if unknown:
            log.warning("%s: keys that mean nothing here: %s", self._path, ", ".join(sorted(set(unknown))))
        self._apply(snapshot)
        log.info("%s: %d models, %d names", self._path, len(snapshot.models), len(snapshot.routes))

    async def follow(self) -> None:
        """Load each change, for ever."""
        seen = self._read
        while True:
            await asyncio.sleep(self._poll)
            before, seen = seen, self._stamp()
            if seen is None or seen in (self._read,) or seen != before:
                continue
            try:
                self.load()
            except (InvalidSpec, OSError) as error:
                log.error("%s: %s; the last good version stays in force", self._path, error)

    def _stamp(self) -> _Stamp | None:
        try:
            facts = os.stat(self._path)  # noqa: PTH116 - every 20 ms
        except OSError:
            return None
        return facts.st_mtime_ns, facts.st_size, facts.st_ino
