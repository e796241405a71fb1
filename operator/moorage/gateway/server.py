"""The gateway's side towards clients: one HTTP/1.1 connection, its limits and its time-outs.

Time-outs are `deadline`s that one sweep looks at for all connections of a listener; a timer for each request would
cost more than parsing it.
"""

import asyncio
import logging
import time
from enum import Enum, auto
from http import HTTPStatus
from typing import Protocol, cast

from moorage.gateway import refusals
from moorage.gateway.refusals import Refusal
from moorage.gateway.request import Refused, Request, RequestReader
from moorage.gateway.settings import Settings

log = logging.getLogger(__name__)

NEVER = float("inf")
# A refused upload up to this size is read to its end, so that the connection can be used again.
_SMALL_BODY = 1 << 20
_LINES = {s.value: b"HTTP/1.1 %d %s\r\n" % (s.value, s.phrase.encode()) for s in HTTPStatus}


class State(Enum):
    """What a connection does.

    LINGER: what still arrives is thrown away, because closing at once would destroy a refusal on its way to a client
    that is in the middle of an upload.
    """

    READ = auto()
    BUSY = auto()
    LINGER = auto()
    CLOSED = auto()


# Looking a member up in an Enum takes Python 3.11 three times as long, and each request does it a dozen times.
_READ, _BUSY, _LINGER, _CLOSED = State


class Job(Protocol):
    """What answers a request for longer than a moment."""

    deadline: float  # monotonic seconds; when it passes, `on_deadline` is called

    def on_deadline(self) -> None:
        """It took too long."""

    def on_client_gone(self) -> None:
        """Nobody waits for the answer any more; the connection calls nothing further."""

    def on_client_slow(self, slow: bool) -> None:
        """The client takes nothing more for now; or it does again."""

    def on_shutdown(self) -> None:
        """The process ends now: last words."""


class Handler(Protocol):
    """What serves requests."""

    def check(self, request: Request) -> Refusal | None:
        """Look at a request's head before its body is read."""

    def start(self, request: Request, client: "ClientConnection") -> None:
        """Answer a request: now, or by setting `client.job`."""

    def refused(self, refusal: Refusal) -> None:
        """A refusal is sent."""


class Listener:
    """What all connections of one listening socket share."""

    def __init__(self, settings: Settings, handler: Handler) -> None:
        self.settings = settings
        self.handler = handler
        self.connections: set[ClientConnection] = set()
        self.held = 0  # bytes of requests that are not answered yet
        self.draining = False

    def connect(self) -> "ClientConnection":
        """A protocol for a new connection."""
        return ClientConnection(self)

    @property
    def busy(self) -> int:
        """Connections with a request or an answer, or on which one is to be expected in this moment."""
        now = time.monotonic()
        return sum(not connection.idle(now) for connection in self.connections)

    def sweep(self) -> None:
        """Act on every deadline that has passed."""
        now = time.monotonic()
        for connection in [c for c in self.connections if c.due(now)]:
            connection.on_deadline(now)

    def drain(self) -> None:
        """From now on answers end their connections."""
        self.draining = True

    def close_idle(self) -> None:
        """Close every connection that does nothing."""
        now = time.monotonic()
        for connection in [c for c in self.connections if c.idle(now)]:
            connection.hang_up()

    def shut_down(self) -> None:
        """End every answer that is still to come."""
        for connection in list(self.connections):
            if connection.job is not None:
                connection.job.on_shutdown()

    def abort(self) -> None:
        """Drop all connections now."""
        for connection in list(self.connections):
            connection.abort()


