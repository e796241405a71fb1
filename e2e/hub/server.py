"""The hub's two HTTP servers: the hub itself (API, resolve, control) and the CDN it redirects large files to."""

import hashlib
import hmac
import json
import os
import secrets
import socket
import ssl
import struct
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from e2e.hub import body as bodies
from e2e.hub.api import Answer, Api, Ask
from e2e.hub.faults import Rule, Rules, Throttle
from e2e.hub.store import Entry, Store


class HubServer:
    """A running hub; `url` and `cdn_url` are its two origins. Use as a context manager or start() and stop().

    Several hubs may share one Store, and with it the hashes of its files.
    """

    def __init__(
        self,
        root: Path | str | Store,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        cdn_port: int = 0,
        lfs_threshold: int = 10 << 20,
        page_size: int = 1000,
        rate: float = 0,
        connection_rate: float = 0,
        expiry: float = 3600,
        tls: tuple[str, str] | None = None,
        rescan: float = 0.0,
    ) -> None:
        self.store = root if isinstance(root, Store) else Store(Path(root), lfs_threshold=lfs_threshold, rescan=rescan)
        self.rules, self.log = Rules(), RequestLog()
        self.throttle, self.connection_rate, self.expiry = Throttle(rate), connection_rate, expiry
        self.secret = secrets.token_bytes(16)
        self.stopping = threading.Event()
        self.api = Api(self.store, page_size)
        self.scheme = "https" if tls else "http"
        self._servers = {"hub": self._listen(host, port, "hub", tls), "cdn": self._listen(host, cdn_port, "cdn", tls)}
        self.port, self.cdn_port = (self._servers[n].server_address[1] for n in ("hub", "cdn"))
        shown = "127.0.0.1" if host in ("", "0.0.0.0", "::") else host
        self.url, self.cdn_url = (f"{self.scheme}://{shown}:{p}" for p in (self.port, self.cdn_port))

    def _listen(self, host: str, port: int, name: str, tls: tuple[str, str] | None) -> "_Server":
        handler = type(f"{name.title()}Handler", (Handler,), {"hub": self, "server_name": name})
        server = _Server((host, port), handler)
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*tls)
            server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        return server

    def start(self) -> "HubServer":
        for name, server in self._servers.items():
            threading.Thread(target=server.serve_forever, args=(0.05,), name=f"hub-{name}", daemon=True).start()
        return self

    def stop(self) -> None:
        """Stop listening and drop every open connection."""
        self.stopping.set()
        for server in self._servers.values():
            server.shutdown()
            server.server_close()
            server.drop()

    def __enter__(self) -> "HubServer":
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def rule(self, kind: str, path: str = "", **fields: Any) -> Rule:
        """Add a fault (see `faults`)."""
        return self.rules.add(kind=kind, path=path, **fields)

    def requests(self, path: str = "", method: str = "", server: str = "") -> list[dict[str, Any]]:
        """Logged requests whose path contains `path`."""
        return [
            r
            for r in self.log.all()
            if path in r["path"] and method in ("", r["method"]) and server in ("", r["server"])
        ]

    def sent(self, path: str = "") -> int:
        """Body bytes sent for GETs whose path contains `path`."""
        return sum(r["sent"] for r in self.requests(path, "GET"))

    def sign(self, path: str, expires: int) -> str:
        return hmac.new(self.secret, f"{path}:{expires}".encode(), hashlib.sha256).hexdigest()[:32]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    allow_reuse_address = True

    def __init__(self, *args: Any) -> None:
        self.open: set[socket.socket] = set()
        super().__init__(*args)

    def process_request(self, request: Any, client_address: Any) -> None:
        self.open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self.open.discard(request)
        super().shutdown_request(request)

    def drop(self) -> None:
        for connection in list(self.open):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients leave when they like; that is no news."""


class RequestLog:
    """What was asked, in order."""

    def __init__(self, limit: int = 200_000) -> None:
        self._lock, self._entries, self._limit = threading.Lock(), [], limit

    def begin(self, **fields: Any) -> dict[str, Any]:
        entry = {"time": round(time.time(), 3), "status": None, "sent": 0, **fields}
        with self._lock:
            self._entries.append(entry)
            del self._entries[: -self._limit]
        return entry

    def all(self) -> list[dict[str, Any]]:
        with self._lock:
            return [dict(e) for e in self._entries]

    def clear(self) -> None:
        with self._lock:
            self._entries.clear()


class Handler(BaseHTTPRequestHandler):
    """One connection of either server."""

    hub: HubServer
    server_name: str
    protocol_version = "HTTP/1.1"
    wbufsize = -1
    disable_nagle_algorithm = True

    def setup(self) -> None:
        super().setup()
        self.throttles = (self.hub.throttle, Throttle(self.hub.connection_rate))

    def log_message(self, *_: Any) -> None:
        """The request log is enough."""

    def do_GET(self) -> None:
        self._serve()

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815 - the names http.server looks for

    def _serve(self) -> None:
        parts = urlsplit(self.path)
        path, query = unquote(parts.path), dict(parse_qsl(parts.query))
        length = int(self.headers.get("Content-Length") or 0)
        sent_body = self.rfile.read(length) if length else b""
        if path in ("/_log", "/_rules", "/_limits", "/_health"):
            return self._control(path, sent_body)
        self.entry = self.hub.log.begin(
            server=self.server_name,
            method=self.command,
            path=path,
            query=parts.query,
            range=self.headers.get("Range"),
            authorization="Authorization" in self.headers,
            user_agent=self.headers.get("User-Agent"),
            connection=self.client_address[1],
        )
        try:
            if self.server_name == "cdn":
                self._cdn(path, query)
            else:
                self._hub(path, query, sent_body)
            self.wfile.flush()
        except (OSError, bodies.HangupError):
            self.close_connection = True
        return None

    # -- the hub --------------------------------------------------------------------------------------------------

    def _hub(self, path: str, query: dict[str, str], sent: bytes) -> None:
        origin = f"{self.hub.scheme}://{self.headers.get('Host', f'127.0.0.1:{self.hub.port}')}"
        answer = self.hub.api.answer(Ask(self.command, path, query, sent, self.headers.get("Authorization"), origin))
        if answer.entry is None or answer.status >= 300:
            return self._plain(answer)
        if answer.entry.lfs:
            return self._redirect(path, origin, answer)
        return self._file(path, answer.entry, answer.headers)

    def _redirect(self, path: str, origin: str, answer: Answer) -> None:
        entry = answer.entry
        assert entry is not None
        expires = int(time.time() + self.hub.expiry)
        where = "/cdn" + path
        cdn = f"{self.hub.scheme}://{origin.split('://')[1].rsplit(':', 1)[0]}:{self.hub.cdn_port}"
        location = f"{cdn}{quote(where)}?expires={expires}&signature={self.hub.sign(where, expires)}"
        headers = {"Location": location, "X-Linked-Etag": f'"{entry.sha256}"', "X-Linked-Size": str(entry.size)}
        self._plain(Answer(302, b"", {**answer.headers, **headers, "Content-Type": "text/plain"}))

    def _plain(self, answer: Answer) -> None:
        rule = self._rule(None)
        if rule and self._before(rule):
            return
        self._head(answer.status, {**answer.headers, "Content-Length": str(len(answer.body))})
        if self.command != "HEAD":
            self._send(iter([memoryview(answer.body)]), len(answer.body), rule, 0)

    # -- the CDN --------------------------------------------------------------------------------------------------

    def _cdn(self, path: str, query: dict[str, str]) -> None:
        expires = int(query.get("expires", 0))
        if self.headers.get("Authorization"):
            # S3 answers so when a request carries a signature and a token; clients must not send theirs here.
            return self._plain(Answer(400, b"<Error><Code>InvalidArgument</Code></Error>", {}))
        signed = hmac.compare_digest(query.get("signature", ""), self.hub.sign(path, expires))
        if not signed or expires < time.time():
            return self._plain(Answer(403, b"<Error><Code>AccessDenied</Code></Error>", {}))
        entry = self.hub.api.entry(path.removeprefix("/cdn"))
        if entry is None:
            return self._plain(Answer(404, b"<Error><Code>NoSuchKey</Code></Error>", {}))
        return self._file(path, entry, {"ETag": f'"{entry.sha256}"'})

    # -- files ----------------------------------------------------------------------------------------------------

    def _file(self, path: str, entry: Entry, headers: dict[str, str]) -> None:
        size = entry.content.size
        span = bodies.parse_range(self.headers.get("Range"), size)
        rule = self._rule(span or (0, size))
        if rule and self._before(rule):
            return
        answer = bodies.plan(rule, span, size, self.headers.get("Range") is not None)
        kept = {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream", **headers, **answer.headers}
        if rule and rule.chunked:
            kept["Transfer-Encoding"] = "chunked"
        else:
            kept["Content-Length"] = str(answer.length)
        self._head(answer.status, kept)
        if self.command != "HEAD":
            self._send(bodies.chunks(entry.content, answer, rule), answer.length, rule, answer.start)

    def _rule(self, span: tuple[int, int] | None) -> Rule | None:
        return self.hub.rules.take(self.server_name, self.command, unquote(urlsplit(self.path).path), span)

    def _before(self, rule: Rule) -> bool:
        """Faults that strike before the answer; True where nothing more is to be said."""
        if rule.kind == "slow":
            self.hub.stopping.wait(rule.seconds or 1)
        elif rule.kind == "hang":
            self._hold(rule.seconds)
        elif rule.kind == "drip":
            self._drip()
        elif rule.kind == "behead":
            self.connection.sendall(b"HTTP/1.1 200 OK\r\nX-Long: x")
            raise bodies.HangupError
        elif rule.kind == "status":
            text = rule.body.encode()
            self._head(rule.status, {"Content-Length": str(len(text)), **rule.headers})
            self.wfile.write(text if self.command != "HEAD" else b"")
            return True
        elif rule.kind == "html":
            page = b"<html><body>Please sign in to the network</body></html>"
            self._head(200, {"Content-Type": "text/html", "Content-Length": str(len(page))})
            self.wfile.write(page if self.command != "HEAD" else b"")
            return True
        elif rule.kind in ("cut", "rst") and rule.after is None and rule.at is None:
            self._hang_up(rule)
        return False

    def _hold(self, seconds: float | None) -> None:
        """Keep the connection open and silent until the client leaves, time is up or the hub stops."""
        deadline = time.monotonic() + (seconds if seconds is not None else 3600)
        self.connection.setblocking(False)
        try:
            while time.monotonic() < deadline and not self.hub.stopping.wait(0.05):
                try:
                    if not self.connection.recv(1, *() if self.hub.scheme == "https" else (socket.MSG_PEEK,)):
                        raise bodies.HangupError
                except (BlockingIOError, ssl.SSLWantReadError):
                    continue
        finally:
            self.connection.setblocking(True)
        if seconds is None:
            raise bodies.HangupError

    def _drip(self) -> None:
        self.connection.sendall(b"HTTP/1.1 200 OK\r\nX-Long: ")
        while not self.hub.stopping.wait(0.2):
            self.connection.sendall(b"x")
        raise bodies.HangupError

    def _hang_up(self, rule: Rule) -> None:
        self.wfile.flush()
        if rule.kind == "rst":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            # Without detaching, the makefile objects keep the socket open and a clean FIN would go out first.
            os.close(self.connection.detach())
        raise bodies.HangupError

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.entry["status"] = status
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()

    def _send(self, chunks: Any, length: int, rule: Rule | None, start: int) -> None:
        """Send the body at the allowed pace, breaking where the rule says."""
        self.wfile.flush()
        chunked = bool(rule and rule.chunked)
        stop = rule.stop(start) if rule and rule.kind in ("cut", "rst", "stall", "trickle", "norange") else None
        for chunk in chunks:
            room = memoryview(chunk)[: max(0, stop - self.entry["sent"])] if stop is not None else memoryview(chunk)
            self._write(room, chunked)
            if stop is None or self.entry["sent"] < stop:
                continue
            assert rule is not None
            if rule.kind == "stall":
                self._hold(rule.seconds)
            elif rule.kind != "trickle":
                self._hang_up(rule)
            self._write(memoryview(chunk)[len(room) :], chunked, rule.rate if rule.kind == "trickle" else 0)
            stop = None if rule.kind == "stall" else stop
        if chunked:
            self.connection.sendall(b"0\r\n\r\n")

    def _write(self, data: memoryview, chunked: bool, rate: int = 0) -> None:
        limits = [t for t in self.throttles if t.rate] + ([Throttle(rate)] if rate else [])
        slowest = min((t.rate for t in limits), default=0)
        step = max(1024, min(256 << 10, int(slowest / 50))) if slowest else len(data) or 1
        for offset in range(0, len(data), step):
            part = data[offset : offset + step]
            for limit in limits:
                limit.wait(len(part))
            self.connection.sendall(b"%x\r\n%b\r\n" % (len(part), part) if chunked else part)
            self.entry["sent"] += len(part)

    # -- control --------------------------------------------------------------------------------------------------

    def _control(self, path: str, sent: bytes) -> None:
        """`/_log` GET DELETE, `/_rules` GET PUT POST DELETE, `/_limits` PUT {rate, connectionRate} in bytes/s."""
        hub, answer = self.hub, Answer.json(200, {"ok": True})
        try:
            asked = json.loads(sent or b"null")
            if path == "/_log":
                answer = Answer.json(200, hub.log.all())
                if self.command == "DELETE":
                    hub.log.clear()
            elif path == "/_rules":
                if self.command in ("PUT", "DELETE"):
                    hub.rules.replace(asked or [])
                elif self.command == "POST":
                    hub.rules.add(**asked)
                answer = Answer.json(200, [vars(r) for r in hub.rules.active])
            elif path == "/_limits":
                hub.throttle.rate = asked.get("rate", 0)
                hub.connection_rate = asked.get("connectionRate", 0)
        except (ValueError, TypeError, AttributeError) as error:
            answer = Answer.json(400, {"error": str(error)})
        self.entry = {}
        self._head(answer.status, {**answer.headers, "Content-Length": str(len(answer.body))})
        self.wfile.write(answer.body)
        self.wfile.flush()
