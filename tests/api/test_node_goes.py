"""Nodes that are cordoned, and nodes that are lost, under Models that serve (simulated nodes, real controllers)."""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from moorage.control.operator import Operator
from moorage.kube.resources import DEPLOYMENTS, DISRUPTION_BUDGETS, MODELS, PODS
from tests.api.test_placement import gpu_node, gpu_nodes
from tests.conftest import TestCluster
from tests.support.bed import Bed, condition, running_operator
from tests.support.nodes import nodes

pytestmark = pytest.mark.api

GPU = {"vendor": "Auto", "memoryPerGPUOverride": "10Gi"}
NODES = ("sim-go-1", "sim-go-2")
DRAIN = ("drain", "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=110s")


@pytest.fixture
async def bed(kwok_cluster: TestCluster) -> AsyncIterator[Bed]:
    with gpu_nodes(kwok_cluster, dict.fromkeys(NODES, (24564, 1))):
        async with Bed.made(kwok_cluster.kubeconfig) as made:
            await made.ready_download()
            yield made


@pytest.fixture
def operator(kwok_cluster: TestCluster) -> Iterator[Operator]:
    with running_operator(kwok_cluster.kubeconfig) as made:
        yield made


def on(model: dict[str, Any]) -> list[str]:
    found: list[str] = model["status"]["placement"].get("nodes", [])
    return found


async def test_the_replacement_is_ready_before_the_old_server_stops(
    bed: Bed, operator: Operator, kwok_cluster: TestCluster
):
    await bed.model("m", accelerator=GPU)
    (first,) = on(await bed.until_condition("m", "Ready", "True"))
    other = next(n for n in NODES if n != first)
    least: list[int] = []

    async def moved() -> bool:
        least.append((await bed.get(DEPLOYMENTS, "m"))["status"].get("readyReplicas", 0))
        model = await bed.get(MODELS, "m")
        assert condition(model, "Ready")["status"] == "True"
        return on(model) == [other]

    kwok_cluster.kubectl("cordon", first)
    await bed.eventually(moved)
    assert min(least) >= 1, "one server was ready all the time"
    kwok_cluster.kubectl("cordon", other)
    kwok_cluster.kubectl("cordon", "sim-cpu")
    try:
        said = "is about to go, and there is no other place"
        await bed.until(MODELS, "m", lambda m: said in condition(m, "Serving").get("message", ""))
        assert on(await bed.get(MODELS, "m")) == [other]
    finally:
        kwok_cluster.kubectl("uncordon", "sim-cpu")


async def test_a_lost_node_is_left_for_another(bed: Bed, operator: Operator, kwok_cluster: TestCluster):
    await bed.model("m", accelerator=GPU)
    (first,) = on(await bed.until_condition("m", "Ready", "True"))
    other = next(n for n in NODES if n != first)
    kwok_cluster.kubectl("delete", "node", first)  # as cloud providers do with machines that are gone

    async def moved() -> bool:
        model = await bed.get(MODELS, "m")
        return on(model) == [other] and condition(model, "Ready").get("status") == "True"

    await bed.eventually(moved, timeout=240)  # the garbage collector of pods looks every 20 s, after 40 s of grace
    pods = [p for p in (await bed.kube.list(PODS, bed.namespace))[0] if "deletionTimestamp" not in p["metadata"]]
    assert [p["spec"].get("nodeName") for p in pods] == [other]


# -- several servers --------------------------------------------------------------------------------------------------


def replicas(number: int) -> dict[str, Any]:
    return {"replicas": number, "accelerator": GPU}


async def servers(bed: Bed) -> dict[str, dict[str, Any]]:
    """The server pods that are not being deleted, by node; those that wait are under an empty name."""
    pods = (await bed.kube.list(PODS, bed.namespace))[0]
    return {p["spec"].get("nodeName", ""): p for p in pods if "deletionTimestamp" not in p["metadata"]}


def is_ready(pod: dict[str, Any]) -> bool:
    return condition(pod, "Ready").get("status") == "True"


def uids(pods: dict[str, dict[str, Any]], *nodes: str) -> list[str]:
    return [pods[node]["metadata"]["uid"] for node in nodes]


