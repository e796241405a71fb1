"""Node pools whose GPUs only a DRA driver publishes: the node comes first, its ResourceSlice a moment later."""

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from moorage.control.fleet import GPUNodePool, GPUs
from moorage.control.operator import Operator
from moorage.kube.resources import DEPLOYMENTS, RESOURCE_CLAIMS
from tests.api.test_placement_scheduler import DEVICE_CLASS, resource_slice
from tests.conftest import TestCluster, kwok_node
from tests.support.bed import SETTINGS, Bed, condition, running_operator
from tests.support.nodes import POOL_LABEL, Autoscaler, apply, until_ready

pytestmark = pytest.mark.api

DRIVER = "gpu.nvidia.com"
POOLS = {"sim-dra-l4": (23_034, 1), "sim-dra-h100": (81_559, 2)}
DEADLINE = "15s"  # of the impatient operator, who has to wait for nodes that do not come


def settings(deadline: str) -> Any:
    pools = [
        GPUNodePool(name=n, labels={POOL_LABEL: n}, driver=DRIVER, memory=f"{mib}Mi", gpus=gpus, maximum=1)
        for n, (mib, gpus) in POOLS.items()
    ]
    return SETTINGS.model_copy(update={"gpus": GPUs(node_pools=tuple(pools), node_deadline=deadline)})


class Devices(Autoscaler):
    """Nodes whose GPUs a DRA driver publishes as soon as it starts."""

    pools = tuple(POOLS)

    async def join(self, pool: str, node: str) -> None:
        apply(self.cluster, kwok_node(node, labels={POOL_LABEL: pool}))
        await self.drivers.wait()
        apply(self.cluster, resource_slice(node, *POOLS[pool]))


@pytest.fixture(scope="module")
def devices(kwok_cluster: TestCluster) -> Iterator[TestCluster]:
    kwok_cluster.kubectl("apply", "-f", "-", input=json.dumps(DEVICE_CLASS))
    yield kwok_cluster
    kwok_cluster.kubectl("delete", f"deviceclass/{DRIVER}")


@pytest.fixture
async def bed(devices: TestCluster) -> AsyncIterator[Bed]:
    async with Bed.made(devices.kubeconfig) as made:
        await made.ready_download()
        yield made


@pytest.fixture
def operator(devices: TestCluster) -> Iterator[Operator]:
    """Waits for a node as long as a loaded machine may take to bring it."""
    with running_operator(devices.kubeconfig, settings("10m")) as made:
        yield made


@pytest.fixture
def impatient(devices: TestCluster) -> Iterator[Operator]:
    with running_operator(devices.kubeconfig, settings(DEADLINE)) as made:
        yield made


def needs(size: str) -> dict[str, str]:
    return {"vendor": "Auto", "memoryPerGPUOverride": size}


async def test_a_node_of_the_smallest_pool_is_asked_for_and_its_device_is_claimed(
    bed: Bed, operator: Operator, devices: TestCluster
):
    await bed.model("m", accelerator=needs("10Gi"))
    model = await bed.until_condition("m", "Serving", "False", "WaitingForNode")
    assert (model["status"]["phase"], condition(model, "Placed")["reason"]) == ("Placing", "WaitingForNode")
    template = (await bed.get(DEPLOYMENTS, "m"))["spec"]["template"]
    async with Devices.working(bed, devices, *POOLS) as scaler:
        scaler.drivers.clear()
        await bed.eventually(lambda: scaler.joined("sim-dra-l4"))
        assert scaler.made == ["sim-dra-l4"], "only the planned pool grew"
        node = scaler.node("sim-dra-l4")
        until_ready(devices, node)
        assert condition(await bed.until_condition("m", "Placed", "False"), "Placed")["reason"] == "WaitingForNode"
        scaler.drivers.set()
        model = await bed.until_condition("m", "Ready", "True")
        assert scaler.made == ["sim-dra-l4"], "and no other"
        assert model["status"]["placement"]["nodes"] == [node]
        # Decided with the node in sight, or told of the pod that was bound before anybody decided.
        said = condition(model, "Placed")["message"]
        assert "fits on one 22Gi GPU" in said or said.startswith("1 Nvidia GPU of 22Gi on "), said
        (claim,) = (await bed.kube.list(RESOURCE_CLAIMS, bed.namespace))[0]
        (given,) = claim["status"]["allocation"]["devices"]["results"]
        assert (given["driver"], given["pool"]) == (DRIVER, node)
        assert (await bed.get(DEPLOYMENTS, "m"))["spec"]["template"] == template, "the pod that waited is the one"


async def test_a_pool_without_stock_is_passed_over(bed: Bed, impatient: Operator, devices: TestCluster):
    async with Devices.working(bed, devices, "sim-dra-h100") as scaler:
        await bed.model("m", accelerator=needs("10Gi"))
        model = await bed.until_condition("m", "Ready", "True")
        assert scaler.made == ["sim-dra-h100"]
        assert model["status"]["placement"]["nodes"] == [scaler.node("sim-dra-h100")]


async def test_no_node_at_all_is_said_and_one_that_comes_late_is_taken(
    bed: Bed, impatient: Operator, devices: TestCluster
):
    await bed.model("m", accelerator=needs("40Gi"))
    model = await bed.until_condition("m", "Placed", "False", "NoNodeCame")
    assert model["status"]["phase"] == "Blocked"
    assert f"no node of pool sim-dra-h100 came within {DEADLINE}" in condition(model, "Placed")["message"]
    async with Devices.working(bed, devices, *POOLS):
        await bed.until_condition("m", "Ready", "True")
