"""The gate before a start: GPU memory that is promised must be free, as far as anybody can tell."""

from dataclasses import replace
from typing import Any

import pytest

from moorage import names
from moorage.placement.gpu_report import Gpu, GpuReport, Holder
from moorage.planning.types import FreeMemory
from tests.support.world import DEFAULTS, GGUF, SAFETENSORS, World, gpu_node, model

LIMIT = 120
TOTAL = 24_564


def gpu(index: int = 0, used: int = 0, *, pods: tuple[Holder, ...] = (), **more: object) -> Gpu:
    return Gpu(index, f"GPU-{index}", index, "L4", TOTAL, 460, used, TOTAL - 460 - used, 0, pods=pods, **more)  # type: ignore[arg-type]


def report(*gpus: Gpu, age_ms: int = 500, **more: str) -> GpuReport:
    return GpuReport("only", age_ms, "580", gpus or (gpu(),), **more)


OWN = (Holder("ns", "p1", "engine"),)
THEIRS = (Holder("x", "stranger", "c"),)


def stranger(**facts: Any) -> dict[str, Any]:
    """Somebody else's pod with one of the node's GPUs."""
    pod = {"namespace": "x", "name": "stranger", "node": "only", "phase": "Running", "labels": {}}
    return {**pod, "gpus": {"nvidia.com/gpu": 1}, **facts}


def placed(*gpus: Gpu, count: int = 1, age_ms: int = 500, strangers: int = 0, **more: str) -> World:
    """A Model that needs 10Gi on each of `count` GPUs, all ready to start but for the gate."""
    accelerator = {"vendor": "Auto", "memoryPerGPUOverride": "10Gi", "count": count}
    world = World(model(accelerator=accelerator), replace(DEFAULTS, memory_wait_seconds=LIMIT))
    world.nodes = [gpu_node("only", TOTAL, 2)]
    world.strangers = [stranger()] * strangers
    world.reports = {"only": report(*gpus, age_ms=age_ms, **more)}
    return world.answer_resolve(GGUF).download_done()


def started(world: World) -> bool:
    return ("Deployment", "tiny") in world.children


def asks(world: World) -> bool:
    return any(isinstance(ask, FreeMemory) for ask in world.plan().ask)


def test_a_replacement_for_a_server_whose_node_is_about_to_go_passes_it_too():
    world = placed(gpu(pods=OWN), gpu(1))
    world.pod(ready=True, node="only", gpus={"nvidia.com/gpu": 1}).token()
    world.nodes = [{**world.nodes[0], "unschedulable": True}, gpu_node("other", TOTAL)]
    world.reports["other"] = replace(report(gpu(used=20_000)), node="other")
    world.settle()
    live = world.children[("Deployment", "tiny")]
    assert live["wanted"] == 1
    message = world.condition("Serving")[2]
    assert "node only is about to go" in message
    assert "the new server waits: waiting for GPU memory: other needs 10.0Gi" in message
    world.reports["other"] = replace(report(gpu()), node="other")
    world.settle()
    assert live["wanted"] == 2


def test_free_memory_lets_the_start_pass():
    assert started(placed(gpu()))


def test_memory_in_use_by_nobody_holds_the_start_with_the_numbers():
    world = placed(gpu(used=20_000), gpu(1, used=18_000))
    assert not started(world)
    status, reason, message = world.condition("Serving")
    assert (status, reason) == ("False", "WaitingForMemory")
    assert message.startswith(
        "waiting for GPU memory: only needs 10.0Gi free on every GPU that no pod holds, because nobody chooses which"
    )
    assert world.phase == "Loading"
    assert ("Normal", "WaitingForMemory") in world.events
    assert asks(world)
    assert 0 < (world.plan().requeue_after or 0) <= LIMIT
    assert world.plan().reserve, "nobody else gets the GPU meanwhile"


def test_one_clean_gpu_is_not_enough_because_the_kubelet_chooses_which_one_a_pod_gets():
    world = placed(gpu(used=20_000), gpu(1))
    assert not started(world)
    message = world.condition("Serving")[2]
    assert "only needs 10.0Gi free on every GPU that no pod holds" in message
    assert "GPU 0 has 4.0Gi free of 24.0Gi" in message