@pytest.fixture
def third(kwok_cluster: TestCluster) -> Iterator[str]:
    """A third such node, for now with too little memory for any server: placement counts GPUs, the scheduler all."""
    name = f"sim-go-3-{uuid.uuid4().hex[:6]}"  # the simulator may still know what one of the same name had
    node = gpu_node(name, 24564, 1)
    node["status"] = {kind: {**room, "memory": "1Mi"} for kind, room in node["status"].items()}
    with nodes(kwok_cluster, node):
        yield name


def has_room(cluster: TestCluster, node: str) -> None:
    room = json.dumps({"status": {kind: {"memory": "1Ti"} for kind in ("capacity", "allocatable")}})
    cluster.kubectl("patch", "node", node, "--subresource=status", "--type=merge", "-p", room)


async def two_serve(bed: Bed, cluster: TestCluster) -> dict[str, dict[str, Any]]:
    await bed.model("m", **replicas(2))
    await bed.until(MODELS, "m", lambda m: m["status"].get("readyReplicas") == 2)
    pods = await servers(bed)
    assert sorted(pods) == sorted(NODES)
    cluster.kubectl("cordon", NODES[0])
    return pods


async def replacement_waits(bed: Bed) -> bool:
    """Whether a third server was made, and the scheduler has found no node for it."""
    made = (await bed.get(DEPLOYMENTS, "m"))["spec"]["replicas"]
    new = (await servers(bed)).get("", {})
    return made == 3 and "Insufficient memory" in condition(new, "PodScheduled").get("message", "")


async def test_of_several_servers_only_the_one_on_that_node_is_replaced(
    bed: Bed, operator: Operator, kwok_cluster: TestCluster, third: str
):
    before = await two_serve(bed, kwok_cluster)
    await bed.eventually(lambda: replacement_waits(bed))
    template = (await bed.get(DEPLOYMENTS, "m"))["spec"]["template"]
    said = f"node {NODES[0]} is about to go; 1 replacement on the way"
    await bed.until(MODELS, "m", lambda m: said in condition(m, "Serving")["message"])
    has_room(kwok_cluster, third)

    async def moved() -> bool:
        pods = await servers(bed)
        assert sum(map(is_ready, pods.values())) >= 2, "never fewer than wanted are ready"
        assert uids(pods, NODES[1]) == uids(before, NODES[1])
        assert condition(await bed.get(MODELS, "m"), "Ready")["status"] == "True"
        return sorted(pods) == [NODES[1], third]

    await bed.eventually(moved)
    await bed.until(DEPLOYMENTS, "m", lambda d: d["spec"]["replicas"] == d["status"].get("replicas") == 2)
    assert (await bed.get(DEPLOYMENTS, "m"))["spec"]["template"] == template, "no rollout"
    assert uids(await servers(bed), NODES[1]) == uids(before, NODES[1])


async def test_another_number_wanted_in_the_middle_of_a_move_counts_at_once(
    bed: Bed, operator: Operator, kwok_cluster: TestCluster, third: str
):
    """As an HPA would set it, on the scale subresource: the server whose node goes is among those that end."""
    before = await two_serve(bed, kwok_cluster)
    await bed.eventually(lambda: replacement_waits(bed))
    kwok_cluster.kubectl("-n", bed.namespace, "scale", "model", "m", "--replicas=1")

    async def one_left() -> bool:
        return list(await servers(bed)) == [NODES[1]]

    await bed.eventually(one_left)
    assert uids(await servers(bed), NODES[1]) == uids(before, NODES[1])
    has_room(kwok_cluster, third)
    kwok_cluster.kubectl("-n", bed.namespace, "scale", "model", "m", "--replicas=2")
    await bed.until(MODELS, "m", lambda m: on(m) == [NODES[1], third] and m["status"]["readyReplicas"] == 2)
    assert uids(await servers(bed), NODES[1]) == uids(before, NODES[1])


async def test_a_restart_of_the_operator_in_the_middle_of_a_move_changes_nothing(
    bed: Bed, kwok_cluster: TestCluster, third: str
):
    with running_operator(kwok_cluster.kubeconfig):
        before = await two_serve(bed, kwok_cluster)
        await bed.eventually(lambda: replacement_waits(bed))
    has_room(kwok_cluster, third)

    async def three_ready() -> bool:
        return sum(map(is_ready, (await servers(bed)).values())) == 3

    await bed.eventually(three_ready)
    with running_operator(kwok_cluster.kubeconfig):
        await bed.until(MODELS, "m", lambda m: on(m) == [NODES[1], third])
    pods = await servers(bed)
    assert uids(pods, NODES[1]) == uids(before, NODES[1])
    assert all(map(is_ready, pods.values()))


