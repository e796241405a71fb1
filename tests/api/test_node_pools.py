"""Node pools at zero: a small cluster autoscaler adds a simulated node when it sees a pod wait for one."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from moorage.control.fleet import GPUNodePool, GPUs
from moorage.control.operator import Operator
from moorage.kube.resources import MODELS
from tests.conftest import TestCluster, kwok_node
from tests.support.bed import SETTINGS, Bed, condition, running_operator
from tests.support.nodes import POOL_LABEL, Autoscaler, apply

pytestmark = pytest.mark.api

POOLS = {"sim-l4": ("23034Mi", 1), "sim-h100": ("81559Mi", 2)}
STARTUP_TAINT = "startup-taint.cluster-autoscaler.kubernetes.io/driver"
DEADLINE = "15s"  # of the impatient operator, who has to wait for nodes that do not come


def settings(deadline: str) -> Any:
    pools = [
        GPUNodePool(name=name, labels={POOL_LABEL: name}, memory=size, gpus=gpus, maximum=1)
        for name, (size, gpus) in POOLS.items()
    ]
    return SETTINGS.model_copy(update={"gpus": GPUs(node_pools=tuple(pools), node_deadline=deadline)})


class Plugins(Autoscaler):
    """Nodes whose GPUs a device plugin gives out; as long as that does not start they have a startup taint."""

    pools = tuple(POOLS)

    async def join(self, pool: str, node: str) -> None:
        made = kwok_node(node, gpus=POOLS[pool][1], labels={POOL_LABEL: pool})
        if waits := not self.drivers.is_set():
            made["spec"] = {"taints": [{"key": STARTUP_TAINT, "effect": "NoSchedule"}]}
        apply(self.cluster, made)
        await self.drivers.wait()
        if waits:
            self.cluster.kubectl("taint", "node", node, f"{STARTUP_TAINT}-")


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


def needs(size: str) -> dict[str, str]:
    return {"vendor": "Auto", "memoryPerGPUOverride": size}


async def test_a_node_of_the_smallest_pool_is_asked_for_and_used(
    bed: Bed, operator: Operator, kwok_cluster: TestCluster
):
    await bed.model("m", accelerator=needs("10Gi"))
    model = await bed.until_condition("m", "Serving", "False", "WaitingForNode")
    assert model["status"]["phase"] == "Placing"
    assert condition(model, "Placed")["reason"] == "WaitingForNode"
    async with Plugins.working(bed, kwok_cluster, *POOLS) as scaler:
        model = await bed.until_condition("m", "Ready", "True")
        assert scaler.made == ["sim-l4"], "only the planned pool grew"
        assert model["status"]["placement"]["nodes"] == [scaler.node("sim-l4")]
        # Decided with the node in sight, or told of the pod that was bound before anybody decided.
        said = condition(model, "Placed")["message"]
        assert "fits on one 22Gi GPU" in said or said.startswith("1 Nvidia GPU of 22Gi on "), said


async def test_no_other_pool_is_asked_while_the_node_boots(bed: Bed, operator: Operator, kwok_cluster: TestCluster):
    async with Plugins.working(bed, kwok_cluster, *POOLS) as scaler:
        scaler.drivers.clear()
        await bed.model("m", accelerator=needs("10Gi"))
        await bed.eventually(lambda: scaler.joined("sim-l4"))
        # Decided anew, by an operator that has most likely seen the node by now.
        await bed.model("m", accelerator=needs("11Gi"))
        model = await bed.until(MODELS, "m", lambda m: m["status"].get("observedGeneration") == 2)
        assert model["status"]["placement"]["nodePool"] == "sim-l4", "its node has joined and is not ready yet"
        scaler.drivers.set()
        await bed.until_condition("m", "Ready", "True")
        assert scaler.made == ["sim-l4"], "a second node would have been paid for"


async def test_a_pool_without_stock_is_passed_over(bed: Bed, impatient: Operator, kwok_cluster: TestCluster):
    async with Plugins.working(bed, kwok_cluster, "sim-h100") as scaler:
        await bed.model("m", accelerator=needs("10Gi"))
        model = await bed.until_condition("m", "Ready", "True")
        assert scaler.made == ["sim-h100"]
        assert model["status"]["placement"]["nodes"] == [scaler.node("sim-h100")]


async def test_no_node_at_all_is_said_and_one_that_comes_late_is_taken(
    bed: Bed, impatient: Operator, kwok_cluster: TestCluster
):
    await bed.model("m", accelerator=needs("40Gi"))
    model = await bed.until_condition("m", "Placed", "False", "NoNodeCame")
    assert model["status"]["phase"] == "Blocked"
    assert f"no node of pool sim-h100 came within {DEADLINE}" in condition(model, "Placed")["message"]
    async with Plugins.working(bed, kwok_cluster, *POOLS):
        await bed.until_condition("m", "Ready", "True")
