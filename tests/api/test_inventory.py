"""Every way in which a node tells what its GPUs are, from real Node objects through the operator to a bound pod."""

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from moorage.control.fleet import GPUs
from moorage.control.operator import Operator
from moorage.kube.resources import MODELS, PODS
from tests.conftest import TestCluster, kwok_node
from tests.support.bed import SETTINGS, Bed, condition, running_operator
from tests.support.nodes import nodes

pytestmark = pytest.mark.api

NVIDIA, AMD, SLICE = "nvidia.com/gpu", "amd.com/gpu", "nvidia.com/mig-3g.40gb"
GFD = {"nvidia.com/gpu.count": "1", "nvidia.com/gpu.replicas": "1", "nvidia.com/gpu.sharing-strategy": "none"}


@dataclass(frozen=True)
class Kind:
    """One simulated node, the need of the Model that is sent there, and what is to come of it."""

    labels: dict[str, str]
    resource: str
    need: str
    told: str
    placed: bool = True
    annotations: dict[str, str] = field(default_factory=dict)
    taints: tuple[dict[str, str], ...] = ()
    cordoned: bool = False


KINDS = {
    "gfd": Kind({**GFD, "nvidia.com/gpu.memory": "24564"}, NVIDIA, "20Gi", "fits on one 24Gi GPU"),
    "amd": Kind({"amd.com/gpu.vram": "64G"}, AMD, "60Gi", "fits on one 64Gi GPU"),
    "amd-beta": Kind({"beta.amd.com/gpu.vram.192G": "1"}, AMD, "180Gi", "fits on one 192Gi GPU"),
    "annotated": Kind({}, NVIDIA, "20Gi", "fits on one 24Gi GPU", annotations={"moorage.dev/gpu-memory": "24Gi"}),
    "product": Kind({"cloud.google.com/gke-accelerator": "nvidia-l4"}, NVIDIA, "20Gi", "fits on one 22Gi GPU"),
    "mig": Kind({"nvidia.com/mig.strategy": "mixed", f"{SLICE}.memory": "40192"}, SLICE, "30Gi", "one 39Gi GPU"),
    "mig-single": Kind(
        {**GFD, "nvidia.com/mig.strategy": "single", "nvidia.com/gpu.product": "NVIDIA-A100-MIG-1g.10gb",
         "nvidia.com/gpu.memory": "9856"}, NVIDIA, "8Gi", "fits on one 10Gi GPU",
    ),
    "gpu-taint": Kind(
        {**GFD, "nvidia.com/gpu.memory": "24564"}, NVIDIA, "20Gi", "fits on one 24Gi GPU",
        taints=({"key": NVIDIA, "value": "present", "effect": "NoSchedule"},),
    ),
    "unknown": Kind({"nvidia.com/gpu.present": "true"}, NVIDIA, "", "UnknownGPUMemory", placed=False),
    "nonsense": Kind({**GFD, "nvidia.com/gpu.memory": "24564MiB"}, NVIDIA, "", "UnknownGPUMemory", placed=False),
    "shared": Kind(
        {**GFD, "nvidia.com/gpu.memory": "24564", "nvidia.com/gpu.sharing-strategy": "time-slicing"},
        NVIDIA, "20Gi", "its GPUs are shared", placed=False,
    ),
    "team-taint": Kind(
        {**GFD, "nvidia.com/gpu.memory": "24564"}, NVIDIA, "20Gi", "has taint team", placed=False,
        taints=({"key": "team", "value": "a", "effect": "NoSchedule"},),
    ),
    "cordoned": Kind(
        {**GFD, "nvidia.com/gpu.memory": "24564"}, NVIDIA, "20Gi", "is cordoned", placed=False, cordoned=True
    ),
}  # fmt: skip


def simulated(name: str, kind: Kind) -> dict[str, Any]:
    made: dict[str, Any] = kwok_node(name, labels=kind.labels)
    made["metadata"]["annotations"] |= kind.annotations
    made["spec"] = {"taints": list(kind.taints), "unschedulable": kind.cordoned}
    for part in ("capacity", "allocatable"):
        made["status"][part] = {**made["status"][part], kind.resource: "1"}
    return made


@pytest.fixture(scope="module")
def fleet(kwok_cluster: TestCluster) -> Iterator[TestCluster]:
    with nodes(kwok_cluster, *(simulated(f"sim-{name}", kind) for name, kind in KINDS.items())):
        yield kwok_cluster


@pytest.fixture(scope="module")
def operator(fleet: TestCluster) -> Iterator[Operator]:
    settings = SETTINGS.model_copy(update={"gpus": GPUs(products={"nvidia-l4": "23034Mi"})})
    with running_operator(fleet.kubeconfig, settings) as made:
        yield made


@pytest.fixture
async def bed(fleet: TestCluster) -> AsyncIterator[Bed]:
    async with Bed.made(fleet.kubeconfig) as made:
        await made.ready_download()
        yield made


@pytest.mark.parametrize("name", KINDS)
async def test_what_a_node_tells_decides(bed: Bed, operator: Operator, name: str):
    kind = KINDS[name]
    need = {"memoryPerGPUOverride": kind.need} if kind.need else {}
    here = {"kubernetes.io/hostname": f"sim-{name}"}
    await bed.model(name, accelerator={"vendor": "Auto", **need}, nodeSelector=here)
    if not kind.placed:
        model = await bed.until_condition(name, "Placed", "False")
        placed = condition(model, "Placed")
        assert kind.told in f"{placed['reason']}: {placed['message']}"
        return
    model = await bed.until_condition(name, "Ready", "True")
    assert model["status"]["placement"]["nodes"] == [f"sim-{name}"]
    assert kind.told in condition(model, "Placed")["message"]
    (pod,) = (await bed.kube.list(PODS, bed.namespace, label_selector=f"moorage.dev/model={name}"))[0]
    assert pod["spec"]["containers"][0]["resources"]["limits"] == {kind.resource: "1"}


async def test_the_schedulers_own_words_where_it_disagrees(bed: Bed, operator: Operator):
    """The GPU is free and large enough; that the node has not so many CPUs is the scheduler's business."""
    here = {"kubernetes.io/hostname": "sim-gfd"}
    gpu = {"vendor": "Auto", "memoryPerGPUOverride": "20Gi"}
    await bed.model("many", accelerator=gpu, nodeSelector=here, resources={"requests": {"cpu": "500"}})

    def told(model: dict[str, Any]) -> bool:
        return "Insufficient cpu" in condition(model, "Serving").get("message", "")

    model = await bed.until(MODELS, "many", told)
    assert condition(model, "Placed")["status"] == "True"
    assert condition(model, "Ready")["reason"] == condition(model, "Serving")["reason"] == "Unschedulable"
