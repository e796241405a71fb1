"""What holds for every cluster with devices of DRA and with node pools: no over-commitment, monotony, determinism."""

import random
import re
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from moorage.api.conditions import Reason
from moorage.placement.decide import decide
from moorage.placement.inventory import Inventory, NodePool, Reservation, build
from moorage.placement.memory import usable_mib
from moorage.placement.request import Candidate, Decision, Request
from tests.unit.placement_clusters import CLASSES, bare, device, node, pod, slice_of
from tests.unit.test_placement_properties import EXAMPLES

Parts = tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]
GIBS = sorted(CLASSES)


@st.composite
def clusters(draw: st.DrawFn) -> Parts:
    """Nodes by device plugin, by DRA (with one or two kinds of device) and by both; strangers' pods and claims."""
    nodes, pods, slices, claims = [], [], [], []
    for index in range(draw(st.integers(1, 6))):
        name, kind = f"n{index}", draw(st.sampled_from(["plugin", "dra", "dra", "both"]))
        count = draw(st.sampled_from([1, 2, 4]))
        plugged = node(name, draw(st.sampled_from(GIBS)), count)
        nodes.append(plugged if kind != "dra" else bare(name, unschedulable=False, taints=[]))
        nodes[-1]["unschedulable"] = draw(st.integers(0, 9)) == 0
        if kind == "plugin":
            pods += [pod(f"s{index}-{i}", name) for i in range(draw(st.integers(0, count)))]
            continue
        sizes = draw(st.lists(st.sampled_from(GIBS), min_size=1, max_size=2))
        devices = [device(f"gpu-{i}", sizes[i % len(sizes)]) for i in range(count)]
        slices.append(slice_of(name, devices))
        for taken in devices[: draw(st.integers(0, count))]:
            held = {"driver": "gpu.nvidia.com", "pool": name, "device": taken["name"]}
            claims.append({"namespace": "x", "name": f"c-{name}-{taken['name']}", "devices": [held]})
    return nodes, pods, slices, claims


@st.composite
def pools(draw: st.DrawFn) -> tuple[NodePool, ...]:
    found = []
    for index in range(draw(st.integers(0, 3))):
        size, gpus, most = CLASSES[draw(st.sampled_from(GIBS))], draw(st.integers(1, 4)), draw(st.integers(0, 2))
        found.append(NodePool(f"pool-{index}", {"pool": str(index)}, size, gpus, most))
    return tuple(found)


