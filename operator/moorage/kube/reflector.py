"""A mirror of one collection of the API server, of which only projections are kept.

List, then watch from the list's resource version; a watch that ends or breaks is resumed from the last version seen and
loses nothing; a version that the server has forgotten (410) means listing again, and what is not in the new list has
vanished. See https://kubernetes.io/docs/reference/using-api/api-concepts/#efficient-detection-of-changes.
"""

import asyncio
import logging
import random
import sys
import time
from collections.abc import Callable
from contextlib import aclosing
from typing import Any, Generic, TypeAlias, TypeVar

from moorage.errors import ApiError, Gone, NotFound, Unavailable
from moorage.kube.backoff import Backoff
from moorage.kube.client import KubeClient
from moorage.kube.resources import Resource
from moorage.kube.watch import WatchEvent

log = logging.getLogger(__name__)

T = TypeVar("T")
Key: TypeAlias = tuple[str, str]  # (namespace, name); the namespace of a cluster-scoped object is ""

# The server sends a bookmark each minute, so a longer silence is a dead connection.
SILENCE_SECONDS = 75.0
_WATCH_SECONDS = 300
# A watch that the server ends sooner, without a single event, has failed in all but name.
_SHORT_WATCH_SECONDS = 1.0
# After so many refused watches in a row the version itself is suspect (a server restored from a backup): list again.
_REFUSALS_BEFORE_LIST = 3
# How often is asked for an optional resource that the server does not serve: it may be upgraded.
_ABSENT_SECONDS = 300.0


