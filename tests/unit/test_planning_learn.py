"""Learning: what a Model held, what was not enough, one further try with more room, and then rest."""

import json
from dataclasses import replace
from typing import Any

import pytest

from moorage import names
from moorage.placement.gpu_report import Gpu, GpuReport, Holder
from moorage.planning.types import Answer
from moorage.sizing.facts import header_facts
from moorage.sizing.gguf import read_gguf_header
from tests.support.world import DEFAULTS, GGUF, SAFETENSORS, World, gpu_node, model
from tests.unit.model_shapes import MODELS as SHAPES
from tests.unit.test_engine_failures import BLOCKS, BUSY, CPU, WEIGHTS

HEADER = str(header_facts(read_gguf_header(SHAPES["llama31-8b Q4_K_M"].header))["header"])
FACTS = {**GGUF, "facts": {**GGUF["facts"], "header": HEADER}}
FLEET = [gpu_node("small", 8188, 2), gpu_node("middle", 24_564, 2), gpu_node("large", 81_559, 2)]
NODE_OF = {"16Gi": "mid", "8Gi": "small", "24Gi": "middle", "80Gi": "large"}


def planned(**spec: Any) -> World:
    """Llama 3.1 8B as Q4_K_M on a GPU, its Deployment made."""
    spec.setdefault("accelerator", {"vendor": "Nvidia"})
    world = World(model(**spec))
    world.nodes = list(FLEET)
    world.settle()
    world.resolved = Answer(world.asked[0].inputs, FACTS)
    return world.settle().answer_resolve(FACTS).download_done()


def died(world: World, log: str, template: str = "t1", *, uid: str = "p1", restarts: int = 1, code: int = 1) -> World:
    """A pod of the present Deployment ends with `log`; the pods of earlier ones are gone by then."""
    world.pods = {k: p for k, p in world.pods.items() if p.get("templateHash") == template}
    ended = {"exitCode": code, "reason": "Error", "message": log}
    waiting = {"reason": "CrashLoopBackOff"}
    node = NODE_OF[placement(world).get("gpuClass", "24Gi")]
    return world.pod(
        uid, templateHash=template, node=node, waiting=waiting, last=ended, restarts=restarts,
        gpus={"nvidia.com/gpu": 1}, namespace="ns",
    )  # fmt: skip


def serves(world: World, used: int, *, node: str, uid: str = "p1") -> World:
    """A pod is ready, and the node's agent reports `used` MiB for it."""
    world.later(60)
    tell(world, used, node=node, uid=uid)
    return world.pod(uid, ready=True, node=node, gpus={"nvidia.com/gpu": 1}, namespace="ns").token()


def tell(world: World, used: int, *, node: str, uid: str = "p1", age_ms: int = 500) -> None:
    gpu = Gpu(0, "GPU-1", 0, "L4", 24_564, 460, used, 24_104 - used, 5, pods=(Holder("ns", uid, "engine"),))
    world.reports = {node: GpuReport(node, age_ms, "580", (gpu,))}


def placement(world: World) -> dict[str, Any]:
    return dict(world.model["status"]["placement"])


def memory(world: World) -> dict[str, Any]:
    return dict(world.model["status"]["memory"])


def deployment(world: World) -> dict[str, Any]:
    return world.children[("Deployment", "tiny")]


# -- observed ---------------------------------------------------------------------------------------------------------


def test_what_a_replica_held_stands_in_status_and_only_grows():
    world = planned()
    assert "observedMiB" not in memory(world)
    serves(world, 9000, node=NODE_OF[placement(world)["gpuClass"]])
    assert memory(world)["observedMiB"] == 9000
    writes = world.writes
    for used in (8800, 9010):
        tell(world, used, node=NODE_OF[placement(world)["gpuClass"]])
        world.settle()
    assert (memory(world)["observedMiB"], world.writes) == (9000, writes), "little news is no news"
    tell(world, 9100, node=NODE_OF[placement(world)["gpuClass"]])
    world.settle()
    assert memory(world)["observedMiB"] == 9100


def test_what_runs_is_not_planned_anew_when_it_held_more_than_planned():
    world = planned(contextLength=2048, maxSequences=1)
    assert placement(world)["gpuClass"] == "8Gi"
    before = deployment(world)["inputsHash"]
    serves(world, 7900, node="small")
    assert memory(world)["observedMiB"] == 7900
    assert deployment(world)["inputsHash"] == before
    assert world.phase == "Ready"


