"""The life of a Model as the planners decide it, step by step."""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from e2e.tinymodels import write_gguf
from moorage import names
from moorage.planning.types import Answer
from moorage.sizing.facts import header_facts
from moorage.sizing.gguf import read_gguf_header
from tests.support.world import GGUF, World, gpu_node, model


def tiny_header() -> str:
    """What the resolver keeps of a small model's header."""
    with tempfile.TemporaryDirectory() as folder:
        (path,) = write_gguf(Path(folder) / "tiny.gguf")
        return header_facts(read_gguf_header(path.read_bytes()))["header"]


def test_a_model_on_the_cpu_becomes_ready_step_by_step():
    world = World(model()).settle()
    assert world.phase == "Pending"
    assert world.condition("Accepted")[:2] == ("Unknown", "Progressing")

    world.answer_resolve(GGUF)
    assert world.condition("Accepted")[0] == "True"
    assert world.condition("Placed")[:2] == ("True", "NoAcceleratorNeeded")
    assert world.phase == "Downloading"
    assert ("PersistentVolumeClaim", world.download["metadata"]["name"]) in world.children

    world.download_done()
    assert world.condition("Downloaded")[0] == "True"
    assert world.phase == "Loading"

    world.pod(ready=False)
    assert world.condition("Serving") == ("False", "Loading", "loading 4.0Gi of weights")

    world.pod(ready=True)
    assert world.condition("Ready")[0] == "False", "a ready pod is not believed before it answered"

    world.token()
    assert world.phase == "Ready"
    assert world.condition("Ready")[:2] == ("True", "Ready")
    assert world.message == "serving on CPU"
    assert world.settle().model["status"]["engine"]["version"] == "b1"
    assert world.model["status"]["summary"]["ready"] == "1/1"
    assert world.model["status"]["summary"]["node"] == "node-1"


def test_events_tell_the_story_once():
    world = World(model()).ready()
    told = [reason for _, reason in world.events]
    for word in ("Downloading", "Downloaded", "Loading", "Loaded"):
        assert told.count(word) >= 1, word
    assert "LoadFailed" not in told
    assert "Placed" not in told, "on CPUs nothing was looked for"


def test_nothing_is_written_at_rest():
    world = World(model(benchmark={"enabled": False})).ready()
    before = world.writes
    for _ in range(5):
        world.later(60).settle()
    assert world.writes == before


@pytest.mark.parametrize(
    "spec",
    [
        {"request": {"defaults": {"temperature": 0.7}}},
        {"servedNames": ["llama3:instruct"]},
        {"allowedNamespaces": {"from": "All"}},
    ],
)
def test_what_concerns_only_the_gateway_restarts_nothing(spec: dict[str, Any]):
    plain, changed = World(model()).ready(), World(model(**spec)).ready()
    assert len({w.children[("Deployment", "tiny")]["inputsHash"] for w in (plain, changed)}) == 1


def test_the_hub_is_not_asked_again_for_what_is_in_status():
    world = World(model()).ready()
    world.resolved = world.download_resolved = None
    world.asked = []
    world.settle()
    assert world.asked == []
    assert world.phase == "Ready"


@pytest.mark.parametrize(
    ("reason", "phase"),
    [("RepoNotFoundOrPrivate", "Blocked"), ("GatedAccessDenied", "Blocked"), ("HubUnreachable", "Pending")],
)
def test_a_source_that_says_no_is_told_in_its_words(reason: str, phase: str):
    world = World(model()).settle()
    world.resolved = None
    ask = world.asked[0]
    world.resolved = Answer(ask.inputs, None, reason, "the hub said so", reason == "HubUnreachable")
    world.settle()
    assert world.condition("Accepted") == ("False", reason, "the hub said so")
    assert world.phase == phase
    assert world.message == "the hub said so"
    assert world.condition("Ready")[1] == reason


