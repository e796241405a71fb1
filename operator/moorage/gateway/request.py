"""Bytes to requests: strict HTTP/1.1 on llhttp, without any of its leniencies. No sockets here.

llhttp refuses what request smuggling is made of: two lengths, a length beside a transfer coding, folded lines, bare CR
or LF, odd chunk sizes. What it lets pass and we do not is refused here: transfer codings other than `chunked`, one in
HTTP/1.0, a missing or second Host, versions other than 1.0 and 1.1, framing that outweighs what it frames.
"""

import re
from collections import deque
from collections.abc import Callable

import httptools

from moorage.gateway import refusals
from moorage.gateway.keys import Key
from moorage.gateway.refusals import Refusal
from moorage.gateway.settings import Settings

# Said twice, these would let two parties read one request in two ways.
_ONCE = frozenset({b"host", b"authorization", b"content-type", b"content-encoding", b"expect", b"x-request-id"})
_ABSOLUTE = re.compile(rb"https?://[^/?#]*", re.IGNORECASE)


class Refused(Exception):
    """The connection cannot go on after this answer."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


class Request:
    """A request; `headers` have lower-case names, the last of several wins. `refusal` is why it will not be served.

    Defaults are the class's, so that making one costs next to nothing.
    """

    method = b""
    url = b""
    path = b""
    http10 = False
    keep_alive = True
    repeated = 0  # header lines whose name had come before, and their bytes
    repeated_bytes = 0
    length: int | None = None  # as announced
    received = 0  # bytes of the body
    body: bytes | bytearray = b""
    key: Key | None = None
    refusal: Refusal | None = None

    def __init__(self) -> None:
        self.headers: dict[bytes, bytes] = {}

    @property
    def expects_continue(self) -> bool:
        """Whether the client waits for leave to send its body."""
        return b"expect" in self.headers and not self.http10

    def complete_head(self, method: bytes, version: str, settings: Settings) -> None:
        """Check the whole head."""
        self.method = method
        url, headers = self.url, self.headers
        if not url.startswith(b"/"):
            url = _ABSOLUTE.sub(b"", url, count=1)
        self.path = url.partition(b"?")[0] if b"?" in url else url
        if version != "1.1" or b"host" not in headers:
            self.http10 = version == "1.0"
            if not self.http10 or b"transfer-encoding" in headers:
                self.refusal = self.refusal or refusals.MALFORMED
        if b"content-length" in headers:
            self.length = int(headers[b"content-length"])
            if self.length > settings.max_body_bytes:
                self.refusal = self.refusal or refusals.BODY_TOO_LARGE
        elif b"transfer-encoding" in headers and headers[b"transfer-encoding"].strip().lower() != b"chunked":
            self.refusal = self.refusal or refusals.UNSUPPORTED_CODING
        if b"content-encoding" in headers and headers[b"content-encoding"].strip().lower() != b"identity":
            self.refusal = self.refusal or refusals.UNSUPPORTED_CONTENT
        if b"expect" in headers and headers[b"expect"].strip().lower() != b"100-continue":
            self.refusal = self.refusal or refusals.UNEXPECTED

    def add_body(self, piece: bytes, limit: int) -> None:
        """Take a piece of the body; of a request that is refused it is thrown away.

        Pieces may be single bytes, hence one growing buffer and no list of them.
        """
        self.received += len(piece)
        if self.refusal is not None:
            return
        if self.received > limit:
            self.refusal, self.body = refusals.BODY_TOO_LARGE, b""
        elif not self.body:
            self.body = piece
        elif isinstance(self.body, bytearray):
            self.body += piece
        else:
            self.body = bytearray(self.body) + piece


class RequestReader:
    """One connection's bytes, in the order they came, to `complete` requests."""

    __slots__ = (
        "_check",
        "_parser",
        "_replay",
        "_settings",
        "_upgrade",
        "_wire_bytes",
        "complete",
        "current",
        "in_body",
    )

    def __init__(self, settings: Settings, check: Callable[[Request], Refusal | None]) -> None:
        self.complete: deque[Request] = deque()
        self.current = Request()  # the one that is being read
        self.in_body = False
        self._settings = settings
        self._check = check  # looks at heads
        self._parser: httptools.HttpRequestParser | None = httptools.HttpRequestParser(self)
        self._wire_bytes = 0  # of the current request
        self._upgrade = self._replay = False

    @property
    def idle(self) -> bool:
        """Whether nothing of a request has come yet; what came in one piece with the one before is not in the count."""
        return not (self._wire_bytes or self.in_body or self.current.url)

    @property
    def unanswered_bytes(self) -> int:
        """What is kept of requests that are not answered yet, but for heads."""
        return self._wire_bytes + sum(len(request.body) for request in self.complete)

    def close(self) -> None:
        """Let go of the parser, which holds this object."""
        self._parser = None

    def feed(self, data: bytes) -> None:
        """Read on. Raises Refused where the bytes make no sense or are too many."""
        self._wire_bytes += len(data)
        try:
            while data and self._parser is not None:
                try:
                    self._parser.feed_data(data)
                    break
                except httptools.HttpParserUpgrade as upgrade:
                    data = self._decline_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserCallbackError:
            raise  # a fault of ours
        except httptools.HttpParserError:
            raise Refused(refusals.MALFORMED) from None
        if self._wire_bytes:
            self._check_framing()

    def _decline_upgrade(self, rest: bytes) -> bytes:
        """What to feed next, so that a request that offers an upgrade is served as if it had not.

        Java's HttpClient offers h2c with each first request. llhttp stops after such a head, so another parser reads
        the body, told of its framing alone.
        """
        request = self.current
        if request.method == b"CONNECT":
            raise Refused(refusals.NO_TUNNEL)
        self._parser = httptools.HttpRequestParser(self)
        self._upgrade, self._replay = False, True
        framing = b""
        if request.length is not None:
            framing = b"content-length: %d\r\n" % request.length
        elif b"transfer-encoding" in request.headers:
            framing = b"transfer-encoding: chunked\r\n"
        return b"POST / HTTP/1.1\r\n" + framing + b"\r\n" + rest

    def _check_framing(self) -> None:
        """Refuse endless heads, and bodies whose chunk sizes, extensions and trailers outweigh what is in them."""
        if not self.in_body:
            if self._wire_bytes > self._settings.max_head_bytes:
                raise Refused(refusals.HEAD_TOO_LARGE)
            return
        received = self.current.received
        # Chunks of a single byte, which some clients do send, take six on the wire.
        if self._wire_bytes - received > self._settings.max_head_bytes + 8 * received:
            raise Refused(refusals.MALFORMED)

    # httptools

    def on_url(self, url: bytes) -> None:
        """A piece of the request target."""
        if not self._replay:
            self.current.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header line; after the head it is a trailer, which nobody wants."""
        if self.in_body:
            return
        name = name.lower()
        headers = self.current.headers
        if name in headers:
            self.current.repeated += 1
            self.current.repeated_bytes += len(name) + len(value) + 4
            if name in _ONCE:
                self.current.refusal = refusals.MALFORMED
        headers[name] = value

    def on_headers_complete(self) -> None:
        """The head is there."""
        if self._replay:
            self._replay = False
            return
        parser, request = self._parser, self.current
        assert parser is not None
        lines = len(request.headers) + request.repeated
        if self._wire_bytes > self._settings.max_head_bytes or lines > self._settings.max_headers:
            self._check_head_size(lines)
        request.complete_head(parser.get_method(), parser.get_http_version(), self._settings)
        # Answers in pieces end by closing in HTTP/1.0, and who sends an odd head is not trusted with a second one.
        request.keep_alive = parser.should_keep_alive() and not request.http10 and request.refusal is None
        self._upgrade = b"upgrade" in request.headers or request.method == b"CONNECT"
        if self._upgrade:
            self._upgrade = parser.should_upgrade()
        self.in_body = True
        if request.refusal is None:
            request.refusal = self._check(request)

    def _check_head_size(self, lines: int) -> None:
        """Refuse a head over the limits; only needed when this much has arrived at all."""
        request = self.current
        size = len(request.url) + sum(len(name) + len(value) + 4 for name, value in request.headers.items())
        if size + request.repeated_bytes > self._settings.max_head_bytes or lines > self._settings.max_headers:
            request.refusal = refusals.HEAD_TOO_LARGE

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        self.current.add_body(body, self._settings.max_body_bytes)

    def on_message_complete(self) -> None:
        """The request is there, and what follows is the next one."""
        if self._upgrade:
            return
        self.complete.append(self.current)
        self.current = Request()
        self.in_body = False
        self._wire_bytes = 0
