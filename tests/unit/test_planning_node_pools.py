"""Models that wait for a node of a pool at zero: the pod an autoscaler needs, the deadline, the next pool."""

import json

import pytest

from moorage.placement.inventory import NodePool, Taint
from moorage.placement.matching import REQUIRED, may_match
from moorage.planning.types import Answer, Server
from tests.support.world import GGUF, World, gpu_node, model

MIDDLE = NodePool("middle", {"pool": "middle"}, 24_564, 1, maximum=2)
LARGE = NodePool("large", {"pool": "large"}, 81_559, 8, maximum=1)
WORDS = "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector. no new claims to deallocate"


def waiting(need: str = "10Gi", pools: tuple[NodePool, ...] = (MIDDLE, LARGE), **spec) -> World:
    """A Model that fits on no node, downloaded, its pod refused by the scheduler."""
    world = World(model(accelerator={"vendor": "Auto", "memoryPerGPUOverride": need}, **spec))
    world.nodes, world.node_pools = [gpu_node("small", 8188)], pools
    world.answer_resolve(GGUF).download_done()
    return unscheduled(world)


def unscheduled(world: World) -> World:
    return world.pod(phase="Pending", node="", containers=[], unschedulable=WORDS)


def terms(world: World) -> list[dict]:
    spec = world.manifests[("Deployment", "tiny")]["spec"]["template"]["spec"]
    affinity = spec["affinity"]["nodeAffinity"]
    return affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]


def pools_named(world: World) -> str:
    return ",".join(sorted(p for p in ("middle", "large") if f'"{p}"' in json.dumps(terms(world))))


def joined(name: str, pool: NodePool, *, gpus: int | None = None) -> dict:
    """A node of a pool as it joins: the pool's labels, nothing that tells the size of its GPUs."""
    node = gpu_node(name, 0, pool.gpus if gpus is None else gpus)
    node["labels"] = {"kubernetes.io/hostname": name, **pool.labels}
    if gpus == 0:
        node["gpus"] = {}
    return node


def test_the_pod_an_autoscaler_needs_is_made_for_the_smallest_pool():
    world = waiting()
    status, reason, message = world.condition("Placed")
    assert (status, reason) == ("False", "WaitingForNode")
    assert "waiting for a node of pool middle with 1 24Gi GPU (2 of 2 nodes may still come)" in message
    assert pools_named(world) == "middle", "the other pool is not to grow for it"
    assert world.condition("Serving")[1:] == (
        "WaitingForNode",
        "waiting for the autoscaler to add a node of pool middle: no node takes the pod: 0/1 nodes are available: "
        "1 node(s) didn't match Pod's node affinity/selector",
    )
    assert (world.phase, world.condition("Stalled")[0], world.condition("Reconciling")[0]) == (
        "Placing",
        "False",
        "True",
    )
    assert world.model["status"]["placement"]["nodePool"] == "middle"


def test_files_are_fetched_meanwhile_and_the_phase_says_so():
    world = World(model(accelerator={"vendor": "Auto", "memoryPerGPUOverride": "10Gi"}))
    world.nodes, world.node_pools = [], (MIDDLE,)
    world.answer_resolve(GGUF)
    assert world.condition("Placed")[1] == "WaitingForNode"
    assert world.phase == "Downloading"


def test_nothing_is_touched_when_the_node_is_there_and_the_text_is_put_right():
    world = waiting()
    world.nodes += [joined("new-1", MIDDLE, gpus=0)]
    world.settle()
    assert world.condition("Placed")[1] == "WaitingForNode", "its device plugin has not started yet"
    world.nodes[-1] = joined("new-1", MIDDLE)
    before = json.dumps(world.manifests[("Deployment", "tiny")])
    world.settle()
    assert world.condition("Placed")[:2] == ("True", "Placed"), "the pool tells the size that no label tells"
    world.pod(node="new-1", ready=True, gpus={"nvidia.com/gpu": 1}).token()
    assert (world.condition("Ready")[0], world.phase) == ("True", "Ready")
    assert "fits on one 24Gi GPU (1 free on new-1)" in world.condition("Placed")[2]
    assert json.dumps(world.manifests[("Deployment", "tiny")]) == before
    placement = world.model["status"]["placement"]
    assert not {"nodePool", "waitingSince", "latePools"} & set(placement)