@st.composite
def requests(draw: st.DrawFn) -> Request:
    need = draw(st.integers(1, 90_000))
    counts = draw(st.sampled_from([(1,), (2,), (1, 2, 4)]))
    return Request(
        "team-a/model",
        tuple(Candidate(g, need // g + 200 * g) for g in counts),
        replicas=draw(st.integers(1, 3)),
        exact_class=draw(st.booleans()),
    )


def inventory(parts: Parts, shapes: tuple[NodePool, ...] = ()) -> Inventory:
    nodes, pods, slices, claims = parts
    return build(nodes, pods, slices, claims=claims, node_pools=shapes)


def windows(decision: Decision) -> list[tuple[int, int]]:
    """The sizes, in MiB, that the decision's claim template lets the allocator take."""
    found = re.findall(
        r"quantity\('(\d+)Mi'\)\) >= 0(?: && [^\"]*?quantity\('(\d+)Mi'\)\) <= 0)?", str(decision.claim_template)
    )
    return [(int(least), int(most) if most else 1 << 40) for least, most in found]


@settings(max_examples=EXAMPLES)
@given(clusters(), pools(), st.lists(requests(), min_size=1, max_size=8))
def test_what_is_promised_is_there_in_every_ledger(parts, shapes, asked):
    """Models decided one after the other, none bound yet: neither GPUs nor nodes to come are promised twice."""
    now = inventory(parts, shapes)
    promises: list[Reservation] = []
    for number, request in enumerate(asked):
        promises += decide(request, now, promises).reservations(f"team-a/m{number}")
    for state in now.nodes:
        for pool in state.pools:
            promised = sum(p.gpus for p in promises if (p.node, p.book) == (pool.node, pool.book))
            assert now.used(pool) + promised <= max(pool.count, now.used(pool))
    real = {state.name for state in now.nodes}
    for shape in shapes:
        coming = {p.node for p in promises if p.node not in real and p.node.startswith(f"{shape.name}/")}
        assert len(coming) <= now.room[shape.name]
        for name in coming:
            assert sum(p.gpus for p in promises if p.node == name) <= shape.gpus
    assert {p.node for p in promises if p.node not in real} == {
        p.node for p in promises if p.node.partition("/")[0] in {s.name for s in shapes}
    }


@settings(max_examples=EXAMPLES)
@given(clusters(), requests())
def test_a_claim_can_only_get_what_suffices_and_never_beside_a_plugin(parts, request):
    now = inventory(parts)
    decision = decide(request, now)
    if not decision.placed or not decision.dra:
        assert decision.claim_template is None
        return
    assert decision.candidate is not None
    for name in decision.nodes:
        assert not now.by_name[name].both_books
    allowed = windows(decision)
    assert allowed
    sizes = {mib for gib, mib in CLASSES.items()}
    taken = {mib for mib in sizes if any(least <= mib <= most for least, most in allowed)}
    assert all(usable_mib(mib) >= decision.candidate.mib for mib in taken)
    planned = {p.total_mib for n in decision.nodes for p in now.by_name[n].pools if p.book in decision.books}
    assert planned & taken, "what was planned can be had"


@settings(max_examples=EXAMPLES)
@given(clusters(), pools(), requests())
def test_new_nodes_are_waited_for_only_where_there_is_no_place(parts, shapes, request):
    without, decision = decide(request, inventory(parts)), decide(request, inventory(parts, shapes))
    if without.placed:
        assert (decision.reason, decision.nodes, decision.candidate) == (
            without.reason,
            without.nodes,
            without.candidate,
        )
    elif decision.candidate is not None:
        assert decision.reason is Reason.WAITING_FOR_NODE
        (awaited,) = [s for s in shapes if (s.name,) == decision.node_pools]
        assert usable_mib(awaited.gpu_memory_mib) >= decision.candidate.mib
        assert awaited.gpus >= decision.candidate.gpus
        able = [
            s
            for s in shapes
            if usable_mib(s.gpu_memory_mib) >= decision.candidate.mib and s.gpus >= decision.candidate.gpus
        ]
        room = inventory(parts, shapes).room
        if request.replicas == 1:
            assert awaited.gpu_memory_mib == min(s.gpu_memory_mib for s in able if room[s.name])


@settings(max_examples=EXAMPLES)
@given(clusters(), pools(), requests(), st.data())
def test_pools_that_brought_nothing_come_last(parts, shapes, request, data):
    names = [s.name for s in shapes]
    late = frozenset(data.draw(st.lists(st.sampled_from(names), unique=True)) if names else [])
    asked = Request(**{**vars(request), "late_pools": late})
    before, decision = decide(request, inventory(parts, shapes)), decide(asked, inventory(parts, shapes))
    assert (before.candidate is None) == (decision.candidate is None), "waiting in vain makes no place impossible"
    if decision.reason is Reason.WAITING_FOR_NODE:
        assert not set(decision.node_pools) & late
    if decision.reason is Reason.NO_NODE_CAME:
        assert before.reason is Reason.WAITING_FOR_NODE
        assert set(before.node_pools) <= late


@settings(max_examples=EXAMPLES)
@given(clusters(), pools(), requests(), st.randoms(use_true_random=False))
def test_order_does_not_matter_and_room_never_hurts(parts, shapes, request, chance: random.Random):
    first = decide(request, inventory(parts, shapes))
    shuffled = tuple(chance.sample(part, len(part)) for part in parts)
    assert decide(request, inventory(shuffled, tuple(chance.sample(shapes, len(shapes))))) == first
    nodes, pods, slices, claims = parts
    kept = [c for c in claims if chance.random() < 0.5]
    extra = slice_of("extra", [device("gpu-0", chance.choice(GIBS))])
    richer = ([*nodes, bare("extra", unschedulable=False, taints=[])], pods, [*slices, extra], kept)
    after = decide(request, inventory(richer, shapes))
    if first.placed:
        assert after.placed
        assert len(after.nodes) >= len(first.nodes)
