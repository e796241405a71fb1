"""The plan after the API server refused a child: everything else stays, and the status says why."""

from datetime import datetime

from moorage.api.conditions import Condition, DownloadPhase, ModelPhase
from moorage.planning.draft import FALSE, TRUE, Draft
from moorage.planning.text import line
from moorage.planning.types import Manifest, Plan


def plan(kind: str, obj: Manifest, wanted: Plan, now: datetime, reason: str, message: str) -> Plan:
    """Stalled=True with the server's own words, over the status that `wanted` would have written.

    A Model whose servers are ready stays Ready: it was a change that was refused.
    """
    status = dict(wanted.status or obj.get("status") or {})
    known = [Condition.model_validate(c) for c in (obj.get("status") or {}).get("conditions", ())]
    draft = Draft(known, obj["metadata"].get("generation", 0), now)
    for condition in status.get("conditions", ()):
        if condition["type"] not in ("Ready", "Stalled", "Reconciling"):
            draft.set(condition["type"], condition["status"], condition["reason"], condition["message"])
    serving = bool(status.get("readyReplicas"))
    step = "UpToDate" if serving else "Serving" if kind == "Model" else "Downloaded"
    draft.set(step, FALSE, reason, message)
    draft.set("Reconciling", FALSE, reason, message)
    draft.set("Stalled", TRUE, reason, message)
    draft.set("Ready", TRUE if serving else FALSE, reason, message)
    if kind == "Model":
        status["phase"] = (ModelPhase.DEGRADED if serving else ModelPhase.BLOCKED).value
    else:
        status["phase"] = DownloadPhase.PENDING.value
    status["conditions"] = [c.dump() for c in draft.conditions]
    status["summary"] = {**(status.get("summary") or {}), "message": line(message)}
    if kind == "Model":
        status["summary"]["reason"] = reason
    return Plan(status=status, events=draft.events({("Stalled", TRUE, "*"): reason}), why=message)
