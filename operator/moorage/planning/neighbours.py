"""Other Models as one that has no room sees them: who could go to sleep, and who is about to make room."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from moorage.api.common import duration_seconds
from moorage.api.conditions import ModelCondition as C
from moorage.api.conditions import ModelPhase, Reason
from moorage.api.scaling import PreemptionPolicy
from moorage.placement.preempt import Preempted, Resident

Manifest = dict[str, Any]

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
    name: str = ""

    @property
    def title(self) -> str:
        """NAMESPACE/NAME as people call it; `owner` has a label for its name."""
        return f"{self.owner.partition('/')[0]}/{self.name}" if self.name else self.owner


@dataclass(frozen=True)
class Around:
    """The Models around one that looks for room.

    `neighbours` hold GPUs, or a place among the loaded ones of the namespace, or were given its place; `activity` is
    what gateways say of those that are loaded: requests now, and when the last one ended. `history`: who made room for
    whom, as far as it concerns this one (victim, beneficiary, when).
    """

    neighbours: tuple[Neighbour, ...] = ()
    activity: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    history: tuple[tuple[str, str, int], ...] = ()

    def of(self, owner: str) -> Neighbour | None:
        """The neighbour of that name."""
        return next((n for n in self.neighbours if n.owner == owner), None)

    def leaving(self) -> frozenset[str]:
        """Those whose servers are no longer wanted: what they hold will be free."""
        return frozenset(n.owner for n in self.neighbours if not n.desired)

    def residents(self, now: datetime, among: Iterable[str] | None = None) -> list[Resident]:
        """Those that serve (of `among`, if given), in placement's words. Without any report the status counts."""
        names, seconds = None if among is None else frozenset(among), int(now.timestamp())
        return [
            resident(n, n.serving_since, self.activity.get(n.owner, (0, 0)), seconds)
            for n in self.neighbours
            if n.desired and n.serving_since is not None and (names is None or n.owner in names)
        ]

    def drives(self, now: datetime) -> list[Preempted]:
        """What was done before, in placement's words."""
        seconds = int(now.timestamp())
        return [Preempted(victim, whom, max(seconds - at, 0)) for victim, whom, at in self.history]


def neighbour_of(model: Manifest, owner: str) -> Neighbour:
    """The projection of a Model as it is stored. Plain dicts: of a large cluster thousands are looked at in one pass.

    Raises ValueError, TypeError or KeyError for what no API server would have let through.
    """
    spec, status = model["spec"], model.get("status") or {}
    preemption, scaling = spec.get("preemption") or {}, status.get("scaling") or {}
    conditions = {c["type"]: c for c in status.get("conditions") or ()}
    serving = conditions.get(C.SERVING) or {}
    since = serving.get("lastTransitionTime") if serving.get("status") == "True" else None
    return Neighbour(
        owner=owner,
        desired=status.get("desiredReplicas", spec.get("replicas", 1)),
        settled=_settled(spec, status, conditions),
        serving_since=_unix(since) if since else None,
        policy=preemption.get("policy", PreemptionPolicy.WHEN_IDLE.value),
        priority=preemption.get("priority", 0),
        min_residency_seconds=int(duration_seconds(preemption.get("minResidency", "2m"))),
        last_used=_unix((status.get("usage") or {}).get("lastUsed")),
        measured=(conditions.get(C.BENCHMARKED) or {}).get("reason") == Reason.RUNNING,
        preempted_for=scaling.get("preemptedFor", ""),
        preempted_at=_unix(scaling.get("preemptedAt")),
        name=model["metadata"]["name"],
    )


def _unix(time: str | None) -> int:
    return int(datetime.fromisoformat(time.replace("Z", "+00:00")).timestamp()) if time else 0


def _settled(spec: Manifest, status: Manifest, conditions: Mapping[str, Manifest]) -> bool:
    """Whether it has what it wants, or wants nothing, or cannot go on. One that waits for a place has not."""
    rests = spec.get("replicas") == 0 or status.get("phase") == ModelPhase.PREEMPTED
    return rests or any((conditions.get(kind) or {}).get("status") == "True" for kind in (C.READY, C.STALLED))


def resident(neighbour: Neighbour, since: int, activity: tuple[int, int], now: int) -> Resident:
    """A Model that serves `since` then, in placement's words; `activity` as in `Around`, times in Unix seconds."""
    load, last = activity
    used = max(neighbour.last_used, last)
    busy = load > 0 or neighbour.measured or now - used < RECENT_SECONDS
    return Resident(
        owner=neighbour.owner,
        idle_seconds=None if busy else max(now - max(used, since), 0),
        resident_seconds=max(now - since, 0),
        policy=neighbour.policy,
        priority=neighbour.priority,
        min_residency_seconds=neighbour.min_residency_seconds,
    )
