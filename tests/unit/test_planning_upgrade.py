"""An upgrade of Moorage starts nothing anew that runs: another version computes, renders and knows other things."""

import json
from dataclasses import replace
from typing import Any

import pytest

from moorage import names
from moorage.api.model import ModelSpec
from moorage.engines.llamacpp import LlamaCppEngine
from moorage.engines.vllm import VllmEngine
from moorage.manifests import model as manifests
from moorage.planning import download_job
from moorage.planning.types import Answer, Resolve
from tests.support.world import GGUF, SAFETENSORS, World, claim, gpu_node, model
from tests.unit.test_planning_gate import gpu, report
from tests.unit.test_planning_place import big_header

HEADER = big_header()
LLAMA = {**GGUF, "facts": {**GGUF["facts"], "header": HEADER}}
GPU = {"nvidia.com/gpu": 1}


def running(*nodes: dict[str, Any], servers: int = 1, facts: dict[str, Any] = LLAMA, **spec: Any) -> World:
    """A Model that is Ready on the first nodes, sized by its header."""
    spec.setdefault("accelerator", {"vendor": "Auto"})
    world = World(model(replicas=servers, storage={"accessModes": ["ReadWriteMany"]}, **spec))
    world.nodes = list(nodes or (gpu_node("gpu-1", 24_564), gpu_node("gpu-2", 81_559)))
    world.answer_resolve(facts).download_done()
    for index in range(servers):
        gpus = {} if spec["accelerator"]["vendor"] == "None" else GPU
        world.pod_is(f"p{index + 1}", ready=True, node=world.nodes[index]["name"], gpus=gpus)
    world.settle().token()
    assert world.phase == "Ready"
    return world


def live(world: World) -> dict[str, Any]:
    return world.children[("Deployment", "tiny")]


