"""Node pools whose GPUs only a DRA driver publishes: the node comes first, its ResourceSlice a moment later."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from moorage.control.fleet import GPUNodePool, GPUs
from moorage.control.operator import Operator
from moorage.kube.resources import DEPLOYMENTS, PODS, RESOURCE_CLAIMS
from moorage.placement.matching import affinity_matches
from tests.api.test_placement_scheduler import DEVICE_CLASS, resource_slice
from tests.conftest import TestCluster, kwok_node
from tests.support.bed import SETTINGS, Bed, condition, running_operator

pytestmark = pytest.mark.api

POOL_LABEL = "example.com/pool"
DRIVER = "gpu.nvidia.com"
POOLS = {"sim-dra-l4": (23_034, 1), "sim-dra-h100": (81_559, 2)}
DEADLINE = "15s"


def settings() -> Any:
    pools = [
        GPUNodePool(name=n, labels={POOL_LABEL: n}, driver=DRIVER, memory=f"{mib}Mi", gpus=gpus, maximum=1)
        for n, (mib, gpus) in POOLS.items()
    ]
    return SETTINGS.model_copy(update={"gpus": GPUs(node_pools=tuple(pools), node_deadline=DEADLINE)})


class Autoscaler:
    """Adds a node of a pool in stock when an unschedulable pod with a claim would run there; `publish` its devices."""

    def __init__(self, bed: Bed, cluster: TestCluster, stock: tuple[str, ...]) -> None:
        self._bed, self._cluster, self._stock = bed, cluster, set(stock)
        self.made, self.publish = list[str](), asyncio.Event()

    async def run(self) -> None:
        while True:
            for pod in (await self._bed.kube.list(PODS, self._bed.namespace))[0]:
                if condition(pod, "PodScheduled").get("reason") == "Unschedulable":
                    for pool in [p for p in sorted(self._stock) if self._would_run(pod, p)]:
                        self._stock.discard(pool)
                        await self._add(pool)
            await asyncio.sleep(0.2)

    def _would_run(self, pod: dict[str, Any], pool: str) -> bool:
        affinity = (pod["spec"].get("affinity") or {}).get("nodeAffinity")
        return bool(pod["spec"].get("resourceClaims")) and affinity_matches(affinity, pool, {POOL_LABEL: pool})

    async def _add(self, pool: str) -> None:
        name = f"{pool}-node"
        self.made.append(name)
        self._apply(kwok_node(name, labels={POOL_LABEL: pool}))
        await self.publish.wait()
        self._apply(resource_slice(name, *POOLS[pool]))

    def _apply(self, obj: dict[str, Any]) -> None:
        self._cluster.kubectl("apply", "-f", "-", input=json.dumps(obj))


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
    with running_operator(devices.kubeconfig, settings()) as made:
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
        for kind in ("node", "resourceslice"):
            cluster.kubectl("delete", kind, "--ignore-not-found", *(f"{pool}-node" for pool in POOLS))


def needs(size: str) -> dict[str, str]:
    return {"vendor": "Auto", "memoryPerGPUOverride": size}


async def test_a_node_of_the_smallest_pool_is_asked_for_and_its_device_is_claimed(
    bed: Bed, operator: Operator, devices: TestCluster
):
    await bed.model("m", accelerator=needs("10Gi"))
    model = await bed.until_condition("m", "Serving", "False", "WaitingForNode", timeout=60)
    assert (model["status"]["phase"], condition(model, "Placed")["reason"]) == ("Placing", "WaitingForNode")
    template = (await bed.get(DEPLOYMENTS, "m"))["spec"]["template"]
    async with autoscaler(bed, devices, *POOLS) as scaler:

        async def came() -> bool:
            return bool(scaler.made)

        await bed.eventually(came, timeout=60)
        devices.kubectl("wait", "--for=condition=Ready", "--timeout=60s", f"node/{scaler.made[0]}")
        assert condition(await bed.until_condition("m", "Placed", "False"), "Placed")["reason"] == "WaitingForNode"
        scaler.publish.set()
        model = await bed.until_condition("m", "Ready", "True", timeout=60)
        assert scaler.made == ["sim-dra-l4-node"], "only the planned pool grew"
        assert model["status"]["placement"]["nodes"] == ["sim-dra-l4-node"]
        assert "fits on one 22Gi GPU" in condition(model, "Placed")["message"]
        (claim,) = (await bed.kube.list(RESOURCE_CLAIMS, bed.namespace))[0]
        (given,) = claim["status"]["allocation"]["devices"]["results"]
        assert (given["driver"], given["pool"]) == (DRIVER, "sim-dra-l4-node")
        assert (await bed.get(DEPLOYMENTS, "m"))["spec"]["template"] == template, "the pod that waited is the one"


async def test_a_pool_without_stock_is_passed_over(bed: Bed, operator: Operator, devices: TestCluster):
    async with autoscaler(bed, devices, "sim-dra-h100") as scaler:
        scaler.publish.set()
        await bed.model("m", accelerator=needs("10Gi"))
        model = await bed.until_condition("m", "Ready", "True", timeout=120)
        assert scaler.made == ["sim-dra-h100-node"]
        assert model["status"]["placement"]["nodes"] == ["sim-dra-h100-node"]


async def test_no_node_at_all_is_said_and_one_that_comes_late_is_taken(
    bed: Bed, operator: Operator, devices: TestCluster
):
    await bed.model("m", accelerator=needs("40Gi"))
    model = await bed.until_condition("m", "Placed", "False", "NoNodeCame", timeout=90)
    assert model["status"]["phase"] == "Blocked"
    assert f"no node of pool sim-dra-h100 came within {DEADLINE}" in condition(model, "Placed")["message"]
    async with autoscaler(bed, devices, *POOLS) as scaler:
        scaler.publish.set()
        await bed.until_condition("m", "Ready", "True", timeout=90)
