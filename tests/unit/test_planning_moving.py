"""Nodes that are about to go: the replacement starts first where there is a place, and nobody moves twice."""

import pytest

from tests.support.world import GGUF, World, gpu_node, model

STRATEGY = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}


def serving(*nodes: dict, **spec) -> World:
    """A Model that is Ready on the first node."""
    spec.setdefault("accelerator", {"vendor": "Auto", "memoryPerGPUOverride": "10Gi"})
    world = World(model(**spec))
    world.nodes = list(nodes)
    world.answer_resolve(GGUF).download_done()
    gpus = {} if spec["accelerator"].get("vendor") == "None" else {"nvidia.com/gpu": 1}
    return world.pod(ready=True, node=nodes[0]["name"], namespace="ns", gpus=gpus).token()


def cordon(world: World, index: int = 0, **how) -> World:
    world.nodes[index] = {**world.nodes[index], **(how or {"unschedulable": True})}
    return world.settle()


def deployment(world: World) -> dict:
    return world.manifests[("Deployment", "tiny")]["spec"]


@pytest.mark.parametrize(
    "how",
    [
        {"unschedulable": True},
        {"taints": [{"key": "ToBeDeletedByClusterAutoscaler", "value": "1", "effect": "NoSchedule"}]},
        {"taints": [{"key": "karpenter.sh/disrupted", "value": "", "effect": "NoSchedule"}]},
    ],
)
def test_the_replacement_starts_first_where_one_fits(how):
    world = serving(gpu_node("old", 24_564), gpu_node("new", 24_564))
    before = deployment(world)["template"]
    assert deployment(world)["strategy"] == {"type": "Recreate"}
    cordon(world, **how)
    assert deployment(world)["strategy"] == STRATEGY
    assert deployment(world)["template"] != before
    assert world.phase == "Ready", "the old one serves meanwhile"
    assert [r.node for r in world.plan().reserve] == ["new"]
    world.pod("p2", node="new", namespace="ns", gpus={"nvidia.com/gpu": 1})
    assert world.phase == "Ready"
    del world.pods["p1"]
    moved = deployment(world)["template"]
    world.pod("p2", ready=True, node="new", namespace="ns", gpus={"nvidia.com/gpu": 1}).token()
    assert (world.phase, world.model["status"]["placement"]["nodes"]) == ("Ready", ["new"])
    assert deployment(world)["template"] == moved, "and it stays where it is"


def test_where_there_is_no_place_it_serves_on_and_says_so():
    world = serving(gpu_node("old", 24_564), gpu_node("small", 8188))
    before = deployment(world)
    cordon(world)
    assert deployment(world) == before
    assert (world.phase, world.condition("Serving")[0]) == ("Ready", "True")
    message = world.condition("Serving")[2]
    assert message.startswith("serving on 1 GPU; node old is about to go, and there is no other place: needs 10.0Gi")
    assert world.plan().requeue_after <= 60, "room elsewhere wakes no Model that is Ready, so it looks again"
    world.nodes.append(gpu_node("new", 24_564))
    world.settle()
    assert deployment(world)["strategy"] == STRATEGY


def test_it_does_not_move_back_and_forth_and_moves_again_when_asked_again():
    world = serving(gpu_node("a", 24_564), gpu_node("b", 24_564))
    cordon(world)
    del world.pods["p1"]
    world.pod("p2", ready=True, node="b", namespace="ns", gpus={"nvidia.com/gpu": 1}).token()
    moved = deployment(world)["template"]
    world.nodes[0] = gpu_node("a", 24_564)
    world.settle()
    assert deployment(world)["template"] == moved, "a node that comes back is no reason to move"
    cordon(world, 1)
    assert deployment(world)["template"] != moved


def test_a_volume_of_that_very_node_keeps_it_there():
    world = serving(gpu_node("old", 24_564), gpu_node("new", 24_564))
    world.volume = {
        "claim": "files", "bound": True, "accessModes": ["ReadWriteOnce"], "nodes": ["old"], "pools": [],
        "mounted": {"old": ["p1"]},
    }  # fmt: skip
    before = deployment(world)
    cordon(world)
    assert deployment(world) == before
    assert "there is no other place" in world.condition("Serving")[2]


def test_servers_without_gpus_move_where_any_node_takes_them():
    world = serving(
        {**gpu_node("old", 0), "gpus": {}}, {**gpu_node("new", 0), "gpus": {}}, accelerator={"vendor": "None"}
    )
    before = deployment(world)["template"]
    cordon(world)
    assert deployment(world)["template"] != before
    alone = serving({**gpu_node("old", 0), "gpus": {}}, accelerator={"vendor": "None"})
    before = deployment(alone)["template"]
    cordon(alone)
    assert deployment(alone)["template"] == before
    assert "no other node may run it" in alone.condition("Serving")[2]


def test_a_model_that_does_not_serve_is_not_moved():
    world = World(model(accelerator={"vendor": "Auto", "memoryPerGPUOverride": "10Gi"}))
    world.nodes = [gpu_node("old", 24_564), gpu_node("new", 24_564)]
    world.answer_resolve(GGUF).download_done().pod(node="old", namespace="ns", gpus={"nvidia.com/gpu": 1})
    before = deployment(world)
    cordon(world)
    assert deployment(world) == before
