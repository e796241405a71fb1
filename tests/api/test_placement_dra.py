"""Models on GPUs that DRA drivers publish (simulated nodes and devices), bound by the real kube-scheduler."""

import json
from collections.abc import AsyncIterator, Iterator

import pytest

from moorage.control.operator import Operator
from moorage.kube.resources import MODELS, PODS, RESOURCE_CLAIM_TEMPLATES, RESOURCE_CLAIMS
from tests.api.test_placement_scheduler import DEVICE_CLASS, resource_slice
from tests.conftest import TestCluster, kwok_node
from tests.support.bed import Bed, condition, running_operator
from tests.support.nodes import apply, nodes

pytestmark = pytest.mark.api

FLEET = {"sim-dra-16": (16_380, 1), "sim-dra-24": (24_564, 1), "sim-dra-80": (81_559, 2)}


@pytest.fixture(scope="module")
def fleet(kwok_cluster: TestCluster) -> Iterator[TestCluster]:
    slices = [resource_slice(name, *shape) for name, shape in FLEET.items()]
    apply(kwok_cluster, *slices, DEVICE_CLASS)
    with nodes(kwok_cluster, *map(kwok_node, FLEET)):
        yield kwok_cluster
    slice_names = (f"resourceslice/{name}" for name in FLEET)
    kwok_cluster.kubectl("delete", "--ignore-not-found", "deviceclass/gpu.nvidia.com", *slice_names)


@pytest.fixture
async def bed(fleet: TestCluster) -> AsyncIterator[Bed]:
    async with Bed.made(fleet.kubeconfig) as made:
        await made.ready_download()
        yield made


@pytest.fixture
def operator(fleet: TestCluster) -> Iterator[Operator]:
    with running_operator(fleet.kubeconfig) as made:
        yield made


def needs(size: str, **more: object) -> dict[str, object]:
    return {"vendor": "Auto", "memoryPerGPUOverride": size, **more}


async def test_models_get_devices_by_claims_and_give_them_back(bed: Bed, operator: Operator):
    """The smallest class first; the scheduler's allocation is seen, so that the next Model goes elsewhere."""
    for name, node in (("a", "sim-dra-16"), ("b", "sim-dra-24"), ("c", "sim-dra-80"), ("d", "sim-dra-80")):
        await bed.model(name, accelerator=needs("10Gi"))
        model = await bed.until_condition(name, "Ready", "True")
        assert model["status"]["placement"]["nodes"] == [node], condition(model, "Placed")["message"]
    for pod in (await bed.kube.list(PODS, bed.namespace))[0]:
        assert "nvidia.com/gpu" not in json.dumps(pod["spec"]["containers"])
        assert [c["name"] for c in pod["spec"]["resourceClaims"]] == ["gpu"]
    await bed.model("e", accelerator=needs("10Gi"))
    model = await bed.until_condition("e", "Placed", "False", "NoGPUFree")
    assert f"{bed.namespace}/a" in condition(model, "Placed")["message"], "it says who holds them"
    await bed.kube.delete(MODELS, bed.namespace, "b")
    model = await bed.until_condition("e", "Ready", "True")
    assert model["status"]["placement"]["nodes"] == ["sim-dra-24"]


async def test_two_devices_of_one_node_and_no_template_is_left_behind(bed: Bed, operator: Operator):
    await bed.model("pair", accelerator=needs("30Gi", count=2))
    model = await bed.until_condition("pair", "Ready", "True")
    assert model["status"]["placement"]["nodes"] == ["sim-dra-80"]
    (claim,) = (await bed.kube.list(RESOURCE_CLAIMS, bed.namespace))[0]
    results = claim["status"]["allocation"]["devices"]["results"]
    assert sorted(r["device"] for r in results) == ["gpu-0", "gpu-1"]
    (before,) = (await bed.kube.list(RESOURCE_CLAIM_TEMPLATES, bed.namespace))[0]
    await bed.model("pair", accelerator=needs("40Gi", count=2))

    async def renewed() -> bool:
        found = [t["metadata"]["name"] for t in (await bed.kube.list(RESOURCE_CLAIM_TEMPLATES, bed.namespace))[0]]
        return len(found) == 1 and found != [before["metadata"]["name"]]

    await bed.eventually(renewed)
    await bed.until_condition("pair", "Ready", "True")


async def test_a_device_plugin_that_comes_to_the_same_node_is_not_mixed_with_devices(
    bed: Bed, operator: Operator, fleet: TestCluster
):
    """On `both` the plugin gives out the GPU; that a claim could have it too is kept from happening."""
    both = kwok_node("sim-dra-both", gpus=1, labels={"nvidia.com/gpu.memory": "143771"})
    apply(fleet, both, resource_slice("sim-dra-both", 143_771, 1))
    try:
        await bed.model("huge", accelerator=needs("100Gi"))
        model = await bed.until_condition("huge", "Ready", "True")
        assert model["status"]["placement"]["nodes"] == ["sim-dra-both"]
        assert (await bed.kube.list(RESOURCE_CLAIMS, bed.namespace))[0] == []
        await bed.model("second", accelerator=needs("100Gi"))
        await bed.until_condition("second", "Placed", "False", "NoGPUFree")
    finally:
        fleet.kubectl("delete", "node/sim-dra-both", "resourceslice/sim-dra-both", "--ignore-not-found")
