"""What runs is kept, and what was asked for is not lost, where a pass sees less than it saw before.

A status that was lost or not written, files that are looked at again, a Deployment that its controller has not seen.
"""

import json
from typing import Any

import pytest

from moorage import names
from moorage.placement.inventory import NodePool
from moorage.planning.types import Answer, Resolve
from tests.support.world import GGUF, World, claim, gpu_node, model
from tests.unit.test_planning_upgrade import GPU, HEADER, estimates_grow, live, running

DEPLOYMENT = ("Deployment", "tiny")
TWO = {"nvidia.com/gpu": 2}
LARGE = {"contextLength": 32_768, "maxSequences": 8}
"""With this the model of `HEADER` needs two GPUs of 24 GiB."""


def container(world: World) -> dict[str, Any]:
    found: dict[str, Any] = world.manifests[DEPLOYMENT]["spec"]["template"]["spec"]["containers"][0]
    return found


def gpus_asked(world: World) -> Any:
    return container(world)["resources"]["limits"].get("nvidia.com/gpu")


def of_a_volume() -> World:
    """A Model of files in a volume that serves on two GPUs of one node."""
    source = {"persistentVolumeClaim": {"claimName": "weights"}}
    world = World(model(source=source, accelerator={"vendor": "Auto"}, **LARGE))
    world.nodes = [gpu_node("small", 24_564), gpu_node("two", 24_564, 2)]
    world.settle()
    world.children[("PersistentVolumeClaim", "weights")] = claim("weights")
    world.settle()
    facts = {**GGUF["facts"], "header": HEADER}
    told = {"reason": "Complete", "message": "done", "bytes": 30 * 2**30, "commit": "prefilled", "facts": facts}
    world.job_ends(0, json.dumps(told | {"manifestDigest": "d1"}), complete=True)
    world.pod_is("p1", ready=True, node="two", gpus=TWO)
    world.settle().token()
    assert (world.phase, gpus_asked(world)) == ("Ready", "2")
    return world


def refreshed(world: World) -> None:
    world.annotate(names.REFRESH_AT, "2026-01-02T00:00:00Z")


def named_by_its_download(world: World) -> None:
    assert world.download is not None
    world.change(source={"downloadRef": {"name": world.download["metadata"]["name"]}})


def forgotten(world: World) -> None:
    del world.model["status"]
    world.settle()


@pytest.mark.parametrize("happens", [refreshed, named_by_its_download, forgotten])
def test_files_of_a_volume_that_are_looked_at_again_move_no_server(happens):
    world = of_a_volume()
    before, planned = live(world)["inputsHash"], world.model["status"]["memory"]["perGpuMiB"]
    happens(world)
    world.settle()
    status = world.model["status"]
    assert (gpus_asked(world), status["placement"]["count"], status["memory"]["perGpuMiB"]) == ("2", 2, planned)
    assert happens is named_by_its_download or live(world)["inputsHash"] == before


def test_a_status_that_was_not_written_takes_no_gpu_back():
    world = running(gpu_node("gpu-1", 24_564), gpu_node("two", 24_564, 2), rollout={"strategy": "Surge"})
    world.change(**LARGE)
    world._carry_out(world.plan())  # the status meets a conflict, or the operator is killed
    assert gpus_asked(world) == "2"
    live(world).update(replicas=2, updated=1, ready=1, observedGeneration=live(world)["generation"])
    world.pods["p2"] = {**world.pods["p1"], "name": "p2", "uid": "p2", "node": "two", "ready": False, "gpus": TWO}
    world.settle()
    status = world.model["status"]
    assert (gpus_asked(world), status["placement"]["count"], len(status["memory"]["perGpuMiB"])) == ("2", 2, 2)
    assert world.condition("Placed")[0] == "True"