@pytest.mark.parametrize(
    ("facts", "words"),
    [({"format": "Safetensors"}, "no config.json"), ({}, "neither GGUF nor safetensors")],
)
def test_a_repository_without_a_model_is_refused_with_a_reason(facts: dict, words: str):
    world = World(model())
    world.settle()
    world.resolved = Answer(world.asked[0].inputs, {**GGUF, "facts": facts})
    world.settle()
    status, reason, message = world.condition("Accepted")
    assert (status, reason) == ("False", "UnsupportedFormat")
    assert words in message
    assert world.phase == "Blocked"


TROUBLES = [
    ({"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}, "ImagePullFailed", "no such image"),
    ({"terminated": {"exitCode": 137, "reason": "OOMKilled"}}, "OutOfMemory", "lack of host memory"),
    ({"last": {"exitCode": 1, "message": "error: bad magic\n"}, "restarts": 2}, "CrashLoop", "bad magic"),
    ({"unschedulable": "0/3 nodes are available", "node": "", "phase": "Pending"}, "Unschedulable", "0/3 nodes"),
    ({"waiting": {"reason": "CreateContainerConfigError", "message": 'secret "x" not found'}}, "InvalidSpec", "secret"),
]


@pytest.mark.parametrize(("state", "reason", "words"), TROUBLES)
def test_a_pod_that_does_not_start_is_explained(state: dict, reason: str, words: str):
    world = World(model()).answer_resolve(GGUF).download_done().pod(**state)
    status, found, message = world.condition("Serving")
    assert (status, found) == ("False", reason)
    assert words in message
    assert words in world.message
    assert world.condition("Stalled")[0] == "True"
    assert world.condition("Ready")[0] == "False"
    assert world.phase in ("Failed", "Blocked")


def test_quota_is_told_in_the_servers_words():
    world = World(model()).answer_resolve(GGUF).download_done()
    live = world.children[("Deployment", "tiny")]
    text = 'pods "tiny-x" is forbidden: exceeded quota: q, requested: pods=1'
    live["conditions"] = {"ReplicaFailure": {"status": "True", "reason": "FailedCreate", "message": text}}
    world.settle()
    assert world.condition("Serving") == ("False", "QuotaExceeded", text)
    assert world.phase == "Blocked"


def test_a_crash_after_ready_is_degraded_and_needs_a_new_answer():
    world = World(model()).ready()
    world.pod(ready=False, last={"exitCode": 1, "message": "boom"}, restarts=1)
    assert world.phase == "Degraded"
    assert world.condition("Ready")[:2] == ("False", "CrashLoop")
    world.pod(ready=True, restarts=1)
    assert world.condition("Ready")[0] == "False", "an answer from before the crash does not count"
    world.token()
    assert world.phase == "Ready"


def test_scaling_to_zero_and_back():
    world = World(model()).ready()
    world.change(replicas=0)
    world.pods.clear()
    world.children[("Deployment", "tiny")]["ready"] = 0
    world.settle()
    assert world.phase == "ScaledToZero"
    assert world.condition("Ready")[:2] == ("True", "ScaledToZero")
    assert world.condition("Active")[:2] == ("False", "ScaledToZero")
    assert world.children[("Deployment", "tiny")]["wanted"] == 0
    hash_before = world.children[("Deployment", "tiny")]["inputsHash"]

    world.change(replicas=1).settle()
    assert world.children[("Deployment", "tiny")]["wanted"] == 1
    assert world.children[("Deployment", "tiny")]["inputsHash"] == hash_before, "loading again renders nothing anew"
    world.pod(uid="p2", ready=True).token()
    assert world.phase == "Ready"


def test_a_strangers_deployment_is_never_taken_over():
    world = World(model())
    world.children[("Deployment", "tiny")] = {"stranger": True, "uid": "other"}
    world.answer_resolve(GGUF).download_done()
    assert world.condition("Serving")[:2] == ("False", "NameTaken")
    assert world.children[("Deployment", "tiny")] == {"stranger": True, "uid": "other"}


def test_a_new_default_image_changes_no_running_pod():
    world = World(model()).ready()
    before = dict(world.children[("Deployment", "tiny")])
    world.defaults = replace(world.defaults, llamacpp_image="llamacpp:2")
    world.settle()
    assert world.children[("Deployment", "tiny")] == before
    status, reason, message = world.condition("UpToDate")
    assert (status, reason) == ("False", "RolloutAvailable")
    assert names.RESTART_AT in message
    assert world.phase == "Ready"

    world.annotate(names.RESTART_AT, "2026-01-01T00:00:00Z").settle()
    assert world.children[("Deployment", "tiny")]["image"] == "llamacpp:2"


def test_rolling_update_policy_takes_a_new_image_at_once():
    world = World(model(updatePolicy="Rolling")).ready()
    world.defaults = replace(world.defaults, llamacpp_image="llamacpp:2")
    world.settle()
    assert world.children[("Deployment", "tiny")]["image"] == "llamacpp:2"


def test_a_failed_rollout_leaves_the_old_version_serving_and_says_so():
    world = World(model()).ready()
    world.change(contextLength=1024).settle()
    live = world.children[("Deployment", "tiny")]
    live.update(ready=1, replicas=2, updated=1, observedGeneration=live["generation"])
    world.pods["p2"] = {
        **world.pods["p1"], "uid": "p2", "ready": False,
        "containers": [
            {**world.pods["p1"]["containers"][0], "ready": False, "terminated": {"exitCode": 1, "message": "error: no"}}
        ],
    }  # fmt: skip
    world.settle()
    assert world.condition("Ready")[0] == "True"
    assert world.condition("UpToDate")[:2] == ("False", "RolloutFailed")
    assert world.phase == "Degraded"
    assert "previous one keeps serving" in world.message


def test_a_changed_source_keeps_the_old_version_ready_while_the_new_one_downloads():
    world = World(model()).ready()
    world.download = None
    world.resolved = None
    world.change(source={"huggingFace": {"repo": "org/other", "quantization": "Q8_0"}}).settle()
    assert world.condition("Accepted")[0] == "Unknown"
    assert world.condition("Ready")[0] == "True"
    assert world.condition("Reconciling")[0] == "True"


def test_without_gpus_auto_never_falls_back_to_the_cpu():
    world = World(model(accelerator={"vendor": "Auto"})).settle()
    world.resolved = Answer(world.asked[0].inputs, GGUF)
    world.settle()
    status, reason, message = world.condition("Placed")
    assert (status, reason) == ("False", "NoGPUFits")
    assert "accelerator.vendor: None" in message
    assert world.phase == "Blocked"
    assert world.download is None, "nothing is downloaded for a model that has no place"


def test_gpus_are_asked_for_as_the_vendors_resource():
    world = World(model(accelerator={"vendor": "Auto"}))
    world.nodes = [gpu_node("gpu-1", 24564, 2)]
    world.ready()
    container = world.manifests[("Deployment", "tiny")]["spec"]["template"]["spec"]["containers"][0]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": "1"}
    assert container["args"][container["args"].index("--gpu-layers") + 1] == "all"
    assert world.message == "serving on 1 GPU"


BENCH = (
    '{"ttftUs": {"p50": 85000, "p90": 90000, "p99": 99000}, "tpotUs": {"p50": 11000, "p90": 1, "p99": 1},'
    ' "e2eUs": {"p50": 1, "p90": 1, "p99": 1}, "chunkGapP99Us": 3, "outputTokensPerSecondMilli": 87400,'
    ' "requestsPerSecondMilli": 1200, "requests": {"total": 20, "failed": 0}, "rows": []}'
)


def test_the_benchmark_runs_once_per_template_and_lands_in_status():
    world = World(model()).ready()
    assert world.condition("Benchmarked")[:2] == ("False", "Running")
    assert world.phase == "Ready", "a benchmark never un-readies"
    world.job_ends(0, BENCH, names.MODEL_LABEL, complete=True)
    assert world.condition("Benchmarked") == ("True", "Completed", "87 tokens/s, first token after 85 ms")
    assert world.model["status"]["summary"]["tokensPerSecond"] == "87"
    assert world.model["status"]["summary"]["ttft"] == "85ms"
    assert not [k for k, _ in world.children if k == "Job"], "a finished Job is cleared away"
    first = world.model["status"]["benchmark"]["run"]
    world.annotate(names.BENCHMARK_AT, "2026-01-02T00:00:00Z").settle()
    assert world.job(names.MODEL_LABEL)["name"] != names.benchmark_job("tiny", first)
    assert world.model["status"]["benchmark"]["stale"] is True


def test_a_refused_benchmark_says_so_and_is_not_repeated():
    world = World(model()).ready()
    world.job_ends(2, '{"reason": "TooManyFailures", "message": "3 of 20 failed"}', names.MODEL_LABEL, complete=False)
    assert world.condition("Benchmarked") == ("False", "BenchmarkFailed", "TooManyFailures: 3 of 20 failed")
    assert world.phase == "Ready"
    assert not [k for k, _ in world.children if k == "Job"]


def test_a_disabled_benchmark_is_true():
    world = World(model(benchmark={"enabled": False})).ready()
    assert world.condition("Benchmarked")[:2] == ("True", "Disabled")


def test_two_models_of_one_content_share_a_download_and_other_storage_does_not():
    one, two = World(model("a")).answer_resolve(GGUF), World(model("b")).answer_resolve(GGUF)
    other = World(model("c", storage={"size": "50Gi"})).answer_resolve(GGUF)
    assert one.download["metadata"]["name"] == two.download["metadata"]["name"]
    assert one.download["metadata"]["name"] != other.download["metadata"]["name"]
    assert "ownerReferences" not in one.download["metadata"]


def test_memory_follows_from_the_header_and_is_asked_of_the_node():
    header = tiny_header()
    world = World(model(contextLength=1024, maxSequences=2))
    world.answer_resolve({**GGUF, "facts": {**GGUF["facts"], "header": header}}).download_done()
    memory = world.model["status"]["memory"]
    assert memory["confidence"] in ("Exact", "Bounded")
    container = world.manifests[("Deployment", "tiny")]["spec"]["template"]["spec"]["containers"][0]
    assert container["resources"]["requests"]["memory"] == f"{memory['hostMiB']}Mi"


def test_gpu_memory_is_shown_as_a_column():
    world = World(model(accelerator={"vendor": "Nvidia"}))
    world.nodes = [gpu_node("gpu-1", 24564)]
    world.answer_resolve({**GGUF, "facts": {**GGUF["facts"], "header": tiny_header()}})
    status = world.model["status"]
    assert status["memory"]["estimatedMiB"] == sum(
        status["memory"][part] for part in ("weightsMiB", "kvMiB", "computeMiB", "overheadMiB", "marginMiB")
    )
    assert status["summary"]["vram"].endswith("i")


def test_settings_that_the_engine_refuses_are_refused_before_the_download():
    world = World(model(kvCacheType="q8_0", llamaCpp={"flashAttention": False}))
    world.settle()
    world.resolved = Answer(world.asked[0].inputs, {**GGUF, "facts": {**GGUF["facts"], "header": tiny_header()}})
    world.settle()
    assert world.condition("Accepted")[:2] == ("False", "InvalidSpec")
    assert world.phase == "Blocked"
    assert world.download is None


def test_a_context_beyond_the_trained_one_is_refused_unless_it_is_stretched():
    world = World(model(contextLength=65536)).settle()
    world.resolved = Answer(world.asked[0].inputs, GGUF)
    world.settle()
    status, reason, message = world.condition("Accepted")
    assert (status, reason) == ("False", "InvalidSpec")
    assert "65536" in message
    assert "32768" in message
    stretched = World(model(contextLength=65536, args=["--rope-scaling", "yarn"])).answer_resolve(GGUF)
    assert stretched.condition("Accepted")[0] == "True"


def test_a_server_that_never_ran_is_not_called_up_to_date():
    world = World(model()).answer_resolve(GGUF).download_done().pod(waiting={"reason": "ImagePullBackOff"})
    assert world.condition("UpToDate")[0] == "Unknown"
