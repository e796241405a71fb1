"""How many downloads may run at once, and whose turn is next."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from moorage.control.store import Key

GRANT_SECONDS = 30.0
"""A place stays taken this long for a download whose Job is not in the mirror yet."""


@dataclass(frozen=True)
class _Waiting:
    priority: int
    created: str

    def order(self) -> tuple[int, str]:
        return (-self.priority, self.created)


class DownloadGate:
    """Gives out `limit` places by priority, then age; `running()` lists the downloads whose Jobs are not over."""

    def __init__(self, limit: int, running: Callable[[], Iterable[Key]], wake: Callable[[Key], None]) -> None:
        self._limit, self._running, self._wake = limit, running, wake
        self._waiting: dict[Key, _Waiting] = {}
        self._granted: dict[Key, float] = {}

    def ahead(self, key: Key, priority: int, created: str) -> int:
        """How many go before `key`, which wants to start; 0 grants it a place."""
        taken = self._taken()
        if key in taken:
            self._waiting.pop(key, None)
            return 0
        self._waiting[key] = _Waiting(priority, created)
        before = [k for k, w in self._waiting.items() if k != key and w.order() < self._waiting[key].order()]
        free = self._limit - len(taken)
        if len(before) < free:
            del self._waiting[key]
            self._granted[key] = time.monotonic()
            return 0
        return len(taken) + len(before)

    def unused(self, key: Key) -> None:
        """`key` started no Job: a place it was given goes to the next."""
        if self._granted.pop(key, None) is not None:
            self.wake_waiting()

    def leave(self, key: Key) -> None:
        """`key` no longer wants a place or has given it back; who waits longest looks again."""
        self._waiting.pop(key, None)
        self._granted.pop(key, None)
        self.wake_waiting()

    def wake_waiting(self) -> None:
        """Have those at the head of the queue look whether there is a place."""
        for key in sorted(self._waiting, key=lambda k: self._waiting[k].order())[: self._limit]:
            self._wake(key)

    def _taken(self) -> set[Key]:
        now = time.monotonic()
        running = set(self._running())
        self._granted = {k: t for k, t in self._granted.items() if k not in running and now - t < GRANT_SECONDS}
        return running | set(self._granted)
