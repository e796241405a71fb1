"""Benchmarks among the things that happen to a Model, and what their pods may leave behind."""

import json
from typing import Any

import pytest

from moorage import names
from tests.support.world import GGUF, World, model

REPORT: dict[str, Any] = {
    "ttftUs": {"p50": 85000, "p90": 90000, "p99": 99000},
    "outputTokensPerSecondMilli": 87400,
    "requests": {"total": 20, "failed": 0},
    "rows": [],
}


def measured() -> World:
    return World(model()).ready().job_ends(0, json.dumps(REPORT), names.MODEL_LABEL, complete=True)


def jobs(world: World) -> list[str]:
    return [name for kind, name in world.children if kind == "Job" and "bench" in name]


def test_sleep_and_wake_leave_the_figures_valid():
    world = measured().change(replicas=0)
    world.pods.clear()
    world.children[("Deployment", "tiny")]["ready"] = 0
    world.settle()
    assert world.model["status"]["benchmark"]["stale"] is False
    world.change(replicas=1).settle().pod(uid="p2", ready=True).token()
    assert world.model["status"]["benchmark"]["stale"] is False
    assert jobs(world) == [], "what is served is what was measured"


def test_figures_of_another_version_are_stale_until_it_is_back():
    world = measured()
    world.change(contextLength=1024).settle().pod(ready=True).token()
    assert world.model["status"]["benchmark"]["stale"] is True
    assert len(jobs(world)) == 1


def test_taking_the_request_back_measures_nothing():
    world = measured().annotate(names.BENCHMARK_AT, "2026-01-02T00:00:00Z").settle()
    world.job_ends(0, json.dumps(REPORT), names.MODEL_LABEL, complete=True)
    assert jobs(world) == []
    del world.model["metadata"]["annotations"][names.BENCHMARK_AT]
    world.settle()
    assert jobs(world) == []


def test_the_jobs_name_fits_whatever_the_models():
    world = World(model("m" * 50)).ready()
    assert len(world.job(names.MODEL_LABEL)["name"]) <= 63
    world.annotate(names.BENCHMARK_AT, "2026-01-02T00:00:00Z").settle()
    assert len(world.job(names.MODEL_LABEL)["name"]) <= 63


@pytest.mark.parametrize(
    "odd",
    [
        {"ttftUs": {"p50": None}},
        {"ttftUs": None},
        {"ttftUs": {"p50": "soon"}},
        {"outputTokensPerSecondMilli": -3},
        {"requests": 20},
        {"rows": [{"ttftUs": 4}]},
        {"rows": 7},
    ],
)
def test_a_report_that_makes_no_sense_is_a_failed_benchmark(odd: dict[str, Any]):
    world = World(model()).ready()
    world.job_ends(0, json.dumps({**REPORT, **odd}), names.MODEL_LABEL, complete=True)
    assert world.condition("Benchmarked")[:2] == ("False", "BenchmarkFailed")
    assert world.phase == "Ready"


def test_a_job_that_failed_waits_for_its_pods_last_words():
    world = World(model()).ready()
    job = world.job(names.MODEL_LABEL)
    world.pods["bench"] = {
        **world.pods["p1"], "uid": "bench", "owner": job["uid"], "containers": [],
        "labels": {names.MODEL_LABEL: "tiny", names.COMPONENT: "benchmark"},
    }  # fmt: skip
    job["failed"] = True
    world.settle()
    assert world.condition("Benchmarked")[1] == "Running", "the mirror of pods is behind that of Jobs"
    del world.pods["bench"]
    world.job_ends(2, '{"reason": "TooFewSamples", "message": "7"}', names.MODEL_LABEL, complete=False)
    assert world.condition("Benchmarked")[2] == "TooFewSamples: 7"


def test_a_benchmark_waits_until_nobody_uses_the_model_unless_it_is_told_not_to():
    world = World(model()).answer_resolve(GGUF).download_done().pod(ready=True)
    world.used(in_flight=2)
    world.token()
    assert world.phase == "Ready"
    assert world.condition("Benchmarked") == ("False", "Busy", "waits until no request is under way")
    assert world.plan().requeue_after == 15
    assert not [kind for kind, _ in world.children if kind == "Job"][1:], "no Job but the download's"
    run = world.used(in_flight=0).settle().condition("Benchmarked")
    assert run[:2] == ("False", "Running")


def test_a_benchmark_that_runs_is_not_stopped_by_requests_and_the_word_alone_asks_for_no_other():
    world = World(model(benchmark={"when": "Always"})).answer_resolve(GGUF).download_done().pod(ready=True)
    world.used(in_flight=2)
    world.token()
    assert world.condition("Benchmarked")[:2] == ("False", "Running")
    names_ = {name for kind, name in world.children if kind == "Job"}
    world.change(benchmark={"when": "Idle"}).settle()
    assert {name for kind, name in world.children if kind == "Job"} == names_
    assert world.condition("Benchmarked")[:2] == ("False", "Running")
