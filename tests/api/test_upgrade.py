"""A newer Moorage takes over: it computes, renders, hashes and ships otherwise, and starts nothing anew that runs."""

from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any

import pytest

from moorage import names
from moorage.control.settings import Images, Settings
from moorage.engines.llamacpp import LlamaCppEngine
from moorage.kube.resources import DEPLOYMENTS, MODEL_DOWNLOADS, MODELS, PODS
from moorage.manifests import model as manifests
from moorage.planning import model_inputs
from tests.api.test_placement import FLEET, gpu_nodes
from tests.conftest import TestCluster
from tests.support.bed import Bed, condition, running_operator
from tests.unit.test_planning_place import big_header

pytestmark = [pytest.mark.api, pytest.mark.timeout(300)]

GPU = {"vendor": "Auto"}
OLD = Settings(images=Images(moorage="moorage:1", llama_cpp="llamacpp:1", llama_cpp_nvidia="llamacpp-cuda:1"))
NEW = Settings(images=Images(moorage="moorage:2", llama_cpp="llamacpp:2", llama_cpp_nvidia="llamacpp-cuda:2"))
MODELS_THAT_RUN = {"on-gpu": {"accelerator": GPU}, "on-cpu": {"replicas": 2}}


@pytest.fixture(scope="module")
def fleet(kwok_cluster: TestCluster) -> Iterator[TestCluster]:
    with gpu_nodes(kwok_cluster, FLEET):
        yield kwok_cluster


@pytest.fixture
async def bed(fleet: TestCluster) -> AsyncIterator[Bed]:
    """With the files of Llama 3.1 8B, as their header tells them."""
    async with Bed.made(fleet.kubeconfig) as made:
        await made.ready_download()
        status = (await made.get(MODEL_DOWNLOADS, "files"))["status"]
        status["facts"] |= {"header": big_header(), "contextLength": 131_072}
        await made.kube.apply_status(MODEL_DOWNLOADS, made.namespace, "files", status)
        yield made


def newer_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another estimate, another template, another hash."""
    need, identity = LlamaCppEngine.need, model_inputs.identity

    def more(self: Any, asked: Any, serving: Any, gpus: int) -> Any:
        if (found := need(self, asked, serving, gpus)) is None:
            return None
        each = tuple(mib * 3 for mib in found.per_gpu_mib)
        extra = sum(each) - sum(found.per_gpu_mib)
        return replace(found, per_gpu_mib=each, compute_mib=found.compute_mib + extra, host_mib=found.host_mib * 3)

    monkeypatch.setattr(LlamaCppEngine, "need", more)
    monkeypatch.setattr(manifests, "TERMINATION_GRACE_SECONDS", manifests.TERMINATION_GRACE_SECONDS + 1)
    monkeypatch.setattr(model_inputs, "identity", lambda step: names.digest([identity(step), "of a newer version"]))


async def what_runs(bed: Bed, name: str) -> dict[str, Any]:
    """What an upgrade must not change."""
    deployment, model = await bed.get(DEPLOYMENTS, name), await bed.get(MODELS, name)
    pods = (await bed.kube.list(PODS, bed.namespace))[0]
    status = model["status"]
    return {
        "deployment": (deployment["metadata"]["uid"], deployment["metadata"]["generation"], deployment["spec"]),
        "pods": sorted(p["metadata"]["uid"] for p in pods if p["metadata"]["labels"].get(names.MODEL_LABEL) == name),
        "status": [status.get(part) for part in ("phase", "memory", "placement", "template", "engine", "replicas")],
    }


async def looked_at(bed: Bed, name: str) -> dict[str, Any]:
    """The Model as soon as the newer version has had its say."""
    return await bed.until_condition(name, "UpToDate", "False", "RolloutAvailable", timeout=60)


async def test_a_newer_version_leaves_what_runs_alone_and_plans_what_is_new(
    bed: Bed, fleet: TestCluster, monkeypatch: pytest.MonkeyPatch
):
    with running_operator(fleet.kubeconfig, OLD):
        for name, spec in MODELS_THAT_RUN.items():
            await bed.model(name, **spec)
        for name in MODELS_THAT_RUN:
            await bed.until_condition(name, "Ready", "True", timeout=60)
            await bed.until_condition(name, "UpToDate", "True", timeout=60)
        before = {name: await what_runs(bed, name) for name in MODELS_THAT_RUN}

    newer_version(monkeypatch)
    with running_operator(fleet.kubeconfig, NEW):
        for name in MODELS_THAT_RUN:
            model = await looked_at(bed, name)
            assert condition(model, "Ready")["status"] == "True"
            assert await what_runs(bed, name) == before[name]

        await bed.model("new", accelerator=GPU)
        model = await bed.until_condition("new", "Ready", "True", timeout=60)
        was = (await bed.get(MODELS, "on-gpu"))["status"]
        assert (was["placement"]["gpuClass"], model["status"]["placement"]["gpuClass"]) == ("24Gi", "80Gi")

        asked = {"metadata": {"annotations": {names.RESTART_AT: "2026-01-02T00:00:00Z"}}}
        await bed.kube.merge_patch(MODELS, bed.namespace, "on-gpu", asked, field_manager="person")
        model = await bed.until(
            MODELS, "on-gpu", lambda m: m["status"]["engine"]["image"] == "llamacpp-cuda:2", timeout=60
        )
        assert model["status"]["placement"]["gpuClass"] == "80Gi", "planned anew, because a person asked"
        assert await what_runs(bed, "on-cpu") == before["on-cpu"]