def test_the_next_start_is_planned_with_what_the_last_one_held():
    world = planned(contextLength=2048, maxSequences=1)
    estimate = memory(world)["plannedMiB"]
    serves(world, 7900, node="small")
    world.change(replicas=0).settle()
    world.pods.clear()
    deployment(world).update(ready=0, replicas=0)
    world.settle()
    assert memory(world)["estimatedMiB"] == estimate
    assert memory(world)["plannedMiB"] in range(7900, 8300)
    world.change(replicas=1).settle()
    assert placement(world)["gpuClass"] == "24Gi", "8Gi would not do again"
    assert world.condition("Placed")[0] == "True"


def test_an_engine_that_fills_its_gpu_does_not_need_what_it_held():
    """vLLM makes cache of all that is left; a next start planned with that would fit nowhere else any more."""
    world = World(model(accelerator={"vendor": "Nvidia"}, source={"huggingFace": {"repo": "org/qwen"}}))
    world.nodes = [gpu_node("large", 81_559)]
    world.answer_resolve(SAFETENSORS).download_done()
    planned_mib = memory(world)["plannedMiB"]
    serves(world, 73_000, node="large")
    assert memory(world)["observedMiB"] == 73_000
    world.change(replicas=0).settle()
    world.pods.clear()
    deployment(world).update(ready=0, replicas=0)
    world.nodes = list(FLEET)
    world.change(replicas=1).settle()
    assert memory(world)["plannedMiB"] == planned_mib
    assert placement(world)["gpuClass"] == "24Gi"


def test_other_settings_forget_what_was_learned():
    world = planned(contextLength=2048, maxSequences=1)
    serves(world, 7900, node="small")
    world.change(contextLength=4096).settle()
    assert "observedMiB" not in memory(world), "the old version still runs; it is not the new one that holds so much"
    assert "leastGpuMiB" not in memory(world)["learned"]


def test_weights_that_are_not_in_gpu_memory_are_named():
    world = planned()
    serves(world, 300, node=NODE_OF[placement(world)["gpuClass"]])
    status, reason, message = world.condition("Serving")
    assert (status, reason) == ("True", "PartiallyOffloaded")
    assert "only 300" in message
    assert "where 4.3Gi of weights and 4.0Gi of cache should be" in message
    assert world.condition("Ready")[0] == "True"


@pytest.mark.parametrize(
    ("percent", "reason"), [(55, "PartiallyOffloaded"), (85, "PartiallyOffloaded"), (97, "Serving")]
)
def test_a_few_layers_on_the_cpu_are_seen(percent: int, reason: str):
    """Weights and cache lie in GPU memory before the server is ready, and a CUDA context beside them."""
    world = planned()
    held = (memory(world)["weightsMiB"] + memory(world)["kvMiB"]) * percent // 100
    serves(world, held, node=NODE_OF[placement(world)["gpuClass"]])
    assert world.condition("Serving")[1] == reason


def test_layers_that_a_person_left_on_the_cpu_are_not_missed():
    world = planned(llamaCpp={"gpuLayers": 10})
    serves(world, memory(world)["weightsMiB"] + memory(world)["kvMiB"], node=NODE_OF[placement(world)["gpuClass"]])
    assert world.condition("Serving")[1] == "Serving"


def test_a_guess_at_the_cache_accuses_nobody():
    header = json.loads(HEADER)
    world = World(model(accelerator={"vendor": "Nvidia"}))
    world.nodes = list(FLEET)
    facts = {**FACTS, "facts": {**FACTS["facts"], "header": json.dumps({**header, "confidence": "Guess"})}}
    world.settle()
    world.resolved = Answer(world.asked[0].inputs, facts)
    world.settle().answer_resolve(facts).download_done()
    assert memory(world)["confidence"] == "Guess"
    serves(world, memory(world)["weightsMiB"] + 300, node=NODE_OF[placement(world)["gpuClass"]])
    assert world.condition("Serving")[1] == "Serving"


def test_what_an_agent_saw_before_the_server_was_ready_is_not_believed():
    world = planned()
    node = NODE_OF[placement(world)["gpuClass"]]
    world.later(60)
    tell(world, 300, node=node, age_ms=58_000)
    world.pod("p1", ready=True, node=node, gpus={"nvidia.com/gpu": 1}, namespace="ns").token()
    assert world.condition("Serving")[1] == "Serving", "it was still loading then"
    assert "observedMiB" not in memory(world)
    assert world.plan().requeue_after == 5
    tell(world, 7000, node=node)
    world.settle()
    assert memory(world)["observedMiB"] == 7000
    assert world.plan().requeue_after is None


