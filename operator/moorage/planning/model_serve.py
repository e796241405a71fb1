"""The middle steps of a Model: an accelerator (Placed), a Deployment and a Service, an answer through it (Serving)."""

from collections.abc import Iterable

from moorage import names
from moorage.api.capabilities import Capability
from moorage.api.common import duration_seconds
from moorage.api.conditions import ConditionStatus, Reason
from moorage.api.conditions import ModelCondition as C
from moorage.api.model_status import EngineReport, EngineStatus
from moorage.manifests import model as manifests
from moorage.placement.affinity import merged
from moorage.placement.text import listed
from moorage.planning import (
    budget,
    devices,
    model_capabilities,
    model_gate,
    model_inputs,
    model_source,
    moving,
    node_pools,
    text,
    volumes,
)
from moorage.planning.draft import FALSE, TRUE, UNKNOWN
from moorage.planning.model_engine import asked_of, engine_of, image_for, image_of, newest_image, restart_of, vendor_of
from moorage.planning.model_learn import partly_on_cpu, unseen
from moorage.planning.model_memory import memory
from moorage.planning.model_pass import ModelPass
from moorage.planning.model_place import candidates, decision, remember_memory, tell_what_runs
from moorage.planning.model_start import start_of
from moorage.planning.pods import DEADLINE, Trouble, first_trouble
from moorage.planning.startup import startup_of
from moorage.planning.types import Manifest, Patch, PlannedEvent, Ref, WarmUp

RESOURCES = {"Nvidia": "nvidia.com/gpu", "AMD": "amd.com/gpu"}
WARM_UP_PATIENCE = 7
"""Failed warm-ups that are not worth a word: nodes take some seconds to learn of a Service's new pod."""


def serve(step: ModelPass) -> str | None:
    """See to the Service and the Deployment; returns a message where a stranger holds their name."""
    service, live = step.seen.service, step.seen.deployment
    for kind, child in (("Service", service), ("Deployment", live)):
        if child is not None and not _ours(step, child):
            return _not_ours(step, kind, child)
    gpus = (step.status.placement.count if step.status.placement else 0) or 0
    # The header of files in a volume is known only by now; what runs keeps what was planned for it.
    if not step.keeps_plan and (refused := remember_memory(step, gpus)):
        return refused
    image = image_of(step)
    if not image:
        what = f"the chart names no {engine_of(step).title} image for {vendor_of(step)} GPUs; set spec.image"
        return step.stop(C.SERVING, Reason.IMAGE_REQUIRED, what)
    _deployment(step, live, image)  # first, because its pod takes longest
    step.apply.append(manifests.service(step.seen.model))
    return None


def _ours(step: ModelPass, child: Manifest) -> bool:
    return child.get("owner") == step.model.metadata.uid


def _not_ours(step: ModelPass, kind: str, child: Manifest) -> str:
    """A stranger's object stays for a person to see to; what a deleted Model left is about to be collected."""
    name = names.model_child(step.model.metadata.name)
    if child.get("owner") and names.MODEL_LABEL in child.get("labels", {}):
        return step.wait(C.SERVING, f"waiting for the {kind} {name} of a former Model to be removed")
    what = f"a {kind} {name} exists that Moorage did not make; rename it, or give this Model another name"
    return step.stop(C.SERVING, Reason.NAME_TAKEN, what)


