"""Sleep and wake as status, Events and the Deployment tell them."""

from typing import Any

import pytest

from moorage import names
from moorage.planning.types import Answer, WarmUp
from moorage.planning.usage import InstanceUse
from tests.support.world import GGUF, World, gpu_node, model

SLEEPER: dict[str, Any] = {"scaling": {"scaleToZeroAfter": "10m"}, "benchmark": {"enabled": False}}


def wanted(world: World) -> int:
    return int(world.children[("Deployment", "tiny")]["wanted"])


def asleep(**spec: Any) -> World:
    """A Model that served, that nobody used, and that sleeps by now."""
    world = World(model(**SLEEPER | spec)).ready().used()
    return world.later(601).settle().pods_go()


def test_an_idle_model_sleeps_and_keeps_its_files():
    world = World(model(**SLEEPER)).ready().used()
    assert world.phase == "Ready"
    assert world.later(599).settle().phase == "Ready"
    world.later(2).settle()
    assert wanted(world) == 0
    world.pods_go()
    status = world.model["status"]
    assert world.phase == "ScaledToZero"
    assert status["desiredReplicas"] == 0
    assert status["summary"]["ready"] == "0/0"
    assert world.condition("Ready")[:2] == ("True", "ScaledToZero")
    assert world.condition("Active")[:2] == ("False", "ScaledToZero")
    assert world.condition("Reconciling")[0] == "False"
    assert world.message == "asleep after 10m without a request; a request wakes it"
    assert status["scaling"]["cause"] == "Idle"
    assert world.download is not None
    assert "replicas" not in world.model["spec"], "the spec is the person's"
    assert [r for _, r in world.events].count("Unloaded") == 1


def test_a_model_that_nobody_ever_asks_for_is_looked_at_again_when_it_may_sleep():
    world = World(model(**SLEEPER)).answer_resolve(GGUF).download_done().pod(ready=True)
    ask = next(a for a in world.asked if isinstance(a, WarmUp))
    world.warmed = Answer(ask.template, {"firstTokenMilliseconds": 12, "version": "b1"})
    plan = world.plan()  # one pass alone: nothing else may ever happen to it
    assert plan.status is not None
    assert plan.status["phase"] == "Ready"
    assert plan.requeue_after == 600


def test_nothing_is_written_while_it_sleeps():
    world = asleep()
    before = world.writes
    for _ in range(5):
        world.later(60).settle()
    assert world.writes == before


def test_a_request_wakes_it_and_it_serves_again():
    world = asleep().used(pending=1)
    assert wanted(world) == 1
    assert world.phase == "Loading"
    assert world.condition("Ready")[0] == "False"
    assert ("Normal", "Woken") in world.events
    assert "scaling" not in world.model["status"]
    world.pod(ready=True).token().used(last_used=0)
    assert world.phase == "Ready"
    assert world.later(599).settle().phase == "Ready"
    world.later(2).settle()
    assert wanted(world) == 0, "and sleeps again"
    assert [r for _, r in world.events].count("Woken") == 1


def test_the_split_of_a_wake_has_no_download_in_it():
    world = asleep()
    assert "downloadMilliseconds" in world.model["status"]["startup"]
    world.used(pending=1).pod(ready=True, created="2026-01-01T00:10:05Z").token()
    assert "downloadMilliseconds" not in world.model["status"]["startup"]
    assert "loadMilliseconds" in world.model["status"]["startup"]


def test_an_annotation_wakes_it():
    world = asleep().annotate(names.WAKE_AT, "2026-01-01T00:30:00Z").settle()
    assert wanted(world) == 1
    world.pod(ready=True).token().later(601).settle()
    assert wanted(world) == 0, "the same annotation wakes it once"


def test_a_restarted_operator_remembers_that_it_sleeps():
    world = asleep()
    world.usage = type(world.usage)()  # it has heard nothing yet
    world.settle()
    assert world.phase == "ScaledToZero"


def test_without_reports_it_stays_awake_and_says_why():
    world = World(model(**SLEEPER)).ready().later(3600).settle()
    assert world.phase == "Ready"
    status, reason, message = world.condition("Active")
    assert (status, reason) == ("True", "NoUsageReports")
    assert "does not sleep after 10m" in message


def test_unloading_a_sleeping_model_is_the_persons_word():
    world = asleep().change(replicas=0).used(pending=5)
    assert wanted(world) == 0
    assert world.message == "replicas is 0; scale it up to load the model"
    world.change(replicas=1).settle()
    assert wanted(world) == 1


def test_waking_needs_a_place_again_and_waits_where_there_is_none():
    world = World(model(**SLEEPER, accelerator={"vendor": "Nvidia", "memoryPerGPUOverride": "10Gi"}))
    world.nodes = [gpu_node("only", 24564)]
    world.ready().used().later(601).settle().pods_go()
    assert world.phase == "ScaledToZero"
    world.pods["stranger"] = {
        "name": "s", "namespace": "x", "uid": "s", "node": "only", "phase": "Running",
        "gpus": {"nvidia.com/gpu": 1}, "labels": {},
    }  # fmt: skip
    world.used(pending=1)
    assert world.phase == "Placing"
    assert world.condition("Placed")[:2] == ("False", "NoGPUFree")
    assert world.condition("Serving")[1] == "Pending"
    assert wanted(world) == 0
    del world.pods["stranger"]
    world.settle()
    assert wanted(world) == 1


def test_a_benchmark_is_not_interrupted_by_sleep():
    world = World(model(scaling={"scaleToZeroAfter": "10m"})).ready().used()
    assert world.condition("Benchmarked")[1] == "Running"
    world.later(601).settle()
    assert wanted(world) == 1


def test_load_brings_servers_and_says_so():
    scaling = {"targetRequests": 4, "minReplicas": 1, "maxReplicas": 3}
    world = World(model(scaling=scaling, benchmark={"enabled": False})).ready().used(in_flight=9, peak=9)
    assert wanted(world) == 3
    assert world.model["status"]["desiredReplicas"] == 3
    assert world.condition("Active")[2] == "3 wanted; by load, between 1 and 3: 4 requests for each server"
    assert world.plan().follow_load
    world.used(in_flight=0, peak=5)
    assert wanted(world) == 2
    world.used(in_flight=0, peak=0)
    assert wanted(world) == 1


def test_totals_stand_in_status_and_are_written_once():
    world = World(model(benchmark={"enabled": False})).ready()
    count = InstanceUse("abcdefgh", requests=3, errors=1, total_milliseconds=600, last_used=1_790_000_000)
    world.used(counts=(count,))
    usage = world.model["status"]["usage"]
    assert (usage["requests"], usage["errors"], usage["meanLatencyMilliseconds"]) == (3, 1, 200)
    before = world.writes
    assert world.later(60).settle().writes == before


@pytest.mark.parametrize("field", ["scaling", "preemption"])
def test_changing_when_it_sleeps_restarts_nothing(field: str):
    world = World(model(benchmark={"enabled": False})).ready()
    before = world.children[("Deployment", "tiny")]["inputsHash"]
    world.change(**{field: {"scaling": {"scaleToZeroAfter": "5m"}, "preemption": {"policy": "Never"}}[field]}).settle()
    assert world.children[("Deployment", "tiny")]["inputsHash"] == before
