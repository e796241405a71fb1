"""Which idle Models sleep so that another one has room."""

from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moorage.placement.decide import decide
from moorage.placement.inventory import Reservation
from moorage.placement.preempt import Preempted, Resident, preempt, smallest_sleep
from moorage.placement.request import Candidate, Request
from tests.unit.placement_clusters import GPU, cluster, node, pod

WANTED = Request("a/new", (Candidate(1, 10_000),))
PAIR = Request("a/new", (Candidate(2, 10_000),))


def held(model: str, on: str, gpus: int = 1):
    return pod(f"{model}-pod", on, gpus, namespace="a", labels={"moorage.dev/model": model})


def idle(name: str, seconds: int | None = 600, **more) -> Resident:
    return Resident(f"a/{name}", seconds, 3600, **more)


def test_the_least_recently_used_goes():
    nodes = cluster(node("g1"), node("g2"), pods=[held("x", "g1"), held("y", "g2")])
    found = preempt(WANTED, nodes, residents=[idle("x", 300), idle("y", 900)])
    assert found.victims == ("a/y",)
    assert found.message == "a/y goes to sleep to make room on g2"
    assert found.decision is not None
    assert found.decision.nodes == ("g2",)


def test_lower_priority_goes_before_longer_idle():
    nodes = cluster(node("g1"), node("g2"), pods=[held("x", "g1"), held("y", "g2")])
    found = preempt(WANTED, nodes, residents=[idle("x", 10, priority=-1), idle("y", 900)], priority=0)
    assert found.victims == ("a/x",)


def test_of_one_nodes_models_the_lowest_priority_goes_and_then_the_longest_idle():
    nodes = cluster(node("g1", 24, 3), pods=[held("x", "g1"), held("y", "g1"), held("z", "g1")])
    residents = [idle("x", 900, priority=1), idle("y", 10), idle("z", 20)]
    assert preempt(WANTED, nodes, residents=residents, priority=1).victims == ("a/z",)
    assert preempt(PAIR, nodes, residents=residents, priority=1).victims == ("a/z", "a/y")


@pytest.mark.parametrize(
    ("resident", "words"),
    [
        (idle("x", policy="Never"), "a/x has preemption.policy Never"),
        (idle("x", None), "a/x is busy"),
        (idle("x", priority=1), "a/x has preemption.priority 1"),
        (Resident("a/x", 100, 110, min_residency_seconds=120), "a/x stays for its preemption.minResidency of 120 s"),
    ],
)
def test_who_may_not_be_put_to_sleep(resident, words):
    nodes = cluster(node("g1"), pods=[held("x", "g1")])
    found = preempt(WANTED, nodes, residents=[resident])
    assert (found.victims, found.message) == ((), f"no idle Model can make room: {words}")


def test_equal_priority_may_and_a_stranger_never():
    nodes = cluster(node("g1"), pods=[held("x", "g1")])
    assert preempt(WANTED, nodes, residents=[idle("x", priority=5)], priority=5).victims == ("a/x",)
    stranger = cluster(node("g1"), pods=[pod("x", "g1", namespace="a")])
    found = preempt(WANTED, stranger, residents=[idle("x")])
    assert (found.victims, found.message) == ((), "no idle Model can make room")


def test_nobody_sleeps_where_there_is_room():
    nodes = cluster(node("g1"), node("g2"), pods=[held("x", "g1")])
    found = preempt(WANTED, nodes, residents=[idle("x")])
    assert (found.victims, found.message) == ((), "there is room without")


def test_never_a_set_that_does_not_help():
    small = cluster(node("g1", 8), pods=[held("x", "g1")])
    assert preempt(WANTED, small, residents=[idle("x")]).victims == ()
    apart = cluster(node("g1"), node("g2"), pods=[held("x", "g1"), held("y", "g2")])
    assert preempt(PAIR, apart, residents=[idle("x"), idle("y")]).victims == (), "two GPUs on two nodes are not a pair"
    half = cluster(node("g1", 24, 2), pods=[held("x", "g1"), held("busy", "g1")])
    assert preempt(PAIR, half, residents=[idle("x"), idle("busy", None)]).victims == ()
    promised = [Reservation("a/other", "g1", (GPU, 0), 1)]
    assert preempt(WANTED, apart, promised, residents=[idle("x")]).victims == ()


def test_the_fewest_go():
    pods = [held("x", "g1"), held("y", "g1"), held("both", "g2", 2)]
    nodes = cluster(node("g1", 24, 2), node("g2", 24, 2), pods=pods)
    residents = [idle("x", 5000), idle("y", 5000), idle("both", 10)]
    assert preempt(PAIR, nodes, residents=residents).victims == ("a/both",)
    assert preempt(PAIR, nodes, residents=residents[:2]).victims == ("a/x", "a/y")