class ClientConnection(asyncio.Protocol):
    """One client's connection: requests in, one after the other, and answers out."""

    __slots__ = (
        "_advancing", "_awaited", "_backlog", "_chunked", "_close", "_head", "_held", "_listener", "_reader",
        "_settings", "_transport", "blocked", "committed", "deadline", "job", "request", "state",
    )  # fmt: skip

    def __init__(self, listener: Listener) -> None:
        self.state = _READ
        self.request = Request()  # the one that is being answered
        self.job: Job | None = None
        self.committed = False  # whether the head of the answer is decided
        self.blocked = False  # whether the client takes nothing at the moment
        self.deadline = NEVER
        self._listener = listener
        self._settings = listener.settings
        self._reader = RequestReader(listener.settings, listener.handler.check)
        self._transport: asyncio.Transport
        self._backlog = bytearray()  # what came while BUSY
        self._held = 0  # bytes that came since everything was answered
        self._awaited: Request | None = None  # whose body is on its way, and has its time
        self._head = b""
        self._chunked = self._close = self._advancing = False

    # Answering, for handlers and jobs

    def answer(self, status: int, headers: bytes, body: bytes) -> None:
        """A whole answer; `headers` are complete lines."""
        self._head = b""
        self._transport.write(self._head_of(status, headers, b"content-length: %d\r\n" % len(body)) + body)
        self._finish()

    def refuse(self, refusal: Refusal) -> None:
        """A whole answer that says no."""
        self._listener.handler.refused(refusal)
        # An answer to HEAD has no body: whoever asked would take it for the next answer.
        self.answer(refusal.status, refusal.headers(), b"" if self.request.method == b"HEAD" else refusal.body())

    def begin(self, status: int, headers: bytes, length: int | None) -> None:
        """The head of an answer, sent with its first bytes; without a `length` it is chunked, or ends by closing."""
        self._chunked = length is None and not self.request.http10 and status not in (204, 304)
        if length is not None:
            framing = b"content-length: %d\r\n" % length
        else:
            framing = b"transfer-encoding: chunked\r\n" if self._chunked else b""
        self._head = self._head_of(status, headers, framing)
        self.committed = True

    def _head_of(self, status: int, headers: bytes, framing: bytes) -> bytes:
        self._close = self._close or not self.request.keep_alive or self._listener.draining
        end = b"connection: close\r\n\r\n" if self._close else b"\r\n"
        return b"%b%b%b%b" % (_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status, headers, framing, end)

    def send(self, data: bytes, last: bool) -> None:
        """Body bytes of the answer that was begun; `last`: it is complete."""
        if self._chunked:
            data = b"%x\r\n%b\r\n" % (len(data), data) if data else b""
            if last:
                data += b"0\r\n\r\n"
        if self._head:
            data = self._head + data
            self._head = b""
        if data:
            self._transport.write(data)
        if last:
            self._finish()

    def cut(self, last_words: bytes = b"") -> None:
        """Close in the middle of an answer, so that no client takes it for a whole one."""
        if last_words:
            self.send(last_words, False)
        self.job = None
        self.hang_up()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        self._transport = cast(asyncio.Transport, transport)
        self._listener.connections.add(self)
        self.deadline = time.monotonic() + self._settings.head_timeout
        if len(self._listener.connections) > self._settings.max_connections:
            self._refuse_and_linger(refusals.TOO_MANY_CONNECTIONS)

    def data_received(self, data: bytes) -> None:
        """Called by the event loop."""
        if self.state is _BUSY or (self.state is _READ and self.blocked):
            self._hold(len(data))
            self._backlog += data
            if not self._has_room():
                self._transport.pause_reading()  # until this answer is done, or taken
        elif self.state is _READ:
            self._hold(len(data))
            if self._takes_too_much():
                self._refuse_and_linger(refusals.OVERLOADED)
                return
            self._read(data)
            self._advance()

    def pause_writing(self) -> None:
        """Called by the event loop: the client does not keep up."""
        self.blocked = True
        if self.state is _BUSY:
            self.deadline = time.monotonic() + self._settings.write_timeout
        if self.job is not None:
            self.job.on_client_slow(True)

    def resume_writing(self) -> None:
        """Called by the event loop: the client keeps up again."""
        self.blocked = False
        job = self.job
        if self.state is _BUSY:
            self.deadline = NEVER
        elif self.state is _READ:
            self.deadline = time.monotonic() + self._settings.head_timeout
            self._advance()
        if job is not None:  # not one that begins here, which has not been told of a slow client
            job.on_client_slow(False)

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the event loop."""
        self.state = _CLOSED
        self.deadline = NEVER
        self._listener.connections.discard(self)
        self._reader.close()
        self._hold(-self._held)
        job, self.job = self.job, None
        if job is not None:
            job.on_client_gone()

    # Time

    def due(self, now: float) -> bool:
        """Whether a deadline has passed."""
        return self.deadline <= now or (self.job is not None and self.job.deadline <= now)

    def on_deadline(self, now: float) -> None:
        """Something took too long: the client's sending, its reading, or the job."""
        if self.deadline > now:
            if self.job is not None:
                self.job.on_deadline()
        elif self.state is _READ and not (self._reader.idle or self.blocked):
            self._refuse_and_linger(refusals.TOO_SLOW)
        elif self.state is _READ and not self.blocked:
            self.hang_up()
        else:
            self.abort()

    def idle(self, now: float) -> bool:
        """Whether nothing is under way, not even, as from one who has just come, a request that nobody has seen yet."""
        since = self.deadline - self._settings.head_timeout
        return self.state is _READ and self._reader.idle and since <= now - self._settings.drain_quiet

    def abort(self) -> None:
        """Drop the connection now."""
        self._transport.abort()

    # Reading

    def _read(self, data: bytes) -> None:
        try:
            self._reader.feed(data)
        except Refused as refused:
            if self._reader.complete:  # answers to what was whole come first, and the last of them closes
                self._reader.complete[-1].keep_alive = False
            else:
                self._refuse_and_linger(refused.refusal)

    def _await_body(self) -> None:
        """A head was read and its body was not: give it its time, and say once whether it is wanted."""
        request, first = self._reader.current, self._reader.current is not self._awaited
        if first:
            self._awaited = request
            self.deadline = time.monotonic() + self._settings.body_timeout
        if request.refusal is not None:
            if request.expects_continue or request.length is None or request.length > _SMALL_BODY:
                self._refuse_and_linger(request.refusal)
        elif request.expects_continue and first and not request.received:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _advance(self) -> None:
        """Answer what has been read, one after the other; a job that takes longer calls again when it ends.

        Not faster than the client takes answers: they would pile up.
        """
        if self._advancing:
            return
        self._advancing = True
        complete, step = self._reader.complete, self._settings.max_head_bytes
        while self.state is _READ and not self.blocked:
            if complete:
                self._start(complete.popleft())
            elif self._backlog:
                data = bytes(self._backlog[:step])
                del self._backlog[:step]
                if self._has_room():
                    self._transport.resume_reading()
                self._read(data)
            else:
                if self._reader.in_body:
                    self._await_body()
                break
        self._advancing = False

    def _start(self, request: Request) -> None:
        self.state = _BUSY
        self.request = request
        self._awaited = None
        self.deadline = time.monotonic() + self._settings.write_timeout if self.blocked else NEVER
        if request.refusal is not None:
            self.refuse(request.refusal)
            return
        try:
            self._listener.handler.start(request, self)
        except Exception:
            log.exception("a request failed in the gateway")
            job, self.job = self.job, None
            if job is not None:
                job.on_client_gone()  # so that it gives back what it has taken
            if self.committed:
                self.cut()
            else:
                self.refuse(refusals.INTERNAL)

    def _has_room(self) -> bool:
        """Whether to read on what comes before its turn.

        A client's leaving is only seen by reading on, so where memory allows it that is up to a request's largest size.
        """
        size, settings = len(self._backlog), self._settings
        if size <= settings.max_head_bytes:
            return True
        return size <= settings.max_body_bytes and self._listener.held <= settings.max_held_bytes // 2

    def _takes_too_much(self) -> bool:
        """Whether this client is one of those because of whom memory runs short: more of them the shorter it is."""
        settings = self._settings
        over = self._listener.held - settings.max_held_bytes
        fair = settings.max_held_bytes // settings.max_connections
        return over > 0 and self._held > (settings.max_head_bytes if over <= settings.max_held_bytes else fair)

    def _hold(self, size: int) -> None:
        self._held += size
        self._listener.held += size

    def _finish(self) -> None:
        self.job = None
        self.committed = False
        self.request.body = b""  # an idle connection keeps none
        self._hold(len(self._backlog) + self._reader.unanswered_bytes - self._held)
        if self._close:
            self.hang_up()
            return
        self.state = _READ
        wait = self._settings.write_timeout if self.blocked else self._settings.head_timeout
        self.deadline = time.monotonic() + wait
        if self._reader.complete or self._backlog or self._reader.in_body:
            self._advance()

    def _refuse_and_linger(self, refusal: Refusal) -> None:
        """Say no, and that nothing more will be read; what is still coming is thrown away for a moment."""
        self._close = True
        self.request = self._reader.current
        self.begin(refusal.status, refusal.headers(), len(refusal.body()))
        self._listener.handler.refused(refusal)
        self._transport.write(self._head + refusal.body())
        self.state = _LINGER
        self.deadline = time.monotonic() + self._settings.linger_timeout
        if self._transport.can_write_eof():
            self._transport.write_eof()

    def hang_up(self) -> None:
        """Close once everything is written, or by force when the client does not take it."""
        self.state = _LINGER
        self.deadline = time.monotonic() + self._settings.write_timeout
        self._transport.close()
