"""Addresses of a cluster, and the one cable between the host and its node.

The node lives in a network namespace of its own, as a machine would: all its bridges, ports and iptables rules are in
there and end with it. The host keeps one veth link, one route, and four iptables rules marked with the link's name.
"""

import ipaddress
import json
import random
import shutil
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .errors import ClusterError

_LINKS = 32
_ALL_NETWORKS = "10.160.0.0/11"  # of all plans together
_FORWARD = Path("/proc/sys/net/ipv4/ip_forward")
_FORWARD_BEFORE = Path("/run/moorage-ip-forward")  # what the first cluster found, for the last one to put back


@dataclass(frozen=True)
class Plan:
    """All addresses of cluster number `index` on this machine: 10.(160+index).0.0/16 and what lies in it."""

    index: int

    def _address(self, rest: str) -> str:
        return f"10.{160 + self.index}.{rest}"

    @property
    def link(self) -> str:
        """The host's end of the cable, and the name under which the cluster marks what it leaves outside its folder."""
        return f"mrg{self.index}"

    @property
    def network(self) -> str:
        return self._address("0.0/16")

    @property
    def pods(self) -> str:
        return self._address("0.0/22")

    @property
    def simulated_pods(self) -> str:
        """For kwok's pods, which nobody can reach."""
        return self._address("32.0/19")

    @property
    def services(self) -> str:
        return self._address("64.0/18")

    @property
    def first_service(self) -> str:
        """The ClusterIP of the Service `kubernetes`."""
        return self._address("64.1")

    @property
    def host(self) -> str:
        """The host as the node and the pods see it."""
        return self._address("255.1")

    @property
    def node(self) -> str:
        return self._address("255.2")


def free(plan: Plan, routes: list[str]) -> bool:
    """Does none of these routes (CIDRs or `default`) lead into the plan's network?"""
    network = ipaddress.ip_network(plan.network)
    taken = (ipaddress.ip_network(route, strict=False) for route in routes if route != "default")
    return not any(isinstance(route, ipaddress.IPv4Network) and route.overlaps(network) for route in taken)


def connect(namespace: int) -> Plan:
    """Lay a cable from the host into the network namespace of this process; returns the addresses chosen.

    The kernel refuses a second link of the same name, so two clusters that start at once never share a plan.
    """
    routes = [route["dst"] for route in json.loads(ip("-json", "-4", "route", "show", "table", "all"))]
    for plan in map(Plan, range(_LINKS)):
        if not free(plan, routes):
            continue
        add = ["link", "add", plan.link, "type", "veth", "peer", "name", "eth0", "netns", str(namespace)]
        if _ip(*add).returncode == 0:
            return plan
        if not Path(f"/sys/class/net/{plan.link}").exists():
            raise ClusterError(f"ip {' '.join(add)}: {_ip(*add).stderr.strip()}")
    raise ClusterError(f"all {_LINKS} networks 10.160.0.0/16 and up are in use: stop a cluster")


def configure_host(plan: Plan) -> None:
    """Give the host's end its address, the route and the rules, and let the host forward."""
    ip("address", "add", f"{plan.host}/30", "dev", plan.link)
    ip("link", "set", plan.link, "up")
    ip("route", "add", plan.network, "via", plan.node)
    for rule in rules(plan):
        _iptables("-I", rule)
    if not _FORWARD_BEFORE.exists():
        _FORWARD_BEFORE.write_text(_FORWARD.read_text())
    _FORWARD.write_text("1\n")


def node_commands(plan: Plan) -> list[list[str]]:
    """What ip(8) has to do inside the node."""
    return [
        ["address", "add", f"{plan.node}/30", "dev", "eth0"],
        ["link", "set", "eth0", "up"],
        ["route", "add", "default", "via", plan.host],
    ]


def rules(plan: Plan) -> list[list[str]]:
    """Table, chain and rule: let the node in, through and (masqueraded) out, whatever firewall the host has."""
    mark = ["-m", "comment", "--comment", f"moorage:{plan.link}"]
    accept = [*mark, "-j", "ACCEPT"]
    return [
        ["filter", "INPUT", "-i", plan.link, *accept],
        ["filter", "FORWARD", "-i", plan.link, *accept],
        ["filter", "FORWARD", "-o", plan.link, *accept],
        ["nat", "POSTROUTING", "-s", plan.network, "!", "-o", plan.link, *mark, "-j", "MASQUERADE"],
    ]


def disconnect(plan: Plan) -> None:
    """Take away everything that `connect` and `configure_host` added. Safe to repeat."""
    _ip("link", "delete", plan.link)
    if shutil.which("iptables"):
        for rule in rules(plan):
            while _iptables("-C", rule, check=False):
                _iptables("-D", rule)
    others = any(link.name.startswith("mrg") for link in Path("/sys/class/net").iterdir())
    if not others and _FORWARD_BEFORE.exists():
        _FORWARD.write_text(_FORWARD_BEFORE.read_text())
        _FORWARD_BEFORE.unlink()


def ip(*arguments: str) -> str:
    """Run ip(8) and return its output; raises ClusterError with its complaint."""
    done = _ip(*arguments)
    if done.returncode != 0:
        raise ClusterError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


def _ip(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)


def _iptables(action: str, rule: list[str], *, check: bool = True) -> bool:
    table, chain, *rest = rule
    command = ["iptables", "-w", "10", "-t", table, action, chain, *rest]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if check and done.returncode != 0:
        raise ClusterError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.returncode == 0


def without_proxy(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that keep programs from asking a proxy for a cluster's addresses."""
    direct = ["localhost", "127.0.0.1", _ALL_NETWORKS, ".svc", ".cluster.local"]
    present = environment.get("NO_PROXY") or environment.get("no_proxy")
    value = ",".join([*([present] if present else []), *direct])
    return {"NO_PROXY": value, "no_proxy": value}


def free_ports(names: list[str]) -> dict[str, int]:
    """A free port of 127.0.0.1 for each name.

    They lie below the range from which the kernel picks source ports, so that no outgoing connection takes one before
    its server listens.
    """
    ports: dict[str, int] = {}
    candidates = iter(_shuffled_ports())
    for name in names:
        ports[name] = next(port for port in candidates if _bindable(port))
    return ports


def _shuffled_ports() -> list[int]:
    ports = list(range(20000, 30000))
    random.shuffle(ports)
    return ports


def _bindable(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
