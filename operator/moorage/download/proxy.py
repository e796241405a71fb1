"""Proxies from the environment: HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, and NO_PROXY for what goes without.

NO_PROXY is read as Go and curl read it, because that is how clusters fill it: names with their subdomains, `host:port`,
addresses, networks (`10.0.0.0/8`), `*`. The standard library knows no networks and cuts IPv6 addresses at a colon.
"""

import ipaddress
import socket
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies

from moorage.errors import SourceError
from moorage.sources import Reason

_PORT = 3128
_MOST_HEAD = 64 << 10


@dataclass(frozen=True)
class Proxy:
    """A forward proxy; `headers` carry its credentials."""

    host: str
    port: int
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)

    def connect(self, timeout: float) -> socket.socket:
        """A socket to it; raises OSError."""
        return socket.create_connection((self.host, self.port), timeout)


class Proxies:
    """The environment's proxies as they were at the start."""

    def __init__(self, settings: Mapping[str, str] | None = None) -> None:
        """`settings` as urllib's getproxies() gives them: by scheme, `all`, and `no` for NO_PROXY."""
        self._settings = getproxies() if settings is None else settings

    def choose(self, scheme: str, host: str, port: int) -> Proxy | None:
        """The proxy for a request; None: straight. Raises SourceError for one of a kind that is not spoken."""
        named = self._settings.get(scheme) or self._settings.get("all")
        if not named or bypassed(self._settings.get("no", ""), host, port):
            return None
        parts = urlsplit(named if "//" in named else f"http://{named}")
        if parts.scheme != "http" or not parts.hostname:
            raise SourceError(
                Reason.HUB_UNREACHABLE.value,
                f"cannot be reached: the proxy for {scheme} is of the kind {parts.scheme!r}; only http:// proxies are"
                f" spoken to (they carry https, too): check {scheme.upper()}_PROXY",
                retryable=False,
            )
        return Proxy(parts.hostname, parts.port or _PORT, _credentials(parts.username, parts.password))


def _credentials(user: str | None, password: str | None) -> dict[str, str]:
    if not user:
        return {}
    secret = f"{unquote(user)}:{unquote(password or '')}".encode()
    return {"Proxy-Authorization": f"Basic {b64encode(secret).decode()}"}


def bypassed(rules: str, host: str, port: int) -> bool:
    """Whether NO_PROXY (`rules`, separated by commas or spaces) lets `host` go without a proxy."""
    return any(_matches(rule.lower(), host.lower().rstrip("."), port) for rule in rules.replace(",", " ").split())


def _matches(rule: str, host: str, port: int) -> bool:
    if rule == "*":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        name, _, only = rule.partition(":")
        name = name.removeprefix("*").strip(".")
        return bool(name) and only in ("", str(port)) and (host == name or host.endswith(f".{name}"))
    bare = rule
    if rule.endswith(f"]:{port}") or (rule.count(":") == 1 and rule.endswith(f":{port}")):
        bare = rule.rpartition(":")[0]
    try:
        return address in ipaddress.ip_network(bare.strip("[]"), strict=False)
    except (ValueError, TypeError):
        return False


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
