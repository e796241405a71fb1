"""The gate before a start: GPU memory that is promised must be free, as far as anybody can tell."""

from dataclasses import replace

import pytest

from moorage.placement.gpu_report import Gpu, GpuReport, Holder
from moorage.planning.types import FreeMemory
from tests.support.world import DEFAULTS, GGUF, World, gpu_node, model

LIMIT = 120
TOTAL = 24_564


def gpu(index: int = 0, used: int = 0, *, pods: tuple[Holder, ...] = (), **more: object) -> Gpu:
    return Gpu(index, f"GPU-{index}", index, "L4", TOTAL, 460, used, TOTAL - 460 - used, 0, pods=pods, **more)  # type: ignore[arg-type]


def report(*gpus: Gpu, age_ms: int = 500, **more: str) -> GpuReport:
    return GpuReport("only", age_ms, "580", gpus or (gpu(),), **more)


def placed(*gpus: Gpu, count: int = 1, age_ms: int = 500, **more: str) -> World:
    """A Model that needs 10Gi on each of `count` GPUs, all ready to start but for the gate."""
    accelerator = {"vendor": "Auto", "memoryPerGPUOverride": "10Gi", "count": count}
    world = World(model(accelerator=accelerator), replace(DEFAULTS, memory_wait_seconds=LIMIT))
    world.nodes = [gpu_node("only", TOTAL, 2)]
    world.reports = {"only": report(*gpus, age_ms=age_ms, **more)}
    return world.answer_resolve(GGUF).download_done()


def started(world: World) -> bool:
    return ("Deployment", "tiny") in world.children


def asks(world: World) -> bool:
    return any(isinstance(ask, FreeMemory) for ask in world.plan().ask)


def test_free_memory_lets_the_start_pass():
    assert started(placed(gpu()))


def test_memory_in_use_by_nobody_holds_the_start_with_the_numbers():
    world = placed(gpu(used=20_000), gpu(1, used=18_000))
    assert not started(world)
    status, reason, message = world.condition("Serving")
    assert (status, reason) == ("False", "WaitingForMemory")
    assert message.startswith(
        "waiting for GPU memory: only needs 10.0Gi free on 1 GPU that no pod holds; GPU 1 has 6.0Gi"
    )
    assert world.phase == "Loading"
    assert ("Normal", "WaitingForMemory") in world.events
    assert asks(world)
    assert 0 < (world.plan().requeue_after or 0) <= LIMIT
    assert world.plan().reserve, "nobody else gets the GPU meanwhile"


def test_the_start_goes_on_as_soon_as_the_memory_is_free():
    world = placed(gpu(used=20_000), gpu(1, used=20_000))
    world.waited, world.reports = 3.0, {"only": report(gpu(used=20_000), gpu(1, used=100))}
    world.settle()
    assert started(world)
    assert not asks(world)


def test_after_the_limit_it_starts_all_the_same_and_says_so():
    world = placed(gpu(used=20_000), gpu(1, used=20_000))
    world.waited = LIMIT + 0.5
    world.settle()
    assert started(world)
    assert ("Warning", "WaitingForMemory") in world.events
    assert not asks(world)


def test_gpus_that_pods_hold_do_not_count_as_free():
    theirs = (Holder("x", "stranger", "c"),)
    world = placed(gpu(pods=theirs), gpu(1, used=20_000))
    assert "GPU 1 has" in world.condition("Serving")[2]
    world.reports = {"only": report(gpu(pods=theirs), gpu(1, pods=theirs))}
    world.settle()
    assert "only has to free 1 GPU, which pods that end still hold" in world.condition("Serving")[2]


def test_every_gpu_of_a_replica_has_to_be_free():
    world = placed(gpu(), gpu(1, used=20_000), count=2)
    assert "needs 10.0Gi free on 2 GPUs" in world.condition("Serving")[2]


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


def test_without_a_limit_there_is_no_gate():
    world = World(model(accelerator={"vendor": "Auto", "memoryPerGPUOverride": "10Gi"}))
    world.nodes = [gpu_node("only", TOTAL)]
    world.reports = {"only": report(gpu(used=20_000))}
    world.answer_resolve(GGUF).download_done()
    assert started(world)
