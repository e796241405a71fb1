"""What to do about a Model: Accepted -> Placed -> Downloaded -> Serving -> Ready, then Benchmarked.

Each step lives in a module of its own and owns its conditions; here is their order, and the roll-up.
"""

from dataclasses import replace

from moorage import names
from moorage.api.conditions import ConditionStatus, ModelPhase, Reason
from moorage.api.conditions import ModelCondition as C
from moorage.api.model import Model
from moorage.api.model_status import ModelSummary
from moorage.errors import InvalidSpec
from moorage.manifests import model as manifests
from moorage.planning import (
    invalid,
    model_awake,
    model_benchmark,
    model_capabilities,
    model_engine,
    model_memory,
    model_room,
    model_serve,
    model_source,
    served_names,
    text,
)
from moorage.planning.draft import FALSE, TRUE, UNKNOWN, Draft
from moorage.planning.model_pass import PERSON, ModelPass
from moorage.planning.types import ObservedModel, Plan

STEPS = (C.ACCEPTED, C.PLACED, C.DOWNLOADED, C.SERVING)

EVENTS = {
    (C.ACCEPTED, FALSE, "*"): "*",
    (C.PLACED, TRUE, Reason.NO_ACCELERATOR_NEEDED): "",  # nothing was looked for
    (C.PLACED, TRUE, "*"): "Placed",
    (C.PLACED, FALSE, "*"): "*",
    (C.SERVING, FALSE, Reason.LOADED_MODELS_LIMIT): "*",
    (C.DOWNLOADED, FALSE, Reason.DOWNLOADING): "Downloading",
    (C.DOWNLOADED, FALSE, "*"): "*",
    (C.DOWNLOADED, TRUE, "*"): "Downloaded",
    (C.SERVING, FALSE, Reason.LOADING): "Loading",
    (C.SERVING, FALSE, Reason.SCALED_TO_ZERO): "Unloaded",
    (C.SERVING, FALSE, Reason.PREEMPTED): "Preempted",
    (C.SERVING, FALSE, Reason.PENDING): "",
    (C.SERVING, FALSE, Reason.WAITING_FOR_MEMORY): "WaitingForMemory",
    (C.SERVING, FALSE, "*"): "LoadFailed",
    (C.SERVING, TRUE, "*"): "Loaded",
    (C.UP_TO_DATE, FALSE, Reason.ROLLOUT_FAILED): "*",
    (C.NAME_CONFLICT, TRUE, "*"): "*",
    (C.BENCHMARKED, FALSE, Reason.RUNNING): "BenchmarkStarted",
    (C.BENCHMARKED, FALSE, Reason.BENCHMARK_FAILED): "BenchmarkFailed",
    (C.BENCHMARKED, TRUE, Reason.COMPLETED): "BenchmarkCompleted",
}

ENDINGS = {"Downloaded", "Unloaded"}
"""Told only of what began before: files that were there already, and a Model that never had a server, are no news."""


def plan_model(seen: ObservedModel) -> Plan:
    """The next step of one Model."""
    if seen.model["metadata"].get("deletionTimestamp"):
        return Plan(why="being deleted; its children go with it")
    try:
        model = Model.read(seen.model)
    except InvalidSpec as error:
        return replace(invalid.plan(seen.model, seen.now, error), loaded=_has_servers(seen))
    draft = Draft(model.status.conditions, model.metadata.generation, seen.now)
    step = ModelPass(seen, model, model.status, draft, replicas=model.spec.replicas)  # parsed for this pass alone
    model_awake.decide(step)
    model_room.keep_to_limit(step)
    message = _walk(step)
    _roll_up(step, message)
    return Plan(
        apply=tuple(step.apply),
        patch=tuple(step.patch),
        delete=tuple(step.delete),
        status=step.status.dump(),
        events=(*step.tell, *draft.events(EVENTS, ENDINGS)),
        ask=tuple(step.ask),
        reserve=step.reserve,
        requeue_after=step.requeue,
        evict=step.evict,
        look_around=step.look_around,
        loaded=step.replicas > 0 and (step.admitted or seen.loaded),
        follow_load=model.spec.scaling.target_requests is not None,
        words_wait=_first_on_cpu(step),
        why=message,
    )


