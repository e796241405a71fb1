"""Who sleeps so that another one runs: the whole exchange between Models, with the operator's own books."""

import random
from datetime import datetime
from typing import Any

import pytest

from moorage import names
from moorage.planning.neighbours import Around, Neighbour, neighbour_of
from tests.support.town import Town
from tests.support.world import GGUF, World, gpu_node, model
from tests.unit.placement_clusters import pod

G1 = gpu_node("g1", 24564)
G2 = gpu_node("g2", 24564)


def full(*nodes: dict[str, Any], **kw: Any) -> Town:
    """A GPU for each of a, b, ...; all Ready and never used for ten minutes."""
    town = Town(*nodes, **kw)
    for name in "abcdefgh"[: len(nodes)]:
        town.add(name)
    town.run()
    assert set(town.phases().values()) == {"Ready"}
    return town.later(600)


def test_an_idle_model_makes_room_and_says_for_whom():
    town = full(G1)
    new = town.add("new")
    town.run()
    assert town.phases() == {"a": "Preempted", "new": "Ready"}
    old = town.worlds["a"]
    assert old.condition("Ready")[:2] == ("False", "Preempted")
    assert old.condition("Active")[:2] == ("False", "Preempted")
    assert old.message == "asleep to make room for ns/new; a request or free room wakes it"
    assert old.model["status"]["scaling"]["preemptedFor"] == "ns/new"
    assert ("Normal", "Preempted") in old.events
    assert ("Normal", "WaitingForRoom") in new.events
    assert "replicas" not in old.model["spec"]


def test_it_starts_only_when_the_pods_of_the_other_are_gone():
    town = full(G1)
    town.stopping.add("a")
    new = town.add("new")
    town.run()
    assert town.phases() == {"a": "Preempted", "new": "Placing"}
    assert new.condition("Placed")[:2] == ("False", "WaitingForRoom")
    assert new.message == "waits until there is room on g1: servers there are stopping"
    assert ("Deployment", "new") not in new.children
    town.stopping.clear()
    assert town.run().phases() == {"a": "Preempted", "new": "Ready"}


def test_a_request_for_the_one_that_ends_does_not_take_the_place_back():
    """It wakes and waits for a place of its own; the one that it makes room for keeps what it was promised."""
    town = full(G1)
    town.stopping.add("a")
    new = town.add("new")
    town.run()
    for server in town.worlds["a"].pods.values():
        server["deleting"] = True
    town.use("a", pending=1)
    town.run()
    assert town.worlds["a"].model["status"]["desiredReplicas"] == 1, "it is wanted"
    assert new.condition("Placed")[:2] == ("False", "WaitingForRoom")
    assert town.worlds["a"].condition("Placed")[:2] == ("False", "NoGPUFree")
    town.stopping.clear()
    town.worlds["a"].pods.clear()
    town.run()
    assert town.phases() == {"a": "Placing", "new": "Ready"}


def test_who_is_only_restarted_keeps_its_place():
    """Its old pod ends, and the new one is to have the GPU: nobody asked it to make room."""
    town = full(G1)
    town.worlds["a"].change(preemption={"policy": "Never"})
    town.run()
    new = town.add("new")
    town.run()
    for server in town.worlds["a"].pods.values():
        server["deleting"] = True
    town.run()
    assert new.condition("Placed")[:2] == ("False", "NoGPUFree")
    assert town.worlds["a"].condition("Placed")[0] == "True"


