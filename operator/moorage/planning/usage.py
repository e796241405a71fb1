"""What the gateways know of one Model or alias, as planning sees it, and the totals that stand in status.

A gateway's counts begin at zero with each process. The totals keep, for each process, what of it they hold already
(`counted`), so that only what is new is added: nothing is counted twice and nothing goes back, whoever restarts.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum

from moorage.api.scaling import CountedUse, UsageStatus


class Hearing(Enum):
    """How much the operator has heard from gateways: nothing can be concluded from silence unless all have spoken."""

    LISTENING = "Listening"  # it has just started, or a gateway has not told everything yet
    SILENT = "Silent"  # no gateway reports
    COMPLETE = "Complete"


@dataclass(frozen=True)
class InstanceUse:
    """The counts of one gateway process. `base` holds those that are known to be in the totals, from before."""

    instance: str
    requests: int = 0
    errors: int = 0
    cancelled: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_milliseconds: int = 0
    last_used: int = 0
    base: "InstanceUse | None" = None


@dataclass(frozen=True)
class GonePast:
    """A target (`namespace/name`) that an alias' requests go past, since when (Unix seconds), and why.

    `gateways` is how many of them do.
    """

    model: str
    since: int
    why: str
    gateways: int = 1


@dataclass(frozen=True)
class Usage:
    """One Model's or alias' use at this moment; times in Unix seconds, 0 for never.

    `in_flight` and `pending` requests of all gateways that are alive; `peak` the most of both together within the last
    minutes, None where that is not known for long enough. `wanted_at` is when a request last found no server.
    `counts` of each process, taken at most once a minute; `complete` where no other process can be alive. `gone_past`
    are an alias' targets that some gateway sends no requests to; `gateways` are alive.
    """

    hearing: Hearing = Hearing.SILENT
    in_flight: int = 0
    pending: int = 0
    peak: int | None = None
    wanted_at: int = 0
    last_used: int = 0
    counts: tuple[InstanceUse, ...] = field(default=())
    complete: bool = False
    gone_past: tuple[GonePast, ...] = ()
    gateways: int = 0

    @property
    def load(self) -> int:
        """Requests that are served or wait."""
        return self.in_flight + self.pending


_SUMMED = ("requests", "errors", "cancelled", "prompt_tokens", "completion_tokens", "total_milliseconds")


def totals(before: UsageStatus | None, usage: Usage) -> UsageStatus | None:
    """The totals with what is new in `usage`; None while nothing was ever counted.

    A process that is not heard of keeps its place until it cannot come back (`complete`).
    """
    if before is None and not usage.counts:
        return None
    new = (before or UsageStatus()).model_copy(deep=True)
    known = {c.instance: c for c in new.counted}
    for use in usage.counts:
        base = known.get(use.instance) or use.base
        for name in _SUMMED:
            grown = max(getattr(use, name) - (getattr(base, name) if base else 0), 0)
            setattr(new, name, getattr(new, name) + grown)
    new.counted = _counted(known, usage)
    new.mean_latency_milliseconds = new.total_milliseconds // new.requests if new.requests else None
    latest = max((use.last_used for use in usage.counts), default=0)
    if latest and (new.last_used is None or latest > new.last_used.timestamp()):
        new.last_used = datetime.fromtimestamp(latest, UTC)
    return new


def _counted(known: dict[str, CountedUse], usage: Usage) -> list[CountedUse]:
    """Those that were heard of first, so that of too many the dead ones are forgotten."""
    heard = [_larger(known.get(use.instance), use) for use in sorted(usage.counts, key=lambda u: u.instance)]
    if usage.complete:
        return heard
    there = {use.instance for use in usage.counts}
    return [*heard, *(c for c in known.values() if c.instance not in there)]


def _larger(old: CountedUse | None, use: InstanceUse) -> CountedUse:
    bounds: Iterable[tuple[str, int]] = ((n, max(getattr(use, n), getattr(old, n) if old else 0)) for n in _SUMMED)
    return CountedUse(instance=use.instance, **dict(bounds))
