"""docs/concepts/placement.md says what the code does: its arithmetic and its messages."""

import doctest
import re
from pathlib import Path

import pytest

from moorage.placement import affinity
from moorage.placement.decide import decide
from moorage.placement.inventory import NodePool
from moorage.placement.request import Candidate, Rejection, Request
from tests.unit.placement_clusters import cluster, node, pod

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "concepts" / "placement.md").read_text()
PLAIN = " ".join(PAGE.split())
MESSAGES = re.findall(r"^\| (\w+) \| `(.+)` \|$", PAGE, flags=re.MULTILINE)
X = pod("x-1", "gpu-1", labels={"moorage.dev/model": "x"})
BIG = NodePool("big", {"pool": "big"}, 81_559, 2, maximum=2)
SCENES = [
    (10_400, cluster(node("gpu-1"), node("gpu-3"))),
    (31_900, cluster(node("gpu-4", 24, 4))),
    (10_400, cluster(node("gpu-1", 12), node("gpu-2", 24, 2), pods=[X, pod("notebook", "gpu-2", 2, namespace="ml")])),
    (31_900, cluster(node("gpu-1"))),
    (31_900, cluster(node("gpu-1"), node("gpu-9", 80, unschedulable=True))),
    (10_000, cluster(node("gpu-1", labels={"nvidia.com/gpu.memory": "24564MiB"}))),
]


def test_the_arithmetic_is_right():
    (block,) = re.findall(r"^```python\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
    examples = doctest.DocTestParser().get_doctest(block, {}, "placement.md", "placement.md", 0)
    assert len(examples.examples) == 3
    assert doctest.DocTestRunner(verbose=False).run(examples).failed == 0


@pytest.mark.parametrize(("told", "scene"), list(zip(MESSAGES, SCENES, strict=True)))
def test_the_messages_are_those_of_the_code(told, scene):
    need, inventory = scene
    plans = (Candidate(1, need), Candidate(2, 16_500)) if "two" in told[1] else (Candidate(1, need),)
    decision = decide(Request("team-b/new", plans), inventory)
    assert (decision.reason.value, decision.message) == told


def test_the_message_of_a_node_pool():
    decision = decide(Request("team-b/new", (Candidate(1, 50_000),)), cluster(node("gpu-1"), node_pools=[BIG]))
    assert f"`{decision.message}`" in PLAIN


def test_the_numbers_and_names_are_those_of_the_code():
    weights = f"{affinity.CLASS_WEIGHTS[0]}, {affinity.CLASS_WEIGHTS[1]} and {affinity.CLASS_WEIGHTS[2]}"
    assert f"weight {affinity.PLANNED_NODE_WEIGHT}, then the three smallest classes with {weights}" in PLAIN
    assert ", ".join(Rejection) + "." in PLAIN