@pytest.mark.parametrize(
    ("use", "spec", "words"),
    [
        ({"in_flight": 1}, {}, "ns/a is busy"),
        ({"pending": 1}, {}, "ns/a is busy"),
        ({"last_used": 5}, {}, "ns/a is busy"),
        ({}, {"preemption": {"policy": "Never"}}, "ns/a has preemption.policy Never"),
        ({}, {"preemption": {"priority": 1}}, "ns/a has preemption.priority 1"),
        ({}, {"preemption": {"minResidency": "1h"}}, "ns/a stays for its preemption.minResidency of 3600 s"),
    ],
)
def test_who_does_not_sleep_is_named_with_the_reason(use: dict[str, int], spec: dict[str, Any], words: str):
    town = Town(G1)
    town.add("a", **spec)
    town.run().later(600).use("a", **use)
    new = town.add("new")
    town.run()
    assert town.phases() == {"a": "Ready", "new": "Placing"}
    status, reason, message = new.condition("Placed")
    assert (status, reason) == ("False", "NoGPUFree")
    assert words in message
    before = new.writes
    town.later(5).use("a", **use).run()
    assert new.writes == before, "waiting writes nothing"


def test_a_higher_priority_takes_the_place():
    town = Town(G1)
    town.add("a", preemption={"priority": 1})
    town.run().later(600)
    town.add("new", preemption={"priority": 2})
    assert town.run().phases() == {"a": "Preempted", "new": "Ready"}


def test_the_least_recently_used_sleeps():
    town = full(G1, G2)
    town.use("a", last_used=100).use("b", last_used=300)
    town.add("new")
    assert town.run().phases() == {"a": "Ready", "b": "Preempted", "new": "Ready"}


def test_without_any_gateway_the_time_since_ready_counts():
    town = full(G1, gateways=False)
    town.add("new")
    assert town.run().phases() == {"a": "Preempted", "new": "Ready"}


def test_two_that_come_at_once_take_two_places():
    town = full(G1, G2)
    town.add("x")
    town.add("y")
    assert town.run().phases() == {"a": "Preempted", "b": "Preempted", "x": "Ready", "y": "Ready"}
    whom = {town.worlds[n].model["status"]["scaling"]["preemptedFor"] for n in "ab"}
    assert whom == {"ns/x", "ns/y"}


def test_it_comes_back_when_there_is_room_and_not_before():
    town = full(G1)
    town.add("new")
    town.run().later(60).run()
    assert town.phases()["a"] == "Preempted"
    town.nodes.append(G2)
    assert town.run().phases() == {"a": "Ready", "new": "Ready"}
    assert ("Normal", "Woken") in town.worlds["a"].events


def test_it_comes_back_when_the_other_is_gone():
    town = full(G1)
    town.add("new")
    town.run()
    town.remove("new")
    assert town.run().phases() == {"a": "Ready"}


def test_it_does_not_take_back_the_room_while_the_other_starts():
    town = full(G1)
    town.starting.add("new")
    town.add("new")
    for _ in range(5):
        town.run().later(30)
        town.operator_restarts()
        assert town.phases()["a"] == "Preempted"
    town.starting.clear()
    town.worlds["new"].pods.clear()
    assert town.run().phases() == {"a": "Preempted", "new": "Ready"}


def test_a_request_brings_it_back_by_anothers_sleep_but_not_by_that_of_whom_it_made_room_for():
    town = full(G1)
    town.add("new")
    town.run().later(300).use("a", pending=1, wanted_at=0).run()
    old = town.worlds["a"]
    assert old.condition("Placed")[:2] == ("False", "NoGPUFree")
    assert "ns/new has just been given this Model's place" in old.condition("Placed")[2]
    town.later(301).run()
    assert town.phases() == {"a": "Ready", "new": "Preempted"}, "after the cooldown it may"


def test_an_annotation_brings_it_back_when_there_is_another_to_sleep():
    town = full(G1, G2)
    town.use("b", last_used=10)
    town.add("new")
    town.run()
    assert town.phases() == {"a": "Preempted", "b": "Ready", "new": "Ready"}
    town.worlds["a"].annotate(names.WAKE_AT, "2026-01-01T01:00:00Z")
    town.later(30).run()
    assert town.phases() == {"a": "Ready", "b": "Preempted", "new": "Ready"}


