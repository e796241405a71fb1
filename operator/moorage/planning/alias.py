"""A ModelAlias' status: where it leads, and which of its Models exist, permit it, suffice and are Ready."""

from dataclasses import dataclass
from typing import Any

from moorage.api.alias import AliasStatus, AliasSummary, CurrentTarget, ModelAlias, StatusModelRef
from moorage.api.conditions import AliasCondition, ModelCondition, ModelPhase, Reason, is_true
from moorage.api.model import Model
from moorage.api.naming import ModelRef
from moorage.engines.capabilities import known_of, pooled
from moorage.errors import InvalidSpec
from moorage.planning import alias_history, invalid, served_names
from moorage.planning import usage as use
from moorage.planning.draft import FALSE, TRUE, Draft
from moorage.planning.requirements import Offer, offer, shortfall
from moorage.planning.text import line
from moorage.planning.types import Manifest, ObservedAlias, Plan, PlannedEvent

C = AliasCondition

_EVENTS = {
    (C.RESOLVED, FALSE, "*"): "*",
    (C.NAME_CONFLICT, TRUE, "*"): "*",
    (C.READY, TRUE, "*"): "Ready",
    (C.READY, FALSE, Reason.TARGET_NOT_READY): "*",
}


@dataclass(frozen=True)
class _Leg:
    """One Model that the alias names. `reason` and `problem`: why requests go past it.

    `serves`: what it does instead of generating text, such as embeddings; empty where it generates or nobody knows.
    """

    ref: ModelRef
    shown: str
    reason: Reason | None = None
    problem: str = ""
    ready: bool = False
    asleep: bool = False  # ready, but only for those who wait a moment
    why_not: str = ""
    serves: str = ""


def plan_alias(seen: ObservedAlias) -> Plan:
    """The status that is true to the alias' targets; an alias owns nothing, so nothing is applied."""
    try:
        alias = ModelAlias.read(seen.alias)
    except InvalidSpec as error:
        return invalid.plan(seen.alias, seen.now, error)
    if alias.metadata.deletion_timestamp:
        return Plan(why="being deleted")
    draft = Draft(alias.status.conditions, alias.metadata.generation, seen.now)
    draft.drop("Stalled")  # of a spec that did not parse
    refs = [*(t.model_ref for t in alias.spec.targets), *(f.model_ref for f in alias.spec.fallbacks)]
    legs = {ref: _leg(seen, alias, ref) for ref in refs}
    targets = [legs[t.model_ref] for t in alias.spec.targets]
    problem = _resolved(draft, alias, list(legs.values()))
    message = _ready(draft, targets, list(legs.values()), problem)
    events, again = _failed_over(draft, alias, seen, list(legs.values()))
    served_names.tell(draft, seen.taken)
    _shadowing(draft, alias, seen.shadows)
    if not problem:
        message = _trouble(draft) or message
    before = alias.status.revision
    status = _status(alias, seen, draft, targets, message)
    events = draft.events(_EVENTS) + events
    if before is not None and before != status.revision:
        events += (PlannedEvent("Normal", "Switched", f"points at {_shares(alias, targets)} now"),)
    return Plan(status=status.dump(), events=events, requeue_after=again, why=message)


def _trouble(draft: Draft) -> str:
    """What is worth a column's only line, where all Models are as the spec wants them."""
    found = (draft.get(kind) for kind in (C.FAILED_OVER, C.NAME_CONFLICT) if draft.true(kind))
    return next((condition.message for condition in found if condition), "")


def _status(alias: ModelAlias, seen: ObservedAlias, draft: Draft, targets: list[_Leg], message: str) -> AliasStatus:
    status = alias.status  # parsed for this pass alone
    status.observed_generation = alias.metadata.generation
    order = {kind.value: place for place, kind in enumerate(C)}
    status.conditions = sorted(draft.conditions, key=lambda c: order.get(c.type, len(order)))
    status.revision, status.history = alias_history.advance(alias, seen.now)
    status.current = [_current(alias, leg, t.weight) for leg, t in zip(targets, alias.spec.targets, strict=True)]
    status.summary = AliasSummary(
        targets=line(_shares(alias, targets), 60),
        ready=f"{sum(leg.ready for leg in targets)}/{len(targets)}",
        message=line(message),
        defaults=line(_parameters(alias), 80) or None,
    )
    status.usage = use.totals(status.usage, seen.usage)
    return status


