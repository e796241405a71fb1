"""Which nodes a pod may run on, what is free there, and what speaks against each."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from moorage.placement import memory, vendors
from moorage.placement.inventory import (
    NO_DEVICE_PLUGIN,
    SHARED_GPU,
    UNKNOWN_MEMORY,
    Book,
    Inventory,
    NodePool,
    NodeState,
    Pool,
    Reservation,
)
from moorage.placement.matching import affinity_matches, selects, untolerated
from moorage.placement.request import AUTO, Candidate, Rejection, Request

_PROBLEMS = {
    UNKNOWN_MEMORY: Rejection.UNKNOWN_MEMORY,
    SHARED_GPU: Rejection.SHARED_GPU,
    NO_DEVICE_PLUGIN: Rejection.NO_DEVICE_PLUGIN,
}
_CLOSENESS = {reason: place for place, reason in enumerate(Rejection)}


class Offer(NamedTuple):
    """A pool on a node that the pod may run on, and who holds its GPUs.

    `balance` is its GPUs less those that pods hold or that were promised.
    """

    pool: Pool
    balance: int
    holders: Mapping[str, int] = {}

    @property
    def free(self) -> int:
        """GPUs that are left; 0 where more are held than are (still) offered."""
        return max(self.balance, 0)


@dataclass(frozen=True, slots=True)
class Blocked:
    """A node that the pod may not run on, whatever its GPUs; `free_mib` is the most that a free one has."""

    node: NodeState
    free_mib: int
    reason: Rejection
    detail: str


@dataclass(frozen=True)
class Survey:
    """All nodes as one request sees them. `promised` says who has reservations on a node."""

    offers: tuple[Offer, ...]
    bare: tuple[str, ...]
    blocked: tuple[Blocked, ...]
    promised: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def survey(request: Request, inventory: Inventory, reservations: Iterable[Reservation]) -> Survey:
    """Look at every node once."""
    taken, promised = _promises(request, reservations)
    offers: list[Offer] = []
    blocked: list[Blocked] = []
    bare: list[str] = []
    for node in inventory.nodes:
        against = _against(request, node)
        if against is not None:
            free = (p.usable_mib for p in node.pools if p.count > inventory.used(p))
            blocked.append(Blocked(node, max(free, default=0), *against))
        elif not node.pools:
            bare.append(node.name)
        else:
            offers += [_offer(request, inventory, p, taken) for p in node.pools]
    return Survey(tuple(offers), tuple(bare), tuple(blocked), promised)


def virtual(
    request: Request, inventory: Inventory, reservations: Iterable[Reservation]
) -> Iterator[tuple[NodePool, Offer]]:
    """Offers of nodes that node pools could still add and that the pod might run on; named `pool/0`, `pool/1` ..."""
    anywhere = replace(request, volume_nodes=None)
    taken, _ = _promises(request, reservations)
    for shape in inventory.node_pools:
        imagined = NodeState(shape.name, True, False, shape.taints, shape.labels, ())
        if request.volume_pools is not None and shape.name not in request.volume_pools:
            continue
        if _against(anywhere, imagined) is not None:
            continue
        useful = request.replicas + sum(node.startswith(f"{shape.name}/") for node, _ in taken)
        for index in range(min(inventory.room[shape.name], useful)):
            pool = replace(grown(shape), node=f"{shape.name}/{index}")
            yield shape, _offer(request, inventory, pool, taken)


def sufficient(request: Request, pool: Pool, candidate: Candidate) -> bool:
    """Whether the pool, were it all free, could serve the candidate."""
    return rejection(request, Offer(pool, pool.count), candidate) is None


def rejection(request: Request, offer: Offer, candidate: Candidate) -> Rejection | None:
    """What speaks against an offer; None: nothing."""
    pool = offer.pool
    if request.vendor not in (AUTO, pool.vendor):
        return Rejection.OTHER_VENDOR
    trusted = pool.problem == UNKNOWN_MEMORY and request.memory_override_mib is not None
    if pool.problem and not trusted:
        return _PROBLEMS[pool.problem]
    if pool.usable_mib < candidate.mib and not trusted:
        return Rejection.TOO_SMALL
    if pool.count < candidate.gpus or (pool.sliced and candidate.gpus > 1):
        return Rejection.TOO_FEW
    return Rejection.TAKEN if offer.balance < candidate.gpus else None


def closest(request: Request, offers: Iterable[Offer], candidates: Iterable[Candidate]) -> Rejection | None:
    """Of everything that speaks against a node's offers the least: the one that came closest; None: nothing does."""
    plans = tuple(candidates)
    found = [rejection(request, offer, c) for offer in offers for c in plans]
    if any(reason is None for reason in found):
        return None
    return max((r for r in found if r is not None), key=_CLOSENESS.__getitem__, default=Rejection.NO_GPU)


