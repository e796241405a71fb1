"""Blocking HTTP/1.1 for many threads: keep-alive connections, TLS, proxies, host rules, deadlines.

http.client parses; bodies are read from the socket into the caller's buffer, one copy and no allocation.
"""

import http.client
import io
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from types import TracebackType
from urllib.parse import quote, urlsplit
from urllib.request import getproxies

from moorage import __version__
from moorage.download.pace import HostPauses, StopError
from moorage.download.proxy import tunnel
from moorage.errors import SourceError
from moorage.sources import Access, HostPolicy, Reason, classify, origin, source_error
from moorage.sources.proxies import Proxy, choose_proxy
from moorage.sources.urls import without_query

_SAFE = "%/:=&?~#+!$,;'@()*[]"  # quote(url) with these mends a sloppy Location and changes no good one
_SHORT_TEXT = 16 << 10
_DRAIN_SECONDS = 1.0
_FLUSH_SECONDS = 0.1  # how long bytes may wait in memory for more to come
_REAP_SECONDS = 0.25
_MOST_IDLE = 64
_IDLE_SECONDS = 15.0  # older ones may have been forgotten by a firewall on the way, which only a time-out would tell
_STALE = (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError)
_TOO_MANY_SECONDS = 1.0  # the pause after a 429 that asks for none
_NEVER = float("inf")


