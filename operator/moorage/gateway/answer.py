"""An engine's answer on its way to the client: streams event by event, anything else whole if it is not too long.

The head goes out with the first bytes of the body, so that an engine that dies between the two still makes a clean
error. Once something is out an error can only be an event at the end of a stream, or a cut: never a clean end.
"""

from typing import Protocol

from moorage.gateway.events import EventFilter, Usage
from moorage.gateway.refusals import ENGINE_BROKE, Refusal
from moorage.gateway.server import ClientConnection
from moorage.gateway.upstream import Headers

EVENT_STREAM = b"text/event-stream"
# nginx in front of the gateway would otherwise hold back events.
STREAM_HEADERS = b"cache-control: no-cache\r\nx-accel-buffering: no\r\n"
# Of the engine's head the client does not get these: they describe a connection it is not on, or the engine, or say
# what a browser is to do about the whole gateway.
_WITHHELD = frozenset({
    b"access-control-allow-credentials", b"access-control-allow-headers", b"access-control-allow-methods",
    b"access-control-allow-origin", b"access-control-expose-headers", b"access-control-max-age", b"alt-svc",
    b"clear-site-data", b"connection", b"content-length", b"keep-alive", b"proxy-authenticate", b"proxy-connection",
    b"server", b"set-cookie", b"strict-transport-security", b"te", b"trailer", b"transfer-encoding", b"upgrade",
    b"x-accel-buffering", b"x-request-id",
})  # fmt: skip
_WITHHELD_OF_STREAMS = _WITHHELD | {b"cache-control"}


class Answer(Protocol):
    """One answer."""

    def feed(self, data: bytes, last: bool) -> None:
        """More of the body; `last`: it is complete."""

    def fail(self, refusal: Refusal) -> None:
        """There will be no more."""


def begin_answer(
    client: ClientConnection, status: int, headers: Headers, own: bytes, usage: Usage, hide: bool, limit: int
) -> Answer:
    """The answer that an engine's head is the beginning of; `own` are the gateway's header lines."""
    events = headers.get(b"content-type", b"")[:17].lower() == EVENT_STREAM
    if client.committed and not (events and status == 200):
        return LateAnswer(client, limit)
    if events:
        return EventAnswer(client, status, headers, own, usage, hide=hide)
    return WholeAnswer(client, status, headers, own, usage, limit)


class EventAnswer:
    """A stream of events. `hide` takes the usage chunk out again that the gateway asked for."""

    __slots__ = ("_client", "_filter", "_headers", "_status")

    def __init__(
        self, client: ClientConnection, status: int, headers: Headers, own: bytes, usage: Usage, *, hide: bool
    ) -> None:
        self._client = client
        self._status = status
        self._headers = _lines(headers, _WITHHELD_OF_STREAMS) + STREAM_HEADERS + own
        self._filter = EventFilter(usage, hide=hide)

    def feed(self, data: bytes, last: bool) -> None:
        """See Answer."""
        data = self._filter.feed(data)
        if last:
            data += self._filter.end()
        elif not data:
            return
        if not self._client.committed:
            self._client.begin(self._status, self._headers, None)
        self._client.send(data, last)

    def fail(self, refusal: Refusal) -> None:
        """See Answer: clients of the official libraries raise when they meet the event."""
        _fail(self._client, refusal, refusal.event())


class WholeAnswer:
    """Anything but a stream: held back until it is complete, or longer than `limit` bytes."""

    _size = 0

    def __init__(
        self, client: ClientConnection, status: int, headers: Headers, own: bytes, usage: Usage, limit: int
    ) -> None:
        self._client = client
        self._status = status
        self._headers = headers
        self._own = own
        self._usage = usage
        self._limit = limit
        self._held: list[bytes] = []

    def feed(self, data: bytes, last: bool) -> None:
        """See Answer."""
        client = self._client
        if client.committed:
            self._usage.read_piece(data)
            client.send(data, last)
            return
        if last:
            if self._held:
                data = b"".join([*self._held, data])
            self._usage.read(data)
            client.answer(self._status, _lines(self._headers, _WITHHELD) + self._own, data)
            return
        self._held.append(data)
        self._size += len(data)
        if self._size > self._limit:
            data = b"".join(self._held)
            self._held.clear()
            self._usage.read_piece(data)
            length = int(self._headers[b"content-length"]) if b"content-length" in self._headers else None
            client.begin(self._status, _lines(self._headers, _WITHHELD) + self._own, length)
            client.send(data, False)

    def fail(self, refusal: Refusal) -> None:
        """See Answer."""
        _fail(self._client, refusal, b"")


class LateAnswer:
    """No stream, but the client was told of one while it waited: the answer becomes an event and the stream is cut."""

    __slots__ = ("_client", "_held", "_limit")

    def __init__(self, client: ClientConnection, limit: int) -> None:
        self._client = client
        self._held = b""
        self._limit = limit

    def feed(self, data: bytes, last: bool) -> None:
        """See Answer."""
        self._held += data
        if len(self._held) > self._limit:
            self._held, last = ENGINE_BROKE.body(), True
        if last:
            self._client.cut(b"data: " + b" ".join(self._held.split()) + b"\n\n")

    def fail(self, refusal: Refusal) -> None:
        """See Answer."""
        self._client.cut(refusal.event())


def _fail(client: ClientConnection, refusal: Refusal, last_words: bytes) -> None:
    if client.committed:
        client.cut(last_words)
    else:
        client.refuse(refusal)


def _lines(headers: Headers, withheld: frozenset[bytes]) -> bytes:
    if b"connection" in headers:  # names more that are for this hop alone (RFC 9110, 7.6.1)
        withheld |= {name.strip().lower() for name in headers[b"connection"].split(b",")}
    return b"".join([b"%b: %b\r\n" % line for line in headers.items() if line[0] not in withheld])