def test_the_start_goes_on_as_soon_as_no_gpu_that_it_might_get_is_in_use():
    world = placed(gpu(used=20_000), gpu(1, used=20_000))
    for first, second, goes in ((20_000, 100, False), (100, 100, True)):
        world.waited, world.reports = 3.0, {"only": report(gpu(used=first), gpu(1, used=second))}
        world.settle()
        assert started(world) is goes
    assert not asks(world)


def test_gpus_that_cannot_be_given_out_are_passed_over():
    """Lost ones the device plugin withdraws; one that a pod holds is given to nobody else."""
    assert started(placed(gpu(used=20_000, problem="GPU is lost"), gpu(1)))
    assert started(placed(gpu(used=20_000, hidden=True), gpu(1)))
    assert started(placed(gpu(used=20_000, pods=THEIRS), gpu(1), strangers=1))


def test_after_the_limit_it_starts_all_the_same_and_says_so():
    world = placed(gpu(used=20_000), gpu(1, used=20_000))
    world.waited = LIMIT + 0.5
    world.settle()
    assert started(world)
    assert ("Warning", "WaitingForMemory") in world.events
    assert not asks(world)


def test_gpus_that_pods_hold_do_not_count_as_free():
    world = placed(gpu(pods=THEIRS), gpu(1, used=20_000), strangers=1)
    assert "GPU 1 has" in world.condition("Serving")[2]


def test_gpus_of_pods_that_are_gone_are_given_anew():
    """A report is seconds old, and some kubelets go on listing what has completed."""
    world = placed(gpu(used=20_000, pods=THEIRS), gpu(1))
    assert "GPU 0 has 4.0Gi free" in world.condition("Serving")[2]
    world.reports = {"only": report(gpu(pods=THEIRS), gpu(1))}
    world.settle()
    assert started(world)


def test_another_models_pods_are_known_by_its_name():
    world = placed(gpu())
    world.strangers = [stranger(labels={names.MODEL_LABEL: "big"}, name="big-7f9-x2")]
    holds = (Holder("x", "big-7f9-x2", "engine"),)
    world.reports = {"only": report(gpu(used=20_000, pods=holds), gpu(1, used=20_000))}
    world.children.clear()
    world.settle()
    assert "GPU 1 has 4.0Gi free" in world.condition("Serving")[2]


def test_own_pods_that_end_still_hold_their_gpus():
    """It woke while its old servers had not gone."""
    world = placed(gpu(), gpu(1)).pod(ready=True, node="only", gpus={"nvidia.com/gpu": 2}, namespace="ns").token()
    world.change(replicas=0).settle()
    world.pods["p1"]["deleting"] = True
    world.children[("Deployment", "tiny")].update(ready=0, replicas=0)
    world.reports = {"only": report(gpu(pods=OWN), gpu(1, pods=OWN))}
    world.change(replicas=1).settle()
    assert "only has to free 1 GPU, which pods that end still hold" in world.condition("Serving")[2]


def test_every_gpu_of_a_replica_has_to_be_free():
    world = placed(gpu(), gpu(1, used=20_000), count=2)
    assert "GPU 1 has 4.0Gi free" in world.condition("Serving")[2]


def test_an_old_report_is_asked_anew_and_waited_for_a_little():
    world = placed(gpu(used=20_000), gpu(1), age_ms=14_000)
    assert "asking the agent of only" in world.condition("Serving")[2]
    world.waited = 6.0
    world.settle()
    assert started(world), "an agent that does not answer holds nobody up"


@pytest.mark.parametrize(
    "found",
    [
        {},
        {"elsewhere": report(gpu(used=20_000))},
        {"only": report(gpu(used=20_000), gpu(1, used=20_000), age_ms=61_000)},
        {"only": report(gpu(used=20_000), gpu(1, used=20_000), problem="Driver Not Loaded")},
        {"only": report(gpu(used=20_000), gpu(1, used=20_000), pods_problem="no socket")},
        {"only": report(gpu(used=20_000, mig=True))},
    ],
    ids=["no agent", "another node", "silent", "driver lost", "owners unknown", "MIG"],
)
def test_where_nobody_can_tell_nothing_is_held_up(found: dict[str, GpuReport]):
    world = placed(gpu(used=20_000), gpu(1, used=20_000))
    world.reports = found
    world.settle()
    assert started(world)