@dataclass(eq=False)
class Connection:
    """An HTTP connection and what is known of it; `proxy` where requests name their host to one."""

    http: http.client.HTTPConnection
    sock: socket.socket
    key: tuple[str, str, int]
    proxy: Proxy | None
    deadline: float
    used: bool = False
    late: bool = False
    idle_since: float = 0.0

    def shut(self) -> None:
        """Wake whoever waits on the socket, from any thread."""
        with suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)


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
        self._broken: OSError | None = None

    def readinto(self, view: memoryview, patience: float) -> int:
        """Bytes put into `view`: what comes within a moment, at least one; 0 at the end.

        Raises TimeoutError after `patience` seconds without any, OSError or HTTPException.
        """
        if self._left == 0 or not view:
            return 0
        if self._broken:
            raise self._broken
        room = view if self._left is None else view[: self._left]
        size = self._fill(room, patience) if self._direct else self._parsed(room, patience)
        if self._left is not None:
            self._left -= size
        return size

    def _parsed(self, room: memoryview, patience: float) -> int:
        """Read by way of the parser: chunked bodies, and what it has read of the body while it looked for headers."""
        self.connection.sock.settimeout(patience)
        # A chunk's head that comes byte by byte would begin the socket's time-out anew with each.
        self.connection.deadline = time.monotonic() + patience
        try:
            if self._left is None:
                data = self._raw.read1(len(room))
                room[: len(data)] = data
                return len(data)
            # One large read empties the parser's buffer; from then on the socket is read without it.
            size: int = self._raw.fp.readinto1(room)
            if len(room) > io.DEFAULT_BUFFER_SIZE:
                self._direct = True
                self.connection.sock.settimeout(_FLUSH_SECONDS)
            return size
        finally:
            self.connection.deadline = _NEVER
            if self.connection.late:
                raise TimeoutError

    def _fill(self, room: memoryview, patience: float) -> int:
        """Many small reads in one go: TLS hands out 16 KiB at a time."""
        begin, size, receive = time.monotonic(), 0, self.connection.sock.recv_into
        while size < len(room):
            try:
                got = receive(room[size:])
            except TimeoutError:
                if not size and time.monotonic() - begin < patience:
                    continue
                if not size:
                    raise
                break
            except OSError as error:
                if not size:
                    raise
                self._broken = error  # for the next one to find: these bytes are good
                break
            size += got
            if not got or time.monotonic() - begin > _FLUSH_SECONDS:
                break
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
        ended = self._left == 0 or (bool(self._raw.chunked) and self._raw.isclosed())
        whole = ended and not self._raw.will_close
        self._raw.close()
        self._wire.release(self.connection, reuse=whole)

    def _drain(self) -> None:
        """Read the short text of a redirect or an error, so that the connection can be used again."""
        if self._left and self._left <= _SHORT_TEXT:
            view, until = memoryview(bytearray(self._left)), time.monotonic() + _DRAIN_SECONDS
            with suppress(OSError, http.client.HTTPException, ValueError):
                while (patience := until - time.monotonic()) > 0 and self.readinto(view, patience):
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
        self._idle: list[Connection] = []
        self._busy: set[Connection] = set()
        self._ca_file = ca_file
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
                connection = (self._kept(key) if again else None) or self._dial(key)
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
        if connection.proxy:
            target = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{target}"
            headers = {**headers, **connection.proxy.headers}
        connection.sock.settimeout(self.timeout)
        connection.http.request("GET", target, headers=dict(headers))
        raw = connection.http.getresponse()
        if connection.late:  # http.client takes the end of a connection for the end of the headers
            raise TimeoutError
        response = Response(self, connection, raw, url)
        connection.used, connection.deadline = True, _NEVER
        return response

    def refused(
        self, response: Response, what: str, *, access: Access, api: bool = False, repository: str | None = None
    ) -> SourceError:
        """What an answer other than success means; a Retry-After, or a 429 without, pauses its host."""
        now = datetime.now(tz=UTC)
        status, headers = response.status, response.headers
        error = classify(status, headers, what, access=access, now=now, api=api, repository=repository)
        pause = error.retry_after or (_TOO_MANY_SECONDS if status == 429 else 0.0)
        if pause and status in (429, 503):
            self.pauses.pause(origin(response.url)[1], pause)
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
        """Give a connection back; at most 64 are kept, however many hosts there are."""
        dropped = connection
        with self._lock:
            self._busy.discard(connection)
            if reuse and not self.stop.is_set():
                connection.idle_since = time.monotonic()
                self._idle.append(connection)
                if len(self._idle) <= _MOST_IDLE:
                    return
                dropped = self._idle.pop(0)
        dropped.http.close()

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
            everyone = [*self._busy, *self._idle]
        for connection in everyone:
            connection.shut()

    def _kept(self, key: tuple[str, str, int]) -> Connection | None:
        """An idle connection to there, the one used last; None where there is none."""
        oldest = time.monotonic() - _IDLE_SECONDS
        with self._lock:
            found = next((c for c in reversed(self._idle) if c.key == key and c.idle_since > oldest), None)
            if found:
                self._idle.remove(found)
                self._busy.add(found)
        return found

    def _dial(self, key: tuple[str, str, int]) -> Connection:
        """A new connection, ready for requests; raises SourceError, OSError or TimeoutError."""
        scheme, host, port = key
        self._policy.check_host(host)
        # A proxy resolves the name, so only literal addresses were checked; the proxy is the admin's own choice.
        proxy = choose_proxy(self._proxies, scheme, host, port)
        deadline = time.monotonic() + self.timeout
        sock = socket.create_connection((proxy.host, proxy.port), self.timeout) if proxy else self._connect(host, port)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        kind = http.client.HTTPSConnection if scheme == "https" else http.client.HTTPConnection
        client = kind(host, port)
        connection = Connection(client, sock, key, proxy if scheme == "http" else None, deadline)
        with self._lock:
            self._busy.add(connection)  # so that the reaper and `abort` reach it while it shakes hands
        try:
            if scheme == "https":
                self._secure(connection, proxy)
            client.sock = connection.sock
        except BaseException:
            self.release(connection, reuse=False)
            connection.sock.close()
            if connection.late:
                raise TimeoutError(f"no answer in {self.timeout:g} s") from None
            raise
        if self.stop.is_set():
            connection.shut()
        return connection

    def _secure(self, connection: Connection, proxy: Proxy | None) -> None:
        _, host, port = connection.key
        if proxy:
            tunnel(connection.sock, host, port, proxy)
        connection.sock = self._tls.wrap_socket(connection.sock, server_hostname=host, do_handshake_on_connect=False)
        connection.sock.do_handshake()

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        return _trust(self._ca_file)  # reading all authorities takes a while: only where TLS is spoken

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
