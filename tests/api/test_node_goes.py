"""Nodes that are cordoned, and nodes that are lost, under Models that serve (simulated nodes, real controllers)."""

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from moorage.control.operator import Operator
from moorage.kube.resources import DEPLOYMENTS, MODELS, PODS
from tests.api.test_placement import gpu_node
from tests.conftest import TestCluster
from tests.support.bed import Bed, condition, running_operator

pytestmark = pytest.mark.api

GPU = {"vendor": "Auto", "memoryPerGPUOverride": "10Gi"}
NODES = ("sim-go-1", "sim-go-2")


@pytest.fixture
async def bed(kwok_cluster: TestCluster) -> AsyncIterator[Bed]:
    for name in NODES:
        kwok_cluster.kubectl("apply", "-f", "-", input=json.dumps(gpu_node(name, 24564, 1)))
    kwok_cluster.kubectl("wait", "--for=condition=Ready", "--timeout=120s", *(f"node/{n}" for n in NODES))
    async with Bed.made(kwok_cluster.kubeconfig) as made:
        await made.ready_download()
        yield made
    kwok_cluster.kubectl("delete", "node", "--ignore-not-found", *NODES)


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
    (first,) = on(await bed.until_condition("m", "Ready", "True", timeout=60))
    other = next(n for n in NODES if n != first)
    least: list[int] = []

    async def moved() -> bool:
        least.append((await bed.get(DEPLOYMENTS, "m"))["status"].get("readyReplicas", 0))
        model = await bed.get(MODELS, "m")
        assert condition(model, "Ready")["status"] == "True"
        return on(model) == [other]

    kwok_cluster.kubectl("cordon", first)
    await bed.eventually(moved, timeout=60)
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
    (first,) = on(await bed.until_condition("m", "Ready", "True", timeout=60))
    other = next(n for n in NODES if n != first)
    kwok_cluster.kubectl("delete", "node", first)  # as cloud providers do with machines that are gone

    async def moved() -> bool:
        model = await bed.get(MODELS, "m")
        return on(model) == [other] and condition(model, "Ready").get("status") == "True"

    await bed.eventually(moved, timeout=120)  # the garbage collector of pods looks every 20 s, after 40 s of grace
    pods = [p for p in (await bed.kube.list(PODS, bed.namespace))[0] if "deletionTimestamp" not in p["metadata"]]
    assert [p["spec"].get("nodeName") for p in pods] == [other]