def _deployment(step: ModelPass, live: Manifest | None, image: str) -> None:
    why = model_inputs.changes(step) if live else ()
    changed = live is None or bool(why) or node_pools.misplaced(step, live)
    if found := model_gate.held(step, changed=changed, surge=_surge(step)):
        _hold(step, live, found, changed=changed)
        return
    anew = _anew(step, live, image, why) if live is None or changed or _wakes(step, live) else None
    if anew is not None and not (live and live["manifestHash"] == anew["metadata"]["annotations"][names.MANIFEST_HASH]):
        step.apply.append(anew)
        if why and live and live["wanted"]:
            step.tell.append(PlannedEvent("Normal", "RollingOut", f"servers start anew: {listed(why, 4)} changed"))
    elif live is not None and live["wanted"] != step.replicas + step.surge:
        if step.surge and live["wanted"] < step.replicas + step.surge:
            step.tell.append(PlannedEvent("Normal", "Moving", step.leaving))
        _scale(step, live, step.replicas + step.surge)
    before, engine = step.status.engine or EngineStatus(), engine_of(step)
    version = before.version if before.image == image else None
    why_engine = f"{engine.files} are served by {engine.title}"
    step.status.engine = EngineStatus(
        name=engine.name, image=image, version=version, reason=why_engine, report=before.report
    )


def _wakes(step: ModelPass, live: Manifest) -> bool:
    """Whether it starts from nothing, and so can take what this version of Moorage would start."""
    return not live["wanted"] and step.replicas > 0 and not step.servers


def _anew(step: ModelPass, live: Manifest | None, image: str, why: tuple[str, ...]) -> Manifest:
    """The Deployment as this version of Moorage makes it."""
    notes, surge = _notes(step, None if live is None or why else live["inputsHash"]), _surge(step)
    pod = _pod(step, image)
    return manifests.deployment(step.seen.model, pod, replicas=step.replicas, notes=notes, surge=surge)


def _notes(step: ModelPass, kept: str | None) -> dict[str, str]:
    """The Deployment's annotations; `kept` is the name of its inputs as another version of Moorage may have given it.

    What is measured and warmed up is known by that name.
    """
    notes = {
        names.INPUTS_HASH: kept or model_inputs.identity(step),
        names.INPUTS: model_inputs.note(step),
        names.RESTART_AT: restart_of(step),
        names.IMAGE_FOR: image_for(step),
        names.IMAGE_FROM: "spec" if step.model.spec.image else "",
        names.MOVED: moving.moved(step),
    }
    return {key: value for key, value in notes.items() if value}


def _hold(step: ModelPass, live: Manifest | None, found: model_gate.Held, *, changed: bool) -> None:
    """Start nothing yet. What runs goes on, unless it holds the very GPUs that its new version waits for."""
    step.held = found.message
    running = bool(live and live["wanted"])
    if live is not None and running and found.stops:
        _scale(step, live, 0)
        running = False
    if not running:
        step.draft.set(C.SERVING, FALSE, found.reason, found.message)
    if live is not None and changed:
        step.draft.set(C.UP_TO_DATE, FALSE, Reason.PROGRESSING, f"the new version waits: {found.message}")
    step.held_version = changed


def _scale(step: ModelPass, live: Manifest, replicas: int) -> None:
    ref = Ref("apps/v1", "Deployment", step.model.metadata.namespace, live["name"], live["uid"])
    step.patch.append(Patch(ref, {"spec": {"replicas": replicas}}))


def _pending(step: ModelPass) -> bool:
    return any(m["kind"] == "Deployment" for m in step.apply)


def _written(step: ModelPass) -> bool:
    """Whether this pass writes the Deployment."""
    return _pending(step) or _scaled(step)


def _scaled(step: ModelPass) -> bool:
    return any(p.ref.kind == "Deployment" for p in step.patch)


def _surge(step: ModelPass) -> bool:
    """Whether a new pod starts before the old one stops: always on CPUs; on GPUs only where the spec asks for it,
    because a spare GPU cannot be counted on."""
    strategy = step.model.spec.rollout.strategy
    if step.moving:
        return True
    if strategy == "Auto":
        return not (step.status.placement and step.status.placement.count)
    return strategy == "Surge"


