"""A ModelAlias' status: which of its targets exist and are Ready."""

from moorage.api.alias import ModelAlias
from moorage.api.conditions import AliasCondition, ModelCondition, Reason, is_true
from moorage.api.model import Model
from moorage.errors import InvalidSpec
from moorage.planning import invalid
from moorage.planning import usage as use
from moorage.planning.draft import FALSE, TRUE, Draft
from moorage.planning.text import line
from moorage.planning.types import ObservedAlias, Plan

_EVENTS = {
    (AliasCondition.RESOLVED, FALSE, "*"): "*",
    (AliasCondition.READY, TRUE, "*"): "Ready",
    (AliasCondition.READY, FALSE, Reason.TARGET_NOT_READY): "*",
}


def plan_alias(seen: ObservedAlias) -> Plan:
    """The status that is true to the alias' targets; an alias owns nothing, so nothing is applied."""
    try:
        alias = ModelAlias.read(seen.alias)
    except InvalidSpec as error:
        return invalid.plan(seen.alias, seen.now, error)
    if alias.metadata.deletion_timestamp:
        return Plan(why="being deleted")
    targets = [(t.model_ref.name, t.weight) for t in alias.spec.targets]
    fallbacks = [t.model_ref.name for t in alias.spec.fallbacks]
    names = [*(name for name, _ in targets), *fallbacks]
    missing = [n for n in dict.fromkeys(names) if seen.models.get(n) is None]
    ready = [n for n in dict.fromkeys(names) if _ready(seen, n)]
    draft = Draft(alias.status.conditions, alias.metadata.generation, seen.now)
    if missing:
        text = f"there is no Model {', '.join(missing)} in namespace {alias.metadata.namespace}"
        draft.set(AliasCondition.RESOLVED, FALSE, Reason.TARGET_NOT_FOUND, text)
    else:
        text = f"points at {', '.join(name for name, _ in targets)}"
        draft.set(AliasCondition.RESOLVED, TRUE, Reason.RESOLVED, text)
    message = text
    if ready:
        message = f"{ready[0]} answers" if missing else text
        draft.set(AliasCondition.READY, TRUE, Reason.READY, f"ready: {', '.join(ready)}")
    else:
        reason = Reason.TARGET_NOT_FOUND if len(missing) == len(set(names)) else Reason.TARGET_NOT_READY
        message = text if missing else f"none of {', '.join(dict.fromkeys(names))} is ready"
        draft.set(AliasCondition.READY, FALSE, reason, message)
    status = {
        "observedGeneration": alias.metadata.generation,
        "conditions": [c.dump() for c in draft.conditions if c.type != "Stalled"],  # of a spec that did not parse
        "current": [{"modelRef": {"name": n}, "weight": w, "ready": n in ready} for n, w in targets],
        "summary": {
            "targets": line(",".join(name for name, _ in targets), 60),
            "ready": f"{sum(1 for n, _ in targets if n in ready)}/{len(targets)}",
            "message": line(message),
        },
    }
    if used := use.totals(alias.status.usage, seen.usage):
        status["usage"] = used.dump()
    return Plan(status=status, events=draft.events(_EVENTS), why=message)


def _ready(seen: ObservedAlias, name: str) -> bool:
    raw = seen.models.get(name)
    if raw is None:
        return False
    try:
        model = Model.read(raw)
    except InvalidSpec:
        return False
    asleep = model.status.desired_replicas == 0
    return is_true(model.status.conditions, ModelCondition.READY) and not asleep
