"""The first decision of a pass: whether the Model is awake, and with how many servers."""

from dataclasses import replace

from moorage import names
from moorage.api.conditions import ModelCondition as C
from moorage.api.conditions import Reason
from moorage.api.scaling import ScalingStatus
from moorage.planning import usage
from moorage.planning.model_pass import ModelPass
from moorage.planning.model_scale import Moment, Verdict
from moorage.planning.model_scale import decide as decided
from moorage.planning.types import PlannedEvent


def decide(step: ModelPass, *, room: bool = False, over_limit: bool = False) -> None:
    """Set the number of servers and what goes with it; keep the totals of use.

    `room`: what it made room for is over. `over_limit`: its namespace has too many loaded Models, and this one goes.
    """
    step.status.usage = usage.totals(step.status.usage, step.seen.usage)
    take(step, decided(replace(moment(step), room=room, over_limit=over_limit)))


def moment(step: ModelPass) -> Moment:
    """What the number follows from, as it stands."""
    served = step.draft.get(C.SERVING)
    spec, known = step.model.spec, step.status.usage
    seen = step.seen.usage
    if known and known.last_used:  # a gateway that is gone by now may have told it
        seen = replace(seen, last_used=max(seen.last_used, int(known.last_used.timestamp())))
    return Moment(
        now=step.seen.now,
        replicas=spec.replicas,
        scaling=spec.scaling,
        remembered=step.status.scaling or ScalingStatus(),
        usage=seen,
        current=step.status.desired_replicas,
        serving_since=served.last_transition_time if served and step.draft.was_true(C.SERVING) else None,
        asked_at=step.model.metadata.annotations.get(names.WAKE_AT, ""),
        evicted_for=step.seen.evicted_for,
        sleep_at=step.model.metadata.annotations.get(names.SLEEP_AT, ""),
        measured=_measured(step),
    )


def take(step: ModelPass, verdict: Verdict) -> None:
    """Carry a verdict over into the pass."""
    step.replicas, step.sleep = verdict.replicas, verdict.sleep
    step.status.scaling = verdict.remembered
    step.note = (verdict.note_reason, verdict.note)
    if verdict.woken:
        step.tell.append(PlannedEvent("Normal", "Woken", f"woken: {verdict.woken}"))
    if verdict.again is not None:
        step.wake_in(verdict.again)


def _measured(step: ModelPass) -> bool:
    """Whether a benchmark asks it right now; no gateway sees that."""
    found = step.draft.get(C.BENCHMARKED)
    return found is not None and found.reason == Reason.RUNNING