def _pod(step: ModelPass, image: str) -> manifests.ServerPod:
    spec, placed = step.model.spec, step.status.placement
    gpus = (placed.count if placed else 0) or 0
    chosen = (step.decision or decision(step, candidates(step), replacing=True)) if gpus else None
    volume = step.seen.volume
    passthrough = {
        "nodeSelector": spec.node_selector or None,
        "tolerations": [*spec.tolerations, *(dict(t) for t in chosen.tolerations)] if chosen else spec.tolerations,
        "affinity": volumes.beside(merged(spec.affinity, chosen.affinity) if chosen else spec.affinity, volume),
        "priorityClassName": spec.priority_class_name,
    }
    meta, asked = spec.pod_metadata, restart_of(step)
    annotations = dict(meta.annotations) if meta else {}
    marks = {
        names.RESTART_AT: asked,
        names.LEAST_GPU_MEMORY: model_inputs.room_of(step),
        names.MOVED: moving.moved(step),
    }
    return manifests.ServerPod(
        image=image,
        engine=engine_of(step).container(asked_of(step), start_of(step)),
        claim=step.source.claim_name or "",
        chat_template=spec.chat_template.config_map_key_ref if spec.chat_template else None,
        memory_request_mib=(step.status.memory or memory(step, gpus)).host_mib or 1024,
        **devices.asked(step, chosen, RESOURCES.get(vendor_of(step), "")),
        gpus=gpus,
        runtime_class=spec.accelerator.runtime_class_name,
        pull_secrets=(*(s["name"] for s in spec.image_pull_secrets), *step.seen.defaults.image_pull_secrets),
        resources=spec.resources or {},
        env=tuple(spec.env),
        env_from=tuple(spec.env_from),
        pod_labels={**(meta.labels if meta else {}), **volumes.labels(volume)},
        pod_annotations={**annotations, **{k: v for k, v in marks.items() if v}},
        passthrough={k: v for k, v in passthrough.items() if v},
    )


# -- what the live objects say ---------------------------------------------------------------------------------


def watch(step: ModelPass) -> str | None:
    """Serving, UpToDate and Active from the live Deployment and its pods; a message while something is missing."""
    live = step.seen.deployment
    if live is None or not _ours(step, live):
        step.status.ready_replicas = step.status.replicas = 0
        if step.draft.get(C.SERVING) is None or step.draft.true(C.SERVING):
            step.draft.set(C.SERVING, FALSE, Reason.PENDING, "there is no server yet")
        return None
    step.status.replicas, step.status.ready_replicas = live["replicas"], live["ready"]
    step.delete += [] if _rolling(live) or _pending(step) else devices.outdated(step, live)
    running = any(p["node"] for p in step.servers) and not _pending(step)
    if running and (step.moving or not step.stands):
        tell_what_runs(step, coming=True)
    _where(step)
    budget.limit_evictions(step, live)
    step.draft.set(C.ACTIVE, *_active(step))
    if step.replicas + step.surge < live["wanted"] and not _written(step):
        _scale(step, live, step.replicas + step.surge)  # an earlier step that waits keeps nobody from unloading
    if step.sleep is not None:
        _up_to_date(step, live, None)
        step.status.template = None
        step.draft.set(C.SERVING, FALSE, step.sleep.reason, step.sleep.message)
        return step.sleep.message
    if step.held and (_scaled(step) or not live["wanted"]):
        return step.held
    if not live["wanted"] and not _written(step):
        step.draft.set(C.SERVING, FALSE, Reason.PENDING, "an earlier step has to finish first")
        return None
    problem = _trouble(step, live)
    _up_to_date(step, live, problem)
    if live["ready"] == 0:
        return _not_serving(step, problem)
    step.lame = problem is not None and not _rolling(live) and live["ready"] < step.replicas
    return _warm(step, live, problem if step.lame else None)


def _active(step: ModelPass) -> tuple[ConditionStatus, Reason, str]:
    if step.sleep is not None:
        return FALSE, step.sleep.reason, step.sleep.message
    reason, note = step.note
    return TRUE, reason, f"{step.replicas} wanted{f'; {note}' if note else ''}"