def test_nobody_waits_for_ever_for_an_agent_that_does_not_know_the_pod():
    world = planned()
    node = NODE_OF[placement(world)["gpuClass"]]
    tell(world, 300, node=node, uid="another")
    world.later(60).pod("p1", ready=True, node=node, gpus={"nvidia.com/gpu": 1}, namespace="ns").token()
    assert world.plan().requeue_after == 5
    assert world.later(100).plan().requeue_after is None


# -- out of memory -----------------------------------------------------------------------------------------------------


def test_a_start_that_ran_out_is_planned_once_more_with_more_room():
    world = planned(contextLength=2048, maxSequences=1)
    first = deployment(world)["inputsHash"]
    died(world, WEIGHTS)
    assert placement(world)["gpuClass"] == "24Gi", "all of an 8Gi GPU was not enough"
    assert deployment(world)["inputsHash"] != first
    template = world.manifests[("Deployment", "tiny")]["spec"]["template"]
    least = int(template["metadata"]["annotations"][names.LEAST_GPU_MEMORY].removesuffix("Mi"))
    assert least > 8188 * 990 // 1000 - 512
    assert memory(world)["plannedMiB"] >= least > memory(world)["estimatedMiB"]
    assert memory(world)["learned"]["outOfMemory"] == 1
    assert world.condition("Placed")[0] == "True"


def test_the_same_pods_dying_again_and_others_beside_them_count_once():
    world = planned(contextLength=2048, maxSequences=1, replicas=2)
    died(world, WEIGHTS, restarts=1)
    died(world, WEIGHTS, restarts=7)
    died(world, WEIGHTS, uid="p2")
    assert memory(world)["learned"]["outOfMemory"] == 1
    assert deployment(world)["wanted"] == 2


def test_what_serves_is_not_moved_because_another_replica_ran_out():
    world = planned(contextLength=2048, maxSequences=1, replicas=2)
    serves(world, 6000, node="small")
    before = deployment(world)["inputsHash"]
    ended = {"exitCode": 1, "reason": "Error", "message": WEIGHTS}
    world.pod("p2", node="small", last=ended, restarts=5, gpus={"nvidia.com/gpu": 1}, namespace="ns")
    assert deployment(world)["inputsHash"] == before
    assert "outOfMemory" not in memory(world)["learned"]
    assert "1 of 2 servers are ready" in world.condition("Serving")[2]


def test_a_server_that_had_served_is_started_again_before_it_is_planned_anew():
    world = planned(contextLength=2048, maxSequences=1)
    serves(world, 6000, node="small")
    ended = {"exitCode": 1, "reason": "Error", "message": WEIGHTS}
    for restarts, counted in ((1, None), (2, None), (3, 1)):
        world.pod("p1", node="small", last=ended, restarts=restarts, gpus={"nvidia.com/gpu": 1}, namespace="ns")
        assert memory(world)["learned"].get("outOfMemory") == counted, restarts
    assert placement(world)["gpuClass"] == "24Gi"


def test_a_second_time_is_the_last_and_says_the_numbers():
    world = planned(contextLength=2048, maxSequences=1)
    died(world, WEIGHTS)
    died(world, WEIGHTS, "t2", uid="p2")
    status, reason, message = world.condition("Placed")
    assert (status, reason) == ("False", "InsufficientMemory")
    assert "ran out of GPU memory on a 24Gi GPU" in message
    assert "planned" in message
    assert "cudaMalloc failed: out of memory" in message
    assert world.phase == "Blocked"
    assert deployment(world)["wanted"] == 0, "no crash loop"
    assert world.condition("Serving")[1] == "InsufficientMemory"
    assert world.condition("Stalled")[0] == "True"


def test_it_stays_so_when_the_pods_are_gone_and_after_a_restart_of_the_operator():
    world = planned(contextLength=2048, maxSequences=1)
    died(died(world, WEIGHTS), WEIGHTS, "t2", uid="p2")
    world.pods.clear()
    deployment(world).update(ready=0, replicas=0)
    world.settle()
    assert world.phase == "Blocked"
    assert deployment(world)["wanted"] == 0
    writes = world.writes
    world.later(3600).settle()
    assert world.writes == writes


@pytest.mark.parametrize("change", ["spec", "restart"])
def test_a_person_has_it_tried_again(change: str):
    world = planned(contextLength=2048, maxSequences=1)
    died(died(world, WEIGHTS), WEIGHTS, "t2", uid="p2")
    world.pods.clear()
    deployment(world).update(ready=0, replicas=0)
    if change == "spec":
        world.change(contextLength=1024).settle()
        assert "outOfMemory" not in memory(world)["learned"]
        assert placement(world)["gpuClass"] == "8Gi"
    else:
        world.annotate(names.RESTART_AT, "2026-01-02T00:00:00Z").settle()
        assert placement(world)["gpuClass"] == "8Gi", "as it is: what was in the way may be gone"
        assert "outOfMemory" not in memory(world)["learned"]
    assert world.condition("Placed")[0] == "True"
    assert deployment(world)["wanted"] == 1


