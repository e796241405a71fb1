"""Clusters for the tests: a control plane for the API floor, the whole machine for the e2e floor; each starts once."""

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from e2e.cluster import Cluster

ROOT = Path(__file__).resolve().parents[1]


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
            timeout=120,
        )
        if check and done.returncode:
            raise AssertionError(f"kubectl {' '.join(args)}: {done.stderr.strip()}")
        return done


@pytest.fixture(scope="session")
def api_cluster() -> Iterator[TestCluster]:
    """kube-apiserver, etcd, controller-manager and scheduler with our CRDs; no node."""
    cluster = Cluster(os.environ.get("MOORAGE_TEST_CLUSTER", "test-api"))
    cluster.up(control_plane=True)
    try:
        made = TestCluster(cluster.kubeconfig, cluster.binary("kubectl"))
        made.kubectl("apply", "--server-side", "-f", str(ROOT / "crds"))
        made.kubectl("wait", "--for=condition=Established", "--timeout=30s", "crd", "--all")
        yield made
    finally:
        cluster.down()
