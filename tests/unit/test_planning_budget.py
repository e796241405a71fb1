"""The PodDisruptionBudget of a Model: made when it serves, for good, and never beside a person's own."""

import pytest

from moorage.placement.matching import labels_match
from tests.support.world import GGUF, World, model

BUDGET = ("PodDisruptionBudget", "tiny")


def of_a_person(**selector: object) -> dict:
    return {"stranger": True, "uid": "theirs", "selector": selector}


def test_one_server_may_go_at_a_time_and_those_that_are_not_ready_always():
    world = World(model()).ready()
    assert world.manifests[BUDGET]["spec"] == {
        "maxUnavailable": 1,
        "unhealthyPodEvictionPolicy": "AlwaysAllow",
        "selector": {"matchLabels": {"app.kubernetes.io/component": "server", "moorage.dev/model": "tiny"}},
    }
    assert world.manifests[BUDGET]["metadata"]["ownerReferences"][0]["kind"] == "Model"


def test_it_is_there_from_the_first_server_that_is_ready_and_stays():
    world = World(model()).answer_resolve(GGUF).download_done().pod()
    assert BUDGET not in world.children, "one request fewer on the way to the pod"
    world.pod(ready=True)
    before = world.children[BUDGET]
    world.pod(ready=False).change(replicas=0).settle().pods_go()
    assert world.children[BUDGET] == before


@pytest.mark.parametrize(
    "selector",
    [
        {"matchLabels": {"moorage.dev/model": "tiny"}},
        {"matchLabels": {"team": "a"}},
        {"matchExpressions": [{"key": "moorage.dev/model", "operator": "Exists"}]},
        {},
    ],
)
def test_a_person_s_own_takes_its_place(selector):
    """Beside a second one the Eviction API would refuse every eviction."""
    world = World(model(podMetadata={"labels": {"team": "a"}})).ready()
    world.budgets = (of_a_person(**selector),)
    assert BUDGET not in world.settle().children
    world.budgets = ()
    assert BUDGET in world.settle().children


def test_a_budget_for_others_is_none_of_its_business():
    world = World(model())
    world.budgets = (of_a_person(matchLabels={"moorage.dev/model": "another"}),)
    assert BUDGET in world.ready().children


def test_a_stranger_of_the_same_name_is_left_alone():
    world = World(model())
    stranger = of_a_person(matchLabels={"app": "x"})
    world.children[BUDGET] = stranger
    world.ready()
    assert world.children[BUDGET] == stranger
    assert world.phase == "Ready"


@pytest.mark.parametrize(
    ("selector", "matches"),
    [
        (None, False),
        ({}, True),
        ({"matchLabels": {"a": "1"}}, True),
        ({"matchLabels": {"a": "2"}}, False),
        ({"matchExpressions": [{"key": "a", "operator": "NotIn", "values": ["1"]}]}, False),
        ({"matchExpressions": [{"key": "b", "operator": "NotIn", "values": ["1"]}]}, True),
        ({"matchLabels": {"a": "1"}, "matchExpressions": [{"key": "b", "operator": "Exists"}]}, False),
    ],
)
def test_label_selectors_are_read_as_kubernetes_reads_them(selector, matches):
    assert labels_match(selector, {"a": "1"}) == matches