def test_where_no_gpu_is_larger_nothing_is_tried_again():
    world = planned(accelerator={"vendor": "Nvidia", "count": 1})
    world.nodes = [gpu_node("small", 8188), gpu_node("middle", 24_564)]
    world.settle()
    died(world, WEIGHTS, "t1")
    world.nodes = [gpu_node("small", 8188), gpu_node("middle", 24_564)]
    died(world, WEIGHTS, "t2", uid="p2") if placement(world).get("gpuClass") else world.settle()
    status, reason, message = world.condition("Placed")
    assert (status, reason) == ("False", "InsufficientMemory")
    assert "ran out of GPU memory" in message
    assert deployment(world)["wanted"] == 0
    assert world.phase == "Blocked"


def test_larger_gpus_that_are_taken_are_waited_for_without_a_crash_loop():
    world = planned(contextLength=2048, maxSequences=1)
    world.nodes = [gpu_node("small", 8188), gpu_node("middle", 24_564)]
    world.pods["s"] = {
        "name": "s", "namespace": "x", "uid": "s", "node": "middle", "phase": "Running",
        "gpus": {"nvidia.com/gpu": 2}, "labels": {}, "templateHash": "t1", "ready": False,
    }  # fmt: skip
    died(world, WEIGHTS)
    assert world.condition("Placed")[1] == "NoGPUFree"
    assert "ran out of GPU memory on a 8Gi GPU" in world.condition("Placed")[2]
    assert deployment(world)["wanted"] == 0
    world.pods = {}
    deployment(world).update(ready=0, replicas=0)
    world.settle()
    assert world.condition("Placed")[0] == "True"
    assert deployment(world)["wanted"] == 1


def test_more_gpus_get_more_room_in_proportion():
    world = planned(contextLength=2048, maxSequences=1)
    world.nodes = [gpu_node("small", 8188, 4)]
    died(world, WEIGHTS)
    assert placement(world)["count"] == 2
    assert all(mib > memory(world)["estimatedMiB"] // 2 for mib in memory(world)["perGpuMiB"])


def test_a_persons_own_number_is_not_outvoted():
    world = planned(accelerator={"vendor": "Nvidia", "memoryPerGPUOverride": "6Gi"})
    died(world, WEIGHTS)
    status, reason, message = world.condition("Placed")
    assert (status, reason) == ("False", "InsufficientMemory")
    assert "raise spec.accelerator.memoryPerGPUOverride (6Gi)" in message


def test_a_cache_without_room_counts_like_memory_that_ran_out():
    assert memory(died(planned(), BLOCKS))["learned"]["outOfMemory"] == 1


@pytest.mark.parametrize(
    ("log", "words"),
    [
        (CPU, "ran out of host memory (1 restart): ggml_backend"),
        (BUSY, "ran out of free GPU memory (1 restart)"),
        ("error: something else", "exited with code 1 (1 restart)"),
    ],
)
def test_other_ends_leave_the_plan_alone(log: str, words: str):
    world = planned()
    before = memory(world)["plannedMiB"]
    died(world, log)
    assert words.partition(": ")[0] in world.condition("Serving")[2]
    assert memory(world)["plannedMiB"] == before
    assert "outOfMemory" not in memory(world)["learned"]


def test_the_container_that_the_kernel_killed_is_host_memory():
    world = planned()
    world.pod("p1", last={"exitCode": 137, "reason": "OOMKilled", "message": WEIGHTS}, restarts=1)
    assert "killed for lack of host memory" in world.condition("Serving")[2]


@pytest.mark.parametrize(("policy", "forgets"), [("Rolling", True), ("OnDemand", False)])
def test_a_newer_image_forgets_what_was_learned_about_the_old_one_when_it_is_used(policy, forgets):
    world = planned(contextLength=2048, maxSequences=1, updatePolicy=policy)
    died(world, WEIGHTS)
    assert memory(world)["learned"]["outOfMemory"] == 1
    world.pods.clear()
    world.defaults = replace(DEFAULTS, llamacpp_nvidia_image="llamacpp-cuda:2")
    world.settle()
    assert ("outOfMemory" not in memory(world)["learned"]) == forgets
