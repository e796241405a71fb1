"""What holds for every cluster: no over-commitment, monotony, determinism, and messages with the number that failed."""

import os
import random
import re
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from moorage.api.conditions import Reason
from moorage.placement.affinity import PLANNED_NODE_WEIGHT
from moorage.placement.decide import decide
from moorage.placement.inventory import Inventory, Reservation, build
from moorage.placement.request import Candidate, Decision, Request
from moorage.placement.survey import sufficient
from moorage.placement.text import gib
from tests.unit.placement_clusters import CLASSES, GPU, amd, bare, feasible, node, pod, score

EXAMPLES = int(os.environ.get("MOORAGE_EXAMPLES", "60"))
NONSENSE = ("24564MiB", "0x10", "", "-5", "99999999999999999999999", "9999999", "24564.5", "1", "١٢٣٤٥")
TAINTS = ({"key": GPU, "value": "", "effect": "NoSchedule"}, {"key": "team", "value": "a", "effect": "NoSchedule"})


@st.composite
def nodes(draw: st.DrawFn, odd: bool = True) -> list[dict[str, Any]]:
    """Up to eight nodes; with `odd` some have nonsense labels, annotations, sharing, no labels, or another vendor."""
    made = []
    for index in range(draw(st.integers(1, 8))):
        name, gpus = f"n{index}", draw(st.sampled_from([0, 1, 2, 4, 8]))
        new = node(name, draw(st.sampled_from(sorted(CLASSES))), gpus)
        new["labels"]["zone"] = draw(st.sampled_from("ab"))
        new["unschedulable"] = draw(st.integers(0, 9)) == 0
        new["ready"] = draw(st.integers(0, 9)) != 0
        new["taints"] = draw(st.lists(st.sampled_from(TAINTS), max_size=1))
        if odd:
            new = draw(oddities(new))
        made.append(new)
    return made


@st.composite
def oddities(draw: st.DrawFn, new: dict[str, Any]) -> dict[str, Any]:
    name, labels = new["name"], new["labels"]
    match draw(st.integers(0, 11)):
        case 0:
            labels["nvidia.com/gpu.memory"] = draw(st.sampled_from(NONSENSE))
        case 1:
            del labels["nvidia.com/gpu.memory"]
        case 2:
            new["annotations"] = {
                "moorage.dev/gpu-memory": draw(st.sampled_from(["10Gi", "100Gi", "nonsense", "24564"]))
            }
        case 3:
            labels |= {"nvidia.com/gpu.sharing-strategy": draw(st.sampled_from(["time-slicing", "mps"]))}
        case 4:
            labels |= {"nvidia.com/gpu.replicas": "4"}
        case 5:
            del labels["kubernetes.io/hostname"]
        case 6:
            return amd(name, draw(st.sampled_from(["16G", "64G", "191G", "64", "many"])), draw(st.integers(1, 8)))
        case 7:
            return bare(name)
        case 8:
            del labels["nvidia.com/gpu.memory"]
            labels["nvidia.com/gpu.product"] = draw(st.sampled_from(["L4", "H100", "unheard-of"]))
        case 9:
            labels |= {"nvidia.com/mig.strategy": "single", "nvidia.com/gpu.product": "A100-MIG-1g.10gb"}
    return new


PRODUCTS = {"L4": 23_034, "H100": "80Gi"}


@st.composite
def clusters(
    draw: st.DrawFn, odd: bool = True
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], dict[str, list[int]]]:
    """Nodes, strangers' pods that hold at most what the nodes have, and agents' reports."""
    found = draw(nodes(odd))
    pods = []
    for place in found:
        for resource, count in place["gpus"].items():
            for index in range(draw(st.integers(0, count))):
                pods.append(pod(f"{place['name']}-{index}", place["name"], resource=resource))
    reports = {
        place["name"]: [draw(st.sampled_from([11_000, 23_900, 70_000]))] * 2
        for place in found
        if odd and place["gpus"] and draw(st.integers(0, 9)) == 0
    }
    return found, pods, reports