def _where(step: ModelPass) -> None:
    nodes = sorted({p["node"] for p in step.servers if p["node"]})
    if step.status.placement:
        step.status.placement.nodes = nodes


def _trouble(step: ModelPass, live: Manifest) -> Trouble | None:
    """What keeps pods from being ready: the pods' own words, else what keeps the ReplicaSet from making them."""
    waiting = [p for p in step.servers if not p["ready"]]
    if found := volumes.explained(first_trouble(waiting), step.seen.volume):
        return found
    if found := next((t for p in waiting if (t := volumes.in_use(p, step.seen.volume))), None):
        return found
    failure = live["conditions"].get("ReplicaFailure", {})
    if failure.get("status") == "True":
        quota = "exceeded quota" in failure["message"]
        return Trouble(Reason.QUOTA_EXCEEDED if quota else Reason.FORBIDDEN, failure["message"])
    progressing = live["conditions"].get("Progressing", {})
    if progressing.get("reason") == DEADLINE:
        return Trouble(Reason.ROLLOUT_FAILED, progressing["message"])
    return None


def _rolling(live: Manifest) -> bool:
    settled = live["observedGeneration"] >= live["generation"]
    return not settled or live["updated"] < live["wanted"] or live["replicas"] > live["updated"]


def _up_to_date(step: ModelPass, live: Manifest, problem: Trouble | None) -> None:
    newest = newest_image(step)
    made_for_this = step.source.inputs_hash == model_source.inputs_of(step) and model_inputs.stands(step)
    unmet = (
        c for k in (C.ACCEPTED, C.PLACED, C.DOWNLOADED, C.SERVING) if (c := step.draft.get(k)) and c.status != TRUE
    )
    if step.held_version:
        return
    if _rolling(live) and problem and live["ready"]:
        what = f"the new version does not start ({problem.message}); the previous one keeps serving"
        step.draft.set(C.UP_TO_DATE, FALSE, Reason.ROLLOUT_FAILED, what)
    elif step.replicas and not live["ready"] and not step.status.template:
        step.draft.set(C.UP_TO_DATE, UNKNOWN, Reason.PENDING, "no server has run yet")
    elif _pending(step) or (_rolling(live) and (live["wanted"] or live["replicas"])):
        step.draft.set(C.UP_TO_DATE, FALSE, Reason.PROGRESSING, "the new version is being rolled out")
    elif not made_for_this and (first := next(unmet, None)):
        step.draft.set(C.UP_TO_DATE, FALSE, Reason.PROGRESSING, f"the new version waits: {first.message}")
    elif live["image"] != newest:
        what = f"image {newest} is available; annotate {names.RESTART_AT} to roll it out"
        step.draft.set(C.UP_TO_DATE, FALSE, Reason.ROLLOUT_AVAILABLE, what)
    else:
        step.draft.set(
            C.UP_TO_DATE,
            TRUE,
            Reason.UP_TO_DATE,
            "; ".join(filter(None, ("the running pods match the spec", step.estimate))),
        )


def _not_serving(step: ModelPass, problem: Trouble | None) -> str:
    if problem and (awaited := node_pools.waiting(step, problem)):
        step.draft.set(C.SERVING, FALSE, Reason.WAITING_FOR_NODE, awaited)
        return awaited
    if problem:
        return step.stop(C.SERVING, problem.reason, problem.message)
    pods = step.servers
    started = any(c.get("startedAt") for p in pods for c in p["containers"])
    what = f"loading {text.size(step.source.size_bytes or 0)} of weights" if started else _preparing(pods)
    step.draft.set(C.SERVING, FALSE, Reason.LOADING, what)
    return what


def _preparing(pods: Iterable[Manifest]) -> str:
    for pod in pods:
        if pod["node"]:
            return f"the pod is being prepared on node {pod['node']}"
    return "waiting for the pod to be scheduled"


