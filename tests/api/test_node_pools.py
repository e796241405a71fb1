"""Node pools at zero: a small cluster autoscaler adds a simulated node when it sees a pod wait for one."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from moorage.control.fleet import GPUNodePool, GPUs
from moorage.control.operator import Operator
from moorage.kube.resources import MODELS, NODES, PODS
from moorage.placement.matching import affinity_matches
from tests.conftest import TestCluster, kwok_node
from tests.support.bed import SETTINGS, Bed, condition, running_operator

pytestmark = pytest.mark.api

POOL_LABEL = "example.com/pool"
POOLS = {"sim-l4": ("23034Mi", 1), "sim-h100": ("81559Mi", 2)}
STARTUP_TAINT = "startup-taint.cluster-autoscaler.kubernetes.io/driver"
DEADLINE = "15s"  # of the impatient operator, who has to wait for nodes that do not come


def settings(deadline: str) -> Any:
    pools = [
        GPUNodePool(name=name, labels={POOL_LABEL: name}, memory=size, gpus=gpus, maximum=1)
        for name, (size, gpus) in POOLS.items()
    ]
    return SETTINGS.model_copy(update={"gpus": GPUs(node_pools=tuple(pools), node_deadline=deadline)})


class Autoscaler:
    """Adds a node of a pool in stock when an unschedulable pod would run there; it knows no label but the pool's."""

    def __init__(self, bed: Bed, cluster: TestCluster, stock: tuple[str, ...]) -> None:
        self._bed, self._cluster, self._stock, self.made = bed, cluster, set(stock), list[str]()
        self._booting, self.boots = list[str](), asyncio.Event()
        self.boots.set()

    def node(self, pool: str) -> str:
        """Its own name in each test: pods that are on their way out hold GPUs by the name of their node."""
        return f"{pool}-{self._bed.namespace}"

    async def run(self) -> None:
        while True:
            for pod in (await self._bed.kube.list(PODS, self._bed.namespace))[0]:
                if not pod["spec"].get("nodeName") and self._refused(pod):
                    for pool in [p for p in sorted(self._stock) if self._would_run(pod, p)]:
                        self._stock.discard(pool)
                        self._add(pool)
            while self._booting and self.boots.is_set():
                self._cluster.kubectl("taint", "node", self._booting.pop(), f"{STARTUP_TAINT}-")
            await asyncio.sleep(0.2)

    def _refused(self, pod: dict[str, Any]) -> bool:
        told = {c["type"]: c for c in pod.get("status", {}).get("conditions", ())}
        return told.get("PodScheduled", {}).get("reason") == "Unschedulable"

    def _would_run(self, pod: dict[str, Any], pool: str) -> bool:
        affinity = (pod["spec"].get("affinity") or {}).get("nodeAffinity")
        return affinity_matches(affinity, pool, {POOL_LABEL: pool}) and "nvidia.com/gpu" in json.dumps(pod["spec"])

    def _add(self, pool: str) -> None:
        name = self.node(pool)
        self.made.append(pool)
        node = kwok_node(name, gpus=POOLS[pool][1], labels={POOL_LABEL: pool})
        if not self.boots.is_set():
            node["spec"] = {"taints": [{"key": STARTUP_TAINT, "effect": "NoSchedule"}]}
            self._booting.append(name)
        self._cluster.kubectl("apply", "-f", "-", input=json.dumps(node))


@pytest.fixture
async def bed(kwok_cluster: TestCluster) -> AsyncIterator[Bed]:
    async with Bed.made(kwok_cluster.kubeconfig) as made:
        await made.ready_download()
        yield made


@pytest.fixture
def operator(kwok_cluster: TestCluster) -> Iterator[Operator]:
    """Waits for a node as long as a loaded machine may take to bring it."""
    with running_operator(kwok_cluster.kubeconfig, settings("10m")) as made:
        yield made


@pytest.fixture
def impatient(kwok_cluster: TestCluster) -> Iterator[Operator]:
    with running_operator(kwok_cluster.kubeconfig, settings(DEADLINE)) as made:
        yield made


@asynccontextmanager
async def autoscaler(bed: Bed, cluster: TestCluster, *stock: str) -> AsyncIterator[Autoscaler]:
    made = Autoscaler(bed, cluster, stock)
    task = asyncio.create_task(made.run())
    try:
        yield made
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        cluster.kubectl("delete", "node", "--ignore-not-found", *map(made.node, POOLS))


def needs(size: str) -> dict[str, str]:
    return {"vendor": "Auto", "memoryPerGPUOverride": size}


async def joined(bed: Bed, name: str) -> bool:
    return name in {n["metadata"]["name"] for n in (await bed.kube.list(NODES, None))[0]}


async def test_a_node_of_the_smallest_pool_is_asked_for_and_used(
    bed: Bed, operator: Operator, kwok_cluster: TestCluster
):
    await bed.model("m", accelerator=needs("10Gi"))
    model = await bed.until_condition("m", "Serving", "False", "WaitingForNode")
    assert model["status"]["phase"] == "Placing"
    assert condition(model, "Placed")["reason"] == "WaitingForNode"
    async with autoscaler(bed, kwok_cluster, *POOLS) as scaler:
        model = await bed.until_condition("m", "Ready", "True", timeout=60)
        assert scaler.made == ["sim-l4"], "only the planned pool grew"
        assert model["status"]["placement"]["nodes"] == [scaler.node("sim-l4")]
        assert "fits on one 22Gi GPU" in condition(model, "Placed")["message"]


async def test_no_other_pool_is_asked_while_the_node_boots(bed: Bed, operator: Operator, kwok_cluster: TestCluster):
    async with autoscaler(bed, kwok_cluster, *POOLS) as scaler:
        scaler.boots.clear()
        await bed.model("m", accelerator=needs("10Gi"))
        await bed.eventually(lambda: joined(bed, scaler.node("sim-l4")), timeout=60)
        # Decided anew, by an operator that has most likely seen the node by now.
        await bed.model("m", accelerator=needs("11Gi"))
        model = await bed.until(MODELS, "m", lambda m: m["status"].get("observedGeneration") == 2)
        assert model["status"]["placement"]["nodePool"] == "sim-l4", "its node has joined and is not ready yet"
        scaler.boots.set()
        await bed.until_condition("m", "Ready", "True", timeout=60)
        assert scaler.made == ["sim-l4"], "a second node would have been paid for"


async def test_a_pool_without_stock_is_passed_over(bed: Bed, impatient: Operator, kwok_cluster: TestCluster):
    async with autoscaler(bed, kwok_cluster, "sim-h100") as scaler:
        await bed.model("m", accelerator=needs("10Gi"))
        model = await bed.until_condition("m", "Ready", "True", timeout=90)
        assert scaler.made == ["sim-h100"]
        assert model["status"]["placement"]["nodes"] == [scaler.node("sim-h100")]


async def test_no_node_at_all_is_said_and_one_that_comes_late_is_taken(
    bed: Bed, impatient: Operator, kwok_cluster: TestCluster
):
    await bed.model("m", accelerator=needs("40Gi"))
    model = await bed.until_condition("m", "Placed", "False", "NoNodeCame", timeout=60)
    assert model["status"]["phase"] == "Blocked"
    assert f"no node of pool sim-h100 came within {DEADLINE}" in condition(model, "Placed")["message"]
    async with autoscaler(bed, kwok_cluster, *POOLS):
        await bed.until_condition("m", "Ready", "True", timeout=60)