def tolerations(vendor: str) -> tuple[Mapping[str, str], ...]:
    """What a pod with GPUs tolerates on its own: the taint that keeps pods without GPUs off GPU nodes.

    As Kubernetes' ExtendedResourceToleration admission plugin would add it, where that is switched on.
    """
    return ({"key": vendors.RESOURCES[vendor], "operator": "Exists", "effect": "NoSchedule"},)


def _against(request: Request, node: NodeState) -> tuple[Rejection, str] | None:
    """Why the pod may not run on the node at all."""
    # What a person left out comes first: nobody asks whether a node is ready that the Model is not to run on.
    if request.node_selector and not selects(request.node_selector, node.labels):
        return Rejection.NOT_SELECTED, "is not among the nodes that spec.nodeSelector selects"
    if request.node_affinity and not affinity_matches(request.node_affinity, node.name, node.labels):
        return Rejection.NOT_SELECTED, "does not match spec.affinity"
    if not node.ready:
        return Rejection.NOT_READY, "is not ready"
    if node.unschedulable:
        return Rejection.CORDONED, "is cordoned"
    if node.taints:
        own = [t for vendor in vendors.ORDER for t in tolerations(vendor)]
        taint = untolerated(node.taints, [*request.tolerations, *own])
        if taint is not None:
            return Rejection.TAINTED, f"has taint {taint.key}, which spec.tolerations does not tolerate"
    if request.volume_nodes is not None and node.name not in request.volume_nodes:
        return Rejection.VOLUME_ELSEWHERE, "cannot mount the volume"
    return None


def _promises(
    request: Request, reservations: Iterable[Reservation]
) -> tuple[dict[tuple[str, Book], int], dict[str, tuple[str, ...]]]:
    """GPUs promised to others by node and ledger, and to whom by node."""
    taken: dict[tuple[str, Book], int] = defaultdict(int)
    owners: dict[str, set[str]] = defaultdict(set)
    for promise in reservations:
        if promise.owner != request.owner:
            taken[promise.node, promise.book] += promise.gpus
            owners[promise.node].add(promise.owner)
    return taken, {node: tuple(sorted(who)) for node, who in owners.items()}


def _offer(request: Request, inventory: Inventory, pool: Pool, taken: Mapping[tuple[str, Book], int]) -> Offer:
    holders = inventory.holders(pool)
    held = sum(holders.values()) + taken.get((pool.node, pool.book), 0)
    if request.replacing:
        held -= holders.get(request.owner, 0)
    return Offer(pool, pool.count - held, holders)


def grown(shape: NodePool) -> Pool:
    """The GPUs of a node that a node pool would add."""
    return Pool(
        node=shape.name,
        resource=shape.resource,
        dra=shape.dra,
        total_mib=shape.gpu_memory_mib,
        usable_mib=memory.usable_mib(shape.gpu_memory_mib),
        count=shape.gpus,
        sliced=vendors.is_sliced(shape.resource, shape.labels),
    )
