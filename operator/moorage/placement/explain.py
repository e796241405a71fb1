"""A decision in words, with the numbers that decided it."""

from collections.abc import Iterable, Sequence
from itertools import groupby

from moorage.api.conditions import Reason
from moorage.placement import vendors
from moorage.placement.inventory import Inventory, NodePool, Pool
from moorage.placement.request import AUTO, Candidate, Rejected, Rejection, Request
from moorage.placement.survey import Offer, Survey, closest, rejection, sufficient
from moorage.placement.text import gib, gib_down, listed, plural

_NUMBERS = {1: "one", 2: "two", 4: "four", 8: "eight"}


def placed(request: Request, candidate: Candidate, chosen: Sequence[Offer], same: Sequence[Offer]) -> str:
    """`needs 10.2Gi, fits on one 24Gi GPU (2 free on gpu-1, gpu-3)`."""
    need = _need(candidate)
    if request.memory_override_mib is not None:
        need += " (as spec.accelerator.memoryPerGPUOverride says)"
    classes = sorted({o.pool.size_class for o in chosen if o.pool.usable_mib})
    size = "" if not classes else f"{classes[0]}Gi " if len(classes) == 1 else f"{classes[0]}Gi to {classes[-1]}Gi "
    gpus = f"{_NUMBERS.get(candidate.gpus, candidate.gpus)} {size}GPU{'s of one node' if candidate.gpus > 1 else ''}"
    nodes = [*dict.fromkeys(o.pool.node for o in chosen)]
    nodes += sorted({o.pool.node for o in same} - set(nodes))
    free = sum({(o.pool.node, o.pool.book): o.free for o in [*chosen, *same]}.values())
    where = f"({free} free on {listed(nodes)})"
    unknown = " of a size that nobody knows" if not classes else ""
    if request.replicas == 1:
        return f"{need}, fits on {gpus}{unknown} {where}"
    if len(chosen) == request.replicas:
        return f"{need}, {len(chosen)} replicas fit on {gpus} each{unknown} {where}"
    some = f"{len(chosen)} of {request.replicas} replicas fit on {gpus} each{unknown}"
    return f"{need}, {some} {where}; no GPU is left for the rest"


def waiting(candidate: Candidate, shape: NodePool, inventory: Inventory) -> str:
    """`needs 10.2Gi; waiting for a node of pool gpu-24 with one 24Gi GPU (2 of 5 nodes may still come)`."""
    size = (shape.gpu_memory_mib + 512) // 1024
    room = inventory.room[shape.name]
    return (
        f"{_need(candidate)}, which no node has free; waiting for a node of pool {shape.name} with "
        f"{plural(shape.gpus, f'{size}Gi GPU')} ({room} of {plural(shape.maximum, 'node')} may still come)"
    )


def late(candidate: Candidate, pools: Sequence[NodePool]) -> str:
    """`needs 10.2Gi, which no node has free, and no node of pool gpu-24 or gpu-48 came`."""
    return f"{_need(candidate)}, which no node has free, and no node of pool {' or '.join(p.name for p in pools)} came"


def refusal(request: Request, seen: Survey) -> tuple[Reason, str]:
    """Why nothing can be placed: the reason that a person, or time, can do most about."""
    plans = request.plans
    if not plans:
        return Reason.NO_GPU_FITS, _no_plan(request)
    for candidate in plans:
        fits = [o for o in seen.offers if sufficient(request, o.pool, candidate)]
        if fits:
            return Reason.NO_GPU_FREE, _taken(candidate, fits, seen) + _blocked(request, seen, plans)
    usable = [o for o in seen.offers if request.vendor in (AUTO, o.pool.vendor)]
    unknown = [o.pool for o in usable if rejection(request, o, plans[0]) is Rejection.UNKNOWN_MEMORY and o.pool.count]
    if unknown:
        return Reason.UNKNOWN_GPU_MEMORY, _unknown(plans[0], unknown)
    return Reason.NO_GPU_FITS, _too_small(request, plans, usable) + _blocked(request, seen, plans)


def rejected(
    request: Request, seen: Survey, candidates: Sequence[Candidate], chosen: Iterable[str]
) -> tuple[Rejected, ...]:
    """All nodes that were not chosen and why, grouped, most nodes first; at most one group for each reason."""
    found: list[tuple[Rejection, str, int]] = [(b.reason, b.node.name, b.free_mib) for b in seen.blocked]
    found += [(Rejection.NO_GPU, node, 0) for node in seen.bare]
    taken = set(chosen)
    for node, group in groupby(seen.offers, key=lambda o: o.pool.node):
        offers = list(group)
        reason = None if node in taken else closest(request, offers, candidates)
        if reason is not None:
            found.append((reason, node, max((o.pool.usable_mib for o in offers if o.free), default=0)))
    groups: dict[Rejection, list[tuple[int, str]]] = {}
    for reason, node, free in found:
        groups.setdefault(reason, []).append((-free, node))
    made = [Rejected(reason, len(nodes), min(nodes)[1], -min(nodes)[0]) for reason, nodes in groups.items()]
    return tuple(sorted(made, key=lambda r: (-r.nodes, r.reason)))


