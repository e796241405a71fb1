"""The keyed work queue: one key never runs twice at once, failures back off, and a key can be put off to a later time.

The shape is client-go's workqueue: a set of dirty keys, a set of running keys, a heap of delayed keys. A key that is
added while it runs is run once more when it is done, so that no change is ever missed and none is handled twice.
"""

import asyncio
import contextlib
import heapq
import itertools
import random
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

TURN_OF_BACKGROUND = 5
"""While others wait, each fifth key that is run is one of the background, so that it comes to an end at all times."""

BACKOFF_FIRST = 1.0
BACKOFF_LIMIT = 300.0


def backoff_seconds(failures: int, *, jitter: float | None = None) -> float:
    """Seconds to wait after the `failures`-th failure in a row: 1, 2, 4 ... 300, each times 0.75..1.25."""
    spread = random.uniform(0.75, 1.25) if jitter is None else jitter
    return float(min(BACKOFF_FIRST * 2.0 ** min(max(failures - 1, 0), 16), BACKOFF_LIMIT)) * spread


class KeyedQueue(Generic[K]):
    """Keys waiting for one of `workers` handlers.

    `handle(key)` returns the seconds after which the key should run again (None: not on its own) and raises to have it
    retried with a growing delay of `longest(error)` seconds at most; `on_error` hears of each failure (key, error,
    failures in a row).
    """

    def __init__(
        self,
        handle: Callable[[K], Awaitable[float | None]],
        *,
        workers: int = 8,
        on_error: Callable[[K, Exception, int], None] = lambda _key, _error, _count: None,
        longest: Callable[[Exception], float] = lambda _error: BACKOFF_LIMIT,
    ) -> None:
        self._handle = handle
        self._workers = workers
        self._on_error = on_error
        self._longest = longest
        self._ready: deque[K] = deque()
        self._background: OrderedDict[K, None] = OrderedDict()
        self._dirty: set[K] = set()
        self._running: set[K] = set()
        self._failures: dict[K, int] = {}
        self._delayed: list[tuple[float, int, K]] = []
        self._due: dict[K, float] = {}
        self._sequence = itertools.count()
        self._taken = itertools.count(1)
        self._wake_worker = asyncio.Event()
        self._wake_timer = asyncio.Event()

    def add(self, key: K, *, background: bool = False) -> None:
        """Have `key` run as soon as a worker is free; adding it again before then changes nothing.

        In the `background` it lets those go first that are added without; such an addition moves it up to them.
        """
        if key in self._background and not background:
            del self._background[key]
            self._ready.append(key)
        if key in self._dirty:
            return
        self._dirty.add(key)
        if key not in self._running:
            if background:
                self._background[key] = None
            else:
                self._ready.append(key)
            self._wake_worker.set()

    def add_after(self, key: K, seconds: float) -> None:
        """Have `key` run in `seconds`; of several delays for one key the earliest counts."""
        if seconds <= 0:
            self.add(key)
            return
        due = asyncio.get_running_loop().time() + seconds
        if self._due.get(key, float("inf")) <= due:
            return
        self._due[key] = due
        heapq.heappush(self._delayed, (due, next(self._sequence), key))
        self._wake_timer.set()

    def forget(self, key: K) -> None:
        """Drop what is remembered of a key whose object is gone: its failures and its delay."""
        self._failures.pop(key, None)
        self._due.pop(key, None)

    @property
    def depth(self) -> int:
        """Keys that wait for a worker or are being run (delayed keys do not count)."""
        return len(self._ready) + len(self._background) + len(self._running)

    async def run(self) -> None:
        """Run workers and the timer until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._timer())
            for _ in range(self._workers):
                group.create_task(self._worker())

    async def _worker(self) -> None:
        while True:
            while not self._ready and not self._background:
                self._wake_worker.clear()
                await self._wake_worker.wait()
            await self._run_one(self._next())

    def _next(self) -> K:
        turn = next(self._taken) % TURN_OF_BACKGROUND == 0
        if self._background and (turn or not self._ready):
            return self._background.popitem(last=False)[0]
        return self._ready.popleft()

    async def _run_one(self, key: K) -> None:
        self._dirty.discard(key)
        self._running.add(key)
        try:
            again = await self._handle(key)
        except asyncio.CancelledError:
            raise
        except Exception as error:  # the queue is where every failure of a pass ends up
            failures = self._failures[key] = self._failures.get(key, 0) + 1
            self._on_error(key, error, failures)
            pause = min(backoff_seconds(failures), self._longest(error))
            again = max(pause, getattr(error, "retry_after", None) or 0.0)
        else:
            self._failures.pop(key, None)
        finally:
            self._running.discard(key)
        if key in self._dirty:
            self._ready.append(key)
            self._wake_worker.set()
        if again is not None:
            self.add_after(key, again)

    async def _timer(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            while self._delayed and self._delayed[0][0] <= loop.time():
                due, _, key = heapq.heappop(self._delayed)
                if self._due.get(key) == due:  # an earlier delay for the key replaces this entry
                    del self._due[key]
                    self.add(key)
            self._wake_timer.clear()
            timeout = self._delayed[0][0] - loop.time() if self._delayed else None
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake_timer.wait(), timeout)
