"""Other Models as one that has no room sees them: who could go to sleep, and who is about to make room."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from moorage.api.common import duration_seconds
from moorage.api.conditions import ModelCondition as C
from moorage.api.conditions import ModelPhase, Reason, get_condition, is_true
from moorage.api.model import Model
from moorage.api.scaling import PreemptionPolicy
from moorage.placement.preempt import Preempted, Resident
from moorage.planning.usage import Usage

RECENT_SECONDS = 10
"""Gateways tell of requests every five seconds: who was used so recently may be in use now."""


@dataclass(frozen=True)
class Neighbour:
    """What of another Model matters here; times in Unix seconds, None or 0 for never.

    `owner` as reservations and holders of GPUs name it. `desired` servers; with 0 its pods are about to go.
    `serving_since`: ready for requests since then. `settled`: it neither waits for a place nor loads.
    """

    owner: str
    desired: int = 0
    settled: bool = True
    serving_since: int | None = None
    policy: str = PreemptionPolicy.NEVER.value
    priority: int = 0
    min_residency_seconds: int = 0
    last_used: int = 0
    measured: bool = False
    preempted_for: str = ""
    preempted_at: int = 0


@dataclass(frozen=True)
class Around:
    """The Models around one that looks for room.

    `neighbours` hold GPUs, or a place among the loaded ones of the namespace, or were given its place; `usages` are
    what gateways say of those that are loaded. `history`: who made room for whom, as far as it concerns this one.
    """

    neighbours: tuple[Neighbour, ...] = ()
    usages: tuple[tuple[str, Usage], ...] = ()
    history: tuple[tuple[str, str, int], ...] = ()  # victim, beneficiary, when

    def of(self, owner: str) -> Neighbour | None:
        """The neighbour of that name."""
        return next((n for n in self.neighbours if n.owner == owner), None)

    def leaving(self) -> frozenset[str]:
        """Those whose servers are no longer wanted: what they hold will be free."""
        return frozenset(n.owner for n in self.neighbours if not n.desired)

    def residents(self, now: datetime, among: Iterable[str] | None = None) -> list[Resident]:
        """Those that serve (of `among`, if given), in placement's words. Without any report the status counts."""
        usages, names = dict(self.usages), None if among is None else frozenset(among)
        return [
            _resident(n, n.serving_since, usages.get(n.owner, Usage()), int(now.timestamp()))
            for n in self.neighbours
            if n.desired and n.serving_since is not None and (names is None or n.owner in names)
        ]

    def drives(self, now: datetime) -> list[Preempted]:
        """What was done before, in placement's words."""
        seconds = int(now.timestamp())
        return [Preempted(victim, whom, max(seconds - at, 0)) for victim, whom, at in self.history]


def neighbour_of(model: Model, owner: str) -> Neighbour:
    """The projection of a Model."""
    status, spec = model.status, model.spec.preemption
    serving = get_condition(status.conditions, C.SERVING)
    since = serving.last_transition_time if serving and is_true(status.conditions, C.SERVING) else None
    benchmarked = get_condition(status.conditions, C.BENCHMARKED)
    scaling, used = status.scaling, status.usage
    desired = model.spec.replicas if status.desired_replicas is None else status.desired_replicas
    return Neighbour(
        owner=owner,
        desired=desired,
        settled=_settled(model),
        serving_since=int(since.timestamp()) if since else None,
        policy=spec.policy.value,
        priority=spec.priority,
        min_residency_seconds=int(duration_seconds(spec.min_residency)),
        last_used=int(used.last_used.timestamp()) if used and used.last_used else 0,
        measured=benchmarked is not None and benchmarked.reason == Reason.RUNNING,
        preempted_for=(scaling.preempted_for if scaling else None) or "",
        preempted_at=int(scaling.preempted_at.timestamp()) if scaling and scaling.preempted_at else 0,
    )


def _settled(model: Model) -> bool:
    """Whether it has what it wants, or wants nothing, or cannot go on. One that waits for a place has not."""
    conditions = model.status.conditions
    rests = model.spec.replicas == 0 or model.status.phase == ModelPhase.PREEMPTED
    return rests or is_true(conditions, C.READY) or is_true(conditions, C.STALLED)


def _resident(neighbour: Neighbour, since: int, usage: Usage, now: int) -> Resident:
    used = max(neighbour.last_used, usage.last_used)
    busy = bool(usage.load) or neighbour.measured or now - used < RECENT_SECONDS
    return Resident(
        owner=neighbour.owner,
        idle_seconds=None if busy else max(now - max(used, since), 0),
        resident_seconds=max(now - since, 0),
        policy=neighbour.policy,
        priority=neighbour.priority,
        min_residency_seconds=neighbour.min_residency_seconds,
    )