# -- sentences --------------------------------------------------------------------------------------------------------


def _need(candidate: Candidate) -> str:
    if not candidate.mib:  # the header is not known yet
        return "needs a GPU" if candidate.gpus == 1 else f"needs {_NUMBERS.get(candidate.gpus, candidate.gpus)} GPUs"
    if candidate.gpus == 1:
        return f"needs {gib(candidate.mib)}"
    return f"needs {gib(candidate.mib)} on each of {_NUMBERS.get(candidate.gpus, candidate.gpus)} GPUs"


def _no_plan(request: Request) -> str:
    able = ", ".join(str(c.gpus) for c in request.candidates)
    if not able:
        return "this engine has no way to serve this model on GPUs"
    asked = plural(request.count or 0, "GPU")
    return f"the engine cannot serve this model on {asked}, as accelerator.count asks; on {able} it can"


def _taken(candidate: Candidate, fits: Sequence[Offer], seen: Survey) -> str:
    total, free = sum(o.pool.count for o in fits), sum(o.free for o in fits)
    known = [o.pool.size_class for o in fits if o.pool.usable_mib]
    size = f" of {min(known)}Gi or more" if known else ""
    holders = [f"{o.pool.node}: {_holders(o, seen)}" for o in sorted(fits, key=lambda o: o.pool.node)]
    where = f"({'; '.join(holders[:3])}{f'; and {len(holders) - 3} more' if len(holders) > 3 else ''})"
    if free:
        most = max(fits, key=lambda o: (o.free, o.pool.node))
        few = f"the most free on one node is {most.free} ({most.pool.node})"
        return f"{_need(candidate)} of one node; of {plural(total, 'GPU')}{size} {free} are free, {few} {where}"
    if total == 1:
        return f"{_need(candidate)}; the only GPU{size} is taken {where}"
    return f"{_need(candidate)}; all {total} GPUs{size} are taken {where}"


def _holders(offer: Offer, seen: Survey) -> str:
    holders = sorted(offer.holders)
    holders += [f"promised to {owner}" for owner in seen.promised.get(offer.pool.node, ())]
    return listed(holders, 2) or "nobody"


def _unknown(candidate: Candidate, pools: Sequence[Pool]) -> str:
    first = min(pools, key=lambda p: p.node)
    total = sum(p.count for p in pools)
    return (
        f"{_need(candidate)}; the memory of {plural(total, 'GPU')} is not known ({first.node}: {first.detail}); "
        "annotate the node with moorage.dev/gpu-memory: 24Gi, or set accelerator.memoryPerGPUOverride"
    )


def _too_small(request: Request, plans: Sequence[Candidate], offers: Sequence[Offer]) -> str:
    usable = [o.pool for o in offers if not o.pool.problem]
    if not usable:
        resources = [r for v, r in vendors.RESOURCES.items() if request.vendor in (AUTO, v)]
        problem = next((f" ({o.pool.node}: {o.pool.detail})" for o in offers if o.pool.problem), "")
        return f"{_need(plans[0])}; no node that it may use offers {' or '.join(resources)}{problem}"
    best = min(usable, key=lambda p: (-p.usable_mib, p.node))
    largest = f"largest GPU is {best.size_class}Gi ({best.node})"
    if plans[0].mib <= best.usable_mib:
        most = max(p.count for p in usable if p.usable_mib >= plans[0].mib)
        largest = f"the most GPUs of that size on one node are {most}"
    elif plans[0].mib <= best.size_class * 1024:
        largest = (
            f"largest GPU is {best.size_class}Gi, of which {gib_down(best.usable_mib)} can be planned ({best.node})"
        )
    more = [f"{gib(c.mib)} on each of {_NUMBERS.get(c.gpus, c.gpus)}" for c in plans[1:]]
    return f"{_need(plans[0])}, {largest}" + (f"; or {', or '.join(more)}, which no node has" if more else "")


def _blocked(request: Request, seen: Survey, plans: Sequence[Candidate]) -> str:
    """Nodes whose GPUs would do if the pod might run there; what the spec leaves out is named for want of others."""
    able = [b for b in seen.blocked if any(sufficient(request, p, c) for p in b.node.pools for c in plans)]
    able = [b for b in able if b.reason is not Rejection.NOT_SELECTED] or able
    if not able:
        return ""
    first = able[0]
    more = f" (and {plural(len(able) - 1, 'more node')})" if len(able) > 1 else ""
    return f"; {first.node.name} would do but {first.detail}{more}"
