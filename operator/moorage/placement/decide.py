"""Which GPUs a Model gets, on which nodes, and why: pure, and the same for the same input in any order.

Candidates are tried as given. Of the GPUs that suffice the smallest class is taken first, then the node with the
fewest free GPUs that suffice (so that large nodes stay whole), then the smaller node, then the first by name.
"""

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from moorage.api.conditions import Reason
from moorage.placement import explain, memory, vendors
from moorage.placement.affinity import Target, node_affinity
from moorage.placement.claims import claim_template
from moorage.placement.inventory import Inventory, NodePool, Pool, Reservation
from moorage.placement.request import Candidate, Decision, Request
from moorage.placement.survey import Offer, Survey, grown, rejection, sufficient, survey, tolerations, virtual

Group = tuple[str, bool]
"""GPUs that one pod template can ask for: the resource or DRA driver, and whether it is DRA."""


@dataclass(frozen=True)
class _Choice:
    """One candidate on one group: the offer planned for each replica that fits."""

    candidate: Candidate
    group: Group
    offers: tuple[Offer, ...]

    def rank(self, request: Request) -> tuple[int, int, int, str]:
        """Most replicas, then the smallest class, then the vendors' order."""
        pool = self.offers[0].pool
        return -len(self.offers), _order(pool), vendors.ORDER.index(pool.vendor), pool.resource


def decide(request: Request, inventory: Inventory, reservations: Iterable[Reservation] = ()) -> Decision:
    """Place `request.replicas` replicas.

    Placed where at least one fits now; else WaitingForNode where a node pool can grow by one that would do (NoNodeCame
    where all such pools were waited for in vain); else NoGPUFree, UnknownGPUMemory or NoGPUFits. Reservations of the
    same owner are not counted: this decision replaces them.
    """
    promises = tuple(reservations)
    seen = survey(request, inventory, promises)
    choice = _best(request, seen.offers)
    if choice is not None:
        return _placed(request, inventory, seen, choice)
    waiting = _waiting(request, inventory, promises, seen)
    if waiting is not None:
        return waiting
    reason, message = explain.refusal(request, seen)
    return Decision(
        reason, message, missing=request.replicas, rejected=explain.rejected(request, seen, request.plans, ())
    )


# -- choosing ---------------------------------------------------------------------------------------------------------


def _waiting(
    request: Request, inventory: Inventory, promises: tuple[Reservation, ...], seen: Survey
) -> Decision | None:
    """The node pool to wait for: one that was not waited for in vain, else all of them."""
    coming = list(virtual(request, inventory, promises))
    fresh = _best(request, [offer for shape, offer in coming if shape.name not in request.late_pools])
    choice = fresh or _best(request, [offer for _, offer in coming])
    if choice is None:
        return None
    shape = next(s for s, offer in coming if offer == choice.offers[0])
    if fresh is None:
        late = [s for s in inventory.node_pools if s.name in request.late_pools]
        message = explain.late(choice.candidate, late)
        return _answer(request, inventory, seen, choice, Reason.NO_NODE_CAME, message, late)
    message = explain.waiting(choice.candidate, shape, inventory)
    return _answer(request, inventory, seen, choice, Reason.WAITING_FOR_NODE, message, [shape])


def _best(request: Request, offers: Sequence[Offer]) -> _Choice | None:
    """The first candidate that places all replicas, else the one that places most."""
    best: _Choice | None = None
    for candidate in request.plans:
        groups: dict[tuple[Group, int], list[Offer]] = {}
        for offer in offers:
            if rejection(request, offer, candidate) is None:
                pool = offer.pool
                alone = _order(pool) if request.exact_class else 0
                groups.setdefault(((pool.resource, pool.dra), alone), []).append(offer)
        choices = [_Choice(candidate, g, _assign(request, candidate, found)) for (g, _), found in groups.items()]
        if not choices:
            continue
        first = min(choices, key=lambda c: c.rank(request))
        if len(first.offers) == request.replicas:
            return first
        if best is None or len(first.offers) > len(best.offers):
            best = first
    return best


def _order(pool: Pool) -> int:
    """Size classes from small to large; a GPU of unknown size, taken on a person's word, comes last."""
    return pool.size_class if pool.usable_mib else 1 << 30


def _assign(request: Request, candidate: Candidate, offers: Sequence[Offer]) -> tuple[Offer, ...]:
    """An offer for each replica, best first; fewer than asked for where no more fit."""
    if request.one_node:
        return _on_one_node(request, candidate, offers)
    here: dict[str, int] = {}
    for node in request.placed:
        here[node] = here.get(node, 0) + 1
    heap = [(_rank(request, o, o.free, here.get(o.pool.node, 0)), i, o.free) for i, o in enumerate(offers)]
    heapq.heapify(heap)
    chosen: list[Offer] = []
    while heap and len(chosen) < request.replicas:
        rank, index, free = heapq.heappop(heap)
        offer = offers[index]
        node = offer.pool.node
        now = _rank(request, offer, free, here.get(node, 0))
        if now != rank:  # another kind of GPU of the same node got a replica since
            heapq.heappush(heap, (now, index, free))
            continue
        chosen.append(offer)
        here[node] = here.get(node, 0) + 1
        if free - candidate.gpus >= candidate.gpus:
            left = free - candidate.gpus
            heapq.heappush(heap, (_rank(request, offer, left, here[node]), index, left))
    return tuple(chosen)


