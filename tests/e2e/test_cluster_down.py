"""A cluster that goes leaves nothing on its machine: no process, link, route, firewall rule, mount or control group."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.cluster import Cluster, network, processes, state
from e2e.cluster.smoke import Smoke
from tests.conftest import PREFIX

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


def output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    made = Cluster(f"{PREFIX}-down")
    made.up()
    try:
        yield made
    finally:
        made.down()


def test_nothing_is_left_of_a_cluster_with_a_pod_behind_a_policy(cluster: Cluster):
    smoke = Smoke(cluster)
    smoke.set_up()
    smoke.pod_runs()
    meta, spec = {"name": "closed", "namespace": smoke.namespace}, {"podSelector": {}, "policyTypes": ["Ingress"]}
    policy = cluster.folder / "policy.json"
    policy.write_text(
        json.dumps({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": meta, "spec": spec})
    )
    cluster.kubectl("apply", "--filename", str(policy))
    inside = ("nsenter", f"--target={cluster.pid('netpol')}", "--net")
    for _ in processes.ticks(60, 0.2):
        if "admin-prohibited" in (table := output(*inside, "nft", "list", "table", "ip", "netpol")):
            break
    assert "admin-prohibited" in table
    record = state.load(cluster.folder)
    assert record is not None
    assert record.link is not None
    plan = network.Plan(record.link)
    assert traces(cluster, plan) >= {"link", "route", "iptables", "control groups", "mounts", "processes"}
    assert "nftables" not in traces(cluster, plan), "the policies are the node's own while it lives, too"
    alive = record.processes
    cluster.down()
    assert traces(cluster, plan) == set()
    assert not any(processes.alive(process) for process in alive)


def traces(cluster: Cluster, plan: network.Plan) -> set[str]:
    """What the machine has of this cluster outside its folder. Other clusters may run beside it."""
    folder = f"{cluster.folder}/".encode()
    commands = [file for file in Path("/proc").glob("[0-9]*/cmdline") if folder in _bytes(file)]
    found = {
        "link": Path(f"/sys/class/net/{plan.link}").exists(),
        "route": plan.node in output("ip", "-4", "route"),
        "iptables": f"moorage:{plan.link}" in output("iptables-save"),
        "nftables": "table ip netpol" in output("nft", "list", "tables"),
        "control groups": any(Path("/sys/fs/cgroup").glob(f"**/moorage-{plan.link}")),
        "mounts": any(folder in _bytes(file) for file in Path("/proc").glob("[0-9]*/mountinfo")),
        "processes": bool(commands),
    }
    return {what for what, is_there in found.items() if is_there}


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:  # it ended while we looked
        return b""