class Reflector(Generic[T]):
    """Keeps `items` equal to what the server has, until cancelled.

    `project` takes what is needed out of an object (None: not of interest) and must not keep parts of it alive by
    accident. `on_change(key, old, new)` is called in the event loop, only where the projections differ; `new` is None
    for a vanished object. What it raises is logged and changes nothing.

    With `optional` the server need not serve the resource at all (an older Kubernetes): then there is nothing of it.

    `last_activity` is `time.monotonic()` of the last byte that came, for a liveness check: it grows at least every
    `silence_seconds` while the server answers. `last_error` is empty while all is well.
    """

    def __init__(
        self,
        client: KubeClient,
        resource: Resource,
        *,
        project: Callable[[dict[str, Any]], T | None],
        on_change: Callable[[Key, T | None, T | None], None],
        namespace: str | None = None,
        label_selector: str | None = None,
        field_selector: str | None = None,
        optional: bool = False,
        page: int = 50,
        silence_seconds: float = SILENCE_SECONDS,
        backoff: Backoff | None = None,
    ) -> None:
        self.items: dict[Key, T] = {}
        self.last_activity = time.monotonic()
        self.last_error = ""
        self.lists = 0
        self._client = client
        self._resource = resource
        self._project = project
        self._on_change = on_change
        self._namespace = namespace
        self._selection: dict[str, str | None] = {"label_selector": label_selector, "field_selector": field_selector}
        self._page = page
        self._optional = optional
        self._silence_seconds = silence_seconds
        self._backoff = backoff or Backoff()
        self._synced = asyncio.Event()
        self._version = ""
        self._gone = False  # whether the last error was that the version is forgotten

    @property
    def synced(self) -> bool:
        """True from the end of the first list on."""
        return self._synced.is_set()

    async def wait_synced(self, timeout: float) -> None:
        """Return once the first list is complete; Unavailable, with the last error, if that takes over `timeout` s."""
        try:
            await asyncio.wait_for(self._synced.wait(), timeout)
        except TimeoutError:
            why = self.last_error or "no answer yet"
            raise Unavailable(f"{self._resource.plural} could not be listed within {timeout:g} s: {why}") from None

    async def list_once(self) -> None:
        """Take what is there now, for who wants no more than one look. ApiError where it cannot be listed."""
        try:
            await self._list()
        except NotFound:
            if not self._optional:
                raise

    async def run(self) -> None:
        """List and watch for ever; ends only by cancellation."""
        while True:
            try:
                if not self._version:
                    await self._list()
                await self._watch()
            except NotFound as error:
                await self._absent(error)
            except ApiError as error:
                if self._version_is_suspect(error):
                    self._version = ""
                await self._wait(error)
            except Exception as bug:  # a mirror that dies unseen would stop the operator: list again and say so
                log.exception("%s: a defect in the mirror", self._resource.plural)
                self._version = ""
                await self._wait(Unavailable(f"a defect in the mirror: {bug!r}"))

    async def _absent(self, error: NotFound) -> None:
        """The server knows no such resource, which is an answer for one that may be missing: there is nothing of it."""
        if not self._optional:
            await self._wait(error)
            return
        for key in list(self.items):
            self._drop(key)
        self._version = ""
        self._heard()
        self._synced.set()
        log.info("%s: not served by this cluster", self._resource.plural)
        await asyncio.sleep(_ABSENT_SECONDS)

    def _version_is_suspect(self, error: ApiError) -> bool:
        """410, or one server error after the other: a server restored from a backup never reaches our version."""
        return isinstance(error, Gone) or (error.status >= 500 and self._backoff.failures >= _REFUSALS_BEFORE_LIST)

    async def _wait(self, error: ApiError) -> None:
        if isinstance(error, Gone) and not self._gone:
            self._backoff.reset()  # a server that was away is back, and only has to be listed
        self._gone = isinstance(error, Gone)
        delay = self._backoff.next(error.retry_after)
        level = logging.INFO if isinstance(error, Gone) or str(error) == self.last_error else logging.WARNING
        self.last_error = str(error)
        log.log(level, "%s: next try in %.1f s: %s", self._resource.plural, delay, error)
        await asyncio.sleep(delay)

    async def _list(self) -> None:
        """Take the whole collection page by page, then drop what was not in it."""
        unseen = set(self.items)
        version = ""
        pages = self._client.pages(self._resource, self._namespace, limit=self._page, **self._selection)
        async with aclosing(pages):
            async for items, page_version in pages:
                version = page_version
                self._heard()
                for item in items:
                    key = _key(item)
                    unseen.discard(key)
                    self._put(key, item)
                items.clear()  # the generator still holds the list while it waits for the next page
        for key in unseen:
            self._drop(key)
        self._version = version
        self.lists += 1
        self._synced.set()

    async def _watch(self) -> None:
        """Follow one watch until the server ends it."""
        started = time.monotonic()
        events = 0
        seconds = round(_WATCH_SECONDS * random.uniform(0.9, 1.1))
        async with self._client.watch(
            self._resource,
            self._namespace,
            resource_version=self._version,
            seconds=seconds,
            silence_seconds=self._silence_seconds,
            **self._selection,
        ) as batches:
            self._heard()
            self.last_error = ""
            async for batch in batches:
                self._heard()
                for event in batch:
                    self._take(event)
                events += len(batch)
                self._backoff.reset()  # not before: a watch may open and fail, again and again
        if events == 0 and time.monotonic() - started < _SHORT_WATCH_SECONDS:
            raise Unavailable("the watch ended as soon as it began")

    def _take(self, event: WatchEvent) -> None:
        item = event.object
        if event.type == "DELETED":
            self._drop(_key(item))
        elif event.type in {"ADDED", "MODIFIED"}:
            self._put(_key(item), item)
        # Last, so that a watch resumed from here never leaves out an event that was not taken.
        self._version = item["metadata"]["resourceVersion"]

    def _put(self, key: Key, item: dict[str, Any]) -> None:
        try:
            new = self._project(item)
        except Exception:  # one odd object must not stop the mirror
            log.exception("%s %s: cannot be read", self._resource.plural, key)
            return
        if new is None:
            self._drop(key)
            return
        old = self.items.get(key)
        if old != new:
            self.items[key] = new
            self._tell(key, old, new)

    def _drop(self, key: Key) -> None:
        old = self.items.pop(key, None)
        if old is not None:
            self._tell(key, old, None)

    def _tell(self, key: Key, old: T | None, new: T | None) -> None:
        try:
            self._on_change(key, old, new)
        except Exception:
            log.exception("%s %s: a change was not taken in", self._resource.plural, key)

    def _heard(self) -> None:
        self.last_activity = time.monotonic()


def _key(item: dict[str, Any]) -> Key:
    meta = item["metadata"]
    return sys.intern(meta.get("namespace", "")), meta["name"]
