"""Events that people see in `kubectl describe` (core/v1, with counts, as kubectl prints them).

Telling people must never hold up or break the work: `record` only puts into a bounded queue, one task sends, and what
cannot be sent is dropped and counted.
"""

import asyncio
import logging
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple

from moorage.errors import Conflict, NotFound, Throttled, Unavailable
from moorage.kube.backoff import Backoff
from moorage.kube.client import KubeClient
from moorage.kube.resources import EVENTS
from moorage.names import FIELD_MANAGER, GROUP

log = logging.getLogger(__name__)

EventType = Literal["Normal", "Warning"]

_MESSAGE_LIMIT = 1024  # characters, as the API server validates
_NAME_LIMIT = 236  # of 253, so that a dot and 16 hex digits fit
_REMEMBERED = 1024
_TRIES = 4
_REFERENCE_FIELDS = ("apiVersion", "kind", "namespace", "name", "uid", "resourceVersion")


class _Same(NamedTuple):
    """What makes two events the same one, counted twice."""

    uid: str
    namespace: str
    name: str
    kind: str
    type: EventType
    reason: str
    message: str


@dataclass
class _Pending:
    """Recorded and not yet sent: `times` of them within [`first`, `last`], to be told as the Event `event_name`."""

    event_name: str
    reference: dict[str, str]
    first: datetime
    last: datetime
    times: int = 1


@dataclass
class _Sent:
    """An Event object that exists: its name, what its count says, and when we last wrote it (monotonic seconds)."""

    name: str
    count: int
    at: float


class EventRecorder:
    """Records events about objects; an async context manager, or `start()` and `close()`.

    The same (object, reason, message) within `window` seconds raises the count of one Event object. `dropped` counts
    what was not told: the queue was full, or the API server refused.
    """

    def __init__(
        self,
        client: KubeClient,
        *,
        instance: str = "",
        window: float = 600.0,
        queue_size: int = 1000,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        backoff: Callable[[], Backoff] = Backoff,
    ) -> None:
        self.dropped = 0
        self._client = client
        self._instance = instance
        self._window = window
        self._queue_size = queue_size
        self._now = now
        self._backoff = backoff
        self._pending: OrderedDict[_Same, _Pending] = OrderedDict()
        self._sent: OrderedDict[_Same, _Sent] = OrderedDict()
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "EventRecorder":
        self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def start(self) -> None:
        """Begin to send."""
        self._task = asyncio.create_task(self._run(), name="events")

    async def close(self, timeout: float = 5.0) -> None:
        """Send what waits, for at most `timeout` seconds, and stop."""
        if self._task is None:
            return
        try:
            await asyncio.wait_for(self._idle.wait(), timeout)
        except TimeoutError:
            self._drop(len(self._pending), "there was no time left to send them")
        self._task.cancel()
        await asyncio.wait([self._task])
        self._task = None

    def record(self, obj: Mapping[str, Any], type: EventType, reason: str, message: str) -> None:  # noqa: A002
        """Tell about `obj`, an object or an ObjectReference. Never waits, never raises."""
        reference = object_reference(obj)
        message = message[:_MESSAGE_LIMIT]
        where = (reference.get("namespace", ""), reference.get("name", ""), reference.get("kind", ""))
        same = _Same(reference.get("uid", ""), *where, type, reason, message)
        now = self._now()
        waiting = self._pending.get(same)
        if waiting is not None:
            waiting.times += 1
            waiting.last = now
        elif len(self._pending) >= self._queue_size:
            self._drop(1, "the queue is full")
        else:
            self._pending[same] = _Pending(_event_name(same), reference, now, now)
            self._idle.clear()
            self._wake.set()

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            while self._pending:
                same, pending = self._pending.popitem(last=False)
                try:
                    await self._send_patiently(same, pending)
                except asyncio.CancelledError:
                    self._drop(1, "it was being sent when the time was up")
                    raise
                except Exception as error:  # whatever it is, the next event deserves its chance
                    self._drop(1, str(error))
            self._wake.clear()
            self._idle.set()

    async def _send_patiently(self, same: _Same, pending: _Pending) -> None:
        backoff = self._backoff()
        for tries_left in reversed(range(_TRIES)):
            try:
                await self._send(same, pending)
                return
            except (Throttled, Unavailable) as error:
                if not tries_left:
                    raise
                await asyncio.sleep(backoff.next(error.retry_after))

    async def _send(self, same: _Same, pending: _Pending) -> None:
        known = self._sent.get(same)
        if known is not None and time.monotonic() - known.at < self._window:
            try:
                await self._count_up(same, known, pending)
                return
            except NotFound:  # events live for an hour, and a person may delete them
                del self._sent[same]
        await self._create(same, pending)

    async def _count_up(self, same: _Same, known: _Sent, pending: _Pending) -> None:
        count = known.count + pending.times
        patch = {"count": count, "lastTimestamp": _rfc3339(pending.last)}
        await self._client.merge_patch(EVENTS, same.namespace or "default", known.name, patch)
        self._remember(same, _Sent(known.name, count, time.monotonic()))

    async def _create(self, same: _Same, pending: _Pending) -> None:
        event = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": pending.event_name, "namespace": same.namespace or "default"},
            "involvedObject": pending.reference,
            "type": same.type,
            "reason": same.reason,
            "message": same.message,
            "count": pending.times,
            "firstTimestamp": _rfc3339(pending.first),
            "lastTimestamp": _rfc3339(pending.last),
            "source": {"component": FIELD_MANAGER},
            "reportingComponent": f"{GROUP}/{FIELD_MANAGER}",
            "reportingInstance": self._instance,
        }
        # The name was given when it was recorded, so a second try after a lost answer finds it made.
        with suppress(Conflict):
            await self._client.create(event)
        self._remember(same, _Sent(pending.event_name, pending.times, time.monotonic()))

    def _remember(self, same: _Same, sent: _Sent) -> None:
        self._sent[same] = sent
        self._sent.move_to_end(same)
        while len(self._sent) > _REMEMBERED:
            self._sent.popitem(last=False)

    def _drop(self, number: int, why: str) -> None:
        self.dropped += number
        log.warning("%d event(s) not told: %s", number, why)


def object_reference(obj: Mapping[str, Any]) -> dict[str, str]:
    """The ObjectReference of an object (with `metadata`); a reference comes back as it is."""
    meta = obj.get("metadata")
    flat = {**obj, **meta} if isinstance(meta, Mapping) else obj
    return {field: str(flat[field]) for field in _REFERENCE_FIELDS if flat.get(field)}


def _event_name(same: _Same) -> str:
    return f"{same.name[:_NAME_LIMIT].rstrip('.-')}.{uuid.uuid4().hex[:16]}"


def _rfc3339(when: datetime) -> str:
    return when.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
