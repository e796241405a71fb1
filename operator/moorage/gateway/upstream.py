"""The gateway's side towards engines: HTTP/1.1 connections, kept and used again for less than an engine keeps them.

Own code on asyncio.Protocol and httptools: a general client costs more than everything else here together
(`benchmarks/results/gateway.md`). An engine is believed as little as a client: what it sends is parsed strictly, and a
connection that said one byte too much is never used again.
"""

import asyncio
import contextlib
import time
from typing import Protocol, cast

import httptools

from moorage.gateway.settings import Settings

Headers = list[tuple[bytes, bytes]]
_JOIN_BELOW = 64 << 10  # joining smaller bodies to their head costs less than a second buffer


class Receiver(Protocol):
    """Who sent a request and gets its answer. After `on_broken` or the last `on_data` nothing more comes."""

    def on_head(self, status: int, headers: Headers, length: int | None) -> None:
        """The final response's head; `length` is the body's size in bytes where the engine names it."""

    def on_data(self, data: bytes, last: bool) -> None:
        """Body bytes, as many as arrived at once; `last`: the response is complete."""

    def on_broken(self, why: str, answered: bool) -> None:
        """The response will never be complete; `answered`: at least one byte of one had come."""


class EngineConnection(asyncio.Protocol):
    """One connection, one exchange at a time."""

    __slots__ = (
        "_answered",
        "_body",
        "_ended",
        "_endpoint",
        "_framed",
        "_head_bytes",
        "_headers",
        "_headers_done",
        "_length",
        "_parser",
        "_paused",
        "_receiver",
        "_spoilt",
        "_status",
        "_surplus",
        "_transport",
        "idle_since",
    )  # fmt: skip

    def __init__(self, endpoint: "EngineEndpoint") -> None:
        self.idle_since = 0.0
        self._endpoint = endpoint
        self._transport: asyncio.Transport | None = None
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)
        self._receiver: Receiver | None = None
        self._spoilt = self._paused = False
        self._reset()

    def _reset(self) -> None:
        self._answered = self._ended = self._framed = self._headers_done = self._surplus = False
        self._status = self._head_bytes = 0
        self._length: int | None = None
        self._headers: Headers = []
        self._body: list[bytes] = []

    @property
    def usable(self) -> bool:
        """Whether another request can be sent."""
        return not self._spoilt and self._transport is not None and not self._transport.is_closing()

    def send(self, head: bytes, body: bytes, receiver: Receiver) -> None:
        """Write a request; `receiver` gets what comes back."""
        assert self._transport is not None
        self._receiver = receiver
        if len(body) < _JOIN_BELOW:
            self._transport.write(head + body)
        else:
            self._transport.write(head)
            self._transport.write(body)

    def abort(self) -> None:
        """Drop the connection now: the engine sees it and stops generating."""
        self._receiver = None
        self._spoilt = True
        if self._transport is not None:
            self._transport.abort()

    def pause(self) -> None:
        """Read no further: the client does not keep up."""
        if self._transport is not None and not self._transport.is_closing():
            self._paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read on."""
        if self._paused and self._transport is not None and not self._transport.is_closing():
            self._paused = False
            self._transport.resume_reading()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Called by the event loop."""
        if self._receiver is None or self._parser is None:
            self.abort()  # an answer to nothing
            return
        self._answered = True
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._give_up(f"not a valid HTTP/1.1 response: {error}")
            return
        if self._surplus:
            self._give_up("more than one response")  # so that neither can be trusted
            return
        if not self._headers_done:
            self._head_bytes += len(data)
            if self._head_bytes > self._endpoint.settings.max_head_bytes:
                self._give_up("an endless response head")
            return
        if self._body or self._ended:
            self._deliver()

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the event loop: the end of a body that has no other end, or a cut."""
        self._endpoint.forget(self)
        self._parser = None  # the parser holds this object
        if self._receiver is None:
            return
        if exc is None and self._headers_done and not self._framed:
            self._ended = self._spoilt = True
            self._deliver()
        else:
            self._give_up(str(exc) if exc else "the engine closed the connection")

    # httptools

    def on_message_begin(self) -> None:
        """A response begins; after the one that was asked for it is one too many."""
        self._surplus = self._ended

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header line; after the head it is a trailer, which nobody wants."""
        if self._headers_done:
            return
        name = name.lower()
        if name == b"content-length":
            self._length = int(value)
            self._framed = True
        elif name == b"transfer-encoding":
            self._framed = True
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        """The head is there; 1xx is followed by another one."""
        if self._ended or self._parser is None:
            return
        status = self._parser.get_status_code()
        if status < 200:
            self._headers = []
            self._spoilt = self._spoilt or status == 101
            return
        self._status = status
        self._headers_done = True
        self._framed = self._framed or status in (204, 304)
        if self._receiver is not None:
            self._receiver.on_head(status, self._headers, self._length)

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        if not self._ended:
            self._body.append(body)

    def on_message_complete(self) -> None:
        """The response ended, unless it was an interim one."""
        if not self._headers_done or self._ended:
            return
        self._ended = True
        if self._parser is None or not self._parser.should_keep_alive():
            self._spoilt = True

    def _deliver(self) -> None:
        pieces = self._body
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        receiver, ended = self._receiver, self._ended
        self._body = []
        if ended:
            self._detach()
        if receiver is not None:
            receiver.on_data(data, ended)

    def _detach(self) -> None:
        self._receiver = None
        assert self._transport is not None
        if self._spoilt or self._transport.get_write_buffer_size():
            self._spoilt = True
            self._transport.close()
            return
        self.resume()
        self._reset()
        self._endpoint.keep(self)

    def _give_up(self, why: str) -> None:
        receiver, answered = self._receiver, self._answered
        self.abort()
        if receiver is not None:
            receiver.on_broken(why, answered)


