"""Follows running downloads by asking their pods; the pods need no rights in the cluster for that."""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import aiohttp
import orjson

from moorage.control import bounded
from moorage.control.store import Key
from moorage.planning.types import Progress

PERIOD_SECONDS = 1.0


class ProgressPoller:
    """One task per followed download; what it last heard is kept, and a change re-adds the key."""

    def __init__(self, changed: Callable[[Key], None]) -> None:
        self._changed = changed
        self._tasks: dict[Key, tuple[str, asyncio.Task[None]]] = {}
        self._latest: dict[Key, dict[str, Any]] = {}
        self._session: aiohttp.ClientSession | None = None

    def latest(self, key: Key) -> dict[str, Any] | None:
        """The newest progress of `key`'s present pod, as `GET /progress` answers it."""
        return self._latest.get(key)

    def follow(self, key: Key, ask: Progress) -> None:
        """Poll `ask.url` until `forget`, or until another pod takes its place."""
        known = self._tasks.get(key)
        if known and known[0] == ask.pod:
            return
        self.forget(key)
        self._tasks[key] = (ask.pod, asyncio.create_task(self._poll(key, ask.url)))

    def forget(self, key: Key) -> None:
        """Stop following `key`."""
        known = self._tasks.pop(key, None)
        if known:
            known[1].cancel()
        self._latest.pop(key, None)

    async def close(self) -> None:
        """Stop all polling."""
        tasks = [task for _, task in self._tasks.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._session is not None:
            await self._session.close()

    async def _poll(self, key: Key, url: str) -> None:
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=3))
        while True:
            with contextlib.suppress(aiohttp.ClientError, TimeoutError, OSError, ValueError):
                async with self._session.get(url, allow_redirects=False) as answer:
                    found = orjson.loads(await bounded.read(answer)) if answer.status == 200 else None
                if isinstance(found, dict) and found != self._latest.get(key):
                    self._latest[key] = found
                    self._changed(key)
            await asyncio.sleep(PERIOD_SECONDS)