def _first_on_cpu(step: ModelPass) -> bool:
    """Whether the first servers are made, and no GPUs were chosen for them, which only the status would remember."""
    made = any(manifest["kind"] == "Deployment" for manifest in step.apply)
    return made and step.seen.deployment is None and not (step.status.placement and step.status.placement.count)


def _has_servers(seen: ObservedModel) -> bool:
    """Whether it has servers that stay, whatever its spec says now: they take one of the namespace's places."""
    return bool(seen.deployment and seen.deployment.get("wanted"))


def _walk(step: ModelPass) -> str:
    """Take the steps in order; the first that is not done ends the walk with its message.

    What is live is looked at in any case: a new version that is still downloading does not make the old one unready.
    """
    steps = (model_source.accept, model_room.find_room, model_source.download, model_room.admit, model_serve.serve)
    blocked = next((text_ for take in steps if (text_ := take(step))), None)
    live = model_serve.watch(step)
    for kind in STEPS:
        if step.draft.get(kind) is None:
            step.draft.set(kind, UNKNOWN, Reason.PENDING, "an earlier step has to finish first")
    model_capabilities.tell(step)
    model_benchmark.benchmark(step)
    serving = step.draft.get(C.SERVING)
    return blocked or live or (serving.message if serving else "")


def _roll_up(step: ModelPass, message: str) -> None:
    """Ready, Reconciling, Stalled, the phase and the columns from the conditions of the steps."""
    status, draft = step.status, step.draft
    status.observed_generation = step.model.metadata.generation
    status.desired_replicas = step.replicas
    status.selector = manifests.selector(step.model.metadata.name)
    status.endpoint = f"http://{names.model_child(step.model.metadata.name)}.{step.model.metadata.namespace}.svc/v1"
    asleep = step.asleep and all(draft.true(k) for k in STEPS[:3])
    unmet = next((c for k in STEPS if (c := draft.get(k)) and c.status != TRUE), None)
    keeps = draft.true(C.SERVING) and draft.was_true(C.READY)  # the old version serves while a new one is on its way
    slept = step.sleep.reason if asleep and step.sleep else None
    ready = slept == Reason.SCALED_TO_ZERO or unmet is None or keeps
    reason = slept or (Reason.READY if unmet is None else unmet.reason)
    stalled = unmet is not None and not asleep and unmet.reason in PERSON
    failing = unmet is not None and unmet.status == FALSE and unmet.reason in _FAILURES
    busy = not stalled and not failing and ((unmet is not None and not asleep) or not _settled(step))
    draft.set(C.RECONCILING, TRUE if busy else FALSE, Reason.PROGRESSING if busy else Reason.SETTLED, message)
    draft.set(
        C.STALLED,
        TRUE if stalled or failing else FALSE,
        reason if stalled or failing else Reason.SETTLED,
        message if stalled or failing else "nothing stands in the way",
    )
    draft.set(C.READY, TRUE if ready else FALSE, reason, message)
    if draft.get(C.ACTIVE) is None:
        draft.set(C.ACTIVE, FALSE if asleep else UNKNOWN, Reason.PENDING, "there is no server yet")
    served_names.tell(draft, step.seen.taken)
    permits = step.model.spec.allowed_namespaces.permits
    own = step.model.metadata.namespace
    pointing = [a for a in step.seen.aliases if permits(own, a.namespace, a.namespace_labels)]
    status.used_by = [f"{alias.namespace}/{alias.name}" for alias in pointing]
    before = status.phase
    status.phase = _phase(step, asleep=asleep, ready=ready, stalled=stalled, failing=failing, before=before)
    order = {kind.value: place for place, kind in enumerate(C)}  # what a later version added stays, at the end
    status.conditions = sorted(draft.conditions, key=lambda c: order.get(c.type, len(order)))
    status.summary = _summary(step, message, reason)


