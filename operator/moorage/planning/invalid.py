"""The plans for an object that cannot be planned: its spec does not parse, or we fail. Say so, keep what runs."""

from datetime import datetime

from moorage.api.conditions import Reason
from moorage.errors import InvalidSpec
from moorage.planning.draft import FALSE, TRUE, Draft, conditions_of
from moorage.planning.text import line
from moorage.planning.types import Manifest, Plan


def plan(obj: Manifest, now: datetime, error: InvalidSpec) -> Plan:
    """Stalled=True with the error's sentence, and Accepted=False of a Model; no child is touched.

    The API server's schema refuses such objects, so this is for what an older CRD let through. Another version of
    Moorage may understand the very same generation, and must not take its source for one that was resolved.
    """
    old = obj.get("status") or {}
    draft = Draft(conditions_of(obj), obj["metadata"].get("generation", 0), now)
    if obj.get("kind") == "Model":
        draft.set("Accepted", FALSE, Reason.INVALID_SPEC, error.message)
    draft.set("Stalled", TRUE, Reason.INVALID_SPEC, error.message)
    draft.set("Ready", FALSE, Reason.INVALID_SPEC, error.message)
    status = {
        **old,
        "observedGeneration": obj["metadata"].get("generation", 0),
        "conditions": [c.dump() for c in draft.conditions],
        "summary": {**(old.get("summary") or {}), "message": line(error.message)},
    }
    events = draft.events({("Stalled", TRUE, "*"): Reason.INVALID_SPEC})
    return Plan(status=status, events=events, why=error.message)


def defect(obj: Manifest, now: datetime, error: Exception) -> Plan:
    """Stalled=True/InternalError, and everything else as it stands: it was Moorage that failed, and tries again.

    The error's text goes to the log alone; nobody knows what it holds.
    """
    old = obj.get("status") or {}
    text = f"Moorage itself failed ({type(error).__name__}); its log has the details, and it tries again"
    draft = Draft(conditions_of(obj), obj["metadata"].get("generation", 0), now)
    draft.set("Stalled", TRUE, Reason.INTERNAL_ERROR, text)
    status = {
        **old,
        "conditions": [c.dump() for c in draft.conditions],
        "summary": {**(old.get("summary") or {}), "message": line(text)},
    }
    return Plan(status=status, events=draft.events({("Stalled", TRUE, "*"): Reason.INTERNAL_ERROR}), why=text)
