"""ResourceQuotas and LimitRanges on the real API server: said before the download, and undone when there is room."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from moorage.control.operator import Operator
from moorage.kube.resources import LIMIT_RANGES, MODELS, PODS, RESOURCE_QUOTAS
from tests.conftest import TestCluster, kwok_node
from tests.support.bed import Bed, condition, running_operator
from tests.support.nodes import nodes

pytestmark = pytest.mark.api

NODE = "sim-quota"
GPU = {"vendor": "Auto", "memoryPerGPUOverride": "10Gi"}


@pytest.fixture
async def bed(kwok_cluster: TestCluster) -> AsyncIterator[Bed]:
    node = kwok_node(NODE, gpus=4, labels={"nvidia.com/gpu.memory": "24564"})
    with nodes(kwok_cluster, node):
        async with Bed.made(kwok_cluster.kubeconfig) as made:
            await made.ready_download()
            yield made


@pytest.fixture
def operator(kwok_cluster: TestCluster) -> Iterator[Operator]:
    with running_operator(kwok_cluster.kubeconfig) as made:
        yield made


async def made(bed: Bed, kind: str, name: str, spec: dict[str, Any]) -> None:
    meta = {"name": name, "namespace": bed.namespace}
    await bed.kube.create({"apiVersion": "v1", "kind": kind, "metadata": meta, "spec": spec})


async def test_a_quota_of_gpus_is_kept_to_and_given_back(bed: Bed, operator: Operator):
    await made(bed, "ResourceQuota", "team-gpus", {"hard": {"requests.nvidia.com/gpu": "1"}})
    await bed.until(RESOURCE_QUOTAS, "team-gpus", lambda quota: (quota.get("status") or {}).get("hard"))
    await bed.model("first", accelerator=GPU)
    await bed.until_condition("first", "Ready", "True")
    await bed.model("second", accelerator=GPU)
    model = await bed.until_condition("second", "Placed", "False", "QuotaExceeded")
    assert condition(model, "Placed")["message"] == "1 of 1 nvidia.com/gpu in use (quota team-gpus)"
    assert model["status"]["phase"] == "Blocked"
    pods = (await bed.kube.list(PODS, bed.namespace))[0]
    assert all("second" not in p["metadata"]["name"] for p in pods), "nothing was tried in vain"
    await bed.kube.delete(MODELS, bed.namespace, "first")
    await bed.until_condition("second", "Ready", "True")


async def test_a_limit_range_that_no_server_fits_in(bed: Bed, operator: Operator):
    item = {"type": "Container", "default": {"memory": "256Mi"}}
    await made(bed, "LimitRange", "defaults", {"limits": [item]})
    await bed.model("m", accelerator=GPU)
    model = await bed.until_condition("m", "Placed", "False", "QuotaExceeded")
    assert "limit range defaults gives containers a memory limit of 256Mi" in condition(model, "Placed")["message"]
    await bed.kube.delete(LIMIT_RANGES, bed.namespace, "defaults")
    await bed.until_condition("m", "Ready", "True")