def test_while_the_node_gets_ready_no_other_pool_is_asked():
    world = waiting()
    world.nodes += [joined("new-1", MIDDLE) | {"ready": False}]
    world.node_pools = (NodePool("middle", {"pool": "middle"}, 24_564, 1, maximum=1), LARGE)
    world.settle()
    assert world.condition("Placed")[1] == "WaitingForNode"
    assert pools_named(world) == "middle", "an autoscaler would add a second, larger node for the same pod"
    world.later(901).settle()
    assert pools_named(world) == "large", "one that never gets ready is not waited for"


def test_the_next_pool_is_tried_after_the_deadline_and_then_a_person_is_told():
    world = waiting()
    assert 0 < world.plan().requeue_after <= 900
    world.later(899).settle()
    assert pools_named(world) == "middle"
    world.later(2).settle()
    assert "waiting for a node of pool large" in world.condition("Placed")[2]
    assert pools_named(world) == "large"
    assert world.model["status"]["placement"]["latePools"] == ["middle"]
    unscheduled(world.later(5)).later(890).settle()
    assert pools_named(world) == "large", "it has a time of its own"
    world.later(10).settle()
    status, reason, message = world.condition("Placed")
    assert (status, reason, world.phase) == ("False", "NoNodeCame", "Blocked")
    assert "no node of pool large or middle came within 15m" in message
    assert "see the events of pod p1" in message
    assert pools_named(world) == "large,middle", "any of them will do now"
    assert ("Warning", "NoNodeCame") in world.events


def test_a_node_that_comes_late_is_taken():
    world = waiting(pools=(MIDDLE,)).later(901).settle()
    assert world.condition("Placed")[1] == "NoNodeCame"
    world.nodes += [joined("new-1", MIDDLE)]
    world.settle().pod(node="new-1", ready=True, gpus={"nvidia.com/gpu": 1}).token()
    assert world.phase == "Ready"


def test_another_need_is_another_question():
    world = waiting().later(901).settle()
    assert world.model["status"]["placement"]["latePools"] == ["middle"]
    world.change(accelerator={"vendor": "Auto", "memoryPerGPUOverride": "11Gi"}).settle()
    assert world.model["status"]["placement"]["nodePool"] == "middle"
    assert "latePools" not in world.model["status"]["placement"]


def test_a_pool_whose_taint_is_not_tolerated_is_not_waited_for():
    tainted = NodePool("large", {"pool": "large"}, 81_559, 8, 1, taints=(Taint("team", "a", "NoSchedule"),))
    world = World(model(accelerator={"vendor": "Auto", "memoryPerGPUOverride": "40Gi"}))
    world.nodes, world.node_pools = [gpu_node("small", 8188)], (tainted,)
    world.settle()
    world.resolved = Answer(world.asked[0].inputs, GGUF)
    world.settle()
    assert world.condition("Placed")[1] == "NoGPUFits"
    world.change(tolerations=[{"key": "team", "operator": "Exists"}]).settle()
    assert world.condition("Placed")[1] == "WaitingForNode"


def test_asleep_is_asleep_whatever_it_would_wait_for():
    world = World(model(accelerator={"vendor": "Auto", "memoryPerGPUOverride": "10Gi"}, replicas=0))
    world.nodes, world.node_pools = [], (MIDDLE,)
    world.answer_resolve(GGUF).download_done()
    assert world.condition("Placed")[0] == "True"
    assert "asleep; loaded now it would have to wait" in world.condition("Placed")[2]
    assert world.phase == "ScaledToZero"