_FAILURES = {
    Reason.IMAGE_PULL_FAILED,
    Reason.CRASH_LOOP,
    Reason.OUT_OF_MEMORY,
    Reason.ROLLOUT_FAILED,
    Reason.WARM_UP_FAILED,
    Reason.UNSCHEDULABLE,
    Reason.VOLUME_ON_ONE_NODE,
    Reason.VOLUME_IN_USE,
}


def _settled(step: ModelPass) -> bool:
    current = step.draft.get(C.UP_TO_DATE)
    return current is None or current.reason != Reason.PROGRESSING


def _phase(
    step: ModelPass, *, asleep: bool, ready: bool, stalled: bool, failing: bool, before: ModelPhase | None
) -> ModelPhase:
    """The one word: what is in the way now, or how it serves."""
    draft = step.draft
    if step.sleep is not None and step.sleep.reason == Reason.LOADED_MODELS_LIMIT:
        return ModelPhase.PENDING
    if asleep:
        return ModelPhase.PREEMPTED if not ready else ModelPhase.SCALED_TO_ZERO
    if ready:
        served = before in (ModelPhase.READY, ModelPhase.DEGRADED)
        return ModelPhase.DEGRADED if served and (_rollout_failed(step) or failing or step.lame) else ModelPhase.READY
    if stalled:
        return ModelPhase.BLOCKED
    if failing:
        return ModelPhase.DEGRADED if before in (ModelPhase.READY, ModelPhase.DEGRADED) else ModelPhase.FAILED
    awaited = draft.get(C.PLACED)
    coming = awaited is not None and awaited.reason == Reason.WAITING_FOR_NODE  # the files are fetched meanwhile
    first = next((k for k in STEPS if not draft.true(k) and not (coming and k == C.PLACED)), C.SERVING)
    if coming and first == C.SERVING:
        return ModelPhase.PLACING
    if first == C.SERVING and before in (ModelPhase.READY, ModelPhase.DEGRADED):
        return ModelPhase.DEGRADED
    words = {C.PLACED: ModelPhase.PLACING, C.DOWNLOADED: ModelPhase.DOWNLOADING, C.SERVING: ModelPhase.LOADING}
    return words.get(first, ModelPhase.PENDING)


def _rollout_failed(step: ModelPass) -> bool:
    found = step.draft.get(C.UP_TO_DATE)
    return found is not None and found.status == ConditionStatus.FALSE and found.reason == Reason.ROLLOUT_FAILED


def _summary(step: ModelPass, message: str, reason: str) -> ModelSummary:
    status = step.status
    nodes = status.placement.nodes if status.placement else []
    bench = status.benchmark
    speed = bench.output_tokens_per_second_milli if bench else None
    ttft = bench.ttft_microseconds.p50 if bench and bench.ttft_microseconds else None
    rollout = step.draft.get(C.UP_TO_DATE)
    told = rollout.message if rollout and _rollout_failed(step) and step.draft.true(C.SERVING) else message
    source = status.source
    return ModelSummary(
        ready=f"{status.ready_replicas or 0}/{step.replicas}",
        vram=model_memory.vram(status.memory),
        tokens_per_second=f"{speed / 1000:.0f}" if speed is not None else None,
        node=None if not nodes else nodes[0] if len(nodes) == 1 else f"{len(nodes)} nodes",
        message=text.line(told),
        ttft=f"{ttft / 1000:.0f}ms" if ttft is not None else None,
        context=str(model_engine.context_length(step)) if source and source.inputs_hash else None,
        source=_source_text(step),
        reason=reason,
    )


def _source_text(step: ModelPass) -> str | None:
    spec, source = step.model.spec.source, step.status.source
    if spec.hugging_face:
        revision = f"@{(source.resolved_revision or '')[:7]}" if source and source.resolved_revision else ""
        return f"{spec.hugging_face.repo}{revision}"
    if spec.http:
        return spec.http.url.partition("?")[0]
    if spec.persistent_volume_claim:
        return f"pvc/{spec.persistent_volume_claim.claim_name}"
    return f"download/{spec.download_ref.name}" if spec.download_ref else None
