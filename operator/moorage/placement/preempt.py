"""Which idle Models go to sleep so that another one has room on one node. Pure; nobody else's pods are ever touched.

A Model sleeps as a whole (0 replicas), so its GPUs on other nodes become free too; what counts is the room on the one
node. The fewest Models that make the room are chosen, of those the ones of lowest priority, least recently used.
"""

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import NamedTuple

from moorage.placement.decide import decide
from moorage.placement.inventory import Inventory, Reservation
from moorage.placement.request import Decision, Request
from moorage.placement.survey import Offer, sufficient, survey
from moorage.placement.text import listed

WHEN_IDLE = "WhenIdle"


class Resident(NamedTuple):
    """A loaded Model, named as the holder of its GPUs; times in seconds.

    `policy` and `priority` are those of its spec.preemption. `idle_seconds` since its last request ended, None while it
    has one in flight; `resident_seconds` since it became ready, to be at least `min_residency_seconds`.
    """

    owner: str
    idle_seconds: int | None
    resident_seconds: int
    policy: str = WHEN_IDLE
    priority: int = 0
    min_residency_seconds: int = 120


@dataclass(frozen=True)
class Preempted:
    """What was done before: `victim` went to sleep to make room for `beneficiary`, so many seconds ago."""

    victim: str
    beneficiary: str
    seconds_ago: int


@dataclass(frozen=True)
class Preemption:
    """Who is to sleep, and the decision (of one replica) that holds then; without victims `message` says why."""

    message: str
    victims: tuple[str, ...] = ()
    decision: Decision | None = None


@dataclass(frozen=True)
class _Option:
    """Models whose sleep makes room for one candidate on one node; `cost` orders options, cheapest first."""

    victims: tuple[Resident, ...]
    cost: tuple[int, int, int, int, int, str]


def preempt(
    request: Request,
    inventory: Inventory,
    reservations: Iterable[Reservation] = (),
    *,
    residents: Iterable[Resident],
    priority: int = 0,
    history: Iterable[Preempted] = (),
    cooldown_seconds: int = 600,
) -> Preemption:
    """The Models to put to sleep for one replica of `request`, whose own preemption priority is `priority`.

    A Model that was put to sleep for another within the cooldown, directly or by way of third ones, does not drive that
    one out in turn: both would only ever load.
    """
    known, promises = sorted(residents, key=lambda r: r.owner), tuple(reservations)
    one = replace(request, replicas=1)
    present = decide(one, inventory, promises)
    if present.placed:
        return Preemption("there is room without", decision=present)
    drivers = _drivers(request.owner, history, cooldown_seconds)
    hindrances = {r.owner: _hindrance(r, request.owner, priority, drivers) for r in known}
    option = _cheapest(one, inventory, promises, {r.owner: r for r in known if not hindrances[r.owner]})
    if option is None:
        return Preemption(_nobody(inventory, hindrances, request))
    names = tuple(r.owner for r in option.victims)
    decision = decide(one, inventory.without(names), promises)
    return Preemption(f"{listed(names, 8)} goes to sleep to make room on {decision.nodes[0]}", names, decision)


def yield_place(
    owner: str,
    residents: Iterable[Resident],
    *,
    priority: int = 0,
    history: Iterable[Preempted] = (),
    cooldown_seconds: int = 600,
) -> Preemption:
    """The one of `residents` that gives up its place for the Model `owner`, wherever it runs: the same rules."""
    known = sorted(residents, key=lambda r: r.owner)
    drivers = _drivers(owner, history, cooldown_seconds)
    hindrances = {r.owner: _hindrance(r, owner, priority, drivers) for r in known}
    able = [r for r in known if not hindrances[r.owner]]
    if not able:
        told = [f"{name} {why}" for name, why in hindrances.items()]
        return Preemption(f"none of them can sleep now: {listed(told)}")
    first = min(able, key=_first)
    return Preemption(f"{first.owner} goes to sleep", (first.owner,))


def step_down(residents: Iterable[Resident], count: int) -> tuple[str, ...]:
    """The `count` of `residents` that sleep because there are too many of them, as far as they may: the same rules.

    Nobody gets their place, so priority orders them and keeps none awake.
    """
    able = [r for r in residents if not _hindrance(r, "", r.priority, frozenset())]
    return tuple(r.owner for r in sorted(able, key=_first)[:count])


def smallest_sleep(
    request: Request, inventory: Inventory, reservations: Iterable[Reservation], owners: Iterable[str]
) -> tuple[str, ...]:
    """The fewest of the Models `owners` whose sleep would make room, busy or not: advice for a person. () for none."""
    able = {owner: Resident(owner, 0, 0) for owner in owners if owner != request.owner}
    option = _cheapest(replace(request, replicas=1), inventory, tuple(reservations), able)
    return tuple(r.owner for r in option.victims) if option else ()