def estimates_grow(monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    """This version of Moorage computes another need for the same files."""
    for engine in (LlamaCppEngine, VllmEngine):
        before = engine.need

        def need(self: Any, asked: Any, serving: Any, gpus: int, before: Any = before) -> Any:
            found = before(self, asked, serving, gpus)
            each = tuple(int(mib * factor) for mib in found.per_gpu_mib)
            more = sum(each) - sum(found.per_gpu_mib)
            host = int(found.host_mib * factor)
            return replace(found, per_gpu_mib=each, compute_mib=found.compute_mib + more, host_mib=host)

        monkeypatch.setattr(engine, "need", need)


def undisturbed(world: World, before: World) -> bool:
    """Whether the Deployment was not written, and status tells of the same servers."""
    deployment, kept = ("Deployment", "tiny"), ("placement", "memory")
    return world.manifests[deployment] == before.manifests[deployment] and all(
        world.model["status"].get(k) == before.model["status"].get(k) for k in kept
    )


def copy(world: World) -> World:
    other = World(json.loads(json.dumps(world.model)))
    other.manifests = dict(world.manifests)
    return other


@pytest.mark.parametrize("factor", [0.25, 3.2, 40.0], ids=["smaller", "needs a larger GPU", "fits nowhere"])
@pytest.mark.parametrize("vendor", ["Auto", "None"])
@pytest.mark.parametrize("facts", [LLAMA, SAFETENSORS], ids=["llama.cpp", "vllm"])
def test_another_estimate_leaves_what_runs_alone_and_is_told(monkeypatch, facts, vendor, factor):
    world = running(accelerator={"vendor": vendor}, facts=facts)
    before = copy(world)
    estimates_grow(monkeypatch, factor)
    world.settle()
    assert undisturbed(world, before)
    assert world.condition("Placed")[0] == "True"
    assert world.phase == "Ready"
    message = world.condition("UpToDate")[2]
    assert message.startswith("the running pods match the spec; this version of Moorage would plan ")
    assert message.endswith("; that takes effect at the next start")


def test_another_estimate_is_what_the_next_change_of_the_spec_is_planned_with(monkeypatch):
    world = running()
    assert world.model["status"]["placement"]["gpuClass"] == "24Gi"
    estimates_grow(monkeypatch, 3.2)
    world.change(contextLength=4096).settle()
    assert world.model["status"]["placement"]["gpuClass"] == "80Gi"
    assert ("Normal", "RollingOut") in world.events


def test_another_estimate_is_what_a_new_model_is_planned_with(monkeypatch):
    estimates_grow(monkeypatch, 3.2)
    world = World(model(accelerator={"vendor": "Auto"}))
    world.nodes = [gpu_node("gpu-1", 24_564), gpu_node("gpu-2", 81_559)]
    assert world.answer_resolve(LLAMA).model["status"]["placement"]["gpuClass"] == "80Gi"


def test_a_pod_that_is_made_anew_is_planned_anew(monkeypatch):
    world = running(gpu_node("gpu-1", 24_564), gpu_node("gpu-2", 24_564, 4), gpu_node("gpu-3", 81_559))
    estimates_grow(monkeypatch, 3.2)
    world.pods.clear()
    live(world).update(ready=0)
    world.settle()
    assert world.model["status"]["placement"]["gpuClass"] == "80Gi"


def hash_of_another_version(world: World) -> None:
    live(world)["inputsHash"] = world.model["status"]["template"] = "0123456789ab"


def test_who_hashes_otherwise_compares_what_the_parts_are():
    world = running()
    hash_of_another_version(world)
    before = copy(world)
    assert undisturbed(world.settle(), before)
    assert world.model["status"]["template"] == "0123456789ab", "neither warmed up nor measured again"


@pytest.mark.parametrize("key", ["spec.kvCacheType", "spec.llamaCpp.flashAttention", "pooled", "projector", "mainFile"])
def test_what_an_older_version_did_not_note_is_no_difference_where_it_has_its_default(key):
    world = running(llamaCpp={"threads": 4})
    hash_of_another_version(world)
    noted = json.loads(live(world)["inputs"])
    noted.pop(key, None)
    live(world)["inputs"] = json.dumps(noted)
    before = copy(world)
    assert undisturbed(world.settle(), before)


def test_a_field_that_only_a_newer_version_knew_is_no_difference():
    world = running()
    hash_of_another_version(world)
    live(world)["inputs"] = json.dumps({**json.loads(live(world)["inputs"]), "spec.speculation": "12345678"})
    before = copy(world)
    assert undisturbed(world.settle(), before)


def test_a_default_that_changed_reaches_no_model_that_has_the_old_one(monkeypatch):
    """The API server writes defaults into objects: who was made with the old one has it as if a person had said it."""
    world = running(kvCacheType="f16")
    world.model["spec"]["kvCacheType"] = "f16"
    field = ModelSpec.model_fields["kv_cache_type"]
    monkeypatch.setattr(field, "default", type(field.default)("q8_0"))
    ModelSpec.model_rebuild(force=True)
    try:
        before = copy(world)
        assert undisturbed(world.settle(), before)
    finally:
        monkeypatch.undo()
        ModelSpec.model_rebuild(force=True)


CHANGES: dict[str, dict[str, Any]] = {
    "contextLength": {"contextLength": 2048},
    "maxSequences": {"maxSequences": 2},
    "args": {"args": ["--verbosity", "1"]},
    "env": {"env": [{"name": "A", "value": "b"}]},
    "llamaCpp.threads": {"llamaCpp": {"threads": 2}},
    "image": {"image": "mine:1"},
    "nodeSelector.zone": {"nodeSelector": {"zone": "a"}},
    "resources.limits.memory": {"resources": {"limits": {"memory": "64Gi"}}},
    "podMetadata.labels.team": {"podMetadata": {"labels": {"team": "a"}}},
}


@pytest.mark.parametrize("what", CHANGES)
@pytest.mark.parametrize("upgraded", [False, True])
def test_what_a_person_changes_starts_servers_anew_and_is_named(what, upgraded):
    labelled = gpu_node("gpu-1", 24_564)
    labelled["labels"]["zone"] = "a"
    world = running(labelled)
    if upgraded:
        hash_of_another_version(world)
    before = live(world)["inputsHash"]
    world.change(**CHANGES[what])
    (told,) = [e for e in world.plan().events if e.reason == "RollingOut"]
    assert told.message.startswith("servers start anew: ")
    assert what in told.message
    world.settle()
    assert live(world)["inputsHash"] != before


def test_what_is_taken_out_of_the_spec_is_a_change_too():
    world = running(args=["--verbosity", "1"])
    hash_of_another_version(world)
    before = copy(world)
    world.change(args=[]).settle()
    assert not undisturbed(world, before)


def test_files_found_otherwise_by_this_version_start_nothing_anew():
    world = running()
    before = copy(world)
    source = world.model["status"]["source"]
    source["projectorFile"] = "mmproj.gguf"
    world.download["status"]["facts"]["projectorFile"] = "mmproj.gguf"
    source["shows"] = world.download["status"]["facts"]["shows"] = ["embeddings"]
    world.settle()
    assert world.manifests[("Deployment", "tiny")] == before.manifests[("Deployment", "tiny")]


def test_a_person_who_says_what_a_model_can_do_gets_a_server_that_does_it():
    world = running()
    before = copy(world)
    world.change(capabilities=["chat", "tools"]).settle()
    assert world.manifests[("Deployment", "tiny")] == before.manifests[("Deployment", "tiny")]
    world.change(capabilities=["embeddings"]).settle()
    assert (
        "--embeddings" in world.manifests[("Deployment", "tiny")]["spec"]["template"]["spec"]["containers"][0]["args"]
    )


def test_a_pod_template_of_another_version_waits_for_the_next_start(monkeypatch):
    world = running()
    before = copy(world)
    monkeypatch.setattr(manifests, "TERMINATION_GRACE_SECONDS", 999)
    assert undisturbed(world.settle(), before)
    world.change(replicas=0).settle().pods_go()
    world.change(replicas=1).settle()
    assert live(world)["wanted"] == 1
    assert world.manifests[("Deployment", "tiny")]["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] == 999
    assert (
        live(world)["inputsHash"]
        == before.manifests[("Deployment", "tiny")]["metadata"]["annotations"][names.INPUTS_HASH]
    )


def test_a_newer_chart_image_waits_and_nothing_that_was_learned_is_lost():
    world = running()
    world.model["status"]["memory"]["learned"] |= {"observedGpuMiB": 9000, "gpus": 1}
    world.settle()
    learned, before = world.model["status"]["memory"]["learned"], live(world)["image"]
    world.defaults = replace(world.defaults, llamacpp_nvidia_image="llamacpp-cuda:2")
    world.settle()
    assert live(world)["image"] == before
    assert world.model["status"]["memory"]["learned"] == learned
    assert world.condition("UpToDate")[1] == "RolloutAvailable"


def test_a_rollout_to_a_newer_image_is_sized_for_that_image(monkeypatch):
    asked_for: list[str] = []
    before = VllmEngine.need

    def need(self: Any, asked: Any, serving: Any, gpus: int) -> Any:
        asked_for.append(asked.image)
        return before(self, asked, serving, gpus)

    monkeypatch.setattr(VllmEngine, "need", need)
    world = running(facts=SAFETENSORS)
    world.defaults = replace(world.defaults, vllm_nvidia_image="vllm:v0.99.0")
    asked_for.clear()
    world.settle().plan()
    assert set(asked_for) == {"vllm:v0.32.0"}, "what runs"
    asked_for.clear()
    world.annotate(names.RESTART_AT, "2026-01-02T00:00:00Z").plan()
    assert set(asked_for) == {"vllm:v0.99.0"}, "what is rolled out"
    world.settle()
    assert live(world)["image"] == "vllm:v0.99.0"


@pytest.mark.parametrize("vendor", ["Nvidia", "AMD"])
def test_an_image_that_runs_is_not_kept_for_other_accelerators(vendor):
    world = running(accelerator={"vendor": "None"})
    node = gpu_node("gpu-1", 24_564)
    if vendor == "AMD":
        node |= {"gpus": {"amd.com/gpu": 1}, "labels": {"kubernetes.io/hostname": "gpu-1", "amd.com/gpu.vram": "24G"}}
    world.nodes = [node]
    world.change(accelerator={"vendor": vendor}).settle()
    assert live(world)["image"] == {"Nvidia": "llamacpp-cuda:1", "AMD": "llamacpp-rocm:1"}[vendor]


# -- what runs, and what is to come ------------------------------------------------------------------------------------


def test_status_tells_what_runs_and_what_is_to_come():
    world = running(rollout={"strategy": "Surge"})
    before = world.model["status"]
    world.defaults = replace(world.defaults, memory_wait_seconds=600)
    full = replace(report(gpu(used=20_000)), node="gpu-2")
    world.reports = {"gpu-1": replace(report(gpu()), node="gpu-1"), "gpu-2": full}
    world.change(contextLength=32_768, maxSequences=8).settle()
    assert world.condition("UpToDate")[:2] == ("False", "Progressing")
    status = world.model["status"]
    for part in ("count", "vendor", "gpuClass", "gpuMemoryMiB", "reason", "nodes"):
        assert status["placement"][part] == before["placement"][part]
    assert status["memory"]["perGpuMiB"] == before["memory"]["perGpuMiB"]
    coming = status["placement"]["next"]
    assert (coming["count"], coming["gpuClass"]) == (1, "80Gi")
    assert coming["perGpuMiB"] > status["memory"]["perGpuMiB"]
    free = replace(gpu(), total_mib=81_559, free_mib=81_000)
    world.reports["gpu-2"] = replace(report(free), node="gpu-2")
    world.settle()
    placement = world.model["status"]["placement"]
    assert (placement["gpuClass"], placement.get("next")) == ("80Gi", None)


def test_a_new_version_that_fits_nowhere_leaves_status_of_what_runs():
    world = running(gpu_node("gpu-1", 24_564))
    before = world.model["status"]
    world.change(contextLength=32_768, maxSequences=16).settle()
    assert world.condition("Placed")[:2] == ("False", "NoGPUFits")
    placement = world.model["status"]["placement"]
    assert (placement["count"], placement["gpuClass"]) == (1, before["placement"]["gpuClass"])
    assert "count" not in placement["next"]
    assert placement["next"]["reason"] == world.condition("Placed")[2]
    assert "serving on 1 GPU" in world.condition("Serving")[2]
    world.model["spec"] = {k: v for k, v in world.model["spec"].items() if k not in ("contextLength", "maxSequences")}
    world.change().settle()
    assert "next" not in world.model["status"]["placement"], "a person took it back"
    assert world.condition("Placed")[0] == "True"
    assert world.model["status"]["memory"] == before["memory"]


def test_a_further_server_that_needs_other_settings_does_not_restart_the_first():
    """Two GPUs of 16 GiB would do for another one, with other arguments: the one that serves would have to stop."""
    world = running(gpu_node("gpu-1", 24_564), gpu_node("gpu-2", 4_096, 8))
    before = live(world)["inputsHash"]
    world.change(replicas=2).settle()
    assert live(world)["inputsHash"] == before
    assert world.model["status"]["placement"]["count"] == 1


def test_the_loss_of_one_server_does_not_restart_the_other():
    world = running(gpu_node("gpu-1", 24_564), gpu_node("gpu-2", 24_564), servers=2)
    before = live(world)["inputsHash"]
    world.nodes = [world.nodes[0], gpu_node("gpu-3", 4_096, 8)]
    world.pods["p2"].update(node="", ready=False, gpus={}, unschedulable="0/2 nodes are available")
    live(world).update(ready=1)
    world.settle()
    assert live(world)["inputsHash"] == before
    assert world.condition("Ready")[0] == "True"


# -- sources and downloads ---------------------------------------------------------------------------------------------


@pytest.fixture
def hashes_otherwise(monkeypatch: pytest.MonkeyPatch) -> Any:
    """From the call on another version names all inputs, those of a source too."""

    def begin() -> None:
        before = names.inputs
        monkeypatch.setattr(names, "inputs", lambda content, *rest: before([content, "of a newer version"], *rest))

    return begin


def test_a_source_whose_inputs_are_named_otherwise_is_not_resolved_again(hashes_otherwise):
    """To resolve `revision: main` again would be another commit, another download, another server."""
    world = running()
    before, download = copy(world), world.download["status"]["resolvedRevision"]
    hashes_otherwise()
    world.resolved = world.download_resolved = None
    world.settle()
    assert not world.plan().ask
    assert not world.plan_download().ask
    assert undisturbed(world, before)
    assert (world.phase, world.download["status"]["phase"]) == ("Ready", "Ready")
    assert world.download["status"]["resolvedRevision"] == download


@pytest.mark.parametrize("how", ["refresh", "spec"])
def test_what_a_person_asks_of_a_source_is_still_asked(hashes_otherwise, how):
    world = running()
    hashes_otherwise()
    world.resolved = None
    if how == "refresh":
        world.annotate(names.REFRESH_AT, "2026-01-02T00:00:00Z")
    else:
        world.change(source={"huggingFace": {"repo": "org/other", "quantization": "Q4_K_M"}})
    world.settle()
    assert any(isinstance(ask, Resolve) for ask in world.plan().ask)
    assert world.condition("Accepted")[:2] == ("Unknown", "Progressing")
    assert any(isinstance(ask, Resolve) for ask in world.settle().plan().ask), "until there is an answer"


def test_a_change_that_nobody_has_seen_yet_is_no_upgrade(hashes_otherwise):
    """A person edited the source while the operator was being upgraded."""
    world = running()
    world.change(source={"huggingFace": {"repo": "org/other", "quantization": "Q4_K_M"}})
    hashes_otherwise()
    world.resolved = None
    world.settle()
    assert world.condition("Accepted")[:2] == ("Unknown", "Progressing")


def test_a_claim_whose_files_are_there_is_not_enlarged_by_another_rule(monkeypatch):
    world = running()
    claim = next(c for (kind, _), c in world.children.items() if kind == "PersistentVolumeClaim")
    claim.update(phase="Bound", capacity=claim["request"])
    world.storage_class = {
        "name": "x",
        "default": True,
        "provisioner": "p",
        "bindingMode": "Immediate",
        "expandable": True,
    }
    monkeypatch.setattr(download_job, "_ROOM_FACTOR", 3)
    before = claim["request"]
    world.settle()
    assert next(c for (kind, _), c in world.children.items() if kind == "PersistentVolumeClaim")["request"] == before
    assert world.download["status"]["phase"] == "Ready"


def test_a_move_that_waits_for_memory_tells_where_the_server_still_is():
    """vLLM's arguments hang on the size of its GPU, so a move to another size is a rollout."""
    world = running(gpu_node("old", 24_564), gpu_node("new", 40_960), facts=SAFETENSORS)
    before = world.model["status"]["placement"]
    world.defaults = replace(world.defaults, memory_wait_seconds=600)
    full = replace(gpu(used=40_000), total_mib=40_960, free_mib=500)
    world.reports = {"old": replace(report(gpu()), node="old"), "new": replace(report(full), node="new")}
    world.nodes[0] = {**world.nodes[0], "unschedulable": True}
    world.settle()
    placement = world.model["status"]["placement"]
    assert "waiting for GPU memory: new" in world.condition("UpToDate")[2]
    assert (placement["gpuClass"], placement["nodes"], placement["reason"]) == ("24Gi", ["old"], before["reason"])
    assert placement["next"]["gpuClass"] == "40Gi"
    world.nodes[0] = {**world.nodes[0], "unschedulable": False}
    assert "next" not in world.settle().model["status"]["placement"], "it stays after all"
    assert world.condition("UpToDate")[0] == "True"
    world.nodes[0] = {**world.nodes[0], "unschedulable": True}
    world.reports["new"] = replace(report(replace(gpu(), total_mib=40_960, free_mib=40_500)), node="new")
    placement = world.settle().model["status"]["placement"]
    assert (placement["gpuClass"], placement.get("next")) == ("40Gi", None)


@pytest.mark.parametrize("facts", [LLAMA, SAFETENSORS], ids=["llama.cpp", "vllm"])
def test_a_status_that_is_lost_costs_no_server(facts):
    """After a restore from a backup, which keeps specs: all is found again, and what runs fits it."""
    world = running(facts=facts)
    before = world.manifests[("Deployment", "tiny")]
    world.model["status"] = {}
    world.resolved = None
    world.answer_resolve(facts).token()
    assert world.manifests[("Deployment", "tiny")] == before
    assert world.phase == "Ready"


def test_files_in_a_volume_decide_about_the_first_server_already():
    """Their header is known only when they are read; the server that is made then keeps its place for good."""
    world = World(model(source={"persistentVolumeClaim": {"claimName": "files"}}, accelerator={"vendor": "Auto"}))
    world.nodes = [gpu_node("gpu-1", 8_188), gpu_node("gpu-2", 24_564)]
    world.children[("PersistentVolumeClaim", "files")] = claim("files")
    facts = {"format": "GGUF", "mainFile": "llama.gguf", "quantization": "Q4_K_M", "header": HEADER}
    told = {"reason": "Complete", "bytes": 5 << 30, "commit": "prefilled", "manifestDigest": "d1", "facts": facts}
    world.settle()
    assert world.model["status"]["placement"]["gpuClass"] == "8Gi", "nothing is known yet"
    world.job_ends(0, json.dumps(told), complete=True)
    assert world.model["status"]["placement"]["gpuClass"] == "24Gi"
    world.pod(ready=True, node="gpu-2", gpus=GPU).token()
    assert (world.phase, live(world)["generation"]) == ("Ready", 1), "made once"


# -- a new version that is still to come -------------------------------------------------------------------------------

OTHER = {"huggingFace": {"repo": "org/other", "quantization": "Q4_K_M"}}


def waits(world: World, kind: str) -> bool:
    """Whether UpToDate is not True, and its words are those of the condition that keeps the new version."""
    told = ("False", "Progressing", f"the new version waits: {world.condition(kind)[2]}")
    return world.condition("UpToDate") == told and world.condition("Serving")[0] == "True"


def test_a_new_version_without_a_place_is_not_what_runs():
    world = running(gpu_node("gpu-1", 24_564))
    world.change(contextLength=32_768, maxSequences=16).settle()
    assert waits(world, "Placed")
    world.model["spec"] = {k: v for k, v in world.model["spec"].items() if k not in ("contextLength", "maxSequences")}
    world.change().settle()
    assert world.condition("UpToDate")[:2] == ("True", "UpToDate"), "a person took it back"


def test_another_source_is_not_what_runs_while_it_is_resolved_and_downloaded():
    world = running(gpu_node("gpu-1", 24_564))
    world.change(source=OTHER)
    world.resolved, world.asked = None, []
    assert waits(world.settle(), "Accepted")
    ask = next(a for a in world.asked if isinstance(a, Resolve))
    world.resolved = Answer(ask.inputs, None, "HubUnreachable", "the hub does not answer", True)
    assert waits(world.settle(), "Accepted")
    world.resolved = Answer(ask.inputs, {**LLAMA, "commit": "e" * 40})
    world.download = None
    world._pass_model()
    assert waits(world, "Downloaded")


def test_a_request_to_resolve_again_is_awaited_too():
    world = running(gpu_node("gpu-1", 24_564)).annotate(names.REFRESH_AT, "2026-01-02T00:00:00Z")
    world.resolved, world.asked = None, []
    assert waits(world.settle(), "Accepted")
    ask = next(a for a in world.asked if isinstance(a, Resolve))
    world.resolved = Answer(ask.inputs, LLAMA)
    assert world.settle().condition("UpToDate")[:2] == ("True", "UpToDate"), "the same commit as before"


def test_a_node_that_went_makes_no_new_version():
    """What runs was made for this very spec; a lost server's place is another condition's to tell."""
    world = running(gpu_node("gpu-1", 24_564), gpu_node("gpu-2", 24_564), servers=2)
    world.nodes = world.nodes[:1]
    world.pods["p2"].update(node="", ready=False, gpus={}, unschedulable="0/1 nodes are available")
    live(world).update(ready=1)
    assert world.settle().condition("UpToDate")[:2] == ("True", "UpToDate")


# -- a spec that only another version understands ----------------------------------------------------------------------


def test_a_source_that_came_with_a_spec_nobody_understood_is_still_resolved(hashes_otherwise):
    world = running(gpu_node("gpu-1", 24_564))
    world.resolved, world.asked = None, []
    world.change(source=OTHER, engine="Future").settle()
    assert world.condition("Accepted")[:2] == ("False", "InvalidSpec")
    assert world.condition("Stalled")[:2] == ("True", "InvalidSpec")
    assert world.model["status"]["observedGeneration"] == world.model["metadata"]["generation"]
    world.model["spec"]["engine"] = "Auto"  # as the version that understands it reads the very same generation
    hashes_otherwise()
    assert world.settle().condition("Accepted")[:2] == ("Unknown", "Progressing")
    assert any(isinstance(ask, Resolve) for ask in world.plan().ask)


def test_a_spec_that_nobody_understood_and_a_person_took_back_costs_nothing():
    world = running(gpu_node("gpu-1", 24_564))
    before, said = copy(world), world.condition("Accepted")
    world.resolved = None
    world.change(engine="Future").settle()
    world.model["spec"] = {k: v for k, v in world.model["spec"].items() if k != "engine"}
    world.change().settle()
    assert undisturbed(world, before)
    assert (world.condition("Accepted"), world.phase, world.plan().ask) == (said, "Ready", ())
