"""How a decision is said to kube-scheduler: node affinity that it keeps to, and never `nodeName`.

kube-scheduler binds and counts, because its ledger is the only one with everybody's pods in it. Required terms let it
take sufficient GPUs only; preferred terms make it take the planned nodes, else the smallest class. Preferred terms are
soft: their sum is normalised and weighs twice as much as the spreading scores, so neighbouring steps differ by a factor
of four or more, which held on nodes with 97 % of their CPU requested.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from moorage.placement import memory, vendors
from moorage.placement.inventory import SHARED_GPU, Inventory, NodePool, NodeState, Pool
from moorage.placement.matching import PREFERRED, REQUIRED

Term = dict[str, Any]
Matches = Callable[[NodeState, Pool], bool]
"""What a term matches, as kube-scheduler will evaluate it."""

PLANNED_NODE_WEIGHT: Final = 100
CLASS_WEIGHTS: Final = (24, 6, 1)
"""Of the three smallest classes; a planned node has 100 more, so each step is a factor of four at least."""


@dataclass(frozen=True)
class Target:
    """What the affinity is to say: GPUs of `resource` with `need_mib` each, best on `nodes`.

    `classes` are the size classes that may serve, smallest first; with `exact` there is one and it is required.
    `pin` requires `nodes`, for storage that only one node holds.
    """

    resource: str
    dra: bool
    need_mib: int
    nodes: tuple[str, ...]
    classes: tuple[int, ...]
    exact: bool = False
    pin: bool = False


def node_affinity(
    target: Target, inventory: Inventory, good: Sequence[Pool], growing: Sequence[NodePool]
) -> dict[str, Any]:
    """The core/v1 NodeAffinity of a decision.

    `good` are the pools that suffice, free or not; `growing` the node pools whose new nodes would.
    """
    terms = _device_terms(target, inventory, good, growing) if target.dra else _label_terms(target, inventory, good)
    terms += [_term(_in(key, [value]) for key, value in sorted(pool.labels.items())) for pool in growing]
    if target.pin and (pins := _on(inventory, target.nodes)):
        terms = [_with(term, pin) for term in terms or [{}] for pin in pins]
    found: dict[str, Any] = {}
    if terms:
        found[REQUIRED] = {"nodeSelectorTerms": terms}
    preferred = [] if target.pin else _preferred(target, inventory, good)
    if preferred:
        found[PREFERRED] = preferred
    return found


def merged(spec: Mapping[str, Any] | None, ours: Mapping[str, Any]) -> dict[str, Any]:
    """The pod's `affinity`: what the spec says and ours. Both requirements hold: each of the spec's terms gets ours."""
    theirs = dict(spec or {})
    node = dict(theirs.get("nodeAffinity") or {})
    left = (node.get(REQUIRED) or {}).get("nodeSelectorTerms")
    right = (ours.get(REQUIRED) or {}).get("nodeSelectorTerms")
    if right:
        both = [_with(a, b) for a in left for b in right] if left is not None else list(right)
        node[REQUIRED] = {"nodeSelectorTerms": both}
    if ours.get(PREFERRED):
        node[PREFERRED] = [*(node.get(PREFERRED) or ()), *ours[PREFERRED]]
    if node:
        theirs["nodeAffinity"] = node
    return theirs


# -- required ---------------------------------------------------------------------------------------------------------


def _label_terms(target: Target, inventory: Inventory, good: Sequence[Pool]) -> list[Term]:
    """By label for all nodes whose label says the truth, by name for the rest; and never one that does not suffice."""
    able = {p.node for p in good}
    offering = [(n, p) for n in inventory.nodes for p in n.pools if p.resource == target.resource and not p.dra]
    bad = [(n, p) for n, p in offering if n.name not in able]
    left = [(n, p) for n, p in offering if n.name in able]
    terms: list[Term] = []
    for term, matches in (*_memory_term(target, good), *_told_terms(good)):
        if any(matches(n, p) for n, p in left):
            terms.append(_without(term, [(n, p) for n, p in bad if matches(n, p)]))
            left = [(n, p) for n, p in left if not matches(n, p)]
    return terms + _on(inventory, [n.name for n, _ in left])


def _memory_term(target: Target, good: Sequence[Pool]) -> list[tuple[Term, Matches]]:
    """The sizes that suffice, as a number. AMD's label bears a unit, which `Gt` cannot read: its values are listed."""
    key = vendors.memory_label(target.resource)
    if target.resource == vendors.AMD_GPU:
        return []
    least, most = memory.least_total_mib(target.need_mib), 1 << 63
    expressions = [{"key": key, "operator": "Gt", "values": [str(least - 1)]}]
    told = [p.label_mib for p in good if p.label_mib is not None]
    if target.exact and told:
        most = max(told)
        expressions.append({"key": key, "operator": "Lt", "values": [str(most + 1)]})
    return [(_term(expressions), lambda _, pool: pool.label_mib is not None and least <= pool.label_mib <= most)]