class Call(Protocol):
    """A request under way, connected or not yet."""

    def abort(self) -> None:
        """Nobody wants the answer any more; the receiver hears nothing further."""

    def pause(self) -> None:
        """Let the engine wait."""

    def resume(self) -> None:
        """Go on."""


class Dial:
    """A request whose connection is being made."""

    def __init__(self, endpoint: "EngineEndpoint", head: bytes, body: bytes, receiver: Receiver) -> None:
        self._connection: EngineConnection | None = None
        self._task = asyncio.get_running_loop().create_task(self._run(endpoint, head, body, receiver))

    def abort(self) -> None:
        """See Call."""
        self._task.cancel()
        if self._connection is not None:
            self._connection.abort()

    def pause(self) -> None:
        """See Call."""
        if self._connection is not None:
            self._connection.pause()

    def resume(self) -> None:
        """See Call."""
        if self._connection is not None:
            self._connection.resume()

    async def _run(self, endpoint: "EngineEndpoint", head: bytes, body: bytes, receiver: Receiver) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(endpoint.settings.connect_timeout):
                _, self._connection = await loop.create_connection(
                    lambda: EngineConnection(endpoint), endpoint.host, endpoint.port
                )
        except (OSError, TimeoutError) as error:
            endpoint.avoid_until = time.monotonic() + endpoint.settings.avoid_seconds
            receiver.on_broken(str(error) or "no connection in time", False)
            return
        if self._connection.usable:
            self._connection.send(head, body, receiver)
        else:
            receiver.on_broken("the engine closed the connection", False)


class EngineEndpoint:
    """One engine's address and the idle connections to it."""

    def __init__(self, address: str, settings: Settings) -> None:
        host, _, port = address.rpartition(":")
        self.address = address
        self.host = host.strip("[]")
        self.port = int(port)
        self.host_header = address.encode("latin-1")
        self.settings = settings
        self.outstanding = 0
        self.avoid_until = 0.0
        self._retired = False
        self._idle: list[EngineConnection] = []

    def call(self, head: bytes, body: bytes, receiver: Receiver, *, fresh: bool = False) -> Call:
        """Send a request, over a kept connection unless it is to be a `fresh` one."""
        oldest = time.monotonic() - self.settings.engine_idle_timeout
        while self._idle and not fresh:
            connection = self._idle.pop()
            if connection.usable and connection.idle_since > oldest:
                connection.send(head, body, receiver)
                return connection
            connection.abort()
        return Dial(self, head, body, receiver)

    def keep(self, connection: EngineConnection) -> None:
        """Keep a connection for the next request."""
        if self._retired:
            connection.abort()
            return
        connection.idle_since = time.monotonic()
        self._idle.append(connection)

    def forget(self, connection: EngineConnection) -> None:
        """The connection is gone."""
        with contextlib.suppress(ValueError):
            self._idle.remove(connection)

    def close_idle(self) -> None:
        """Close what has been idle for too long."""
        oldest = time.monotonic() - self.settings.engine_idle_timeout
        while self._idle and self._idle[0].idle_since <= oldest:
            self._idle.pop(0).abort()

    def retire(self) -> None:
        """See fleet.Endpoint."""
        self._retired = True
        while self._idle:
            self._idle.pop().abort()
