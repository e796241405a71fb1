"""Nodes that are about to go: replacements start first where there is a place, and nobody moves twice or in vain."""

import pytest

from moorage.placement.inventory import NodePool
from moorage.planning.moving import CHEAPEST
from tests.support.world import GGUF, SAFETENSORS, World, gpu_node, model
from tests.unit.placement_clusters import device, slice_of

STRATEGY = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
GPU = {"nvidia.com/gpu": 1}
ANY_NODE = {"accessModes": ["ReadWriteMany"]}


def serving(*nodes: dict, servers: int = 1, **spec) -> World:
    """A Model that is Ready with a server on each of the first nodes."""
    spec.setdefault("accelerator", {"vendor": "Auto", "memoryPerGPUOverride": "10Gi"})
    spec.setdefault("storage", ANY_NODE)
    world = World(model(replicas=servers, **spec))
    world.nodes = list(nodes)
    world.answer_resolve(GGUF).download_done()
    gpus = {} if spec["accelerator"].get("vendor") == "None" else GPU
    for index in range(servers):
        world.pod_is(f"p{index + 1}", ready=True, node=nodes[index]["name"], gpus=gpus)
    return world.settle().token()


def cordon(world: World, index: int = 0, **how) -> World:
    world.nodes[index] = {**world.nodes[index], **(how or {"unschedulable": True})}
    return world.settle()


def replacement(world: World, uid: str, node: str, **state) -> World:
    """The pod that the ReplicaSet makes for one more replica."""
    gpus = GPU if node else {}
    return world.pod(uid, node=node, gpus=gpus, created=world.now.strftime("%Y-%m-%dT%H:%M:%SZ"), **state)


def dropped(world: World) -> str:
    """The ReplicaSet takes one pod away, as kube-controller-manager chooses it; its name."""
    order = sorted(world.pods.values(), key=lambda p: (bool(p["node"]), p["ready"], -bool(p.get("deletionCost"))))
    name = next(p["name"] for p in order if p["owner"] == "rs")
    del world.pods[name]
    ready = sum(p["ready"] for p in world.pods.values())
    live = world.children[("Deployment", "tiny")]
    live.update(ready=ready, replicas=live["wanted"], updated=live["wanted"])
    world.settle()
    return name


def deployment(world: World) -> dict:
    return world.manifests[("Deployment", "tiny")]["spec"]


def wanted(world: World) -> int:
    return world.children[("Deployment", "tiny")]["wanted"]


def patience(world: World) -> float:
    """Seconds for which a replacement is waited for."""
    return max(deployment(world)["progressDeadlineSeconds"], world.defaults.node_deadline_seconds)


def said(world: World) -> str:
    return world.condition("Serving")[2]


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
    before = deployment(world)
    cordon(world, **how)
    assert wanted(world) == 2
    assert world.pods["p1"]["deletionCost"] == CHEAPEST
    assert said(world) == "serving on 1 GPU; node old is about to go; 1 replacement on the way"
    assert world.events.count(("Normal", "Moving")) == 1
    assert [r.node for r in world.plan().reserve] == ["new"]
    replacement(world, "p2", "new")
    assert (world.phase, wanted(world)) == ("Ready", 2), "the old one serves until the new one does"
    replacement(world, "p2", "new", ready=True)
    assert wanted(world) == 1
    assert dropped(world) == "p1"
    assert (world.phase, world.model["status"]["placement"]["nodes"]) == ("Ready", ["new"])
    assert (wanted(world), said(world)) == (1, "serving on 1 GPU")
    assert deployment(world) == before, "nothing but a number was ever changed"


