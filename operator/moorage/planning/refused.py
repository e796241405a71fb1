"""The plan after the API server refused a child: everything else stays, and the status says why."""

from datetime import datetime

from moorage.api.conditions import DownloadPhase, ModelPhase
from moorage.planning.draft import FALSE, TRUE, Draft, conditions_of
from moorage.planning.text import line
from moorage.planning.types import Manifest, Plan


def plan(kind: str, obj: Manifest, wanted: Plan, now: datetime, reason: str, message: str, child: str) -> Plan:
    """Stalled=True with the server's own words, over the status that `wanted` would have written.

    What serves, or lies in its volume, stays Ready: it was a change that was refused. A refused benchmark Job (the only
    `child` of kind Job that a Model has) is nothing but a benchmark that failed.
    """
    status = dict(wanted.status or obj.get("status") or {})
    draft = Draft(conditions_of(obj), obj["metadata"].get("generation", 0), now)
    for condition in status.get("conditions", ()):
        if condition["type"] not in ("Ready", "Stalled", "Reconciling") or child == "Job":
            draft.set(condition["type"], condition["status"], condition["reason"], condition["message"])
    if kind == "Model" and child == "Job":
        return _not_measured(status, draft, reason, message)
    model = kind == "Model"
    goes_on = _true(status, "Serving" if model else "Ready")
    if model:
        draft.set("UpToDate" if goes_on else "Serving", FALSE, reason, message)
        status["phase"] = (ModelPhase.DEGRADED if goes_on else ModelPhase.BLOCKED).value
    elif not goes_on:
        draft.set("Downloaded", FALSE, reason, message)
        status["phase"] = DownloadPhase.PENDING.value
    draft.set("Reconciling", FALSE, reason, message)
    draft.set("Stalled", TRUE, reason, message)
    draft.set("Ready", TRUE if goes_on else FALSE, reason, message)
    status["conditions"] = [c.dump() for c in draft.conditions]
    status["summary"] = {**(status.get("summary") or {}), "message": line(message)}
    if model:
        status["summary"]["reason"] = reason
    return Plan(status=status, events=draft.events({("Stalled", TRUE, "*"): reason}), why=message)


def _true(status: Manifest, kind: str) -> bool:
    return any(c["type"] == kind and c["status"] == TRUE for c in status.get("conditions", ()))


def _not_measured(status: Manifest, draft: Draft, reason: str, message: str) -> Plan:
    draft.set("Benchmarked", FALSE, reason, message)
    status["conditions"] = [c.dump() for c in draft.conditions]
    return Plan(status=status, events=draft.events({("Benchmarked", FALSE, "*"): "BenchmarkFailed"}), why=message)