def test_what_runs_is_never_held_up():
    world = placed(gpu()).pod(ready=True, node="only", gpus={"nvidia.com/gpu": 1}, namespace="ns").token()
    world.reports = {"only": report(gpu(used=20_000), gpu(1, used=20_000))}
    world.settle()
    assert world.phase == "Ready"
    assert not asks(world)


def test_waking_waits_like_a_first_start():
    world = placed(gpu()).pod(ready=True, node="only", gpus={"nvidia.com/gpu": 1}, namespace="ns").token()
    world.change(replicas=0).settle()
    world.pods.clear()
    world.children[("Deployment", "tiny")].update(ready=0, replicas=0)
    world.reports = {"only": report(gpu(used=20_000), gpu(1, used=20_000))}
    world.settle()
    world.change(replicas=1).settle()
    assert world.children[("Deployment", "tiny")]["wanted"] == 0
    assert world.condition("Serving")[1] == "WaitingForMemory"
    assert "waiting for GPU memory" in world.message
    world.reports = {"only": report(gpu(used=100), gpu(1))}
    world.settle()
    assert world.children[("Deployment", "tiny")]["wanted"] == 1


# -- engines that fill their GPU ---------------------------------------------------------------------------------------


def vllm(free: int, total: int = 81_559, **accelerator: str) -> World:
    """Qwen2.5 7B in vLLM, which needs 19,014 MiB of an 81,559 MiB GPU and is given 0.92 of it."""
    spec = {"accelerator": {"vendor": "Nvidia", **accelerator}, "source": {"huggingFace": {"repo": "org/qwen"}}}
    world = World(model(**spec), replace(DEFAULTS, memory_wait_seconds=LIMIT))
    world.nodes = [gpu_node("only", total)]
    world.reports = {"only": report(Gpu(0, "GPU-0", 0, "H100", total, 469, total - 469 - free, free, 0))}
    return world.answer_resolve(SAFETENSORS).download_done()


def test_vllm_waits_for_the_share_that_it_is_told_to_take_and_not_for_what_it_needs():
    """It looks whether `total x utilization` is free before anything else, and ends where it is not."""
    world = vllm(31_099)
    assert world.model["status"]["memory"]["perGpuMiB"][0] < 31_099
    assert not started(world)
    assert "GPU 0 has 30.4Gi free of 79.6Gi" in world.condition("Serving")[2]
    assert started(vllm(81_090))


@pytest.mark.parametrize("total", [16_380, 24_564, 49_140, 81_559, 143_771])
def test_vllm_starts_on_an_idle_gpu_whatever_its_size(total: int):
    """A driver keeps half a GiB of a GPU that nobody uses."""
    idle = total - 512 - total // 100
    assert started(vllm(idle, total, memoryPerGPUOverride="12Gi"))
    if total > 19_014:
        assert started(vllm(idle, total))


def test_vllm_that_a_person_limits_waits_for_no_more_than_that():
    assert started(vllm(31_099, memoryPerGPUOverride="24Gi"))
    assert not started(vllm(20_000, memoryPerGPUOverride="24Gi"))


# -- changes of what runs ----------------------------------------------------------------------------------------------


def serving(*gpus: Gpu, **spec: Any) -> World:
    """The same, Ready on GPU 0."""
    world = placed(*gpus)
    world.change(**spec).settle()
    world.pod(ready=True, node="only", gpus={"nvidia.com/gpu": 1}, namespace="ns").token()
    world.reports = {"only": report(gpu(used=20_000, pods=OWN), gpu(1))}
    return world.settle()


ANOTHER = {"contextLength": 4096}


def wanted(world: World) -> int:
    return int(world.children[("Deployment", "tiny")]["wanted"])


def args(world: World) -> list[str]:
    containers = world.manifests[("Deployment", "tiny")]["spec"]["template"]["spec"]["containers"]
    return list(containers[0]["args"])


