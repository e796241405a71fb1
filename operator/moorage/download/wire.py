"""Blocking HTTP/1.1 for many threads: keep-alive connections, TLS, proxies, host rules, deadlines.

http.client parses; bodies are read from the socket into the caller's buffer, one copy and no allocation.
"""

import http.client
import io
import socket
import ssl
import threading
import time
from base64 import b64encode
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from urllib.parse import quote, unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

from moorage import __version__
from moorage.download.pace import HostPauses, StopError
from moorage.errors import SourceError
from moorage.sources import Access, HostPolicy, Reason, classify, origin, source_error
from moorage.sources.urls import without_query

_SAFE = "%/:=&?~#+!$,;'@()*[]"  # quote(url) with these mends a sloppy Location and changes no good one
_SHORT_TEXT = 16 << 10
_REAP_SECONDS = 0.25
_STALE = (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError)


@dataclass(eq=False)
class Connection:
    """An HTTP connection and what is known of it."""

    http: http.client.HTTPConnection
    key: tuple[str, str, int]
    via_proxy: bool
    used: bool = False
    deadline: float = float("inf")
    late: bool = False

    def shut(self) -> None:
        """Wake whoever waits on the socket, from any thread."""
        try:
            if self.http.sock:
                self.http.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            return


class Response:
    """An answer whose body is read with `readinto`; a context manager that gives the connection back or closes it.

    `deadline` (monotonic) is when a short answer should be there as a whole.
    """

    def __init__(self, wire: "Wire", connection: Connection, raw: http.client.HTTPResponse, url: str) -> None:
        self._wire, self.connection, self._raw = wire, connection, raw
        self.deadline = connection.deadline
        self.url, self.status, self.headers = url, raw.status, raw.headers
        self.length: int | None = raw.length
        self.framed = raw.length is not None or bool(raw.chunked)
        self._left = raw.length
        self._direct = False

    def readinto(self, view: memoryview, timeout: float) -> int:
        """Bytes put into `view` by one read, 0 at the end; raises OSError, TimeoutError or HTTPException."""
        if self._left == 0:
            return 0
        if self.connection.http.sock:
            self.connection.http.sock.settimeout(timeout)
        if self._raw.chunked or self._left is None:
            data = self._raw.read1(len(view))
            view[: len(data)] = data
            return len(data)
        room = view[: self._left] if self._left < len(view) else view
        if self._direct and self.connection.http.sock:
            size = self.connection.http.sock.recv_into(room)
        else:
            # The parser may have read on into the body. One large read empties its buffer; from then on the socket is
            # read without it.
            size = self._raw.fp.readinto1(room)
            self._direct = len(room) > io.DEFAULT_BUFFER_SIZE
        self._left -= size
        return size

    def read(self, limit: int) -> bytes:
        """The whole body of at most `limit` bytes before the deadline; raises SourceError."""
        parts, size, buffer = [], 0, memoryview(bytearray(1 << 16))
        while True:
            try:
                got = self.readinto(buffer, max(0.05, self.deadline - time.monotonic()))
            except (OSError, http.client.HTTPException, ValueError) as error:
                raise self._wire.failure(error, self.url, self.connection) from None
            if not got:
                break
            parts.append(bytes(buffer[:got]))
            size += got
            if size > limit:
                raise source_error(
                    Reason.UNEXPECTED_CONTENT, f"unexpected answer: {without_query(self.url)} sent over {limit} bytes"
                )
            if time.monotonic() > self.deadline:
                raise source_error(Reason.TIMEOUT, f"timed out: {without_query(self.url)}")
        if self._left:
            raise source_error(Reason.NETWORK, f"connection broken: {without_query(self.url)} ended early")
        return b"".join(parts)

    def __enter__(self) -> "Response":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the connection back where the answer was read to its end, else close it."""
        self._drain()
        whole = self._left == 0 and not self._raw.will_close
        self._raw.close()
        self._wire.release(self.connection, reuse=whole)

    def _drain(self) -> None:
        """Read the short text of a redirect or an error, so that the connection can be used again."""
        if self._left and self._left <= _SHORT_TEXT:
            with suppress(OSError, http.client.HTTPException, ValueError):
                view = memoryview(bytearray(self._left))
                while self.readinto(view, 1.0):
                    continue


class Wire:
    """Opens connections and keeps them, for many threads. `timeout` (seconds) is for connecting and for headers."""

    def __init__(
        self,
        stop: threading.Event,
        *,
        policy: HostPolicy | None = None,
        ca_file: str | None = None,
        timeout: float = 10.0,
    ) -> None:
        self.stop, self.timeout = stop, timeout
        self.pauses = HostPauses(stop)
        self._policy = policy or HostPolicy()
        self._lock = threading.Lock()
        self._idle: dict[tuple[str, str, int], list[Connection]] = {}
        self._busy: set[Connection] = set()
        self._tls = _trust(ca_file)
        self._proxies = getproxies()
        threading.Thread(target=self._reap, name="reaper", daemon=True).start()

    def get(self, url: str, headers: Mapping[str, str]) -> Response:
        """The answer to one GET, redirects not followed; raises SourceError or StopError."""
        key = origin(url)
        self.pauses.wait(key[1])
        sent = {"User-Agent": f"moorage/{__version__}", "Accept-Encoding": "identity", "Accept": "*/*", **headers}
        for again in (True, False):
            connection = None
            try:
                connection = self._take(key)
                connection.deadline = time.monotonic() + self.timeout
                return self._ask(connection, url, sent)
            except (OSError, http.client.HTTPException, ValueError) as error:
                if connection is not None:
                    self.release(connection, reuse=False)
                    if again and connection.used and not connection.late and isinstance(error, _STALE):
                        continue  # an idle connection that the server had closed is nobody's failure
                raise self.failure(error, url, connection) from None
        raise AssertionError("unreachable")

    def _ask(self, connection: Connection, url: str, headers: Mapping[str, str]) -> Response:
        parts = urlsplit(quote(url, safe=_SAFE))
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        if connection.via_proxy:
            target = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{target}"
        assert connection.http.sock is not None
        connection.http.sock.settimeout(self.timeout)
        connection.http.request("GET", target, headers=dict(headers))
        raw = connection.http.getresponse()
        if connection.late:  # http.client takes the end of a connection for the end of the headers
            raise TimeoutError
        response = Response(self, connection, raw, url)
        connection.used, connection.deadline = True, float("inf")
        return response

    def refused(self, response: Response, what: str, *, access: Access, api: bool = False) -> SourceError:
        """What an answer other than success means; a Retry-After pauses its host."""
        now = datetime.now(tz=UTC)
        error = classify(response.status, response.headers, what, access=access, now=now, api=api)
        if error.retry_after and response.status in (429, 503):
            self.pauses.pause(origin(response.url)[1], error.retry_after)
        return error

    def failure(self, error: Exception, url: str, connection: Connection | None) -> SourceError:
        """A broken connection as a SourceError; raises StopError where we broke it ourselves."""
        if self.stop.is_set():
            raise StopError
        what = without_query(url)
        text = " ".join(str(error).split())[:200] or type(error).__name__
        if isinstance(error, SourceError):
            return error
        if isinstance(error, ssl.SSLCertVerificationError):
            return source_error(Reason.CERTIFICATE_ERROR, f"certificate not trusted: {what}: {error.verify_message}")
        if connection is None:
            return source_error(Reason.HUB_UNREACHABLE, f"cannot be reached: {what}: {text}")
        if isinstance(error, TimeoutError) or connection.late:
            return source_error(Reason.TIMEOUT, f"timed out: {what} did not answer in {self.timeout:g} s")
        return source_error(Reason.NETWORK, f"connection broken: {what}: {text}")

    def release(self, connection: Connection, *, reuse: bool) -> None:
        """Give a connection back."""
        with self._lock:
            self._busy.discard(connection)
            if reuse and not self.stop.is_set():
                self._idle.setdefault(connection.key, []).append(connection)
                return
        connection.http.close()

    def _reap(self) -> None:
        """Break connections whose headers are overdue: a byte now and then would beat the socket's time-out."""
        while not self.stop.wait(_REAP_SECONDS):
            now = time.monotonic()
            with self._lock:
                late = [c for c in self._busy if c.deadline < now]
            for connection in late:
                connection.late = True
                connection.shut()

    def abort(self) -> None:
        """Break every connection; `stop` must be set before."""
        with self._lock:
            everyone = [*self._busy, *(c for kept in self._idle.values() for c in kept)]
        for connection in everyone:
            connection.shut()

    def _take(self, key: tuple[str, str, int]) -> Connection:
        with self._lock:
            kept = self._idle.get(key)
            connection = kept.pop() if kept else None
        connection = connection or self._dial(key)
        with self._lock:
            self._busy.add(connection)
        if self.stop.is_set():
            connection.shut()
        return connection

    def _dial(self, key: tuple[str, str, int]) -> Connection:
        scheme, host, port = key
        self._policy.check_host(host)
        proxy = None if proxy_bypass(host) else self._proxies.get(scheme)
        if not proxy:
            sock: socket.socket = self._connect(host, port)
        else:
            # The proxy resolves the name, so only literal addresses were checked; the proxy is the admin's own choice.
            named = urlsplit(proxy if "//" in proxy else f"http://{proxy}")
            sock = socket.create_connection((named.hostname or "", named.port or 3128), self.timeout)
            if scheme == "https":
                _tunnel(sock, host, port, named.username, named.password)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if scheme == "https":
            sock = self._tls.wrap_socket(sock, server_hostname=host)
            client: http.client.HTTPConnection = http.client.HTTPSConnection(host, port, context=self._tls)
        else:
            client = http.client.HTTPConnection(host, port)
        client.sock = sock
        return Connection(client, key, via_proxy=bool(proxy) and scheme == "http")

    def _connect(self, host: str, port: int) -> socket.socket:
        """A socket to one of the addresses of `host`, each checked after resolving."""
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        self._policy.check_addresses(host, [str(answer[4][0]) for answer in found])
        deadline, last = time.monotonic() + self.timeout, OSError(f"no address for {host}")
        for family, kind, protocol, _, address in found:
            sock = socket.socket(family, kind, protocol)
            try:
                sock.settimeout(max(0.05, deadline - time.monotonic()))
                sock.connect(address)
            except OSError as error:
                sock.close()
                last = error
            else:
                return sock
        raise last


