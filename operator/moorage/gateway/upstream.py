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

Headers = dict[bytes, bytes]  # lower-case names; what came several times is joined by commas
_JOIN_BELOW = 64 << 10  # joining smaller bodies to their head costs less than a second buffer


class Receiver(Protocol):
    """Who sent a request and gets its answer. After `on_broken` or the last `on_data` nothing more comes."""

    def on_head(self, status: int, headers: Headers) -> None:
        """The final response's head."""

    def on_data(self, data: bytes, last: bool) -> None:
        """Body bytes, as many as arrived at once; `last`: the response is complete."""

    def on_broken(self, why: str, answered: bool) -> None:
        """The response will never be complete; `answered`: at least one byte of one had come."""


class EngineConnection(asyncio.Protocol):
    """One connection, one exchange at a time."""

    __slots__ = (
        "_body", "_ended", "_endpoint", "_fault", "_framed", "_head_bytes", "_headers", "_headers_done", "_parser",
        "_paused", "_receiver", "_spoilt", "_transport", "idle_since",
    )  # fmt: skip

    def __init__(self, endpoint: "EngineEndpoint") -> None:
        self.idle_since = 0.0
        self._endpoint = endpoint
        self._transport: asyncio.Transport
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)
        self._receiver: Receiver | None = None
        self._spoilt = self._paused = False
        self._fault = ""  # what makes all of the answer unbelievable
        self._body: list[bytes] = []
        self._expect_head()

    def _expect_head(self) -> None:
        self._headers_done = self._ended = self._framed = False
        self._head_bytes = 0
        self._headers: Headers = {}

    @property
    def usable(self) -> bool:
        """Whether another request can be sent."""
        return not self._spoilt and not self._transport.is_closing()

    def send(self, head: bytes, body: bytes, receiver: Receiver) -> None:
        """Write a request; `receiver` gets what comes back."""
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
        self._transport.abort()

    def let_go(self) -> None:
        """Drop the parser, which holds this object: of a connection that was not made nobody says that it is lost."""
        self._parser = None

    def pause(self) -> None:
        """Read no further: the client does not keep up."""
        if not self._transport.is_closing():
            self._paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read on."""
        if self._paused and not self._transport.is_closing():
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
        if not self._headers_done:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._give_up(f"not a valid HTTP/1.1 response: {error}")
            return
        if self._fault:
            self._give_up(self._fault)
        elif self._body or self._ended:
            self._deliver()
        elif not self._headers_done and self._head_bytes > self._endpoint.settings.max_head_bytes:
            self._give_up("an endless response head")

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the event loop: the end of a body that has no other end, or a cut."""
        self._endpoint.forget(self)
        self.let_go()
        if self._receiver is None:
            return
        if exc is None and self._headers_done and not self._framed:
            self._ended = self._spoilt = True
            self._deliver()
        else:
            self._give_up(str(exc) if exc else "the engine closed the connection")

    # httptools

    def on_message_begin(self) -> None:
        """A response begins; after the one that was asked for it is one too many, and neither can be trusted."""
        if self._ended:
            self._fault = "more than one response"

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header line; after the head it is a trailer, which nobody wants."""
        if self._headers_done:
            return
        name, headers = name.lower(), self._headers
        headers[name] = b"%b, %b" % (headers[name], value) if name in headers else value

    def on_headers_complete(self) -> None:
        """The head is there; 1xx is followed by another one."""
        parser, headers = self._parser, self._headers
        if self._ended or parser is None:
            return
        status = parser.get_status_code()
        if status < 200:
            self._headers = {}
            self._spoilt = self._spoilt or status == 101
            return
        self._headers_done = True
        coding = headers.get(b"transfer-encoding")
        self._framed = coding is not None or b"content-length" in headers or status == 204
        if coding is not None and coding.lower() != b"chunked":
            self._fault = "a transfer coding that nobody asked for"
        elif 300 <= status < 400 or status > 599:  # clients would follow a redirect, to where only the engine knows
            self._fault = f"status {status}, which means nothing to a client"
        elif self._receiver is not None:
            self._receiver.on_head(status, headers)

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        if not self._headers_done:
            self._fault = "an interim response with a body"  # would stand in front of the final one's
        elif not self._ended:
            self._body.append(body)

    def on_message_complete(self) -> None:
        """The response ended, unless it was an interim one."""
        if not self._headers_done or self._ended:
            return
        self._ended = True
        if self._parser is None or not self._parser.should_keep_alive():
            self._spoilt = True

    def _deliver(self) -> None:
        """Hand on what there is; with the last of it this connection is free for somebody else."""
        receiver, pieces, last = self._receiver, self._body, self._ended
        self._body = []
        if last:
            self._receiver = None
            if self._spoilt or self._transport.get_write_buffer_size():
                self._spoilt = True
                self._transport.close()
            else:
                if self._paused:
                    self.resume()
                self._expect_head()
                self._endpoint.keep(self)
        if receiver is not None:
            receiver.on_data(pieces[0] if len(pieces) == 1 else b"".join(pieces), last)

    def _give_up(self, why: str) -> None:
        receiver, answered = self._receiver, self._head_bytes > 0
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
        self._task: asyncio.Task[None] | None = None
        self._task = asyncio.get_running_loop().create_task(self._run(endpoint, head, body, receiver))

    def abort(self) -> None:
        """See Call."""
        task, self._task = self._task, None  # the one keeps the other once it is cancelled, and with it the request
        if task is not None:
            task.cancel()
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
        loop, connection = asyncio.get_running_loop(), EngineConnection(endpoint)
        try:
            async with asyncio.timeout(endpoint.settings.connect_timeout):
                await loop.create_connection(lambda: connection, endpoint.host, endpoint.port)
        except asyncio.CancelledError:
            connection.let_go()
            raise
        except (OSError, TimeoutError) as error:
            connection.let_go()
            endpoint.avoid_until = time.monotonic() + endpoint.settings.avoid_seconds
            receiver.on_broken(str(error) or "no connection in time", False)
            return
        self._connection = connection
        if connection.usable:
            connection.send(head, body, receiver)
        else:
            receiver.on_broken("the engine closed the connection", False)


class EngineEndpoint:
    """One engine's address and the idle connections to it."""

    def __init__(self, address: str, settings: Settings) -> None:
        host, _, port = address.rpartition(":")
        self.address = address
        self.host = host.strip("[]")
        self.port = int(port)
        self.settings = settings
        self.outstanding = 0
        self.avoid_until = 0.0
        self._retired = False
        self._idle: list[EngineConnection] = []
        self._heads: dict[bytes, bytes] = {}

    def head(self, path: bytes) -> bytes:
        """How every request for one of the listed paths begins, up to the content length."""
        found = self._heads.get(path)
        if found is None:
            found = self._heads[path] = b"POST %b HTTP/1.1\r\nhost: %b\r\ncontent-type: application/json\r\n" % (
                path, self.address.encode("latin-1"),
            )  # fmt: skip
        return found

    def call(self, head: bytes, body: bytes, receiver: Receiver, now: float, *, fresh: bool = False) -> Call:
        """Send a request, over a kept connection unless it is to be a `fresh` one; `now` is in monotonic seconds."""
        while self._idle and not fresh:
            connection = self._idle.pop()
            if connection.usable and now - connection.idle_since < self.settings.engine_idle_timeout:
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
