"""Models onto simulated GPU nodes (kwok) by the real kube-scheduler: what was planned is what is bound."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest

from moorage.control.operator import Operator
from moorage.kube.resources import MODELS, PODS
from tests.conftest import TestCluster, kwok_node
from tests.support.bed import Bed, condition, running_operator
from tests.support.nodes import nodes

pytestmark = pytest.mark.api

FLEET = {"sim-8": (8188, 1), "sim-24": (24564, 1), "sim-80": (81559, 2)}


def gpu_node(name: str, mib: int, gpus: int) -> dict[str, Any]:
    labels = {
        "nvidia.com/gpu.memory": str(mib),
        "nvidia.com/gpu.count": str(gpus),
        "nvidia.com/gpu.product": "NVIDIA-SIMULATED",
        "nvidia.com/gpu.present": "true",
        "nvidia.com/gpu.replicas": "1",
        "nvidia.com/gpu.sharing-strategy": "none",
    }
    return kwok_node(name, gpus=gpus, labels=labels)


@contextmanager
def gpu_nodes(cluster: TestCluster, sizes: Mapping[str, tuple[int, int]]) -> Iterator[None]:
    """Nodes that are Ready until the block ends: by name the MiB of one GPU, and how many."""
    with nodes(cluster, *(gpu_node(name, mib, gpus) for name, (mib, gpus) in sizes.items())):
        yield


@pytest.fixture(scope="module")
def fleet(kwok_cluster: TestCluster) -> Iterator[TestCluster]:
    with gpu_nodes(kwok_cluster, FLEET):
        yield kwok_cluster


@pytest.fixture
async def bed(fleet: TestCluster) -> AsyncIterator[Bed]:
    async with Bed.made(fleet.kubeconfig) as made:
        await made.ready_download()
        yield made


@pytest.fixture
def operator(fleet: TestCluster) -> Iterator[Operator]:
    with running_operator(fleet.kubeconfig) as made:
        yield made


async def node_of(bed: Bed, model: str) -> str:
    pods, _ = await bed.kube.list(PODS, bed.namespace, label_selector=f"moorage.dev/model={model}")
    return next(p["spec"]["nodeName"] for p in pods if p["spec"].get("nodeName"))


def needs(size: str) -> dict[str, object]:
    return {"vendor": "Auto", "memoryPerGPUOverride": size}


async def test_the_smallest_gpu_that_fits_is_planned_and_bound(bed: Bed, operator: Operator):
    await bed.model("tiny", accelerator=needs("4Gi"))
    await bed.model("middle", accelerator=needs("10Gi"))
    await bed.model("big", accelerator=needs("40Gi"))
    for name, node in (("tiny", "sim-8"), ("middle", "sim-24"), ("big", "sim-80")):
        model = await bed.until_condition(name, "Ready", "True")
        assert await node_of(bed, name) == node
        assert model["status"]["placement"]["nodes"] == [node]
        assert model["status"]["summary"]["node"] == node


async def test_models_that_race_for_one_gpu_never_get_it_twice(bed: Bed, operator: Operator):
    names = [f"race-{i}" for i in range(4)]
    for name in names:  # two GPUs are large enough
        await bed.model(name, accelerator=needs("40Gi"))

    async def settled() -> list[str]:
        found = [await bed.get(MODELS, n) for n in names]
        placed = [m["metadata"]["name"] for m in found if condition(m, "Ready").get("status") == "True"]
        waiting = [m for m in found if condition(m, "Placed").get("reason") == "NoGPUFree"]
        return placed if len(placed) == 2 and len(waiting) == 2 else []

    ready = await bed.eventually(settled)  # Models of the test before may take a while to be collected
    last = next(n for n in names if n not in ready)
    model = await bed.get(MODELS, last)
    assert model["status"]["phase"] == "Placing"
    assert "taken" in model["status"]["summary"]["message"]
    assert bed.namespace in condition(model, "Placed")["message"], "it says who holds the GPUs"
    await bed.kube.delete(MODELS, bed.namespace, ready[0])
    left = [n for n in names if n not in ready]
    await bed.eventually(lambda: _ready(bed, left))  # garbage collection learns of new kinds every 30 s


async def _ready(bed: Bed, names: list[str]) -> bool:
    found = [await bed.get(MODELS, n) for n in names]
    return any(condition(m, "Ready").get("status") == "True" for m in found)


async def test_what_fits_nowhere_says_so_and_starts_when_a_node_comes(bed: Bed, operator: Operator, fleet: TestCluster):
    await bed.model("huge", accelerator=needs("100Gi"))
    model = await bed.until_condition("huge", "Placed", "False", "NoGPUFits")
    assert model["status"]["phase"] == "Blocked"
    assert "needs 100" in model["status"]["summary"]["message"]
    assert "sim-80" in model["status"]["summary"]["message"]
    fleet.kubectl("apply", "-f", "-", input=json.dumps(gpu_node("sim-141", 143771, 1)))
    try:
        await bed.until_condition("huge", "Ready", "True")
        assert await node_of(bed, "huge") == "sim-141"
    finally:
        await bed.kube.delete(MODELS, bed.namespace, "huge")
        fleet.kubectl("delete", "node", "sim-141")


async def test_gpus_of_unknown_size_are_never_guessed(bed: Bed, operator: Operator, fleet: TestCluster):
    selector = {"kubernetes.io/hostname": "sim-odd"}
    fleet.kubectl("apply", "-f", "-", input=json.dumps(kwok_node("sim-odd", gpus=1)))
    try:
        await bed.model("odd", accelerator={"vendor": "Nvidia"}, nodeSelector=selector)
        model = await bed.until_condition("odd", "Placed", "False")
        assert condition(model, "Placed")["reason"] in ("UnknownGPUMemory", "NoGPUFits")
    finally:
        await bed.kube.delete(MODELS, bed.namespace, "odd")
        fleet.kubectl("delete", "node", "sim-odd")


async def ready_ones(bed: Bed, *models: str) -> list[str]:
    found = [await bed.get(MODELS, name) for name in models]
    return [m["metadata"]["name"] for m in found if condition(m, "Ready").get("status") == "True"]


async def test_four_that_race_for_one_gpu_get_it_one_after_the_other(bed: Bed, operator: Operator):
    racers = [f"racer-{n}" for n in range(4)]
    only = {"kubernetes.io/hostname": "sim-8"}
    gpu = {"vendor": "Auto", "memoryPerGPUOverride": "6Gi"}
    stays = {"policy": "Never"}
    await asyncio.gather(*(bed.model(n, accelerator=gpu, nodeSelector=only, preemption=stays) for n in racers))
    for left in (3, 2):
        await bed.eventually(lambda: ready_ones(bed, *racers))
        [first] = await ready_ones(bed, *racers)
        racers.remove(first)
        assert len(racers) == left
        for name in racers:
            model = await bed.until_condition(name, "Placed", "False")
            assert condition(model, "Placed")["reason"] in ("NoGPUFree", "WaitingForRoom")
        pods = [p for p in (await bed.kube.list(PODS, bed.namespace))[0] if p["spec"].get("nodeName") == "sim-8"]
        assert len([p for p in pods if "deletionTimestamp" not in p["metadata"]]) == 1, "no GPU is sold twice"
        await bed.kube.delete(MODELS, bed.namespace, first)


async def test_a_strangers_pod_that_has_the_gpu_is_named_and_waited_for(bed: Bed, operator: Operator):
    limits = {"limits": {"nvidia.com/gpu": "1"}}
    container = {"name": "c", "image": "stranger:1", "resources": limits}
    spec = {"nodeSelector": {"kubernetes.io/hostname": "sim-8"}, "containers": [container]}
    meta = {"name": "stranger", "namespace": bed.namespace}
    await bed.kube.create({"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec})
    await bed.until(PODS, "stranger", lambda pod: pod["spec"].get("nodeName") == "sim-8")
    gpu = {"vendor": "Auto", "memoryPerGPUOverride": "6Gi"}
    await bed.model("m", accelerator=gpu, nodeSelector={"kubernetes.io/hostname": "sim-8"})
    model = await bed.until_condition("m", "Placed", "False", "NoGPUFree")
    assert f"pod {bed.namespace}/stranger" in condition(model, "Placed")["message"]
    await bed.kube.delete(PODS, bed.namespace, "stranger")
    await bed.until_condition("m", "Ready", "True")