def _warm(step: ModelPass, live: Manifest, problem: Trouble | None) -> str | None:
    """Pods are ready: believed only after one token came through the Service."""
    warmed = step.status.template == live["inputsHash"] and step.draft.was_true(C.SERVING)
    still_old = _rolling(live) and step.draft.was_true(C.SERVING)
    if warmed or still_old:
        _serves(step, live, problem)
        return None
    if step.seen.service is None or not _ours(step, step.seen.service):
        return step.wait(C.SERVING, "waiting for the Service")
    ready = sorted((p["uid"], sum(c["restarts"] for c in p["containers"])) for p in step.servers if p["ready"])
    identity = names.digest([live["inputsHash"], ready])
    answer = step.seen.warmed
    if answer is None or answer.inputs != identity or answer.value is None:
        service = step.seen.service
        step.ask.append(_question(step, identity, service))
        if answer is not None and answer.inputs == identity and answer.failures > WARM_UP_PATIENCE:
            return step.stop(C.SERVING, Reason.WARM_UP_FAILED, answer.message)
        if not step.draft.was_true(C.SERVING):
            step.draft.set(C.SERVING, UNKNOWN, Reason.LOADING, "the server is ready; asking it for a first answer")
        return "the server is ready; asking it for a first answer"
    step.status.template = live["inputsHash"]
    if step.status.engine:
        told = str(answer.value.get("version") or "")
        step.status.engine.version = told.removeprefix(f"{engine_of(step).title.lower()}-") or None
        step.status.engine.report = EngineReport(**found) if (found := answer.value.get("report")) else None
    _startup(step, answer.value)
    _serves(step, live, problem)
    return None


def _question(step: ModelPass, identity: str, service: Manifest) -> WarmUp:
    """What the server is asked first: a token, or what it is for where it generates none."""
    wanted = model_capabilities.pooling(step) or Capability.CHAT
    ready = [p for p in step.servers if p["ready"] and p["ip"] and engine_of(step).reports_itself]
    ip = max(ready, key=lambda p: str(p["created"]))["ip"] if ready else ""  # the youngest is not of the old version
    reporter = f"[{ip}]:{names.ENGINE_PORT}" if ":" in ip else f"{ip}:{names.ENGINE_PORT}" if ip else ""
    return WarmUp(identity, step.model.metadata.name, service["clusterIP"], service["port"], wanted.value, reporter)


def _serves(step: ModelPass, live: Manifest, problem: Trouble | None) -> None:
    """It serves; where weights or cache are not in GPU memory, not as it was meant to."""
    words = _serving_text(step, live, problem)
    if unseen(step):
        step.wake_in(5)
    after = step.model.spec.scaling.scale_to_zero_after
    if after is not None and not step.draft.was_true(C.SERVING):
        step.wake_in(duration_seconds(after))  # it may be that nobody ever asks for it, and nothing else happens to it
    if slow := partly_on_cpu(step):
        step.done(C.SERVING, Reason.PARTIALLY_OFFLOADED, f"{words}, but {slow}")
    else:
        step.done(C.SERVING, Reason.SERVING, words)


def _serving_text(step: ModelPass, live: Manifest, problem: Trouble | None) -> str:
    placed = step.status.placement
    where = f"{placed.count} GPU" if placed and placed.count else "CPU"
    if placed and (placed.count or 0) > 1:
        where += "s"
    if live["ready"] < step.replicas:
        why = problem.message if problem else step.held
        return f"serving on {where}; {live['ready']} of {step.replicas} servers are ready{f': {why}' if why else ''}"
    held = f"the new {'version' if step.held_version else 'server'} waits: {step.held}" if step.held else ""
    return "; ".join(part for part in (f"serving on {where}", step.leaving, held) if part)


def _startup(step: ModelPass, warm: Manifest) -> None:
    step.status.startup = startup_of(step.servers, step.seen.download, warm)
