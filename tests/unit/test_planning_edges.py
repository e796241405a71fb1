"""What is rare and still happens: odd children, odd input, requests in the middle of something else."""

import json
from typing import Any

import pytest

from moorage import names
from moorage.planning import refused
from moorage.planning.types import Resolve
from tests.support.town import Town
from tests.support.world import GGUF, World, claim, gpu_node, model


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


def blocked_by_its_source(world: World) -> World:
    """A new source that the hub does not answer for; the old version goes on."""
    world.resolved = None
    return world.change(source={"huggingFace": {"repo": "org/other"}}).settle()


def test_scaling_to_zero_works_whatever_an_earlier_step_waits_for():
    world = blocked_by_its_source(World(model(benchmark={"enabled": False})).ready())
    world.change(replicas=0).settle()
    assert world.children[("Deployment", "tiny")]["wanted"] == 0


def test_scaling_up_waits_for_the_steps_before_it():
    world = blocked_by_its_source(World(model(benchmark={"enabled": False})).ready())
    world.change(replicas=3).settle()
    assert world.children[("Deployment", "tiny")]["wanted"] == 1


def test_a_first_start_is_no_rollout():
    world = World(model()).answer_resolve(GGUF).download_done()
    assert world.condition("UpToDate") == ("Unknown", "Pending", "no server has run yet")
    world.pod(ready=False)
    assert world.condition("UpToDate") == ("Unknown", "Pending", "no server has run yet")
    assert world.pod(ready=True).token().condition("UpToDate")[1] == "UpToDate"


def test_a_model_that_is_born_asleep_is_settled_at_once():
    world = World(model(replicas=0, benchmark={"enabled": False})).answer_resolve(GGUF).download_done()
    world.children[("Deployment", "tiny")].update(observedGeneration=0, updated=0)
    world.settle()
    assert world.condition("UpToDate")[:2] == ("True", "UpToDate")
    assert world.condition("Reconciling")[0] == "False"


def test_a_model_put_to_sleep_in_the_middle_of_a_rollout_is_settled():
    world = World(model(benchmark={"enabled": False})).ready()
    live = world.children[("Deployment", "tiny")]
    live.update(updated=0)
    world.settle()
    assert world.condition("UpToDate")[1] == "Progressing"
    world.change(replicas=0).settle()
    world.pods.clear()
    live.update(ready=0, replicas=0, updated=0, observedGeneration=live["generation"])
    world.settle()
    assert world.condition("UpToDate")[:2] == ("True", "UpToDate")
    assert world.condition("Reconciling")[0] == "False"


def test_a_condition_of_a_newer_version_is_left_alone():
    world = World(model(benchmark={"enabled": False})).ready()
    newer = {"type": "Reachable", "status": "True", "reason": "Probed", "message": "by 1.9"}
    world.model["status"]["conditions"].insert(2, newer)
    world.settle()
    assert newer in world.model["status"]["conditions"]
    before = world.writes
    world.later(60).settle()
    assert world.writes == before


def test_taking_a_restart_request_back_restarts_nothing():
    world = World(model(benchmark={"enabled": False})).ready()
    world.annotate(names.RESTART_AT, "2026-01-01T00:00:00Z").settle().pod(uid="p2", ready=True).token()
    before = dict(world.children[("Deployment", "tiny")])
    del world.model["metadata"]["annotations"][names.RESTART_AT]
    world.settle()
    assert world.children[("Deployment", "tiny")] == before


def test_taking_a_refresh_request_back_asks_nothing():
    world = World(model(benchmark={"enabled": False})).ready().annotate(names.REFRESH_AT, "2026-01-01T00:00:00Z")
    world.answer_resolve(GGUF)
    del world.model["metadata"]["annotations"][names.REFRESH_AT]
    assert not [a for a in world.plan().ask if isinstance(a, Resolve)]


def test_an_image_of_the_spec_that_is_taken_back_gives_way_to_the_charts():
    world = World(model(benchmark={"enabled": False}, image="mine:1")).ready()
    assert world.children[("Deployment", "tiny")]["image"] == "mine:1"
    del world.model["spec"]["image"]
    world.change().settle()
    assert world.children[("Deployment", "tiny")]["image"] == "llamacpp:1"


def test_a_field_that_a_later_version_adds_changes_no_hash():
    """What has its default is in no hash, so that an upgrade with new fields rolls and asks nothing."""
    plain = World(model(benchmark={"enabled": False})).ready()
    spelled = World(
        model(
            benchmark={"enabled": False}, kvCacheType="f16", tolerations=[], engine="Auto",
            source={"huggingFace": {"repo": "org/tiny", "quantization": "Q4_K_M", "revision": "main", "include": []}},
        )
    ).ready()  # fmt: skip
    assert len({w.children[("Deployment", "tiny")]["inputsHash"] for w in (plain, spelled)}) == 1
    assert plain.model["status"]["source"] == spelled.model["status"]["source"]
    assert plain.download["status"]["inputsHash"] == spelled.download["status"]["inputsHash"]


