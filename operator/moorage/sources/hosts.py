"""Which hosts and addresses may be fetched from. A URL typed by a user is untrusted, and so is any redirect.

Always refused: link-local and cloud metadata addresses. Loopback only with `allow_loopback` (a hub on the same
machine). Private networks are allowed: that is where mirrors live.
Metadata addresses: 169.254.169.254 (most clouds), fd00:ec2::254 and ::23 (AWS, IPv6: the instance's and the pod's),
fd20:ce::254 (Google, IPv6), 100.100.100.200 (Alibaba), 192.0.0.192 (Oracle), 168.63.129.16 (Azure's platform address).
Their names are refused as well: through a proxy only the name is seen here.
"""

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from ipaddress import IPv4Address, IPv6Address

from moorage.errors import SourceError
from moorage.sources.errors import source_error
from moorage.sources.reasons import Reason

_METADATA = tuple(
    ipaddress.ip_network(n)
    for n in ("169.254.169.254", "fd00:ec2::/32", "fd20:ce::254", "100.100.100.200", "192.0.0.192", "168.63.129.16")
)
_METADATA_NAMES = frozenset(
    {"metadata", "metadata.google.internal", "metadata.goog", "instance-data", "instance-data.ec2.internal"}
)
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


@dataclass(frozen=True)
class HostPolicy:
    """`allowed_hosts` are fnmatch patterns of host names (none: every host); `denied_networks` are CIDRs such as the
    API server's address."""

    allowed_hosts: tuple[str, ...] = ()
    denied_networks: tuple[str, ...] = ()
    allow_loopback: bool = False

    def check_host(self, host: str) -> None:
        """Refuse a host name or literal address that may not be asked; raises SourceError(HostNotAllowed)."""
        name = host.lower().strip("[]").rstrip(".")
        if self.allowed_hosts and not any(fnmatchcase(name, pattern.lower()) for pattern in self.allowed_hosts):
            raise _refused(host, "it is not in the list of allowed hosts")
        if name in _METADATA_NAMES:
            raise _refused(host, "it names a cloud metadata service")
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return
        self.check_addresses(host, [str(address)])

    def check_addresses(self, host: str, addresses: Iterable[str]) -> None:
        """Refuse what `host` resolves to if any of it is forbidden; raises SourceError(HostNotAllowed)."""
        for text in addresses:
            why = self._why(ipaddress.ip_address(text.split("%", 1)[0]))
            if why:
                raise _refused(host, f"its address {text} is {why}")

    def _why(self, given: IPv4Address | IPv6Address) -> str:
        for address in _meanings(given):
            if any(address in network for network in _METADATA if network.version == address.version):
                return "a cloud metadata address"
            if address.is_link_local:
                return "link-local"
            if address.is_loopback and not self.allow_loopback:
                return "loopback"
            if address.is_unspecified or address.is_multicast or str(address) == "255.255.255.255":
                return "not a host's address"
            networks = (ipaddress.ip_network(n, strict=False) for n in self.denied_networks)
            if any(address.version == n.version and address in n for n in networks):
                return "denied by configuration"
        return ""


def _meanings(address: IPv4Address | IPv6Address) -> list[IPv4Address | IPv6Address]:
    """The address and the IPv4 addresses hidden in it (mapped, 6to4, Teredo, NAT64)."""
    found: list[IPv4Address | IPv6Address] = [address]
    if isinstance(address, IPv6Address):
        inner = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
        if address in _NAT64:
            inner.append(IPv4Address(int(address) & 0xFFFFFFFF))
        found += [a for a in inner if a is not None]
    return found


def _refused(host: str, why: str) -> SourceError:
    return source_error(Reason.HOST_NOT_ALLOWED, f"host not allowed: {host[:200]}: {why}")