# -- who may be put to sleep ------------------------------------------------------------------------------------------


def _hindrance(resident: Resident, owner: str, priority: int, drivers: frozenset[str]) -> str:
    """Why a Model may not be put to sleep for the Model `owner`; empty where it may."""
    if resident.owner == owner:
        return "is the Model itself"
    if resident.policy != WHEN_IDLE:
        return f"has preemption.policy {resident.policy}"
    if resident.priority > priority:
        return f"has preemption.priority {resident.priority}"
    if resident.idle_seconds is None:
        return "is busy"
    if resident.resident_seconds < resident.min_residency_seconds:
        return f"stays for its preemption.minResidency of {resident.min_residency_seconds} s"
    if resident.owner in drivers:
        return "has just been given this Model's place"
    return ""


def _drivers(owner: str, history: Iterable[Preempted], cooldown_seconds: int) -> frozenset[str]:
    """Those for whom `owner` was put to sleep within the cooldown, and those for whom these were, and so on."""
    recent = [p for p in history if p.seconds_ago < cooldown_seconds]
    found: set[str] = set()
    victims = {owner}
    while victims:
        beneficiaries = {p.beneficiary for p in recent if p.victim in victims}
        victims = beneficiaries - found
        found |= beneficiaries
    return frozenset(found)


def _nobody(inventory: Inventory, hindrances: Mapping[str, str], request: Request) -> str:
    """`no idle Model can make room: a/x is busy, a/y has preemption.policy Never`."""
    loaded = {holder for holders in inventory.held.values() for holder in holders} - {request.owner}
    told = [f"{owner} {why}" for owner, why in hindrances.items() if why and owner in loaded]
    return f"no idle Model can make room{': ' + listed(told) if told else ''}"


# -- the smallest set -------------------------------------------------------------------------------------------------


def _cheapest(
    request: Request, inventory: Inventory, promises: Sequence[Reservation], able: Mapping[str, Resident]
) -> _Option | None:
    """The cheapest way over all nodes, or None."""
    best: _Option | None = None
    for offer in survey(request, inventory, promises).offers:
        held = [(gpus, able[holder]) for holder, gpus in offer.holders.items() if holder in able]
        if not held:
            continue
        sums = list(accumulate(sorted((gpus for gpus, _ in held), reverse=True)))
        for candidate in request.plans:
            missing = candidate.gpus - offer.balance
            fewest = bisect_left(sums, missing) + 1  # Models that hold the most GPUs, taken first
            # Most ways need more Models than the best so far: told by counting alone, before anybody is compared.
            most = min(len(sums), best.cost[0]) if best else len(sums)
            if fewest > most or not sufficient(request, offer.pool, candidate):
                continue
            option = _option(offer, held, fewest, missing)
            if best is None or option.cost < best.cost:
                best = option
    return best


def _first(resident: Resident) -> tuple[int, int, str]:
    """The order in which Models go to sleep: lowest priority, then least recently used."""
    return resident.priority, -(resident.idle_seconds or 0), resident.owner


_Held = Sequence[tuple[int, Resident]]
"""Models that may sleep, with the GPUs that each holds on one node."""


def _option(offer: Offer, held: _Held, fewest: int, missing: int) -> _Option:
    """The `fewest` Models on the offer's node whose sleep leaves `missing` more GPUs free there."""
    chosen = _chosen(held, fewest, missing)
    victims = tuple(resident for _, resident in chosen)
    cost = (
        len(victims),
        max(r.priority for r in victims),
        -min(r.idle_seconds or 0 for r in victims),
        sum(gpus for gpus, _ in chosen),
        offer.pool.size_class,
        offer.pool.node,
    )
    return _Option(victims, cost)


def _chosen(held: _Held, count: int, missing: int) -> _Held:
    """The `count` of `held` that hold `missing` GPUs together; of several such sets the first in the order of sleep."""
    if count == 1:
        return [min((h for h in held if h[0] >= missing), key=lambda h: _first(h[1]))]
    order = sorted(held, key=lambda h: _first(h[1]))
    chosen: list[tuple[int, Resident]] = []
    for index, (gpus, resident) in enumerate(order):
        left = count - len(chosen) - 1
        rest = sorted((more for more, _ in order[index + 1 :]), reverse=True)
        if left >= 0 and gpus + sum(rest[:left]) >= missing:
            chosen.append((gpus, resident))
            missing -= gpus
    return chosen
