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


def several(ready: int, *others: dict) -> World:
    """A Model of which `ready` servers are ready and others are not, which lost those three minutes ago."""
    world = World(model(replicas=ready + len(others), storage={"accessModes": ["ReadWriteMany"]}))
    world.answer_resolve(GGUF).download_done()
    for index in range(ready + len(others)):
        world.pod_is(f"p{index}", ready=True, node=f"n{index}")
    world.settle().token().later(3600)
    for index, state in enumerate(others):
        lost = {"readyAt": None, "created": world.now.isoformat(), **state}
        world.pod_is(f"p{ready + index}", **lost)
    return world.later(180).settle()


def allowed(world: World) -> int:
    """How many servers that are ready the disruption controller lets go, as it counts."""
    wanted, budget = world.children[("Deployment", "tiny")]["wanted"], world.manifests[BUDGET]["spec"]
    healthy = sum(p["ready"] for p in world.pods.values() if p["owner"] == "rs")
    return max(healthy - (wanted - budget["maxUnavailable"]), 0)


UNPLACED = {"node": "", "phase": "Pending", "unschedulable": "0/3 nodes are available: 3 Insufficient nvidia.com/gpu"}


@pytest.mark.parametrize(
    "state", [UNPLACED, {"node": "n9", "restarts": 9}, {"node": "n9", "readyAt": "2026-01-01T01:00:06+00:00"}]
)
def test_a_server_that_may_still_come_keeps_the_others_and_one_that_does_not_come_does_not(state):
    world = several(2, state)
    assert allowed(world) == 0
    assert 0 < (world.plan().requeue_after or 0) <= 1200
    world.later(1200).settle()
    assert allowed(world) == 1
    world.pod_is("p2", ready=True, node="n9")
    world.settle()
    assert allowed(world) == 1, "of three that are ready one may go"


def test_the_successor_of_a_server_that_went_is_waited_for_although_another_never_came():
    world = several(2, UNPLACED).later(1200).settle()
    assert allowed(world) == 1
    world.pod_is("p1", **{**UNPLACED, "readyAt": None, "created": world.now.isoformat()})
    assert allowed(world.settle()) == 0


def test_a_server_that_no_quota_lets_in_is_not_waited_for_after_the_deadline():
    world = several(1, UNPLACED)
    del world.pods["p1"]
    assert allowed(world.later(1200).settle()) == 0, "there is no pod whose age could be looked at"
    live = world.children[("Deployment", "tiny")]
    failed = {"status": "False", "reason": "ProgressDeadlineExceeded", "message": "x"}
    live["conditions"] = {**live["conditions"], "Progressing": failed}
    assert allowed(world.settle()) == 1


def failing_rollout(servers: int) -> World:
    """All servers of the previous version are ready; the new one's first fails for longer than a start may take."""
    world = World(model(replicas=servers, storage={"accessModes": ["ReadWriteMany"]}))
    world.answer_resolve(GGUF).download_done()
    for index in range(servers):
        world.pod_is(f"p{index}", ready=True, node=f"n{index}")
    world.settle().token().later(3600)
    world.change(args=["--bad"]).settle()
    world.pod_is("new", node="n9", restarts=9, created=world.now.isoformat(), readyAt=None)
    live(world).update(replicas=servers + 1, updated=1)
    return world.later(4000).settle()


def live(world: World) -> dict:
    return world.children[("Deployment", "tiny")]


def too_slow(world: World) -> None:
    """The Deployment controller says that the rollout took too long."""
    failed = {"status": "False", "reason": "ProgressDeadlineExceeded", "message": "x"}
    live(world)["conditions"] = {**live(world)["conditions"], "Progressing": failed}


@pytest.mark.parametrize("servers", [2, 3])
@pytest.mark.parametrize("told", [False, True], ids=["before the deadline", "after the deadline"])
def test_a_new_version_that_fails_is_none_of_the_servers_that_are_wanted(servers, told):
    """It is one more than wanted; who took it for a wanted one that is lost would let two of the others go at once."""
    world = failing_rollout(servers)
    if told:
        too_slow(world)
    assert allowed(world.settle()) == 1
    del world.pods["p0"]
    live(world).update(ready=servers - 1, replicas=servers)
    assert allowed(world.settle()) == 0, "its successor is not there yet"
    world.pod_is("p9", node="n7", created=world.now.isoformat(), readyAt=None)
    live(world).update(replicas=servers + 1, updated=1)
    assert allowed(world.settle()) == 0, "its successor loads"
    assert 0 < (world.plan().requeue_after or 0) <= 1200
    world.later(1200)
    assert allowed(world.settle()) == 1, "its successor does not come either"


def test_a_successor_that_has_just_begun_is_waited_for_after_the_deadline_of_a_rollout():
    world = several(2, UNPLACED).later(1200)
    too_slow(world)
    assert allowed(world.settle()) == 1
    world.pod_is("p1", **{**UNPLACED, "readyAt": None, "created": world.now.isoformat()})
    assert allowed(world.settle()) == 0
    world.later(1200)
    assert allowed(world.settle()) == 1