def test_of_several_only_those_on_that_node_are_replaced():
    world = serving(*(gpu_node(n, 24_564) for n in ("a", "b", "c", "d")), servers=3)
    cordon(world, 1)
    assert wanted(world) == 4
    assert [n for n, p in world.pods.items() if p.get("deletionCost")] == ["p2"]
    replacement(world, "p4", "d", ready=True)
    assert wanted(world) == 3
    assert dropped(world) == "p2"
    assert wanted(world) == 3
    assert sorted(world.pods) == sorted(["p1", "p3", "p4", *(n for n in world.pods if n.startswith("pod-"))])


def test_all_servers_of_a_node_move_at_once_and_each_replacement_lets_one_go():
    world = serving(gpu_node("old", 24_564, 2), gpu_node("x", 24_564), gpu_node("y", 24_564))
    world.change(replicas=2).settle()
    world.pod("p2", ready=True, node="old", gpus=GPU)
    cordon(world)
    assert wanted(world) == 4
    replacement(world, "p3", "x", ready=True)
    assert wanted(world) == 3
    dropped(world)
    assert wanted(world) == 3, "the other one still waits for its replacement"
    replacement(world, "p4", "y", ready=True)
    assert wanted(world) == 2
    dropped(world)
    assert world.model["status"]["placement"]["nodes"] == ["x", "y"]


def test_as_many_move_as_have_a_place():
    world = serving(gpu_node("old", 24_564, 2), gpu_node("x", 24_564))
    world.change(replicas=2).settle()
    world.pod("p2", ready=True, node="old", gpus=GPU)
    cordon(world)
    assert wanted(world) == 3
    replacement(world, "p3", "x", ready=True)
    assert (wanted(world), dropped(world) in ("p1", "p2")) == (2, True)
    assert (wanted(world), world.phase) == (2, "Ready")
    assert "there is no other place" in said(world)


def test_a_number_that_the_controller_has_not_seen_yet_stays():
    world = serving(gpu_node("old", 24_564), gpu_node("new", 24_564))
    cordon(world)
    world.children[("Deployment", "tiny")]["generation"] += 1
    assert [p for p in world.plan().patch if p.ref.kind == "Deployment"] == []


def test_no_server_goes_before_the_replica_set_can_know_which():
    world = serving(gpu_node("old", 24_564), gpu_node("new", 24_564))
    cordon(world)
    world.pods["p1"]["deletionCost"] = ""  # the mark was not seen yet
    world.pod_is("p2", node="new", gpus=GPU, ready=True)
    assert [p.ref.kind for p in world.plan().patch] == ["Pod"]
    world.settle()
    assert wanted(world) == 1


@pytest.mark.parametrize(("replicas", "then"), [(3, 4), (1, 1)])
def test_another_number_in_the_middle_counts_at_once(replicas, then):
    world = serving(*(gpu_node(n, 24_564) for n in ("a", "b", "c", "d")), servers=2)
    cordon(world)
    replacement(world, "p3", "c")
    assert wanted(world) == 3
    world.change(replicas=replicas).settle()
    assert wanted(world) == then
    if replicas == 1:
        assert dropped(world) == "p3", "not ready yet"
        assert dropped(world) == "p1", "of those that are ready the one whose node goes"


def test_a_node_that_comes_back_keeps_what_it_has():
    world = serving(gpu_node("old", 24_564), gpu_node("new", 24_564))
    cordon(world)
    replacement(world, "p2", "new")
    cordon(world, unschedulable=False)
    assert (wanted(world), world.pods["p1"]["deletionCost"]) == (1, "")
    assert dropped(world) == "p2"


def test_where_there_is_no_place_it_serves_on_and_says_so():
    world = serving(gpu_node("old", 24_564), gpu_node("small", 8188))
    cordon(world)
    assert wanted(world) == 1
    assert (world.phase, world.condition("Serving")[0]) == ("Ready", "True")
    assert said(world).startswith(
        "serving on 1 GPU; node old is about to go, and there is no other place: needs 10.0Gi"
    )
    assert world.plan().requeue_after <= 60, "room elsewhere wakes no Model that is Ready, so it looks again"
    world.nodes.append(gpu_node("new", 24_564))
    world.settle()
    assert wanted(world) == 2