def _trust(ca_file: str | None) -> ssl.SSLContext:
    """The system's authorities and those of `ca_file` (PEM)."""
    context = ssl.create_default_context()
    if ca_file:
        try:
            context.load_verify_locations(cafile=ca_file)
        except (OSError, ssl.SSLError) as error:
            raise source_error(Reason.CERTIFICATE_ERROR, f"CA file {ca_file} cannot be read: {error}") from None
    return context


def _tunnel(sock: socket.socket, host: str, port: int, user: str | None, password: str | None) -> None:
    """Ask an HTTP proxy for a tunnel (CONNECT); raises OSError where it refuses."""
    name = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    lines = [f"CONNECT {name} HTTP/1.1", f"Host: {name}"]
    if user:
        secret = f"{unquote(user)}:{unquote(password or '')}".encode()
        lines.append(f"Proxy-Authorization: Basic {b64encode(secret).decode()}")
    sock.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
    answer = b""
    while b"\r\n\r\n" not in answer and len(answer) < 65536:
        got = sock.recv(1)  # one byte at a time: what follows the head belongs to TLS
        if not got:
            raise ConnectionResetError("the proxy closed the connection")
        answer += got
    words = answer.split(b"\r\n", 1)[0].split()
    if len(words) < 2 or words[1] != b"200":
        raise OSError(f"the proxy refused a tunnel to {name}: {answer[:80]!r}")