NEEDS = st.one_of(st.integers(1, 90_000), st.sampled_from([7598, 7599, 23_806, 23_807, 80_231]))


@st.composite
def requests(draw: st.DrawFn, owner: str = "team-a/model") -> Request:
    """A Model with one to four candidates, each further one with more GPUs and less on each."""
    need = draw(NEEDS)
    counts = draw(st.sampled_from([(1,), (2,), (1, 2), (1, 2, 4, 8)]))
    return Request(
        owner,
        tuple(Candidate(g, need // g + 200 * g) for g in counts),
        vendor=draw(st.sampled_from(["Auto", "Nvidia", "AMD"])),
        node_selector=draw(st.sampled_from([{}, {}, {"zone": "a"}])),
        tolerations=draw(st.sampled_from([(), ({"key": "team", "operator": "Exists"},)])),
        replicas=draw(st.integers(1, 3)),
        exact_class=draw(st.booleans()),
        one_node=draw(st.integers(0, 5)) == 0,
        memory_override_mib=draw(st.sampled_from([None, None, None, 9000])),
    )


def inventory(parts: tuple[list[dict[str, Any]], list[dict[str, Any]], dict[str, list[int]]]) -> Inventory:
    found, pods, reports = parts
    return build(found, pods, products=PRODUCTS, reports=reports)


@settings(max_examples=EXAMPLES)
@given(clusters(), st.lists(requests(), min_size=1, max_size=8), st.randoms(use_true_random=False))
def test_bound_one_after_another_by_any_scheduler_nothing_is_over_committed(parts, asked, chance):
    """Each decision is bound at once, to any node that the scheduler's filters allow: one allows it, all suffice."""
    found, pods, reports = parts
    for number, request in enumerate(asked):
        now = build(found, pods, products=PRODUCTS, reports=reports)
        decision = decide(request, now)
        if not decision.placed:
            continue
        assert decision.candidate is not None
        allowed = feasible(decision, now, request)
        assert set(decision.nodes) <= {n.name for n in allowed}
        for state in allowed:
            pools = [p for p in state.pools if p.resource == decision.resource]
            assert all(sufficient(request, p, decision.candidate) for p in pools), state
        chosen = chance.choice(allowed)
        pods = [*pods, pod(f"m{number}", chosen.name, decision.candidate.gpus, resource=decision.resource)]
        after = build(found, pods, products=PRODUCTS, reports=reports)
        assert all(after.used(p) <= p.count for n in after.nodes for p in n.pools)


@settings(max_examples=EXAMPLES)
@given(clusters(), st.lists(requests(), min_size=1, max_size=8), st.randoms(use_true_random=False))
def test_decided_together_and_bound_in_any_order_every_replica_finds_its_place(parts, asked, chance):
    """With reservations many Models are decided before one is bound; a scheduler that follows the weights binds all."""
    found, pods, reports = parts
    now = inventory(parts)
    promises: list[Reservation] = []
    waiting: list[tuple[Request, Decision, Reservation]] = []
    for number, request in enumerate(asked):
        decision = decide(request, now, promises)
        made = decision.reservations(f"team-a/m{number}") if decision.placed else ()
        promises += made
        waiting += [(request, decision, promise) for promise in made]
    for state in now.nodes:
        for pool in state.pools:
            promised = sum(p.gpus for p in promises if (p.node, p.book) == (pool.node, pool.book))
            assert now.used(pool) + promised <= max(pool.count, now.used(pool))
    chance.shuffle(waiting)
    for index, (request, decision, promise) in enumerate(waiting):
        current = build(found, pods, products=PRODUCTS, reports=reports)
        allowed = {n.name: n for n in feasible(decision, current, request)}
        assert promise.node in allowed
        preferred = {n for n, state in allowed.items() if score(decision, state) >= PLANNED_NODE_WEIGHT}
        assert promise.node in preferred or set(allowed) == {promise.node}
        assert preferred <= set(decision.nodes)
        others = [score(decision, state) for n, state in allowed.items() if n not in preferred]
        assert max(others, default=0) * 4 <= PLANNED_NODE_WEIGHT
        pods = [*pods, pod(f"bound-{index}", promise.node, promise.gpus, resource=decision.resource)]


@settings(max_examples=EXAMPLES)
@given(clusters(), requests(), st.data())
def test_more_room_never_hurts(parts, request, data):
    found, pods, reports = parts
    before = decide(request, inventory(parts))
    kept = [p for p in pods if data.draw(st.booleans())]
    extra = node(
        "extra", data.draw(st.sampled_from(sorted(CLASSES))), data.draw(st.integers(1, 8)), labels={"zone": "a"}
    )
    better = [*found, extra] if data.draw(st.booleans()) else [n | {"unschedulable": False} for n in found]
    after = decide(request, inventory((better, kept, reports)))
    if before.placed:
        assert after.placed
        assert len(after.nodes) >= len(before.nodes)


@settings(max_examples=EXAMPLES)
@given(clusters(), requests(), st.integers(0, 90_000))
def test_a_smaller_need_never_fails_where_a_larger_fits(parts, request, less):
    smaller = Request(**{
        **vars(request), "candidates": tuple(Candidate(c.gpus, max(c.mib - less, 1)) for c in request.candidates),
    })  # fmt: skip
    if decide(request, inventory(parts)).placed:
        assert decide(smaller, inventory(parts)).placed


@settings(max_examples=EXAMPLES)
@given(clusters(), st.lists(requests(), min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_the_order_of_the_input_does_not_matter(parts, asked, chance: random.Random):
    found, pods, reports = parts
    promises: list[Reservation] = []
    for number, request in enumerate(asked):
        promises += decide(request, inventory(parts), promises).reservations(f"a/{number}")
    shuffled, others, reserved = list(found), list(pods), list(promises)
    for part in (shuffled, others, reserved):
        chance.shuffle(part)
    for request in asked:
        assert decide(request, inventory(parts), promises) == decide(
            request, inventory((shuffled, others, reports)), reserved
        )


@settings(max_examples=EXAMPLES)
@given(clusters(), requests())
def test_a_refusal_names_the_number_that_failed(parts, request):
    decision = decide(request, inventory(parts))
    assert len(decision.rejected) <= 16
    assert sum(r.nodes for r in decision.rejected) <= len(parts[0])
    assert any(gib(c.mib) in decision.message for c in request.plans)
    known = [
        p
        for n in inventory(parts).nodes
        for p in n.pools
        if not p.problem and request.vendor in ("Auto", p.vendor) and p.count
    ]
    largest = re.search(r"largest GPU is (\d+)Gi[^(]*\((\w+)\)", decision.message)
    if largest:
        named = [p for p in known if p.node == largest[2] and p.size_class == int(largest[1])]
        assert named
        assert max(p.usable_mib for p in named) < request.plans[0].mib
    if decision.reason is Reason.NO_GPU_FREE:
        assert "taken" in decision.message or " are free" in decision.message


@settings(max_examples=EXAMPLES)
@given(clusters(), requests())
def test_a_decision_is_bounded_and_whole(parts, request):
    decision = decide(request, inventory(parts))
    assert decision.reason in (Reason.PLACED, Reason.NO_GPU_FREE, Reason.NO_GPU_FITS, Reason.UNKNOWN_GPU_MEMORY)
    assert len(decision.nodes) + decision.missing == request.replicas
    assert (decision.candidate is None) == (not decision.placed)
    if decision.placed:
        assert decision.candidate in request.plans
        if request.one_node:
            assert len(set(decision.nodes)) == 1