def _on_one_node(request: Request, candidate: Candidate, offers: Sequence[Offer]) -> tuple[Offer, ...]:
    def rank(offer: Offer) -> tuple[int, _Rank]:
        fits = min(offer.free // candidate.gpus, request.replicas)
        return -fits, _rank(request, offer, offer.free, 0)

    offer = min(offers, key=rank)
    return (offer,) * min(offer.free // candidate.gpus, request.replicas)


_Rank = tuple[int, int, bool, int, int, int, str, str]


def _rank(request: Request, offer: Offer, free: int, here: int) -> _Rank:
    """The order among offers that suffice, best first; the name makes it total."""
    pool = offer.pool
    local = pool.node in request.weights_on
    return _order(pool), here, not local, free, pool.count, pool.total_mib, pool.node, pool.resource


# -- answering --------------------------------------------------------------------------------------------------------


def _placed(request: Request, inventory: Inventory, seen: Survey, choice: _Choice) -> Decision:
    message = explain.placed(request, choice.candidate, choice.offers, _same(request, seen.offers, choice))
    return _answer(request, inventory, seen, choice, Reason.PLACED, message)


def _same(request: Request, offers: Iterable[Offer], choice: _Choice) -> list[Offer]:
    """Offers like the chosen ones that would have done as well."""
    sizes = {_order(o.pool) for o in choice.offers}
    return [
        o
        for o in offers
        if _order(o.pool) in sizes
        and (o.pool.resource, o.pool.dra) == choice.group
        and rejection(request, o, choice.candidate) is None
    ]


def _answer(
    request: Request,
    inventory: Inventory,
    seen: Survey,
    choice: _Choice,
    reason: Reason,
    message: str,
    awaited: Sequence[NodePool] = (),
) -> Decision:
    """The decision; with `awaited` only those pools are to grow, so that the autoscaler takes the planned class."""
    pools = [offer.pool for offer in choice.offers]
    candidate, (resource, dra) = choice.candidate, choice.group
    nodes = tuple(p.node for p in pools)
    good = _good(request, inventory, choice)
    # Claims find devices of new nodes by themselves; who waits for a certain pool says so in either case.
    open_to = awaited or (() if dra else inventory.node_pools)
    growing = [s for s in open_to if _could_grow(request, s, choice, inventory)]
    sizes = {p.size_class for p in good if p.usable_mib} | {grown(s).size_class for s in growing}
    target = Target(
        resource=resource,
        dra=dra,
        need_mib=candidate.mib,
        nodes=tuple(dict.fromkeys(nodes)),
        classes=tuple(sorted(sizes)),
        exact=request.exact_class,
        pin=request.one_node,
    )
    return Decision(
        reason=reason,
        message=message,
        candidate=candidate,
        vendor=pools[0].vendor,
        resource=resource,
        dra=dra,
        memory_mib=min(p.total_mib for p in pools),
        nodes=nodes,
        books=tuple(p.book for p in pools),
        missing=request.replicas - len(nodes),
        node_pools=tuple(s.name for s in growing) if awaited else (),
        affinity=node_affinity(target, inventory, good, growing),
        tolerations=tolerations(pools[0].vendor),
        claim_template=_template(request, choice, good, growing) if dra else None,
        rejected=explain.rejected(request, seen, [candidate], nodes),
    )


def _good(request: Request, inventory: Inventory, choice: _Choice) -> list[Pool]:
    """The pools of the chosen group that suffice, whoever holds them now."""
    sizes = {_order(o.pool) for o in choice.offers}
    return [
        pool
        for node in inventory.nodes
        for pool in node.pools
        if (pool.resource, pool.dra) == choice.group
        and (not request.exact_class or _order(pool) in sizes)
        and sufficient(request, pool, choice.candidate)
    ]


def _could_grow(request: Request, shape: NodePool, choice: _Choice, inventory: Inventory) -> bool:
    """Whether new nodes of a node pool would do as well: its pods may go there when they come."""
    pool = grown(shape)
    exact = request.exact_class and pool.size_class not in {o.pool.size_class for o in choice.offers}
    return (
        inventory.room[shape.name] > 0
        and (pool.resource, pool.dra) == choice.group
        and not exact
        and sufficient(request, pool, choice.candidate)
    )


def _template(
    request: Request, choice: _Choice, good: Iterable[Pool], growing: Iterable[NodePool]
) -> dict[str, object]:
    largest: dict[int, int] = {}
    for pool in good:
        largest[pool.size_class] = max(largest.get(pool.size_class, 0), pool.total_mib)
    for shape in growing:  # the devices of its nodes may have a little more than its values say
        size = grown(shape).size_class
        largest[size] = memory.most_of_class(size)
    return claim_template(
        choice.group[0],
        choice.candidate.mib,
        choice.candidate.gpus,
        largest,
        exact=request.exact_class,
        same_product=all(o.pool.product for o in choice.offers),
    )