def test_a_free_gpu_is_used_before_another_model_sleeps():
    pods = [held("x", "g1"), held("y", "g1"), held("z", "g2"), held("busy", "g2")]
    nodes = cluster(node("g1", 24, 2), node("g2", 24, 3), pods=pods)
    found = preempt(PAIR, nodes, residents=[idle("x", 900), idle("y", 900), idle("z", 5), idle("busy", None)])
    assert found.victims == ("a/z",)


def test_no_ping_pong():
    nodes = cluster(node("g1"), pods=[held("x", "g1")])
    before = [Preempted("a/new", "a/x", 300)]
    found = preempt(WANTED, nodes, residents=[idle("x")], history=before)
    assert found.message == "no idle Model can make room: a/x has just been given this Model's place"
    assert preempt(WANTED, nodes, residents=[idle("x")], history=before, cooldown_seconds=300).victims == ("a/x",)
    assert preempt(WANTED, nodes, residents=[idle("x")], history=[Preempted("a/x", "a/new", 3)]).victims == ("a/x",)


def test_no_ping_pong_by_way_of_a_third():
    nodes = cluster(node("g1"), pods=[held("x", "g1")])
    ring = [Preempted("a/new", "a/mid", 300), Preempted("a/mid", "a/x", 100), Preempted("a/x", "a/mid", 500)]
    assert preempt(WANTED, nodes, residents=[idle("x")], history=ring).victims == ()


def test_advice_for_a_person_ignores_who_is_busy():
    nodes = cluster(node("g1"), node("g2", 8), pods=[held("x", "g1"), held("y", "g2")])
    assert smallest_sleep(WANTED, nodes, [], ["a/x", "a/y", "a/new"]) == ("a/x",)
    assert smallest_sleep(Request("a/new", (Candidate(1, 90_000),)), nodes, [], ["a/x", "a/y"]) == ()


@st.composite
def loaded(draw: st.DrawFn):
    """A full small cluster and its Models, some of which may sleep."""
    nodes, pods, residents = [], [], []
    for n in range(draw(st.integers(1, 3))):
        gpus = draw(st.integers(1, 4))
        nodes.append(node(f"g{n}", draw(st.sampled_from([8, 24])), gpus))
        while gpus:
            size = draw(st.integers(1, gpus))
            name = f"m{len(residents)}"
            gpus -= size
            pods.append(held(name, f"g{n}", size))
            busy = draw(st.booleans())
            residents.append(idle(name, None if busy else draw(st.integers(0, 3)), priority=draw(st.integers(0, 2))))
    return cluster(*nodes, pods=pods), residents


@settings(max_examples=150)
@given(loaded(), st.integers(1, 4), st.integers(0, 2))
def test_victims_are_allowed_make_room_and_are_as_few_as_can_be(state, gpus, priority):
    inventory, residents = state
    request = Request("a/new", (Candidate(gpus, 5000),))
    found = preempt(request, inventory, residents=residents, priority=priority)
    able = [r.owner for r in residents if r.idle_seconds is not None and r.priority <= priority]
    helping = [
        set(chosen)
        for count in range(1, len(able) + 1)
        for chosen in combinations(able, count)
        if decide(request, inventory.without(chosen)).placed
    ]
    assert bool(found.victims) == bool(helping)
    if helping:
        assert set(found.victims) in helping
        assert len(found.victims) == min(map(len, helping))
        assert preempt(request, inventory, residents=residents[::-1], priority=priority) == found


def first_of_all(request, inventory, able):
    """Every set of Models of every node, compared by the rules one by one."""
    best = None
    for found in inventory.nodes:
        (pool,) = found.pools
        order = sorted(
            (able[h] for h in inventory.holders(pool) if h in able),
            key=lambda r: (r.priority, -r.idle_seconds, r.owner),
        )
        for candidate in request.plans:
            if pool.usable_mib < candidate.mib or pool.count < candidate.gpus:
                continue
            free = pool.count - inventory.used(pool)
            for count in range(1, len(order) + 1):
                sets = combinations(order, count)
                held = {r.owner: inventory.holders(pool)[r.owner] for r in order}
                enough = (s for s in sets if free + sum(held[r.owner] for r in s) >= candidate.gpus)
                if (victims := next(enough, None)) is not None:
                    idles = min(r.idle_seconds for r in victims)
                    gpus = sum(held[r.owner] for r in victims)
                    rank = (count, max(r.priority for r in victims), -idles, gpus, pool.size_class, pool.node)
                    best = min(best or (rank, victims), (rank, victims), key=lambda found: found[0])
                    break
    return tuple(r.owner for r in best[1]) if best else ()


@settings(max_examples=300)
@given(loaded(), st.lists(st.tuples(st.integers(1, 4), st.sampled_from([5000, 12_000])), min_size=1, max_size=3))
def test_the_short_way_finds_the_same_as_all_sets_compared(state, candidates):
    inventory, residents = state
    request = Request("a/new", tuple(Candidate(gpus, mib) for gpus, mib in candidates))
    able = {r.owner: r for r in residents if r.idle_seconds is not None}
    expected = first_of_all(request, inventory, able)
    assert preempt(request, inventory, residents=residents, priority=9).victims == expected
