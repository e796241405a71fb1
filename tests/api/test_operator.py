"""The whole operator against a real API server with controllers, scheduler and simulated (kwok) nodes."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator

import pytest

from moorage import names
from moorage.control.operator import Operator
from moorage.kube.resources import (
    DEPLOYMENTS,
    EVENTS,
    MODEL_ALIASES,
    MODEL_DOWNLOADS,
    MODELS,
    NAMESPACES,
    PODS,
    RESOURCE_QUOTAS,
    SERVICES,
)
from tests.conftest import TestCluster
from tests.support.bed import Bed, condition, running_operator
from tests.support.eventually import PATIENCE, eventually

pytestmark = pytest.mark.api


@pytest.fixture
async def bed(kwok_cluster: TestCluster) -> AsyncIterator[Bed]:
    async with Bed.made(kwok_cluster.kubeconfig) as made:
        await made.ready_download()
        yield made


@pytest.fixture
def operator(kwok_cluster: TestCluster) -> Iterator[Operator]:
    with running_operator(kwok_cluster.kubeconfig) as made:
        yield made


async def test_a_model_becomes_ready_and_its_spec_is_never_written(bed: Bed, operator: Operator):
    made = await bed.model()
    model = await bed.until_condition("m", "Ready", "True")
    assert model["status"]["phase"] == "Ready"
    assert model["status"]["summary"]["ready"] == "1/1"
    assert model["metadata"]["generation"] == 1
    assert model["spec"] == made["spec"]
    ours = [f for f in model["metadata"]["managedFields"] if f["manager"] == names.FIELD_MANAGER]
    assert ours, "we write the status"
    for entry in ours:
        assert set(entry["fieldsV1"]) == {"f:status"}, "a person's spec and metadata are never ours"


async def test_scaling_to_zero_and_back_moves_only_replicas(bed: Bed, operator: Operator, kwok_cluster: TestCluster):
    await bed.model()
    await bed.until_condition("m", "Ready", "True")
    before = await bed.get(DEPLOYMENTS, "m")
    kwok_cluster.kubectl("-n", bed.namespace, "scale", "model", "m", "--replicas=0")
    await bed.until(MODELS, "m", lambda m: m["status"]["phase"] == "ScaledToZero")
    await bed.until(DEPLOYMENTS, "m", lambda d: d["spec"]["replicas"] == 0 and not d["status"].get("replicas"))
    kwok_cluster.kubectl("-n", bed.namespace, "scale", "model", "m", "--replicas=1")
    await bed.until(MODELS, "m", lambda m: m["status"]["phase"] == "Ready")
    after = await bed.get(DEPLOYMENTS, "m")
    assert after["spec"]["template"] == before["spec"]["template"]


async def test_a_changed_spec_rolls_the_deployment(bed: Bed, operator: Operator):
    await bed.model()
    await bed.until_condition("m", "Ready", "True")
    await bed.kube.merge_patch(MODELS, bed.namespace, "m", {"spec": {"contextLength": 1024}})

    def rolled(deployment: dict) -> bool:
        args = deployment["spec"]["template"]["spec"]["containers"][0]["args"]
        return args[args.index("--ctx-size") + 1] == "4096"

    await bed.until(DEPLOYMENTS, "m", rolled)
    await bed.until(MODELS, "m", lambda m: condition(m, "UpToDate").get("status") == "True")
    await bed.until_condition("m", "Ready", "True")


async def test_an_out_of_memory_kill_is_told_and_the_old_pods_go_on(bed: Bed, operator: Operator):
    await bed.model()
    await bed.until_condition("m", "Ready", "True")
    patch = {
        "spec": {"podMetadata": {"annotations": {"sim/oom": "true"}}}
    }  # kwok then plays a container killed for memory
    await bed.kube.merge_patch(MODELS, bed.namespace, "m", patch)
    model = await bed.until_condition("m", "UpToDate", "False", "RolloutFailed")
    assert condition(model, "Ready")["status"] == "True", "the previous version serves"
    assert "lack of host memory" in condition(model, "UpToDate")["message"]
    assert model["status"]["phase"] == "Degraded"


async def test_a_first_start_that_is_killed_for_memory_says_so(bed: Bed, operator: Operator):
    await bed.model(podMetadata={"annotations": {"sim/oom": "true"}})
    model = await bed.until_condition("m", "Serving", "False", "OutOfMemory")
    assert model["status"]["phase"] == "Failed"


async def test_an_unschedulable_pod_is_told_in_the_schedulers_words(bed: Bed, operator: Operator):
    await bed.model(nodeSelector={"no-such": "label"})
    model = await bed.until_condition("m", "Serving", "False", "Unschedulable")
    assert "node" in condition(model, "Serving")["message"]


async def test_an_exceeded_quota_is_told(bed: Bed, operator: Operator):
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "q", "namespace": bed.namespace}}
    await bed.kube.create({**quota, "spec": {"hard": {"pods": "0"}}})
    await bed.until(RESOURCE_QUOTAS, "q", lambda found: (found.get("status") or {}).get("hard"))
    await bed.model()
    model = await bed.until_condition("m", "Placed", "False", "QuotaExceeded")
    assert "0 of 0 pods in use (quota q)" in model["status"]["summary"]["message"]
    assert model["status"]["phase"] == "Blocked"


async def test_a_name_that_is_taken_is_never_taken_over(bed: Bed, operator: Operator):
    labels = {"app": "stranger"}
    spec = {
        "replicas": 0, "selector": {"matchLabels": labels},
        "template": {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "c", "image": "i"}]}},
    }  # fmt: skip
    meta = {"name": "m", "namespace": bed.namespace}
    stranger = await bed.kube.create({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": meta, "spec": spec})
    await bed.model()
    await bed.until_condition("m", "Serving", "False", "NameTaken")
    after = await bed.get(DEPLOYMENTS, "m")
    assert after["metadata"]["generation"] == stranger["metadata"]["generation"]
    assert "ownerReferences" not in after["metadata"]


async def test_without_a_gpu_node_auto_is_blocked_with_a_remedy(bed: Bed, operator: Operator):
    await bed.model(accelerator={"vendor": "AMD"})
    model = await bed.until_condition("m", "Placed", "False", "NoGPUFits")
    assert "accelerator.vendor: None" in condition(model, "Placed")["message"]
    assert model["status"]["phase"] == "Blocked"


async def test_deleting_a_model_removes_its_children_and_keeps_the_download(bed: Bed, operator: Operator):
    await bed.model()
    await bed.until_condition("m", "Ready", "True")
    await bed.kube.delete(MODELS, bed.namespace, "m")
    for resource in (DEPLOYMENTS, SERVICES, MODELS):
        await bed.gone(resource, "m")  # the garbage collector learns of new kinds every 30 s
    download = await bed.until(MODEL_DOWNLOADS, "files", lambda d: not d["status"].get("usedBy"))
    assert download["status"]["phase"] == "Ready"


async def test_a_model_deleted_while_the_operator_is_down_leaves_nothing(bed: Bed, kwok_cluster: TestCluster):
    with running_operator(kwok_cluster.kubeconfig):
        await bed.model()
        await bed.until_condition("m", "Ready", "True")
    await bed.kube.delete(MODELS, bed.namespace, "m")
    for resource in (MODELS, DEPLOYMENTS, SERVICES):
        await bed.gone(resource, "m")  # the garbage collector learns of new kinds every 30 s


async def test_an_alias_is_true_to_its_targets(bed: Bed, operator: Operator):
    await bed.create("ModelAlias", "chat", {"targets": [{"modelRef": {"name": "m"}}]})
    await bed.until_condition("chat", "Resolved", "False", "TargetNotFound", resource=MODEL_ALIASES)
    await bed.model()
    await bed.until_condition("chat", "Ready", "True", resource=MODEL_ALIASES)
    await bed.kube.delete(MODELS, bed.namespace, "m")
    await bed.until_condition("chat", "Resolved", "False", "TargetNotFound", resource=MODEL_ALIASES)


async def test_an_alias_of_another_namespace_follows_permission_and_labels(
    bed: Bed, operator: Operator, kwok_cluster: TestCluster
):
    allowed = {"from": "Selector", "selector": {"matchLabels": {"team": bed.namespace}}}
    await bed.model("m", allowedNamespaces=allowed)
    await bed.until_condition("m", "Ready", "True")
    async with Bed.made(kwok_cluster.kubeconfig) as other:
        pointing = {"targets": [{"modelRef": {"name": "m", "namespace": bed.namespace}}]}
        await other.create("ModelAlias", "chat", pointing)
        await other.until_condition("chat", "Ready", "False", "TargetNotPermitted", resource=MODEL_ALIASES)
        assert "usedBy" not in (await bed.get(MODELS, "m"))["status"]
        kwok_cluster.kubectl("label", "namespace", other.namespace, f"team={bed.namespace}")
        await other.until_condition("chat", "Ready", "True", resource=MODEL_ALIASES)
        await bed.until(MODELS, "m", lambda m: m["status"].get("usedBy") == [f"{other.namespace}/chat"])
        kwok_cluster.kubectl("label", "namespace", other.namespace, "team-")
        await other.until_condition("chat", "Ready", "False", "TargetNotPermitted", resource=MODEL_ALIASES)
        await bed.until(MODELS, "m", lambda m: "usedBy" not in m["status"])
        every = {"from": "All", "selector": None}
        await bed.kube.merge_patch(MODELS, bed.namespace, "m", {"spec": {"allowedNamespaces": every}})
        await other.until_condition("chat", "Ready", "True", resource=MODEL_ALIASES)


async def test_two_that_claim_one_name(bed: Bed, operator: Operator):
    await bed.model("old", replicas=0, servedNames=["gpt-4o"])
    await bed.until_condition("old", "Ready", "True")
    await asyncio.sleep(1.1)  # creation times have whole seconds
    await bed.create("ModelAlias", "young", {"targets": [{"modelRef": {"name": "old"}}], "servedNames": ["gpt-4o"]})
    await bed.until_condition("young", "NameConflict", "True", "NameConflict", resource=MODEL_ALIASES)
    assert not condition(await bed.get(MODELS, "old"), "NameConflict")
    await bed.kube.merge_patch(MODELS, bed.namespace, "old", {"spec": {"servedNames": []}})
    await bed.until(MODEL_ALIASES, "young", lambda a: not condition(a, "NameConflict"))


async def test_a_name_that_a_new_namespace_would_give_is_lost_to_it(bed: Bed, operator: Operator):
    there, nowhere = f"{bed.namespace}-b/x", "meta-llama/x"
    await bed.model("m", replicas=0, servedNames=[there, nowhere])
    await bed.until_condition("m", "Ready", "True")
    assert not condition(await bed.get(MODELS, "m"), "NameConflict")
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": f"{bed.namespace}-b"}}
    await bed.kube.create(namespace)
    try:
        found = await bed.until_condition("m", "NameConflict", "True", "NameConflict")
        assert condition(found, "NameConflict")["message"] == (
            f"{there} is for namespace {bed.namespace}-b to give, as all names that begin so: "
            "remove it from spec.servedNames"
        )
        assert condition(found, "Ready")["status"] == "True", "it goes on serving by its other names"
    finally:
        await bed.kube.delete(NAMESPACES, None, f"{bed.namespace}-b")
    await bed.until(MODELS, "m", lambda m: not condition(m, "NameConflict"))


async def test_a_deleted_child_comes_back(bed: Bed, operator: Operator):
    await bed.model()
    await bed.until_condition("m", "Ready", "True")
    old = await bed.get(SERVICES, "m")
    await bed.kube.delete(SERVICES, bed.namespace, "m")
    await bed.until(SERVICES, "m", lambda s: s["metadata"]["uid"] != old["metadata"]["uid"])
    live = await bed.get(DEPLOYMENTS, "m")
    await bed.kube.delete(DEPLOYMENTS, bed.namespace, "m")
    await bed.until(DEPLOYMENTS, "m", lambda d: d["metadata"]["uid"] != live["metadata"]["uid"])
    await bed.until_condition("m", "Ready", "True")


def writes(operator: Operator) -> dict[str, int]:
    return {v: n for v, n in operator.kube.requests.items() if v in ("apply", "patch", "create", "delete")}


async def rest(operator: Operator) -> None:
    """Until nothing waits and nothing was written for four seconds."""
    deadline = time.monotonic() + PATIENCE
    since, before = time.monotonic(), writes(operator)
    while time.monotonic() - since < 4:
        await asyncio.sleep(0.1)
        if operator.queue.depth or writes(operator) != before:
            since, before = time.monotonic(), writes(operator)
        assert time.monotonic() < deadline, f"it never rests: {before}, {operator.queue.depth} wait"


async def test_a_restart_writes_nothing_and_a_quiet_cluster_stays_quiet(bed: Bed, kwok_cluster: TestCluster):
    with running_operator(kwok_cluster.kubeconfig) as operator:
        for i in range(20):
            await bed.model(f"m{i}", replicas=0)
        for i in range(20):
            await bed.until(MODELS, f"m{i}", lambda m: m.get("status", {}).get("phase") == "ScaledToZero")
        await bed.until(MODEL_DOWNLOADS, "files", lambda d: len(d["status"].get("usedBy", ())) == 20)
        await rest(operator)  # what it was about to write is no news
    with running_operator(kwok_cluster.kubeconfig) as operator:
        await eventually(lambda: operator.queue.depth == 0)
        assert writes(operator) == {}


async def test_events_tell_what_happened(bed: Bed, operator: Operator):
    await bed.model()
    await bed.until_condition("m", "Ready", "True")

    async def told() -> bool:
        events, _ = await bed.kube.list(EVENTS, bed.namespace)
        return "Loaded" in {e["reason"] for e in events if e["involvedObject"]["kind"] == "Model"}

    await bed.eventually(told)
    events, _ = await bed.kube.list(EVENTS, bed.namespace)
    assert [e["message"] for e in events if e["reason"] in ("LoadFailed", "Downloaded")] == [], "its files were there"


async def test_pods_carry_no_token_and_run_restricted(bed: Bed, operator: Operator, kwok_cluster: TestCluster):
    label = "pod-security.kubernetes.io/enforce=restricted"
    kwok_cluster.kubectl("label", "namespace", bed.namespace, label)
    await bed.model()
    await bed.until_condition("m", "Ready", "True")
    pods, _ = await bed.kube.list(PODS, bed.namespace)
    assert pods
    assert all(p["spec"]["automountServiceAccountToken"] is False for p in pods)