def test_a_new_version_starts_when_the_memory_of_the_old_one_is_given_back():
    """Recreate makes the new pod the moment the old one is gone, which is before the driver has tidied up."""
    world = serving(gpu(), gpu(1))
    world.change(**ANOTHER).settle()
    assert wanted(world) == 0, "first the old one stops"
    assert not asks(world), "the limit does not run before it has"
    assert world.condition("Serving")[:2] == ("False", "Pending")
    assert "stops" in world.condition("Serving")[2]
    assert world.condition("UpToDate")[:2] == ("False", "Progressing")
    assert world.phase == "Degraded"

    world.pods_go()
    world.reports = {"only": report(gpu(used=20_000), gpu(1))}
    world.settle()
    assert wanted(world) == 0
    assert world.condition("Serving")[1] == "WaitingForMemory"
    assert "the new version waits" in world.condition("UpToDate")[2]
    assert world.plan().reserve, "nobody else gets the GPU meanwhile"

    world.reports = {"only": report(gpu(), gpu(1))}
    world.settle()
    assert wanted(world) == 1
    assert str(4096 * 4) in args(world)
    world.pod("p2", ready=True, node="only", gpus={"nvidia.com/gpu": 1}, namespace="ns").token()
    assert world.phase == "Ready"
    assert world.condition("UpToDate")[0] == "True"


def test_a_new_version_costs_one_request_more_than_without_an_agent():
    with_agent, without = serving(gpu(), gpu(1)), serving(gpu(), gpu(1))
    without.reports = {}
    counted = []
    for world in (with_agent, without):
        before = world.writes - world.status_writes
        world.change(**ANOTHER).settle()
        world.pods_go()
        if world.reports:
            world.reports = {"only": report(gpu(), gpu(1))}
        world.settle()
        assert wanted(world) == 1
        counted.append(world.writes - world.status_writes - before)
    assert counted == [2, 1]


def test_the_old_version_taken_back_before_the_new_one_started():
    world = serving(gpu(), gpu(1))
    world.change(**ANOTHER).settle()
    world.change(contextLength=None).settle()
    world.pods_go()
    world.reports = {"only": report(gpu(), gpu(1))}
    world.settle()
    assert wanted(world) == 1
    assert str(4096 * 4) not in args(world)


def test_where_no_agent_tells_a_new_version_is_rolled_out_at_once():
    world = serving(gpu(), gpu(1))
    world.reports = {}
    world.change(**ANOTHER).settle()
    assert wanted(world) == 1
    assert str(4096 * 4) in args(world)


def test_a_version_that_never_started_is_replaced_without_waiting_for_it():
    world = placed(gpu(), gpu(1)).pod(node="", phase="Pending", unschedulable="no node")
    world.change(**ANOTHER).settle()
    assert wanted(world) == 1
    assert str(4096 * 4) in args(world)


def test_a_surge_waits_while_the_old_version_serves():
    world = serving(gpu(), gpu(1), rollout={"strategy": "Surge"})
    world.reports = {"only": report(gpu(used=20_000, pods=OWN), gpu(1, used=20_000))}
    world.change(**ANOTHER).settle()
    assert wanted(world) == 1
    assert str(4096 * 4) not in args(world)
    assert world.phase == "Ready"
    assert world.condition("Serving")[0] == "True"
    assert "the new version waits" in world.condition("UpToDate")[2]
    assert "GPU 1 has 4.0Gi free" in world.condition("Ready")[2]
    assert asks(world)
    world.reports = {"only": report(gpu(used=20_000, pods=OWN), gpu(1))}
    world.settle()
    assert str(4096 * 4) in args(world)


def test_a_further_server_waits_while_the_first_one_serves():
    world = serving(gpu(), gpu(1))
    world.reports = {"only": report(gpu(used=20_000, pods=OWN), gpu(1, used=20_000))}
    world.change(replicas=2).settle()
    assert wanted(world) == 1
    assert world.phase == "Ready"
    assert "1 of 2 servers are ready: waiting for GPU memory: only needs 10.0Gi" in world.condition("Serving")[2]
    assert asks(world)
    world.reports = {"only": report(gpu(used=20_000, pods=OWN), gpu(1))}
    world.settle()
    assert wanted(world) == 2


def test_fewer_servers_wait_for_nobody():
    world = serving(gpu(), gpu(1), replicas=1)
    world.reports = {"only": report(gpu(used=20_000, pods=OWN), gpu(1, used=20_000))}
    world.change(replicas=0).settle()
    assert wanted(world) == 0
    assert not asks(world)


def test_without_a_limit_there_is_no_gate():
    world = World(model(accelerator={"vendor": "Auto", "memoryPerGPUOverride": "10Gi"}))
    world.nodes = [gpu_node("only", TOTAL)]
    world.reports = {"only": report(gpu(used=20_000))}
    world.answer_resolve(GGUF).download_done()
    assert started(world)