@pytest.mark.parametrize("restarts", range(1, 8))
def test_a_restart_of_the_operator_at_any_moment_changes_no_outcome(restarts: int):
    town = full(G1, G2)
    town.use("a", last_used=100).use("b", last_used=300)
    town.add("new")
    for passes in range(restarts):
        for name in list(town.worlds):
            town.look(name)
        if passes % 2:
            town._cluster_acts()
        town.operator_restarts()
    assert town.run().phases() == {"a": "Ready", "b": "Preempted", "new": "Ready"}


def test_nobody_sleeps_for_a_download():
    town = full(G1)
    new = town.add("new")
    assert new.download is not None
    new.download["status"] = {"phase": "Downloading", "conditions": []}
    town.run()
    assert town.phases()["a"] == "Ready"
    assert new.condition("Placed")[1] == "WaitingForRoom"
    town.add("new")  # the same with its files
    assert town.run().phases() == {"a": "Preempted", "new": "Ready"}


# -- a limit of loaded Models ------------------------------------------------------------------------------------------


def test_an_idle_one_gives_up_its_place_in_the_namespace():
    town = Town(G1, G2, limit=1)
    town.add("a")
    assert town.run().phases() == {"a": "Ready"}
    new = town.later(30).add("new")
    town.run()
    assert town.phases() == {"a": "Ready", "new": "Pending"}
    assert new.condition("Ready")[:2] == ("False", "LoadedModelsLimit")
    assert new.message.startswith(
        "1 of 1 places for loaded Models in namespace ns are taken (a); none of them can sleep now: ns/a stays"
    )
    assert new.condition("Reconciling")[0] == "True"
    assert not town.ledger.nodes(town._key("new")), "no GPU is kept from others meanwhile"
    town.later(91).run()
    assert town.phases() == {"a": "Preempted", "new": "Ready"}
    town.limit = 2
    assert town.run().phases() == {"a": "Ready", "new": "Ready"}


def test_nobody_takes_a_place_that_was_made_for_another():
    town = Town(limit=1)
    cpu = {"vendor": "None"}
    town.add("a", accelerator=cpu)
    town.run().later(300).add("b", accelerator=cpu)
    town.look("b")  # a is to sleep for it
    town.look("a")
    assert town.worlds["a"].phase == "Preempted"
    town.add("c", accelerator=cpu)
    for name in "caca":
        town.look(name)
    assert town.run().phases() == {"a": "Preempted", "b": "Ready", "c": "Pending"}


def test_to_be_next_is_not_to_be_loaded():
    town = Town(limit=1)
    cpu = {"vendor": "None"}
    town.add("a", accelerator=cpu)
    town.run().later(300).add("b", accelerator=cpu)
    for _ in range(3):  # a has not had its turn yet
        town.look("b")
        assert town.worlds["b"].phase == "Pending"
    assert town.run().phases() == {"a": "Preempted", "b": "Ready"}


def on_cpus(names_: str, limit: int, **spec: Any) -> Town:
    """Loaded Models without GPUs, never used for ten minutes; a has been idle for longest, then b."""
    town = Town(limit=limit)
    for name in names_:
        town.add(name, accelerator={"vendor": "None"}, **spec)
    town.run().later(600)
    for place, name in enumerate(names_):
        town.use(name, last_used=500 - 100 * place)
    return town


def test_the_limit_counts_models_on_the_cpu():
    town = on_cpus("abc", 2, preemption={"policy": "Never"})
    assert town.run().phases() == {"a": "Ready", "b": "Ready", "c": "Pending"}
    town.worlds["a"].change(replicas=0)
    assert town.run().phases() == {"a": "ScaledToZero", "b": "Ready", "c": "Ready"}


