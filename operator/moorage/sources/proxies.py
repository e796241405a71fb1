"""Which proxy a request goes through: HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, and NO_PROXY for what goes straight.

NO_PROXY is read as Go and curl read it, because that is how clusters fill it: names with their subdomains, `host:port`,
addresses, networks (`10.0.0.0/8`), `*`. The standard library knows no networks and cuts IPv6 addresses at a colon.
"""

import ipaddress
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from moorage.errors import SourceError
from moorage.sources.reasons import Reason

_PORT = 3128


@dataclass(frozen=True)
class Proxy:
    """A forward proxy, spoken to over plain HTTP."""

    host: str
    port: int
    user: str = ""
    password: str = field(default="", repr=False)

    @property
    def url(self) -> str:
        """Its address, without credentials."""
        return f"http://[{self.host}]:{self.port}" if ":" in self.host else f"http://{self.host}:{self.port}"

    @property
    def headers(self) -> dict[str, str]:
        """Its credentials as a request shows them."""
        if not self.user:
            return {}
        secret = f"{self.user}:{self.password}".encode()
        return {"Proxy-Authorization": f"Basic {b64encode(secret).decode()}"}


def choose_proxy(settings: Mapping[str, str], scheme: str, host: str, port: int) -> Proxy | None:
    """The proxy for a request; None: straight. Raises SourceError for one of a kind that is not spoken.

    `settings` are by scheme, with `all` and `no` (NO_PROXY), as urllib's getproxies() finds them in the environment.
    """
    named = settings.get(scheme) or settings.get("all")
    if not named or bypassed(settings.get("no", ""), host, port):
        return None
    parts = urlsplit(named if "//" in named else f"http://{named}")
    if parts.scheme != "http" or not parts.hostname:
        raise SourceError(
            Reason.HUB_UNREACHABLE.value,
            f"cannot be reached: the proxy for {scheme} is of the kind {parts.scheme!r}; only http:// proxies are"
            f" spoken to (they carry https, too): check {scheme.upper()}_PROXY",
            retryable=False,
        )
    return Proxy(parts.hostname, parts.port or _PORT, unquote(parts.username or ""), unquote(parts.password or ""))


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