def _told_terms(pools: Iterable[Pool]) -> list[tuple[Term, Matches]]:
    """A term for each label key that tells these pools' sizes, with all its values."""
    told: dict[str, set[str]] = {}
    for pool in pools:
        if pool.told_by is not None:
            told.setdefault(pool.told_by[0], set()).add(pool.told_by[1])
    return [(_term([_in(key, values)]), _labelled(key, values)) for key, values in sorted(told.items())]


def _labelled(key: str, values: set[str]) -> Matches:
    return lambda node, _: node.labels.get(key) in values


def _without(term: Term, wrong: Sequence[tuple[NodeState, Pool]]) -> Term:
    """`term` without the nodes that it matches although they do not suffice."""
    shared = [n.name for n, p in wrong if p.problem == SHARED_GPU and n.labels.get(vendors.SHARING) in vendors.SHARED]
    if shared:
        term = _with(term, _term([{"key": vendors.SHARING, "operator": "NotIn", "values": list(vendors.SHARED)}]))
    rest = [n for n, _ in wrong if n.name not in set(shared)]
    return _with(term, _not_on(rest)) if rest else term


def _device_terms(
    target: Target, inventory: Inventory, good: Sequence[Pool], growing: Sequence[NodePool]
) -> list[Term]:
    """Claims choose devices by their own expressions; only nodes whose GPUs a device plugin gives out are kept away.

    Who waits for a node pool names the nodes that would do besides, so that the autoscaler takes no other pool.
    """
    if growing:
        return _on(inventory, [pool.node for pool in good])
    both = [n for n in inventory.nodes if n.both_books]
    return [_not_on(both)] if both else []


# -- preferred --------------------------------------------------------------------------------------------------------


def _preferred(target: Target, inventory: Inventory, good: Sequence[Pool]) -> list[dict[str, Any]]:
    wanted = [{"weight": PLANNED_NODE_WEIGHT, "preference": term} for term in _on(inventory, target.nodes)]
    if target.exact or target.dra or len(target.classes) < 2:
        return wanted
    named = [(inventory.by_name[p.node], p) for p in good if p.told_by is None]
    for weight, size in zip(CLASS_WEIGHTS, target.classes, strict=False):
        told = _told_terms(p for p in good if p.size_class == size)
        terms = [_without(term, [(n, p) for n, p in named if matches(n, p)]) for term, matches in told]
        terms += _on(inventory, [n.name for n, p in named if p.size_class == size])
        wanted += [{"weight": weight, "preference": term} for term in terms]
    return wanted


# -- terms ------------------------------------------------------------------------------------------------------------


def _term(expressions: Iterable[Mapping[str, Any]]) -> Term:
    return {"matchExpressions": [dict(e) for e in expressions]}


def _in(key: str, values: Iterable[str]) -> dict[str, Any]:
    return {"key": key, "operator": "In", "values": sorted(values)}


def _with(left: Mapping[str, Any], right: Mapping[str, Any]) -> Term:
    """Both terms at once: all expressions of either must hold."""
    both = {part: [*(left.get(part) or ()), *(right.get(part) or ())] for part in ("matchExpressions", "matchFields")}
    return {part: expressions for part, expressions in both.items() if expressions}


def _on(inventory: Inventory, nodes: Iterable[str]) -> list[Term]:
    """Terms for exactly these nodes: by their hostname label; a node without one (matchFields takes one name) alone."""
    known = [inventory.by_name[n] for n in dict.fromkeys(nodes) if n in inventory.by_name]
    hosts = [n.labels[vendors.HOSTNAME] for n in known if vendors.HOSTNAME in n.labels]
    alone = [_field("In", n.name) for n in known if vendors.HOSTNAME not in n.labels]
    return ([_term([_in(vendors.HOSTNAME, hosts)])] if hosts else []) + [{"matchFields": [field]} for field in alone]


def _not_on(nodes: Sequence[NodeState]) -> Term:
    hosts = sorted(n.labels[vendors.HOSTNAME] for n in nodes if vendors.HOSTNAME in n.labels)
    expressions = [{"key": vendors.HOSTNAME, "operator": "NotIn", "values": hosts}] if hosts else []
    fields = [_field("NotIn", n.name) for n in nodes if vendors.HOSTNAME not in n.labels]
    return _with({"matchExpressions": expressions}, {"matchFields": fields})


def _field(operator: str, name: str) -> dict[str, Any]:
    return {"key": "metadata.name", "operator": operator, "values": [name]}