def test_a_limit_that_is_lowered_puts_the_least_recently_used_to_sleep():
    town = on_cpus("abcd", 4)
    town.limit = 2
    town.run()
    assert town.phases() == {"a": "Preempted", "b": "Preempted", "c": "Ready", "d": "Ready"}
    gone = town.worlds["a"]
    told = "asleep because its namespace had more loaded Models than it may; a request or a free place wakes it"
    assert gone.condition("Ready") == ("False", "Preempted", told)
    assert gone.model["status"]["scaling"]["cause"] == "LoadedModelsLimit"
    assert ("Normal", "Preempted") in gone.events
    assert gone.model["spec"].get("replicas") is None
    town.limit = 3
    town.operator_restarts().run()
    assert list(town.phases().values()).count("Ready") == 3, "a free place wakes one of them"


def test_who_may_not_sleep_stays_beyond_the_limit_and_says_so_until_it_may():
    town = on_cpus("ab", 2)
    town.use("a", in_flight=1).use("b", in_flight=1)
    town.limit = 1
    town.run()
    assert town.phases() == {"a": "Ready", "b": "Ready"}
    for world in town.worlds.values():
        status, reason, message = world.condition("Active")
        assert (status, reason) == ("True", "LoadedModelsLimit")
        assert message == "1 wanted; namespace ns has 2 loaded Models and may have 1: an idle one goes to sleep"
    town.later(60).use("b", last_used=30).run()
    assert town.phases() == {"a": "Ready", "b": "Preempted"}, "the one that is idle goes, not the longest loaded"
    assert town.worlds["a"].condition("Active")[1] == "Running"


@pytest.mark.parametrize(
    "spec", [{"preemption": {"policy": "Never"}}, {"preemption": {"minResidency": "2h"}}, {"benchmark": {}}]
)
def test_the_rules_of_preemption_hold_for_the_limit_too(spec: dict[str, Any]):
    town = on_cpus("ab", 2, **spec)
    if "benchmark" in spec:
        for world in town.worlds.values():
            assert world.condition("Benchmarked")[1] == "Running", "it is being measured"
    town.limit = 1
    assert set(town.run().phases().values()) == {"Ready"}


def test_a_request_wakes_one_that_went_for_the_limit_and_another_goes():
    town = on_cpus("ab", 2)
    town.limit = 1
    assert town.run().phases() == {"a": "Preempted", "b": "Ready"}
    town.later(300).use("a", pending=1, wanted_at=0).run()
    assert town.phases() == {"a": "Ready", "b": "Preempted"}


def test_a_loaded_model_whose_spec_no_longer_parses_keeps_its_place_in_the_limit():
    town = on_cpus("a", 1)
    town.worlds["a"].change(kvCacheType="of a later version")
    for operator_anew in (False, True):
        if operator_anew:
            town.operator_restarts()
        town.run()
        assert town.worlds["a"].condition("Stalled")[1] == "InvalidSpec"
        assert town.ledger.is_loaded(town._key("a"))
    new = town.add("new", accelerator={"vendor": "None"})
    town.run()
    assert new.condition("Ready")[:2] == ("False", "LoadedModelsLimit")
    assert "1 of 1 places for loaded Models in namespace ns are taken (a)" in new.message


# -- whatever happens ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(12))
def test_nobody_is_driven_out_in_turn_and_all_come_to_rest(seed: int):
    """Random demand on too few GPUs, with restarts: no GPU is given twice, and passes come to an end each time."""
    chance = random.Random(seed)
    town = Town(G1, gpu_node("g2", 24564, 2))
    for name in "abcde":
        town.add(name, scaling={"scaleToZeroAfter": "5m"} if chance.random() < 0.5 else {})
    for _ in range(40):
        name = chance.choice("abcde")
        town.use(name, **chance.choice([{"pending": 1, "wanted_at": 0}, {"in_flight": 1}, {"last_used": 0}, {}]))
        if chance.random() < 0.2:
            town.operator_restarts()
        town.later(chance.choice([1, 30, 200, 700])).run()
        ready = [n for n, phase in town.phases().items() if phase == "Ready"]
        assert len(ready) <= 3
        for victim, world in town.worlds.items():
            whom = (world.model["status"].get("scaling") or {}).get("preemptedFor", "/").split("/")[1]
            slept = (town.worlds[whom].model["status"].get("scaling") or {}) if whom else {}
            if slept.get("preemptedFor") == f"ns/{victim}":
                first, second = sorted([slept["preemptedAt"], world.model["status"]["scaling"]["preemptedAt"]])
                assert (_time(second) - _time(first)) >= 600, "driven out in turn within the cooldown"