def test_a_replacement_that_does_not_come_up_is_given_up_and_tried_again():
    world = serving(gpu_node("old", 24_564), gpu_node("new", 24_564))
    cordon(world)
    replacement(world, "p2", "new", waiting={"reason": "ErrImagePull", "message": "no such image"})
    assert (world.phase, wanted(world)) == ("Ready", 2), "not Degraded: all that are wanted serve"
    assert wanted(world.later(patience(world) - 5).settle()) == 2
    world.later(10).settle()
    assert wanted(world) == 1
    assert ("Warning", "MoveFailed") in world.events
    assert said(world).endswith("its replacement did not come up: no such image; tried again 10m after that")
    assert dropped(world) == "p2"
    assert 0 < world.plan().requeue_after <= 600
    assert wanted(world.later(599).settle()) == 1
    assert wanted(world.later(2).settle()) == 2
    cordon(world, unschedulable=False)
    assert "failedMove" not in world.model["status"]["placement"]


def test_a_replacement_that_a_quota_refuses_is_given_up_at_once():
    """There is no pod whose age could be looked at, and while one is wanted the drain waits."""
    world = serving(gpu_node("old", 24_564), gpu_node("new", 24_564))
    cordon(world)
    assert wanted(world) == 2
    live = world.children[("Deployment", "tiny")]
    words = 'pods "tiny-2" is forbidden: exceeded quota: team-gpus'
    live["conditions"] = {**live["conditions"], "ReplicaFailure": {"status": "True", "reason": "x", "message": words}}
    world.settle()
    assert wanted(world) == 1
    assert f"its replacement did not come up: {words}" in said(world)
    assert ("Warning", "MoveFailed") in world.events


def test_a_place_that_a_stranger_took_meanwhile_is_waited_for_no_longer():
    world = serving(gpu_node("old", 24_564), gpu_node("new", 24_564))
    cordon(world)
    replacement(world, "p2", "", phase="Pending", containers=[], unschedulable="0/2 nodes are available")
    assert wanted(world) == 2
    world.strangers = [{"namespace": "o", "name": "x", "node": "new", "phase": "Running", "gpus": GPU, "labels": {}}]
    world.settle()
    assert wanted(world) == 1
    assert "there is no other place" in said(world)


def test_a_node_pool_that_can_grow_is_a_place():
    world = World(model(accelerator={"vendor": "Auto", "memoryPerGPUOverride": "10Gi"}))
    world.nodes = [gpu_node("old", 24_564)]
    world.node_pools = (NodePool("middle", {"pool": "middle"}, 24_564, 1, maximum=2),)
    world.answer_resolve(GGUF).download_done().pod(ready=True, node="old", gpus=GPU).token()
    cordon(world)
    assert wanted(world) == 2, "the autoscaler looks for pods that wait"
    assert world.phase == "Ready"


def test_a_volume_of_that_very_node_keeps_it_there():
    world = serving(gpu_node("old", 24_564), gpu_node("new", 24_564))
    world.volume = {
        "claim": "files", "bound": True, "accessModes": ["ReadWriteOnce"], "nodes": ["old"], "pools": [],
        "mounted": {"old": ["p1"]},
    }  # fmt: skip
    cordon(world)
    assert wanted(world) == 1
    assert "there is no other place" in said(world)


def test_servers_without_gpus_move_where_any_node_takes_them():
    bare = [{**gpu_node(name, 0), "gpus": {}} for name in ("old", "new")]
    world = serving(*bare, accelerator={"vendor": "None"})
    cordon(world)
    assert wanted(world) == 2
    replacement(world, "p2", "", phase="Pending", containers=[], unschedulable="0/2 nodes: Insufficient memory")
    world.later(patience(world) + 5).settle()
    assert wanted(world) == 1
    assert "did not come up: no node takes the pod: 0/2 nodes: Insufficient memory" in said(world)
    alone = serving(bare[0], accelerator={"vendor": "None"})
    cordon(alone)
    assert wanted(alone) == 1
    assert "no other node may run it" in said(alone)


