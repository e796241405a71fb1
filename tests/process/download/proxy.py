"""A forward proxy for tests: absolute URLs and CONNECT, with a log."""

import base64
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit


class Proxy:
    """Listens on `url`; `seen` has "METHOD target" and, for tunnels, the decoded credentials."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.credentials: list[str] = []
        handler = type("Handler", (_Handler,), {"proxy": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.address = f"127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> "Proxy":
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    proxy: Proxy
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.proxy.seen.append(f"GET {urlsplit(self.path).netloc}")
        self._authorized()
        parts = urlsplit(self.path)
        lines = [f"GET {parts.path}?{parts.query} HTTP/1.1"]
        lines += [f"{k}: {v}" for k, v in self.headers.items() if k.lower() != "connection"]
        upstream = socket.create_connection((parts.hostname, parts.port or 80))
        upstream.sendall(("\r\n".join([*lines, "Connection: close"]) + "\r\n\r\n").encode())
        self._pump(upstream)

    def do_CONNECT(self) -> None:
        self.proxy.seen.append(f"CONNECT {self.path}")
        self._authorized()
        host, _, port = self.path.rpartition(":")
        upstream = socket.create_connection((host, int(port)))
        self.connection.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        threading.Thread(target=_copy, args=(self.connection, upstream), daemon=True).start()
        self._pump(upstream)

    def _authorized(self) -> None:
        secret = self.headers.get("Proxy-Authorization", "").removeprefix("Basic ")
        self.proxy.credentials.append(base64.b64decode(secret).decode())

    def _pump(self, upstream: socket.socket) -> None:
        _copy(upstream, self.connection)
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Quiet."""


def _copy(source: socket.socket, target: socket.socket) -> None:
    try:
        while data := source.recv(1 << 16):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        return
