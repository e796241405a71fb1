"""What is rare and still happens: odd children, odd input, requests in the middle of something else."""

from typing import Any

from moorage import names
from moorage.planning import refused
from tests.support.world import GGUF, World, model


def bench_pod(world: World, **state: object) -> None:
    """A pod of the benchmark Job beside the servers."""
    job = world.job(names.MODEL_LABEL)
    labels = {names.MODEL_LABEL: names.dns_label(world.name), names.COMPONENT: "benchmark"}
    world.pods["bench"] = {
        "name": "bench", "uid": "bench", "owner": job["uid"], "labels": labels, "phase": "Running", "node": "node-9",
        "ip": "", "ready": True, "gpus": {}, "created": "2026-01-01T00:00:09Z", "readyAt": "2026-01-01T00:00:10Z",
        "unschedulable": "", "deleting": False, "templateHash": "", "containers": [], **state,
    }  # fmt: skip


def test_a_benchmarks_pod_is_no_server():
    world = World(model()).ready()
    bench_pod(world)
    world.settle()
    assert world.model["status"]["placement"]["nodes"] == ["node-1"]
    failed = {"name": "bench", "ready": False, "restarts": 0, "terminated": {"exitCode": 2, "message": "error: no"}}
    bench_pod(world, phase="Failed", ready=False, containers=[failed])
    world.pods["p1"]["ready"] = False
    world.children[("Deployment", "tiny")]["ready"] = 0
    world.settle()
    assert world.condition("Serving")[1] == "Loading", "the benchmark's exit code says nothing about the server"


def test_a_pod_that_was_evicted_long_ago_does_not_fail_a_rollout():
    world = World(model(benchmark={"enabled": False})).ready()
    remains = {"uid": "old", "ready": False, "phase": "Failed", "reason": "Evicted", "message": "disk"}
    world.pods["old"] = {**world.pods["p1"], **remains}
    world.change(contextLength=1024).settle()
    assert world.condition("UpToDate")[1] == "Progressing"


def refuse(world: World, child: str = "Deployment") -> dict[str, Any]:
    """The API server refuses a child that the Model's plan asks for; the status that says so is written."""
    plan = refused.plan("Model", world.model, world.plan(), world.now, "QuotaExceeded", "exceeded quota: q", child)
    assert plan.status is not None
    world.model["status"] = plan.status
    return plan.status


def test_a_refusal_that_goes_on_is_written_once():
    world = World(model()).ready()
    world.later(60)
    first = refuse(world)
    assert world.condition("UpToDate")[:2] == ("False", "QuotaExceeded")
    for _ in range(3):
        world.later(60)
        assert refuse(world) == first


def test_a_benchmark_that_is_refused_degrades_nothing():
    world = World(model()).ready()
    first = refuse(world, "Job")
    assert world.condition("Benchmarked")[:2] == ("False", "QuotaExceeded")
    assert world.condition("Stalled")[0] == "False"
    assert world.phase == "Ready"
    assert refuse(world, "Job") == first


def test_a_refusal_never_makes_a_server_ready_that_has_not_answered():
    world = World(model()).answer_resolve(GGUF).download_done().pod(ready=True)
    refuse(world)
    assert world.condition("Ready")[0] == "False"
    assert world.phase == "Blocked"


def test_a_download_of_the_chosen_name_with_other_content_is_not_served():
    world = World(model()).answer_resolve(GGUF)
    other = {"huggingFace": {"repo": "org/other", "revision": "main"}}
    world.download["spec"] = {**world.download["spec"], "source": other}
    world.settle()
    assert world.condition("Downloaded")[:2] == ("False", "NameTaken")
    assert world.phase == "Blocked"


def test_how_a_shared_download_is_kept_or_fetched_does_not_matter_to_who_uses_it():
    world = World(model()).answer_resolve(GGUF)
    storage = {"deleteAfterUnused": "5m", "reclaimPolicy": "Retain"}
    world.download["spec"] = {**world.download["spec"], "priority": 5, "storage": storage}
    world.settle()
    assert world.condition("Downloaded")[:2] == ("False", "Downloading")


def test_a_former_models_deployment_is_waited_for_and_not_called_a_strangers():
    world = World(model(benchmark={"enabled": False})).ready()
    world.model = {**model(benchmark={"enabled": False}), "status": {}}
    world.model["metadata"]["uid"] = "uid-second-life"
    world.settle()
    status, reason, message = world.condition("Serving")
    assert (status, reason) == ("Unknown", "Progressing")
    assert "former" in message
    assert world.condition("Stalled")[0] == "False"