def test_what_keeps_one_of_several_servers_from_starting_is_told():
    world = World(model(benchmark={"enabled": False}, replicas=2)).ready()
    world.pod(uid="p2", ready=False, node="", phase="Pending", unschedulable="0/1 nodes are available: no room")
    assert world.condition("Ready")[0] == "True"
    assert "1 of 2 servers are ready" in world.message
    assert "no room" in world.message
    assert world.phase == "Degraded"


@pytest.mark.parametrize(
    ("cpu", "threads"),
    [
        ("0.5", "1"),
        ("500m", "1"),
        ("1500m", "1"),
        (4, "4"),
        ("1k", "1000"),
        ("2.5", "2"),
        ("4Ki", "4096"),
        ("odd", "-1"),
    ],
)
def test_threads_follow_whatever_the_api_takes_for_a_share(cpu: object, threads: str):
    world = World(model(resources={"limits": {"cpu": cpu}})).answer_resolve(GGUF).download_done()
    args = world.manifests[("Deployment", "tiny")]["spec"]["template"]["spec"]["containers"][0]["args"]
    assert args[args.index("--threads") + 1] == threads


def test_a_folder_that_ends_like_its_file_is_a_folder():
    source = {"persistentVolumeClaim": {"claimName": "mine", "path": "big-m.gguf"}}
    world = World(model(source=source)).settle()
    world.children[("PersistentVolumeClaim", "mine")] = claim("mine")
    world.settle()
    report = {
        "reason": "Complete",
        "bytes": 1,
        "manifestDigest": "d",
        "facts": {"format": "GGUF", "mainFile": "m.gguf"},
    }
    world.job_ends(0, json.dumps(report), complete=True)
    args = world.manifests[("Deployment", "tiny")]["spec"]["template"]["spec"]["containers"][0]["args"]
    assert args[1] == "/models/big-m.gguf/m.gguf"


def test_conditions_are_said_about_the_generation_that_was_looked_at():
    world = World(model()).ready()
    world.change(description="new words").settle()
    said = {c["type"]: c.get("observedGeneration") for c in world.model["status"]["conditions"]}
    assert set(said.values()) == {2}, said


def test_a_referenced_download_that_changes_is_followed():
    world = World(model(benchmark={"enabled": False}, source={"downloadRef": {"name": "files"}}))
    status = {
        "phase": "Ready", "claimName": "c", "path": "files/1", "resolvedRevision": "1" * 40, "manifestDigest": "d",
        "bytes": {"total": 1000, "done": 1000}, "facts": {"format": "GGUF", "mainFile": "a.gguf"},
        "conditions": [{"type": t, "status": "True"} for t in ("Resolved", "Downloaded", "Ready")],
    }  # fmt: skip
    meta = {"name": "files", "namespace": "ns", "uid": "d", "generation": 1}
    world._pass_download = lambda: None  # type: ignore[method-assign]
    world.download = {"metadata": meta, "spec": {"source": {"huggingFace": {"repo": "org/tiny"}}}, "status": status}
    world.settle()
    assert world.model["status"]["source"]["resolvedRevision"] == "1" * 40
    world.download["status"] = {**status, "resolvedRevision": "2" * 40, "bytes": {"total": 5000, "done": 5000}}
    world.settle()
    assert world.model["status"]["source"]["resolvedRevision"] == "2" * 40
    assert world.model["status"]["source"]["sizeBytes"] == 5000


@pytest.mark.parametrize(
    ("stated", "written", "shown"),
    [("mit", "apache-2.0", "mit"), ("", "apache-2.0", "apache-2.0"), ("", None, None)],
)
def test_the_license_is_what_the_repository_states_or_else_the_file(
    stated: str, written: str | None, shown: str | None
):
    facts = {**GGUF["facts"], **({"license": written} if written else {})}
    world = World(model()).answer_resolve({**GGUF, "license": stated, "facts": facts})
    assert world.model["status"]["source"].get("license") == shown


def test_words_wait_for_the_first_servers_on_a_cpu_and_for_nothing_else():
    """GPUs that were chosen are remembered at once."""
    town = Town(gpu_node("g1", 24564))
    town.add("gpu")
    town.add("cpu", accelerator={"vendor": "None"})
    for name in ("gpu", "cpu"):
        plan = town.look(name)
        assert "Deployment" in {manifest["kind"] for manifest in plan.apply}
        assert plan.words_wait == (name == "cpu")
    assert not town.look("cpu").words_wait, "its Deployment is there now"
