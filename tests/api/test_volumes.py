"""Volumes that one node at a time can mount, on several simulated nodes under the real kube-scheduler.

Simulated nodes mount nothing, so nothing but the affinity of the pods keeps them together here: without it the
scheduler spreads them.
"""

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from moorage.control.operator import Operator
from moorage.kube.resources import MODELS, PODS
from tests.api.test_placement import gpu_node
from tests.conftest import TestCluster, kwok_node
from tests.support.bed import Bed, condition, running_operator
from tests.support.nodes import nodes as simulated

pytestmark = pytest.mark.api

HERE = {"example.com/volumes": "yes"}
NODES = ("sim-vol-1", "sim-vol-2")
GPUS = ("sim-vol-gpu-1", "sim-vol-gpu-2")
IDLE = "sim-vol-idle"


@pytest.fixture(scope="module")
def nodes(kwok_cluster: TestCluster) -> Iterator[TestCluster]:
    made = [*(kwok_node(name, labels=HERE) for name in NODES), *(gpu_node(name, 24564, 1) for name in GPUS)]
    with simulated(kwok_cluster, *made):
        yield kwok_cluster
    kwok_cluster.kubectl("delete", "node", "--ignore-not-found", IDLE)


@pytest.fixture
async def bed(nodes: TestCluster) -> AsyncIterator[Bed]:
    async with Bed.made(nodes.kubeconfig) as made:
        await made.ready_download(mode="ReadWriteOnce")
        yield made


@pytest.fixture
def operator(nodes: TestCluster) -> Iterator[Operator]:
    with running_operator(nodes.kubeconfig) as made:
        yield made


async def until_ready(bed: Bed, name: str, servers: int = 1) -> None:
    await bed.until(MODELS, name, lambda m: m["status"].get("readyReplicas") == servers)


async def homes(bed: Bed) -> list[str]:
    """The node of each server."""
    pods = (await bed.kube.list(PODS, bed.namespace))[0]
    return [p["spec"].get("nodeName", "") for p in pods if "deletionTimestamp" not in p["metadata"]]


async def test_all_servers_of_a_claim_share_its_node(bed: Bed, operator: Operator):
    """Replicas and further Models alike; the scheduler alone would spread them over both nodes."""
    await bed.model("a", replicas=2, nodeSelector=HERE)
    await until_ready(bed, "a", 2)
    await bed.model("b", nodeSelector=HERE)
    await until_ready(bed, "b")
    await bed.model("b", nodeSelector=HERE, replicas=3)
    await until_ready(bed, "b", 3)
    found = await homes(bed)
    assert len(found) == 5
    assert len(set(found)) == 1


async def test_a_server_with_no_room_on_the_claims_node_says_so(bed: Bed, operator: Operator):
    await bed.model("a", nodeSelector=HERE, resources={"requests": {"cpu": "40"}})
    await until_ready(bed, "a")
    (home,) = await homes(bed)
    await bed.model("b", nodeSelector=HERE, resources={"requests": {"cpu": "40"}})
    model = await bed.until_condition("b", "Serving", "False", "VolumeOnOneNode")
    message = condition(model, "Serving")["message"]
    assert f"claim files is ReadWriteOnce and can be mounted on node {home} alone" in message
    assert "Insufficient cpu" in message, "the scheduler's own words"
    assert model["status"]["phase"] == "Failed"
    await bed.kube.delete(MODELS, bed.namespace, "a")
    await until_ready(bed, "b")


async def test_a_gpu_on_another_node_is_of_no_use(bed: Bed, operator: Operator):
    """A replica that finds none beside the first says why; a further Model is told before it has a pod."""
    gpu = {"vendor": "Auto", "memoryPerGPUOverride": "10Gi"}
    await bed.model("a", replicas=2, accelerator=gpu)
    said = "1 of 2 servers are ready: claim files is ReadWriteOnce and can be mounted on node"
    model = await bed.until(MODELS, "a", lambda m: said in condition(m, "Serving").get("message", ""))
    (home,) = model["status"]["placement"]["nodes"]
    assert home in GPUS
    await bed.model("b", accelerator=gpu)
    model = await bed.until_condition("b", "Placed", "False")
    assert "cannot mount the volume" in json.dumps(model["status"]), condition(model, "Placed")["message"]


async def test_a_volume_that_a_stranger_holds_on_another_node_is_said_to_be_in_use(
    bed: Bed, operator: Operator, nodes: TestCluster
):
    stranger = pod("backup-0", NODES[0])
    await bed.kube.create({**stranger, "metadata": {**stranger["metadata"], "namespace": bed.namespace}})
    # A node that exists in name only: what is bound there waits, as it would for a volume that is held elsewhere.
    label = {"kubernetes.io/hostname": IDLE}
    idle: dict[str, Any] = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": IDLE, "labels": label}}
    room = {"cpu": "8", "memory": "64Gi", "pods": "10"}
    ready = {"conditions": [{"type": "Ready", "status": "True"}], "capacity": room, "allocatable": room}
    nodes.kubectl("apply", "-f", "-", input=json.dumps({**idle, "status": ready}))
    nodes.kubectl("patch", "node", IDLE, "--subresource=status", "--type=merge", "-p", json.dumps({"status": ready}))
    await bed.model("a", nodeSelector=label)
    model = await bed.until_condition("a", "Serving", "False", "VolumeInUse")
    message = condition(model, "Serving")["message"]
    assert f"claim files is ReadWriteOnce and mounted by pod backup-0 on node {NODES[0]}" in message
    assert f"waits on node {IDLE} until that one ends" in message
    await bed.kube.delete(PODS, bed.namespace, "backup-0")
    await bed.until_condition("a", "Serving", "False", "Loading")


def pod(name: str, node: str) -> dict[str, Any]:
    """A pod of somebody else that mounts the claim."""
    volume = {"name": "files", "persistentVolumeClaim": {"claimName": "files"}}
    spec = {"nodeName": node, "volumes": [volume], "containers": [{"name": "c", "image": "none"}]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}
