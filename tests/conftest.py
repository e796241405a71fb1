"""Clusters for the tests: a control plane for the API floor, the whole machine for the e2e floor; each starts once."""

import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from e2e.cluster import Cluster

ROOT = Path(__file__).resolve().parents[1]
PREFIX = os.environ.get("MOORAGE_TEST_CLUSTER", "test")
"""Clusters of a test run are called PREFIX-api and so on; two runs at once on one checkout need two prefixes."""


# How long an example takes says more of the machine than of the code. The same examples each time, so that a run says
# something of the change that it is for; MOORAGE_EXPLORE=1 looks for others.
settings.register_profile(
    "shared",
    deadline=None,
    derandomize="MOORAGE_EXPLORE" not in os.environ,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("shared")


@dataclass
class TestCluster:
    """A running cluster: `kubectl(*args)` runs to the end and raises with the server's words where it fails."""

    __test__ = False

    kubeconfig: Path
    binary: Path

    def kubectl(self, *args: str, input: str | None = None, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [str(self.binary), "--kubeconfig", str(self.kubeconfig), *args],
            input=input,
            capture_output=True,
            text=True,
            timeout=150,
        )
        if check and done.returncode:
            raise AssertionError(f"kubectl {' '.join(args)}: {done.stderr.strip()}")
        return done


def _running(name: str, *, kwok: bool) -> Iterator[TestCluster]:
    cluster = Cluster(f"{PREFIX}-{name}")
    cluster.up(control_plane=True, kwok=kwok)
    try:
        made = TestCluster(cluster.kubeconfig, cluster.binary("kubectl"))
        made.kubectl("apply", "--server-side", "-f", str(ROOT / "crds"))
        made.kubectl("wait", "--for=condition=Established", "--timeout=120s", "crd", "--all")
        yield made
    finally:
        cluster.down()


@pytest.fixture(scope="session")
def api_cluster() -> Iterator[TestCluster]:
    """kube-apiserver, etcd, controller-manager and scheduler with our CRDs; no node."""
    yield from _running("api", kwok=False)


@pytest.fixture(scope="session")
def kwok_cluster() -> Iterator[TestCluster]:
    """The same with simulated nodes (kwok): pods become Ready there, but run nothing."""
    for made in _running("kwok", kwok=True):
        made.kubectl("apply", "-f", "-", input=json.dumps(kwok_node("sim-cpu")))
        yield made


def kwok_node(name: str, *, gpus: int = 0, labels: dict[str, str] | None = None) -> dict[str, Any]:
    """A simulated node with room for many pods and, where asked for, NVIDIA GPUs."""
    room = {"cpu": "64", "memory": "1Ti", "pods": "1000"} | ({"nvidia.com/gpu": str(gpus)} if gpus else {})
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "annotations": {"kwok.x-k8s.io/node": "fake"},
            "labels": {"kubernetes.io/hostname": name, **(labels or {})},
        },
        "status": {"capacity": room, "allocatable": room},
    }