def test_a_model_that_does_not_serve_is_not_moved():
    world = World(model(accelerator={"vendor": "Auto", "memoryPerGPUOverride": "10Gi"}))
    world.nodes = [gpu_node("old", 24_564), gpu_node("new", 24_564)]
    world.answer_resolve(GGUF).download_done().pod(node="old", gpus=GPU)
    before = deployment(world)
    cordon(world)
    assert (wanted(world), deployment(world)) == (1, before)


def sized(*nodes: dict, servers: int = 1) -> World:
    """One whose arguments depend on the size of its GPU."""
    world = World(model(replicas=servers, contextLength=8192, accelerator={"vendor": "Auto"}, storage=ANY_NODE))
    world.nodes = list(nodes)
    world.answer_resolve(SAFETENSORS).download_done()
    for index in range(servers):
        world.pod_is(f"p{index + 1}", ready=True, node=nodes[index]["name"], gpus=GPU)
    return world.settle().token()


def test_a_single_one_that_needs_other_arguments_there_moves_by_a_rollout_that_starts_first():
    world = sized(gpu_node("old", 24_564), gpu_node("new", 81_559))
    before = deployment(world)["template"]
    cordon(world)
    assert deployment(world)["strategy"] == STRATEGY
    assert deployment(world)["template"] != before
    assert (world.phase, wanted(world)) == ("Ready", 1)
    assert [r.node for r in world.plan().reserve] == ["new"]
    del world.pods["p1"]
    moved = deployment(world)["template"]
    world.pod("p2", ready=True, node="new", gpus=GPU).token()
    assert (world.phase, world.model["status"]["placement"]["nodes"]) == ("Ready", ["new"])
    world.nodes[0] = gpu_node("old", 24_564)
    world.settle()
    assert deployment(world)["template"] == moved, "a node that comes back is no reason to move"


def test_several_that_need_other_arguments_there_stay_and_say_why():
    world = sized(*(gpu_node(n, m) for n, m in (("a", 24_564), ("b", 24_564), ("c", 81_559))), servers=2)
    before = deployment(world)
    cordon(world)
    assert (wanted(world), deployment(world)) == (2, before)
    assert "only with other settings" in said(world)
    world.nodes.append(gpu_node("d", 24_564))
    world.settle()
    assert (wanted(world), deployment(world)) == (3, before)


def test_a_node_that_the_template_does_not_admit_takes_a_single_one_by_a_rollout():
    unlabelled = gpu_node("new", 0)
    del unlabelled["labels"]["nvidia.com/gpu.memory"]
    unlabelled["annotations"] = {"moorage.dev/gpu-memory": "24Gi"}
    world = serving(gpu_node("old", 24_564), unlabelled)
    world.nodes = world.nodes[:1]
    world.change(contextLength=4096).settle()
    world.pod(ready=True, node="old", gpus=GPU).token()
    world.nodes.append(unlabelled)
    cordon(world)
    assert (wanted(world), deployment(world)["strategy"]) == (1, STRATEGY)


def test_a_larger_device_is_no_place_for_arguments_that_depend_on_the_size():
    bare = [{**gpu_node(name, 0), "gpus": {}, "labels": {"kubernetes.io/hostname": name}} for name in ("old", "new")]
    world = World(model(contextLength=8192, accelerator={"vendor": "Auto"}))
    world.nodes, world.slices = bare, [slice_of("old", [device("gpu-0", 24)])]
    world.answer_resolve(SAFETENSORS).download_done().pod(ready=True, node="old").token()
    world.slices.append(slice_of("new", [device("gpu-0", 80)]))
    cordon(world)
    assert (wanted(world), deployment(world)["strategy"]) == (1, STRATEGY)
