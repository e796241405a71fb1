"""`moorage explain`: the operator's decision in more words, as data and as text."""

import re

import pytest

from moorage.explain.text import told
from moorage.placement.inventory import NodePool
from moorage.planning.explaining import explain, where_it_stands
from moorage.planning.neighbours import Around
from moorage.planning.types import Answer
from tests.support.world import GGUF, World, gpu_node, model
from tests.unit.placement_clusters import pod
from tests.unit.test_planning_place import big_header


def asked(**spec) -> World:
    """Llama 3.1 8B, looked at and not downloaded, among four nodes."""
    spec.setdefault("accelerator", {"vendor": "Nvidia"})
    world = World(model(contextLength=8192, **spec))
    world.nodes = [
        gpu_node("small", 8188),
        {**gpu_node("busy", 24_564), "annotations": {}},
        {**gpu_node("drained", 81_559), "unschedulable": True},
        {**gpu_node("plain", 0, 0), "labels": {"kubernetes.io/hostname": "plain"}, "gpus": {}},
    ]
    world.strangers = [{**pod("notebook", "busy", namespace="ml"), "labels": {}}]
    world.around = Around()
    world.settle()
    facts = {**GGUF["facts"], "header": big_header()}
    world.resolved = Answer(world.asked[0].inputs, {**GGUF, "facts": facts})
    return world.settle()


def test_it_is_the_operators_own_decision_with_every_node():
    world = asked()
    found = explain(world.observe())
    _, reason, message = world.condition("Placed")
    assert found["decision"]["reason"] == reason
    assert f"{found['decision']['message']}; no idle Model can make room" == message
    assert found["waitsFor"] == {"step": "Placed", "reason": reason, "message": message}
    verdicts = {n["node"]: (n["verdict"], n["why"]) for n in found["nodes"]}
    need = found["candidates"][0]["perGpuMiB"]
    assert verdicts["small"] == ("TooFewGPUs", "a server needs 2 GPUs of this size, it has 1")
    assert verdicts["busy"] == ("Taken", "held by pod ml/notebook")
    assert verdicts["drained"] == ("Cordoned", "it is cordoned")
    assert verdicts["plain"] == ("NoGPU", "it has no GPU")
    assert need == max(found["memory"]["perGpuMiB"])
    assert found["memory"]["estimatedMiB"] == sum(
        found["memory"][f"{part}MiB"] for part in ("weights", "kv", "compute", "overhead", "margin")
    )
    assert found["remedies"] == world.model["status"]["remedies"]


def test_the_text_names_what_a_person_asks_for():
    text = told(explain(asked().observe()))
    assert text.startswith("Model ns/tiny: Placing\n  waits at Placed (NoGPUFree): needs ")
    for part in ("weights", "KV cache", "total", "host memory", "1 GPU", "2 GPUs", "NODE", "Taken", "drained"):
        assert part in text
    assert re.search(r"^ +busy +1 x 24Gi Nvidia +0 +Taken +held by pod ml/notebook$", text, re.MULTILINE)


def test_what_it_can_do_is_told():
    world = asked(capabilities=["chat", "tools"])
    assert explain(world.observe())["capabilities"] == [
        {"name": name, "evidence": "Declared"} for name in ("chat", "tools")
    ]
    assert "\n  can chat, tools (Declared)\n" in told(explain(world.observe()))


def test_a_place_is_marked_and_what_it_holds_itself_counts_as_free():
    world = asked()
    world.strangers = []
    found = explain(world.settle().observe())
    assert [n["node"] for n in found["nodes"] if n["verdict"] == "Chosen"] == ["busy"]
    assert found["decision"]["nodes"] == ["busy"]
    assert "\n->  busy" in told(found)
    world.answer_resolve(GGUF).download_done().pod(
        ready=True, node="busy", namespace="ns", gpus={"nvidia.com/gpu": 1}
    ).token()
    found = explain(world.observe())
    assert (found["phase"], found["runsOn"]) == ("Ready", ["busy"])
    assert [n["node"] for n in found["nodes"] if n["verdict"] == "Chosen"] == ["busy"]


def test_quotas_and_node_pools_are_told_too():
    world = asked()
    world.node_pools = (NodePool("large", {"pool": "large"}, 81_559, 8, 2),)
    found = explain(world.observe())
    assert found["decision"]["reason"] == "WaitingForNode"
    assert found["decision"]["nodePools"] == ["large"]
    assert "large  8 x 80Gi  2 of 2 may still come" in told(found)
    world.strangers = []
    hard = {"requests.nvidia.com/gpu": "0"}
    world.quotas = ({"name": "none", "hard": hard, "used": {}, "selectors": []},)
    found = explain(world.observe())
    assert found["decision"] == {"reason": "QuotaExceeded", "message": "0 of 0 nvidia.com/gpu in use (quota none)"}


def test_a_model_on_the_cpu_needs_none_of_that():
    world = World(model()).answer_resolve(GGUF)
    found = explain(world.observe())
    assert found["decision"]["reason"] == "NoAcceleratorNeeded"
    assert "Nodes" not in told(found)


def test_a_model_whose_source_is_not_known_yet_says_so():
    world = World(model(accelerator={"vendor": "Auto"}))
    world.nodes = [gpu_node("small", 8188)]
    found = explain(world.observe())
    assert found["decision"]["reason"] == "NotAccepted"
    assert told(found).startswith("Model ns/tiny: New")


@pytest.mark.parametrize("count", [1, 100])
def test_long_lists_of_nodes_are_cut(count):
    world = asked()
    world.nodes = [gpu_node(f"n{i}", 8188) for i in range(count)]
    text = told(explain(world.settle().observe()))
    assert ("and 60 more nodes; -o json has all" in text) == (count == 100)


def test_without_a_view_of_nodes_the_operators_own_words_are_told():
    world = asked()
    found = {**where_it_stands(world.observe()), "unseen": ["nodes", "pods"]}
    text = told(found)
    assert "waits at Placed (NoGPUFree): needs " in text
    assert "Not seen, because you may not list it: nodes, pods" in text