@pytest.mark.parametrize("junk", ["junk", "[]", "null", "5", '"x"', '{"spec.image": 5}'])
def test_a_note_that_nobody_wrote_is_no_note(junk):
    world = running()
    live(world)["inputs"] = junk
    world.change(args=["--no-mmap"]).settle()
    assert container(world)["args"][-1] == "--no-mmap"
    assert [r for _, r in world.events].count("RollingOut") == 1


@pytest.mark.parametrize("value", ["", "b"])
def test_an_empty_value_is_a_value(value):
    world = running()
    world.change(podMetadata={"labels": {"team": value}}).settle()
    template = world.manifests[DEPLOYMENT]["spec"]["template"]
    assert template["metadata"]["labels"]["team"] == value


def test_a_server_beside_one_that_runs_is_promised_what_that_one_has(monkeypatch):
    nodes = [gpu_node(name, 24_564) for name in ("gpu-1", "gpu-2", "gpu-4")]
    world = running(*nodes, servers=2)
    planned = world.model["status"]["memory"]["perGpuMiB"]
    estimates_grow(monkeypatch, 3.2)
    world.settle()
    world.nodes = [nodes[0], nodes[2]]
    world.pods["p2"].update(node="", ready=False, gpus={}, unschedulable="0/2 nodes are available")
    live(world).update(ready=1)
    world.settle()
    assert world.model["status"]["memory"]["perGpuMiB"] == planned
    assert world.condition("Placed")[:2] == ("True", "Placed")
    world.pods["p2"].update(node="gpu-4", ready=True, gpus=GPU, unschedulable="")
    live(world).update(ready=2)
    world.settle()
    assert "this version of Moorage would plan" in world.condition("UpToDate")[2]


def test_a_new_version_that_waits_for_a_node_is_not_placed_by_the_old_ones():
    world = running(gpu_node("gpu-1", 24_564), rollout={"strategy": "Surge"})
    world.node_pools = (NodePool("large", {"pool": "large"}, 81_559, 1, maximum=1),)
    world.change(**LARGE)
    world._pass_model()
    assert world.condition("Placed")[:2] == ("False", "WaitingForNode")
    live(world).update(replicas=2, updated=1, ready=1, observedGeneration=live(world)["generation"])
    waiting = {"node": "", "ready": False, "gpus": {}, "phase": "Pending", "containers": []}
    world.pods["p2"] = {**world.pods["p1"], "name": "p2", "uid": "p2", **waiting}
    world.settle()
    assert world.condition("Placed")[:2] == ("False", "WaitingForNode")
    assert [held.node for held in world.plan().reserve] == ["large/0"]


def test_a_download_that_is_pointed_at_other_files_rolls_who_serves_them():
    world = World(model(source={"downloadRef": {"name": "weights"}}))
    meta = {
        "name": "weights",
        "namespace": "ns",
        "uid": "u",
        "generation": 1,
        "resourceVersion": "1",
        "annotations": {},
    }
    quantized = {"source": {"huggingFace": {"repo": "org/tiny", "quantization": "Q4_K_M"}}}
    world.download = {"apiVersion": names.API_VERSION, "kind": "ModelDownload", "metadata": meta, "spec": quantized}
    world.settle()
    resolve_download(world, GGUF)
    world.pod_is("p1", ready=True)
    world.settle().token()
    meta["generation"] = 2
    world.download["spec"] = {"source": {"huggingFace": {"repo": "org/tiny", "quantization": "Q8_0"}}}
    world.asked = []
    world.settle()
    other = json.loads(json.dumps(GGUF).replace("Q4_K_M", "Q8_0"))
    resolve_download(world, other)
    assert world.model["status"]["source"]["mainFile"] == other["facts"]["mainFile"]
    assert container(world)["args"][1].endswith(other["facts"]["mainFile"])


def resolve_download(world: World, facts: dict[str, Any]) -> None:
    ask = next(a for a in world.asked if isinstance(a, Resolve))
    world.download_resolved = Answer(ask.inputs, facts)
    world.settle()
    world.pods.pop(next((key for key in world.pods if key.startswith("pod-")), ""), None)
    world.download_done().settle()