def _leg(seen: ObservedAlias, alias: ModelAlias, ref: ModelRef) -> _Leg:
    own = alias.metadata.namespace
    namespace = ref.namespace or own
    shown = ref.name if namespace == own else f"{namespace}/{ref.name}"
    raw = seen.models.get(f"{namespace}/{ref.name}")
    if raw is None:
        return _Leg(ref, shown, Reason.TARGET_NOT_FOUND, f"there is no Model {ref.name} in namespace {namespace}")
    try:
        model = Model.read(raw)
    except InvalidSpec:
        return _Leg(ref, shown, why_not=f"{shown} has an invalid spec")
    if not model.spec.allowed_namespaces.permits(namespace, own, seen.namespace_labels):
        text = f"Model {shown} does not permit aliases of namespace {own} (its spec.allowedNamespaces)"
        return _Leg(ref, shown, Reason.TARGET_NOT_PERMITTED, text)
    why_not = _why_not_ready(model, shown)
    offered = offer_of(model)
    if lack := shortfall(alias.spec.requires, offered, shown):
        return _Leg(ref, shown, Reason.TARGET_FALLS_SHORT, lack, why_not=why_not)
    serves = pooled(known_of(offered.capabilities or ())) or ""
    asleep = not why_not and model.status.phase == "ScaledToZero"
    return _Leg(ref, shown, ready=not why_not, asleep=asleep, why_not=why_not, serves=serves)


def offer_of(model: Model) -> Offer:
    """What a Model offers to aliases, as far as it is known yet."""
    spec, source = model.spec, model.status.source
    return offer(
        spec.context_length,
        source.context_length if source else None,
        spec.capabilities,
        {found.name: found.evidence for found in model.status.capabilities},
        files_known=bool(source and source.main_file),
    )


def _why_not_ready(model: Model, shown: str) -> str:
    """Empty where the Model takes requests, or sleeps and wakes when one comes."""
    if model.spec.replicas == 0:
        return f"{shown} is unloaded (replicas 0)"
    if is_true(model.status.conditions, ModelCondition.READY):
        return ""
    status = model.status
    if not status.phase:
        return f"{shown} is new"
    # Why it needs a person is told to its own namespace: the sentence may name what others are not to see.
    told = status.summary.message if status.summary and status.phase in _NEEDS_SOMEBODY and "/" not in shown else ""
    return f"{shown} is {status.phase}" + (f": {told}" if told else "")


_NEEDS_SOMEBODY = (ModelPhase.BLOCKED, ModelPhase.FAILED)


def _resolved(draft: Draft, alias: ModelAlias, legs: list[_Leg]) -> str:
    """Set Resolved; what is wrong with the Models that the spec names, empty where nothing is."""
    wrong = [leg for leg in legs if leg.reason]
    problem = "; ".join(leg.problem for leg in wrong)
    if wrong:
        first = min((leg.reason for leg in wrong if leg.reason), key=_GRAVEST.index)
        draft.set(C.RESOLVED, FALSE, first, problem)
    else:
        shares = _shares(alias, legs[: len(alias.spec.targets)])
        draft.set(C.RESOLVED, TRUE, Reason.RESOLVED, f"points at {shares}{_divided(legs)}")
    return problem


def _divided(legs: list[_Leg]) -> str:
    """Which of the Models chats and completions go past, where there is another for them: the gateway divides them."""
    if all(leg.serves for leg in legs):
        return ""
    past = (f"; {leg.shown} serves {leg.serves}, chats and completions go past it" for leg in legs if leg.serves)
    return "".join(past)


_GRAVEST = (Reason.TARGET_NOT_FOUND, Reason.TARGET_NOT_PERMITTED, Reason.TARGET_FALLS_SHORT)


def _ready(draft: Draft, targets: list[_Leg], legs: list[_Leg], problem: str) -> str:
    """Set Ready: whether requests are answered; returns the message for the column."""
    waiting = "; ".join(leg.why_not for leg in legs if leg.why_not)
    if not any(leg.ready for leg in legs):
        lost = all(leg.reason for leg in legs)
        text = "; ".join(filter(None, [problem, waiting]))
        draft.set(C.READY, FALSE, (lost and legs[0].reason) or Reason.TARGET_NOT_READY, text)
        return text
    awake = [leg for leg in legs if leg.ready and not leg.asleep]
    text = _they(awake, "answers", "answer")
    if awake and awake[0] not in targets:
        text = f"{awake[0].shown} stands in as a fallback"
    sleeping = _they([leg for leg in legs if leg.asleep], "sleeps until asked for", "sleep until asked for")
    text = "; ".join(filter(None, [text, sleeping, waiting]))
    draft.set(C.READY, TRUE, Reason.READY, text)
    return "; ".join(filter(None, [problem, text]))


