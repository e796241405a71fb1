"""A server without manners: metadata as a hub's, but files (or anything else) answered by the test, byte by byte."""

import hashlib
import json
import socket
import socketserver
import threading
import time
from collections.abc import Callable
from typing import Any

Answer = Callable[[socket.socket, str], None]
COMMIT = "c" * 40


class RawServer:
    """Serves repository a/m with one file m.gguf; `answers` has a function for a part of the path, the first that fits.

    A function gets the connection and the request's head and may do as it likes; the connection ends when it returns.
    """

    def __init__(self, data: bytes = b"x" * 1000, answers: dict[str, Answer] | None = None, host: str = "127.0.0.1"):
        self.data, self.stopping = data, threading.Event()
        self.answers: dict[str, Answer] = {**(answers or {}), "/revision/": self._revision, "/tree/": self._tree}
        self.answers.setdefault("/resolve/", self.file)
        self.heads: list[str] = []
        server = type("Server", (socketserver.ThreadingTCPServer,), {})
        server.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        server.daemon_threads = True
        server.request_queue_size = 64
        self._server = server((host, 0), type("Handler", (_Handler,), {"raw": self}))
        named = f"[{host}]" if ":" in host else host
        self.url = f"http://{named}:{self._server.server_address[1]}"

    def __enter__(self) -> "RawServer":
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        self._server.shutdown()
        self._server.server_close()

    def _revision(self, sock: socket.socket, head: str) -> None:
        send(sock, json.dumps({"sha": COMMIT}).encode())

    def _tree(self, sock: socket.socket, head: str) -> None:
        oid = hashlib.sha256(self.data).hexdigest()
        lfs = {"oid": oid, "size": len(self.data)}
        send(sock, json.dumps([{"type": "file", "path": "m.gguf", "size": len(self.data), "lfs": lfs}]).encode())

    def file(self, sock: socket.socket, head: str) -> None:
        """The right answer."""
        send(sock, self.data[slice(*asked(head))], status="206 Partial Content", headers=[content_range(self, head)])

    def drip(self, sock: socket.socket, data: bytes, every: float = 0.1) -> None:
        """One byte now and then, for ever."""
        while not self.stopping.wait(every):
            sock.sendall(data)


def asked(head: str) -> tuple[int, int]:
    """The asked range, end exclusive."""
    first, last = next(x for x in head.lower().splitlines() if x.startswith("range:")).partition("=")[2].split("-")
    return int(first), int(last) + 1


def content_range(server: RawServer, head: str) -> str:
    start, end = asked(head)
    return f"Content-Range: bytes {start}-{end - 1}/{len(server.data)}"


def send(sock: socket.socket, body: bytes, status: str = "200 OK", headers: Any = ()) -> None:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""]
    sock.sendall("\r\n".join(lines).encode() + body)


class _Handler(socketserver.BaseRequestHandler):
    raw: RawServer

    def handle(self) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            got = self.request.recv(65536)
            if not got:
                return
            head += got
        text = head.decode("latin-1")
        self.raw.heads.append(text)
        path = text.split(" ", 2)[1]
        try:
            next(a for part, a in self.raw.answers.items() if part in path)(self.request, text)
            time.sleep(0.01)
        except OSError:
            return