# -- evictions --------------------------------------------------------------------------------------------------------


def evict(cluster: TestCluster, pod: dict[str, Any]) -> str:
    """Ask the Eviction API, as `kubectl drain` does; what it says where it refuses, empty where it agrees."""
    where = {"name": pod["metadata"]["name"], "namespace": pod["metadata"]["namespace"]}
    path = f"/api/v1/namespaces/{where['namespace']}/pods/{where['name']}/eviction"
    body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": where}
    done = cluster.kubectl("create", "--raw", path, "-f", "-", input=json.dumps(body), check=False)
    return done.stderr.strip() if done.returncode else ""


async def budget_knows(bed: Bed, expected: int, healthy: int) -> None:
    """The disruption controller has counted so many pods."""

    def counted(found: dict[str, Any]) -> bool:
        status = found.get("status", {})
        return (status.get("expectedPods"), status.get("currentHealthy")) == (expected, healthy)

    await bed.until(DISRUPTION_BUDGETS, "m", counted)


async def test_a_drain_in_the_middle_of_a_move_waits_for_the_replacement(
    bed: Bed, operator: Operator, kwok_cluster: TestCluster, third: str
):
    before = await two_serve(bed, kwok_cluster)
    await bed.eventually(lambda: replacement_waits(bed))
    await budget_knows(bed, 3, 2)
    assert "violate the pod's disruption budget" in evict(kwok_cluster, before[NODES[0]])
    has_room(kwok_cluster, third)
    await asyncio.to_thread(kwok_cluster.kubectl, *DRAIN, NODES[0])
    pods = await servers(bed)
    assert uids(pods, NODES[1]) == uids(before, NODES[1])
    assert is_ready(pods[NODES[1]])
    assert is_ready(pods[third]), "the drain ended when two were ready elsewhere"


async def test_a_drain_takes_one_of_two_servers_at_a_time(bed: Bed, operator: Operator, kwok_cluster: TestCluster):
    """With no place elsewhere the first may go at once, the second only when there is another one that is ready."""
    for name in NODES:
        kwok_cluster.kubectl("delete", "node", name)
    both, other = "sim-go-both", "sim-go-other"
    kwok_cluster.kubectl("apply", "-f", "-", input=json.dumps(gpu_node(both, 24564, 2)))
    try:
        await bed.model("m", **replicas(2))
        await bed.until(MODELS, "m", lambda m: m["status"].get("readyReplicas") == 2)
        await budget_knows(bed, 2, 2)
        first, second = (await bed.kube.list(PODS, bed.namespace))[0]
        kwok_cluster.kubectl("cordon", both)
        assert evict(kwok_cluster, first) == ""
        assert "violate the pod's disruption budget" in evict(kwok_cluster, second), "one at a time"
        kwok_cluster.kubectl("apply", "-f", "-", input=json.dumps(gpu_node(other, 24564, 2)))
        drain = asyncio.create_task(asyncio.to_thread(kwok_cluster.kubectl, *DRAIN, both))

        async def gone() -> bool:
            pods = (await bed.kube.list(PODS, bed.namespace))[0]
            assert any(is_ready(p) for p in pods if "deletionTimestamp" not in p["metadata"]), "one serves all the time"
            return drain.done()

        await bed.eventually(gone)
        await drain
        await bed.until(MODELS, "m", lambda m: on(m) == [other] and m["status"]["readyReplicas"] == 2)
    finally:
        kwok_cluster.kubectl("delete", "node", "--ignore-not-found", both, other)


async def test_a_single_server_never_blocks_a_drain(bed: Bed, operator: Operator, kwok_cluster: TestCluster):
    """With no place elsewhere, and with the operator's word or without it."""
    kwok_cluster.kubectl("delete", "node", NODES[1])
    await bed.model("m", accelerator=GPU)
    await bed.until_condition("m", "Ready", "True")
    await budget_knows(bed, 1, 1)
    await asyncio.to_thread(kwok_cluster.kubectl, *DRAIN, NODES[0])
    assert NODES[0] not in await servers(bed)
