"""Tunnels through a forward proxy."""

import socket

from moorage.sources.proxies import Proxy

_MOST_HEAD = 64 << 10


def tunnel(sock: socket.socket, host: str, port: int, proxy: Proxy) -> None:
    """Ask a proxy for a tunnel (CONNECT); raises OSError where it refuses."""
    name = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    headers = {"Host": name, **proxy.headers}
    lines = [f"CONNECT {name} HTTP/1.1", *(f"{key}: {value}" for key, value in headers.items())]
    sock.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
    answer = b""
    while b"\r\n\r\n" not in answer and len(answer) < _MOST_HEAD:
        got = sock.recv(1)  # one byte at a time: what follows the head belongs to TLS
        if not got:
            raise ConnectionResetError("the proxy closed the connection")
        answer += got
    words = answer.split(b"\r\n", 1)[0].split()
    if len(words) < 2 or words[1] != b"200":
        raise OSError(f"the proxy refused a tunnel to {name}: {answer.splitlines()[0][:80]!r}")