def _time(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


# -- whom a person could put to sleep --------------------------------------------------------------------------------


def remedies_of(world: Any) -> list[dict[str, str]]:
    return list(world.model["status"].get("remedies", []))


@pytest.mark.parametrize(
    ("spec", "use", "offered"),
    [
        ({}, {"in_flight": 1}, True),
        ({"preemption": {"minResidency": "1h"}}, {}, True),
        ({"preemption": {"policy": "Never"}}, {}, False),
        ({"preemption": {"priority": 1}}, {}, False),
    ],
)
def test_a_models_sleep_is_offered_where_moorage_itself_might_ask_for_it(spec, use, offered):
    town = Town(G1)
    town.add("a", **spec)
    town.run().later(600).use("a", **use)
    new = town.add("new")
    town.run()
    assert new.condition("Placed")[:2] == ("False", "NoGPUFree")
    said = " (as spec.accelerator.memoryPerGPUOverride says)"
    wanted = [{"change": "replicas: 0 of ns/a", "effect": f"needs 10.0Gi{said}, fits on one 24Gi GPU (1 free on g1)"}]
    assert remedies_of(new) == (wanted if offered else [])
    if offered:
        town.worlds["a"].change(replicas=0)
        assert town.run().phases()["new"] == "Ready", "the remedy is proven"
        assert remedies_of(new) == []


def test_when_somebody_is_asked_no_sleep_is_offered_any_more():
    town = full(G1).use("a", in_flight=1)
    new = town.add("new")
    town.run()
    assert len(remedies_of(new)) == 1
    town.later(60).use("a", last_used=60)
    town.stopping.add("a")
    town.run()
    assert new.condition("Placed")[1] == "WaitingForRoom"
    assert remedies_of(new) == []


def test_a_models_name_is_told_and_not_its_label():
    obj = model("big.model-v1.5")
    known = neighbour_of(obj, f"ns/{names.dns_label('big.model-v1.5')}")
    assert known.owner != "ns/big.model-v1.5"
    assert known.title == "ns/big.model-v1.5"


def neighbour(owner: str, **more: Any) -> Neighbour:
    return Neighbour(owner, desired=1, serving_since=1, policy="WhenIdle", name=owner.partition("/")[2], **more)


def test_models_of_other_namespaces_are_offered_only_where_ones_own_do_not_help():
    world = World(model("new", accelerator={"vendor": "Nvidia", "memoryPerGPUOverride": "10Gi"}))
    world.nodes = [gpu_node("g1", 24564), gpu_node("g2", 24564), gpu_node("small", 8188)]
    held = {"g1": ("ns", "mine"), "g2": ("team", "theirs"), "small": ("ns", "little")}
    world.strangers = [
        pod(name, node, namespace=namespace, labels={names.MODEL_LABEL: name})
        for node, (namespace, name) in held.items()
    ]
    busy = {"ns/mine": (1, 0), "team/theirs": (1, 0), "ns/little": (1, 0)}
    everybody = tuple(neighbour(owner) for owner in busy)
    for around, change in [(everybody, "ns/mine"), (everybody[1:], "team/theirs"), (everybody[2:], None)]:
        world.around = Around(around, busy)
        world.answer_resolve(GGUF)
        assert [r["change"] for r in remedies_of(world)] == ([f"replicas: 0 of {change}"] if change else [])
