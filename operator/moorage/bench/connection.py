"""HTTP/1.1 for one request at a time, with the clock read where the bytes arrive.

Own code on asyncio.Protocol and httptools because a general client's work between the socket and its caller shows up in
the numbers: measured at 32 streams, aiohttp's client put 4-7 ms between the clock's start and the server, this 0.8-1.3.

Connections are kept where the server truly keeps them: a server whose event loop accepts a new one for each request
(uvicorn, so vLLM) would put its queue of new connections into the time to first token (measured with 16 streams against
a busy loop: a median of 9-17 ms, kept 0.6). llama-server (seen: b11669) announces `Keep-Alive: timeout=5, max=100` and
closes after every stream all the same, so that to send on a kept connection is a race. So the first answer is waited
out, and then it is known.
"""

import asyncio
import os
import socket
import ssl
import time
from collections.abc import Callable
from typing import cast

import httptools

from moorage.bench.settings import Target

MAX_HEAD_BYTES = 64 << 10
CONNECT_TIMEOUT = 10.0
# uvicorn (vLLM) closes an idle connection after 5 s; one older than this is not trusted.
IDLE_LIMIT = 4.0
# A server that closes after each answer does so at once.
CLOSING_TIME = 0.2


class BrokenConnectionError(Exception):
    """No connection, or it broke; `before_answer` when not one byte of a response had come."""

    def __init__(self, message: str, *, before_answer: bool) -> None:
        super().__init__(message)
        self.before_answer = before_answer


class Exchange:
    """One request and its response. `on_body(data, now_ns)` gets the body as it arrives and must not raise.

    `ended` resolves when the response is complete, and fails with BrokenConnectionError when it never will be.
    """

    def __init__(self, on_body: "OnBody") -> None:
        self.on_body = on_body
        self.status = 0
        self.headers: dict[str, str] = {}
        self.sent_ns = 0
        self.ended_ns = 0
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.ended.add_done_callback(_retrieve)


OnBody = Callable[[Exchange, bytes, int], None]


def _retrieve(future: asyncio.Future[None]) -> None:
    """Mark a failure as seen: a stream that said [DONE] may be followed by a reset that nobody waits for."""
    if not future.cancelled():
        future.exception()


class Connection(asyncio.Protocol):
    """A client's side of one HTTP/1.1 connection."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._exchange: Exchange | None = None
        self._head_bytes = 0
        self._answered = False
        self._framed = False
        self._now = 0
        self._kept_alive = False
        self.idle_since = 0.0

    @property
    def reusable(self) -> bool:
        """Whether a further request may be sent: the response is complete, and nobody closed the connection."""
        return self._kept_alive and self._transport is not None and not self._transport.is_closing()

    def send(self, request: bytes, exchange: Exchange) -> None:
        """Write `request` and give its response to `exchange`; the clock starts at the write."""
        if self._transport is None or self._transport.is_closing():
            raise BrokenConnectionError("the connection was closed", before_answer=True)
        self._exchange, self._kept_alive, self._answered, self._framed, self._head_bytes = (
            exchange,
            False,
            False,
            False,
            0,
        )
        exchange.sent_ns = time.perf_counter_ns()
        self._transport.write(request)

    def close(self) -> None:
        """Drop the connection now, whatever is under way on it."""
        if self._transport is not None:
            self._transport.abort()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Called by the event loop: first of all the clock, then everything else."""
        self._now = time.perf_counter_ns()
        self._answered = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(f"not HTTP/1.1: {error}")

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the event loop: the end of a body that has no other end, or a cut."""
        self._kept_alive = False
        if exc is None and self._exchange is not None and self._exchange.status and not self._framed:
            self._now = time.perf_counter_ns()
            self._finish()
        self._fail(f"the connection broke: {exc}" if exc else "the server closed the connection")

    # httptools callbacks

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header line."""
        self._head_bytes += len(name) + len(value)
        if self._exchange is None or self._head_bytes > MAX_HEAD_BYTES:
            return
        key = name.decode("latin-1").lower()
        self._framed = self._framed or key in ("content-length", "transfer-encoding")
        self._exchange.headers[key] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        """The whole head is there."""
        if self._exchange is not None:
            self._exchange.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        if self._exchange is not None:
            self._exchange.on_body(self._exchange, body, self._now)

    def on_message_complete(self) -> None:
        """The response ended, unless it was an interim one (1xx)."""
        if self._exchange is not None and self._exchange.status >= 200:
            self._kept_alive = self._parser.should_keep_alive()
            self._finish()

    def _finish(self) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is not None and not exchange.ended.done():
            exchange.ended_ns = self._now
            exchange.ended.set_result(None)

    def _fail(self, message: str) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is not None and not exchange.ended.done():
            exchange.ended.set_exception(BrokenConnectionError(message, before_answer=not self._answered))
            self.close()


class Pool:
    """Connections to one server; its name is looked up once, so that no request waits for a resolver.

    `keeps` says whether connections are used again.
    """

    def __init__(self, target: Target) -> None:
        self._target = target
        self._ssl = ssl.create_default_context() if target.scheme == "https" else None
        self._addresses: list[str] = []
        self._idle: list[Connection] = []
        self.keeps = True

    async def take(self) -> Connection:
        """A connection, kept or new (to each of the name's addresses in turn). Raises BrokenConnectionError."""
        oldest = asyncio.get_running_loop().time() - IDLE_LIMIT
        while self._idle:
            connection = self._idle.pop()
            if connection.reusable and connection.idle_since > oldest:
                return connection
            connection.close()
        return await self._open()

    def give(self, connection: Connection) -> None:
        """Take a connection back; one that cannot serve again is closed."""
        if self.keeps and connection.reusable:
            connection.idle_since = asyncio.get_running_loop().time()
            self._idle.append(connection)
        else:
            connection.close()

    async def learn(self) -> None:
        """After a first answer: find out whether the server keeps connections, whatever it says."""
        await asyncio.sleep(CLOSING_TIME)
        self.keeps = any(connection.reusable for connection in self._idle)

    def close(self) -> None:
        """Close every idle connection."""
        for connection in self._idle:
            connection.close()
        self._idle.clear()

    async def _open(self) -> Connection:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                return await self._connect()
        except TimeoutError:
            message = f"no connection to {self._target.authority} within {CONNECT_TIMEOUT:g} s"
            raise BrokenConnectionError(message, before_answer=True) from None
        except OSError as error:
            message = f"no connection to {self._target.authority}: {_why(error)}"
            raise BrokenConnectionError(message, before_answer=True) from None

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        if not self._addresses:
            found = await loop.getaddrinfo(self._target.host, self._target.port, type=socket.SOCK_STREAM)
            self._addresses = [str(address[0]) for *_, address in found]
        failed: OSError = ConnectionRefusedError()
        for address in list(self._addresses):
            self._addresses.append(self._addresses.pop(0))
            name = self._target.host if self._ssl else None
            try:
                _, connection = await loop.create_connection(
                    Connection, address, self._target.port, ssl=self._ssl, server_hostname=name
                )
            except OSError as error:
                failed = error
            else:
                return connection
        raise failed


def _why(error: OSError) -> str:
    """What the system calls `error`; event loops put words of their own, or none, into the exception."""
    if isinstance(error, socket.gaierror | ssl.SSLError) or not error.errno:
        return error.strerror or str(error)
    return os.strerror(error.errno)