def _they(legs: list[_Leg], one: str, several: str) -> str:
    """`a answers`, or `a, b answer`; empty where it is nobody."""
    return f"{', '.join(leg.shown for leg in legs)} {one if len(legs) == 1 else several}" if legs else ""


def _failed_over(
    draft: Draft, alias: ModelAlias, seen: ObservedAlias, legs: list[_Leg]
) -> tuple[tuple[PlannedEvent, ...], float | None]:
    """The condition FailedOver, with `spec.failover`; Events of it, and when to look whether a gateway has gone."""
    if alias.spec.failover is None:
        draft.drop(C.FAILED_OVER)
        return (), None
    before, was = draft.get(C.FAILED_OVER), draft.was_true(C.FAILED_OVER)
    if text := _gone_past(alias, seen.usage, legs):
        draft.set(C.FAILED_OVER, TRUE, Reason.FAILED_OVER, text)
        told = before is None or not was or before.message != text
        return ((PlannedEvent("Warning", "FailedOver", text),) if told else ()), GATEWAY_GONE_SECONDS
    if before is not None and was and seen.usage.hearing is use.Hearing.LISTENING:
        # Silence proves no recovery: those that went past it have not spoken to this operator yet.
        draft.set(C.FAILED_OVER, TRUE, Reason.FAILED_OVER, before.message)
        return (), LISTENING_AGAIN_SECONDS
    text = "every target takes its share of the requests"
    draft.set(C.FAILED_OVER, FALSE, Reason.SETTLED, text)
    return ((PlannedEvent("Normal", "Recovered", text),) if was else ()), None


def _gone_past(alias: ModelAlias, usage: use.Usage, legs: list[_Leg]) -> str:
    """Which of the alias' Models requests go past, and why; empty where they go past none."""
    own = alias.metadata.namespace
    by_name = {f"{leg.ref.namespace or own}/{leg.ref.name}": leg for leg in legs}
    # A gateway may still tell of a target that the alias has had until just now.
    gone = [(by_name[past.model], past) for past in usage.gone_past if past.model in by_name]
    left = {leg.ref for leg, _ in gone}
    covered = any(leg.ready and leg.ref not in left for leg in legs)
    found = []
    for leg, past in gone:
        some = f" through {past.gateways} of {usage.gateways} gateways" if past.gateways < usage.gateways else ""
        how = f"requests{some} go past {leg.shown}" if covered else f"{leg.shown} does badly, and nobody else is ready"
        found.append(f"{how}: {past.why}")
    return "; ".join(found)


GATEWAY_GONE_SECONDS = 60.0
"""A gateway pod that ends does not say that it goes past nobody any more: it falls silent."""
LISTENING_AGAIN_SECONDS = 5.0


def _shadowing(draft: Draft, alias: ModelAlias, shadows: bool) -> None:
    """There is nothing wrong with it where it is meant: `qwen3` may point at `qwen3` and at its successor."""
    if not shadows:
        draft.drop(C.SHADOWING)
        return
    name = alias.metadata.name
    text = f"a Model is called {name} too; requests for {name} come here, and nobody reaches that Model by its own name"
    draft.set(C.SHADOWING, TRUE, Reason.SHADOWING, text)


def _current(alias: ModelAlias, leg: _Leg, weight: int) -> CurrentTarget:
    elsewhere = leg.ref.namespace if leg.ref.namespace != alias.metadata.namespace else None
    ref = StatusModelRef(name=leg.ref.name, namespace=elsewhere)
    return CurrentTarget(model_ref=ref, weight=weight, ready=leg.ready)


def _shares(alias: ModelAlias, targets: list[_Leg]) -> str:
    """The targets in a line: `qwen3-8b`, or `qwen3-8b 90%, llama 10%`."""
    if len(targets) == 1:
        return targets[0].shown
    weights = [target.weight for target in alias.spec.targets]
    whole = sum(weights) or 1
    return ", ".join(f"{leg.shown} {round(100 * w / whole)}%" for leg, w in zip(targets, weights, strict=True))


def _parameters(alias: ModelAlias) -> str:
    """Defaults, and overrides with an exclamation mark, in a line: `max_tokens=512, temperature!=0`."""
    request = alias.spec.request
    if request is None:
        return ""
    some: list[tuple[str, Manifest]] = [("=", request.defaults.flat()), ("!=", request.overrides.flat())]
    found = [f"{name}{sign}{_value(value)}" for sign, values in some for name, value in sorted(values.items())]
    return ", ".join([*found, *(["systemPrompt"] if request.system_prompt else [])])


def _value(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