def test_two_models_wait_for_two_nodes_and_a_third_is_told_that_there_are_no_more():
    first = waiting(pools=(MIDDLE,))
    second = World(model("second", accelerator={"vendor": "Auto", "memoryPerGPUOverride": "10Gi"}))
    second.nodes, second.node_pools, second.reservations = [], (MIDDLE,), first.plan().reserve
    second.answer_resolve(GGUF)
    assert second.condition("Placed")[1] == "WaitingForNode"
    third = World(model("third", accelerator={"vendor": "Auto", "memoryPerGPUOverride": "10Gi"}))
    third.nodes, third.node_pools = [], (MIDDLE,)
    third.reservations = (*first.plan().reserve, *second.plan().reserve)
    third.settle()
    third.resolved = Answer(third.asked[0].inputs, GGUF)
    third.settle()
    assert third.condition("Placed")[:2] == ("False", "NoGPUFits")


# -- and the files ----------------------------------------------------------------------------------------------------


def zonal(*pools: str, mounted: dict | None = None, nodes: tuple[str, ...] = ()) -> dict:
    """The facts of a ReadWriteOnce volume that nodes of some pools could mount."""
    modes = {"accessModes": ["ReadWriteOnce"], "nodes": list(nodes), "pools": list(pools)}
    return {"claim": "files", "bound": True, "mounted": mounted or {}, **modes}


def test_a_volume_of_a_zone_is_waited_for_in_that_zone():
    world = waiting()
    world.volume = zonal("large")
    world.settle()
    assert world.model["status"]["placement"]["nodePool"] == "large"
    world.volume = zonal("middle", "large")
    world.settle()
    assert world.model["status"]["placement"]["nodePool"] == "middle"


def test_no_new_node_can_have_a_volume_that_lies_on_another():
    world = waiting()
    world.volume = zonal(nodes=("small",))
    world.settle()
    assert world.condition("Placed")[1] in ("NoGPUFits", "NoGPUFree")
    world.volume = zonal("middle", mounted={"small": ["someone"]})
    world.settle()
    assert world.condition("Placed")[1] != "WaitingForNode"


def test_a_volume_to_be_made_is_made_where_the_node_will_be_and_its_job_makes_the_autoscaler_act():
    world = World(model(accelerator={"vendor": "Auto", "memoryPerGPUOverride": "10Gi"}))
    world.node_pools = (MIDDLE, LARGE)
    world.server = Server(pools=(MIDDLE.labels,))
    world.answer_resolve(GGUF)
    job = world.manifests[("Job", world.job()["name"])]["spec"]["template"]["spec"]
    (term,) = job["affinity"]["nodeAffinity"][REQUIRED]["nodeSelectorTerms"]
    assert term == {"matchExpressions": [{"key": "pool", "operator": "In", "values": ["middle"]}]}
    assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in job["tolerations"]
    world.pods["d"] = {
        "name": "d", "uid": "d", "owner": world.job()["uid"], "labels": world.job()["labels"], "phase": "Pending",
        "node": "", "ip": "", "ready": False, "gpus": {}, "created": "2026-01-01T00:00:00Z", "unschedulable": WORDS,
        "deleting": False, "templateHash": "", "containers": [],
    }  # fmt: skip
    world.settle()
    assert world.model["status"]["placement"]["waitingSince"], "the time of the pool runs"
    world.later(901).settle()
    assert world.model["status"]["placement"]["nodePool"] == "large"
    world.server = Server(pools=(LARGE.labels,))
    world.settle()
    job = world.manifests[("Job", world.job()["name"])]["spec"]["template"]["spec"]
    assert "large" in json.dumps(job["affinity"]), "the Job follows"


@pytest.mark.parametrize(
    ("term", "labels", "may"),
    [
        ({"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a"]}]}, {"zone": "a"}, True),
        ({"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a"]}]}, {"zone": "b"}, False),
        ({"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a"]}]}, {}, True),
        ({"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": ["n"]}]}, {}, False),
        ({"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n"]}]}, {}, False),
    ],
)
def test_what_a_new_node_may_turn_out_to_be(term, labels, may):
    assert may_match(term, labels) == may
