"""Sleep, wake and making room on a real API server, with gateways that report over HTTP and operators that restart."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from moorage import names
from moorage.kube.resources import DEPLOYMENTS, EVENTS, MODEL_ALIASES, MODELS, NAMESPACES, PODS
from tests.api.test_placement import gpu_nodes, needs
from tests.conftest import TestCluster
from tests.support.bed import Bed, condition
from tests.support.reports import Reports

pytestmark = pytest.mark.api

FLEET = {"room-1": (24564, 1), "room-2": (24564, 1)}


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
def reports(fleet: TestCluster, tmp_path: Path, bed: Bed) -> Reports:
    return Reports(fleet.kubeconfig, tmp_path, bed.namespace)


def phase(word: str) -> Any:
    return lambda obj: (obj.get("status") or {}).get("phase") == word


async def gpu_model(bed: Bed, name: str, **spec: Any) -> dict[str, Any]:
    """A Model for a GPU of its own that may be put to sleep as soon as it is idle."""
    ours = {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [*FLEET]}]}
    terms = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [ours]}}
    spec = {"preemption": {"minResidency": "1s"}, "affinity": {"nodeAffinity": terms}} | spec
    return await bed.model(name, accelerator=needs("10Gi"), **spec)


async def told(bed: Bed, name: str) -> set[str]:
    found, _ = await bed.kube.list(EVENTS, bed.namespace)
    return {e["reason"] for e in found if e["involvedObject"]["name"] == name}


async def has_told(bed: Bed, name: str, reason: str) -> bool:
    return reason in await told(bed, name)


async def test_an_idle_model_sleeps_and_a_request_wakes_it_across_restarts(bed: Bed, reports: Reports):
    made = await bed.model(scaling={"scaleToZeroAfter": "10s"})
    with reports.operator():
        await bed.until(MODELS, "m", phase("Ready"))
        await reports.say("m", ok=1)
        model = await bed.until(MODELS, "m", phase("ScaledToZero"))
        assert condition(model, "Ready")["status"] == "True"
        assert condition(model, "Active")["status"] == "False"
        assert model["status"]["summary"]["message"] == "asleep after 10s without a request; a request wakes it"
        await bed.until(DEPLOYMENTS, "m", lambda d: d["spec"]["replicas"] == 0 and not d["status"].get("replicas"))
        await bed.eventually(lambda: has_told(bed, "m", "Unloaded"))
        assert model["spec"] == made["spec"]
        ours = [f for f in model["metadata"]["managedFields"] if f["manager"] == names.FIELD_MANAGER]
        assert all(set(entry["fieldsV1"]) == {"f:status"} for entry in ours), "the spec is the person's"
    with reports.operator():
        await reports.say("m", ok=1)
        assert (await bed.get(MODELS, "m"))["status"]["phase"] == "ScaledToZero"
        await reports.say("m", ok=1, wanted=1, pending=1)
        await bed.until(DEPLOYMENTS, "m", lambda d: d["spec"]["replicas"] == 1)
    with reports.operator():  # it restarts while the Model starts; gateways tell everything again
        await reports.say()
        await bed.until(MODELS, "m", phase("Ready"))


async def test_a_demand_that_came_while_the_operator_was_away_counts(bed: Bed, reports: Reports):
    await bed.model(scaling={"scaleToZeroAfter": "10s"})
    with reports.operator():
        await bed.until(MODELS, "m", phase("Ready"))
        await reports.say("m", ok=1)
        await bed.until(MODELS, "m", phase("ScaledToZero"))
    with reports.operator():  # the request was given up meanwhile; the gateway tells that it came
        await reports.say("m", ok=1, wanted=1)
        await bed.until(MODELS, "m", phase("Ready"))
        await bed.eventually(lambda: has_told(bed, "m", "Woken"))


async def test_an_annotation_wakes_and_a_person_unloads(bed: Bed, reports: Reports, fleet: TestCluster):
    await bed.model(scaling={"scaleToZeroAfter": "10s"})
    with reports.operator():
        await bed.until(MODELS, "m", phase("Ready"))
        await reports.say("m", ok=1)
        await bed.until(MODELS, "m", phase("ScaledToZero"))
        fleet.kubectl("-n", bed.namespace, "annotate", "model", "m", "moorage.dev/wake-at=2026-01-01T00:00:00Z")
        await bed.until(MODELS, "m", phase("Ready"))
        fleet.kubectl("-n", bed.namespace, "scale", "model", "m", "--replicas=0")
        unloaded = "replicas is 0; scale it up to load the model"
        await bed.until(MODELS, "m", lambda m: m["status"]["summary"]["message"] == unloaded)
        await reports.say("m", ok=1, wanted=1, pending=1)
        fleet.kubectl(
            "-n", bed.namespace, "annotate", "--overwrite", "model", "m", "moorage.dev/wake-at=2026-02-01T00:00:00Z"
        )
        model = await bed.until(MODELS, "m", lambda m: m["status"]["scaling"].get("wakeAt", "").startswith("2026-02"))
        assert model["status"]["phase"] == "ScaledToZero", "only a person undoes what a person did"


async def test_totals_are_kept_over_restarts_and_counted_once(bed: Bed, reports: Reports):
    await bed.model()
    await bed.create("ModelAlias", "chat", {"targets": [{"modelRef": {"name": "m"}}]})
    with reports.operator():
        await bed.until(MODELS, "m", phase("Ready"))
        await reports.say("m", ok=3, error=1, completionTokens=40, milliseconds=800)
        await reports.say(alias="chat", ok=3)
        await bed.until(MODELS, "m", lambda m: (m["status"].get("usage") or {}).get("requests") == 4)
        await bed.until(MODEL_ALIASES, "chat", lambda a: (a["status"].get("usage") or {}).get("requests") == 3)
    with reports.operator():
        await reports.say("m", ok=5, error=1, completionTokens=60, milliseconds=1200)
        model = await bed.until(MODELS, "m", lambda m: m["status"]["usage"]["requests"] == 6)
        usage = model["status"]["usage"]
        assert (usage["errors"], usage["completionTokens"], usage["meanLatencyMilliseconds"]) == (1, 60, 200)


async def test_load_brings_servers(bed: Bed, reports: Reports):
    await bed.model(scaling={"targetRequests": 4, "maxReplicas": 3})
    with reports.operator():
        await bed.until(MODELS, "m", phase("Ready"))
        await reports.say("m", inFlight=9)
        await bed.until(MODELS, "m", lambda m: m["status"]["summary"]["ready"] == "3/3")


async def test_an_idle_model_makes_room_and_returns(bed: Bed, reports: Reports, fleet: TestCluster):
    with reports.operator():
        for name in ("a", "b"):
            await gpu_model(bed, name)
        for name in ("a", "b"):
            await bed.until(MODELS, name, phase("Ready"))
        await reports.say("a", inFlight=1)
        await reports.say("b", ok=1)
        await gpu_model(bed, "new")
        model = await bed.until(MODELS, "b", phase("Preempted"))
        assert condition(model, "Ready")["status"] == "False"
        assert f"{bed.namespace}/new" in model["status"]["summary"]["message"]
        await bed.eventually(lambda: has_told(bed, "b", "Preempted"))  # what is not sent yet when it stops is lost
    with reports.operator():  # it restarts while the room is being made
        await reports.say("a", inFlight=1)
        await bed.until(MODELS, "new", phase("Ready"))
        assert (await bed.get(MODELS, "a"))["status"]["phase"] == "Ready", "who is in use stays"
        assert (await bed.get(MODELS, "b"))["status"]["phase"] == "Preempted"
        await bed.kube.delete(MODELS, bed.namespace, "new")
        await bed.until(MODELS, "b", phase("Ready"))  # the garbage collector takes its time


async def test_many_at_once_never_share_a_gpu_and_busy_ones_stay(bed: Bed, reports: Reports):
    with reports.operator():
        for name in ("a", "b"):
            await gpu_model(bed, name)
        for name in ("a", "b"):
            await bed.until(MODELS, name, phase("Ready"))
            await reports.say(name, ok=1)
        for i in range(4):
            await gpu_model(bed, f"new-{i}", preemption={"policy": "Never"})

        async def settled() -> bool:
            found, _ = await bed.kube.list(MODELS, bed.namespace)
            words = [(m.get("status") or {}).get("phase") for m in found if m["metadata"]["name"].startswith("new")]
            return sorted(w or "" for w in words) == ["Placing", "Placing", "Ready", "Ready"]

        await bed.eventually(settled)
        pods, _ = await bed.kube.list(PODS, bed.namespace)
        nodes = [p["spec"].get("nodeName") for p in pods if p["status"]["phase"] == "Running"]
        assert sorted(nodes) == [*FLEET]


async def test_a_namespace_says_how_many_may_be_loaded(bed: Bed, reports: Reports):
    limit = {"metadata": {"annotations": {names.MAX_LOADED: "1"}}}
    await bed.kube.merge_patch(NAMESPACES, None, bed.namespace, limit)
    with reports.operator():
        await bed.model("a", preemption={"minResidency": "20s"})
        await bed.until(MODELS, "a", phase("Ready"))
        await bed.model("b")
        waits = await bed.until_condition("b", "Ready", "False", "LoadedModelsLimit")
        assert "1 of 1 places for loaded Models" in waits["status"]["summary"]["message"]
        await reports.say("a", ok=1)
        await bed.until(MODELS, "a", phase("Preempted"))
        await bed.until(MODELS, "b", phase("Ready"))
        limit["metadata"]["annotations"][names.MAX_LOADED] = "2"
        await bed.kube.merge_patch(NAMESPACES, None, bed.namespace, limit)
        await bed.until(MODELS, "a", phase("Ready"))


async def test_a_limit_that_is_lowered_puts_an_idle_one_to_sleep(bed: Bed, reports: Reports):
    """The annotation alone wakes those that are settled."""
    with reports.operator():
        for name in ("a", "b"):
            await bed.model(name, preemption={"minResidency": "1s"})
            await bed.until(MODELS, name, phase("Ready"))
        for name in ("a", "b"):
            await reports.say(name, in_flight=1)  # as long as both are busy nobody goes, and this is said
        limit = {"metadata": {"annotations": {names.MAX_LOADED: "1"}}}
        await bed.kube.merge_patch(NAMESPACES, None, bed.namespace, limit)
        said = await bed.until_condition("a", "Active", "True", "LoadedModelsLimit")
        assert "has 2 loaded Models and may have 1" in condition(said, "Active")["message"]
        await reports.say("b", ok=1)
        gone = await bed.until(MODELS, "b", phase("Preempted"))
        assert gone["status"]["scaling"]["cause"] == "LoadedModelsLimit"
        await bed.until_condition("a", "Active", "True", "Running")
        limit["metadata"]["annotations"][names.MAX_LOADED] = "2"
        await bed.kube.merge_patch(NAMESPACES, None, bed.namespace, limit)
        await bed.until(MODELS, "b", phase("Ready"))
