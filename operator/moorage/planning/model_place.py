"""The step Placed of a Model: how much memory it needs, and the GPUs that give it. Decided before the download."""

import json

from moorage import names
from moorage.api.common import quantity_bytes
from moorage.api.conditions import ModelCondition as C
from moorage.api.conditions import Reason
from moorage.api.model_status import MemoryStatus, NextPlacement, PlacementStatus, RejectedNodes
from moorage.errors import InvalidSpec
from moorage.manifests.model import resources
from moorage.placement.decide import decide
from moorage.placement.inventory import Inventory
from moorage.placement.request import Candidate, Decision, Request
from moorage.placement.text import listed, plural
from moorage.planning import model_inputs, model_remedies, moving, node_pools, quota, text
from moorage.planning.model_engine import AS_WRITTEN, Changes, asked_of, engine_of
from moorage.planning.model_learn import exhausted, history, learn, planned
from moorage.planning.model_memory import differs, memory, need
from moorage.planning.model_pass import ModelPass
from moorage.planning.model_scale import Sleep
from moorage.planning.types import Manifest
from moorage.planning.volumes import growable, mountable, one_node

MIB = 1024 * 1024
_COMING = (Reason.NO_GPU_FREE, Reason.WAITING_FOR_NODE, Reason.NO_NODE_CAME)
NO_GPU_REMEDY = "; set accelerator.vendor: None to run on the CPU"


def place(step: ModelPass) -> str | None:
    """Choose GPU class and count, or the CPU where the spec says so.

    Pods that are bound keep what they have as long as they are what is wanted: neither nodes that come and go nor
    another estimate of this version of Moorage move them. Until then every pass decides anew, with what the cluster has
    now, and holds the chosen GPUs for this Model.
    """
    if step.servers and not step.source.main_file:
        return None  # the files of a volume are known when its download is, and decided about then
    try:
        return _on_cpu(step) if step.model.spec.accelerator.vendor == "None" else _on_gpus(step)
    except InvalidSpec as error:
        return step.stop(C.ACCEPTED, Reason.INVALID_SPEC, error.message)


def _on_gpus(step: ModelPass) -> str | None:
    learn(step)
    if why := exhausted(step):
        return _exhausted(step, why)
    placed, further, unsaid = step.status.placement, False, False
    if placed and placed.count and _stand(step):
        unsaid = step.stays and bool(model_inputs.changes(step))
        if step.stays and not unsaid:
            return _stay(step, placed, placed.count)
        further = step.serves and not step.stays
    plans = candidates(step)
    inputs = _inputs(step, plans)
    if placed and placed.inputs_hash != inputs:
        node_pools.forget(placed)
    if further:
        step.decision = moving.of_same_template(step, step.replicas, replacing=True)
    elif unsaid:
        step.decision = decision(step, _deployed(step, plans), replacing=True)
    else:
        step.decision = decision(step, plans, replacing=step.model.spec.rollout.strategy != "Surge")
    refused = _take(step, step.decision, inputs)
    if further:
        tell_what_runs(step)
    return refused


def _deployed(step: ModelPass, plans: tuple[Candidate, ...]) -> tuple[Candidate, ...]:
    """Of `plans` the one that the Deployment has, where the status that should tell of it was not written any more."""
    live = step.seen.deployment or {}
    gpus = json.loads(live.get("placement") or "{}").get("gpus", {})
    number = sum(int(count) for count in gpus.values())
    return tuple(plan for plan in plans if plan.gpus == number) or plans


def _stand(step: ModelPass) -> bool:
    """Whether the servers that there are are what is wanted; notes it, and whether all of them have a place."""
    step.stands = model_inputs.stands(step)
    step.stays = step.stands and _bound(step)
    return step.stands


def _stay(step: ModelPass, placed: PlacementStatus, gpus: int) -> str | None:
    """Leave bound servers where they are, and what was planned for them as it was."""
    step.estimate = differs(step, gpus)
    if (elsewhere := moving.away(step)) is not None:
        step.decision = elsewhere
        return _take(step, elsewhere, _inputs(step, candidates(step)))
    if step.draft.was_true(C.PLACED) and placed.next is None:
        step.draft.confirm(C.PLACED)
        return None
    node_pools.forget(placed)
    placed.next, placed.rejected = None, []
    size = f" of {placed.gpu_class}" if placed.gpu_class else ""
    placed.reason = f"{plural(gpus, f'{placed.vendor} GPU')}{size} on {listed(_nodes(step))}"
    step.done(C.PLACED, Reason.PLACED, placed.reason)
    return None


def tell_what_runs(step: ModelPass, *, coming: bool = False) -> None:
    """Have the status tell of the servers that run, as the last pass did; with `coming` the decision stands beside it.

    What was looked for and is waited for (nodes, pools) stays that of the decision.
    """
    (ran, memory), decided = step.ran, step.status.placement
    if ran is None or ran.vendor is None or decided is None or decided is ran:
        return
    wanted = step.status.memory or MemoryStatus()
    place = ("count", "vendor", "gpu_class", "gpu_memory_mib", "reason")
    new = NextPlacement(per_gpu_mib=wanted.per_gpu_mib, **{name: getattr(decided, name) for name in place})
    update: dict[str, object] = {name: getattr(ran, name) for name in place}
    step.status.placement = decided.model_copy(update=update | {"next": new if coming else None})
    if memory is not None:
        past = {"observed_mib": wanted.observed_mib, "learned": wanted.learned}
        step.status.memory = memory.model_copy(update=past)


def _exhausted(step: ModelPass, why: str) -> str:
    """No further start would do; what would help is said once."""
    before = step.draft.get(C.PLACED)
    remember_memory(step, (step.status.placement.count if step.status.placement else None) or 1)
    if before is None or before.message != why:
        step.status.remedies = model_remedies.of_settings(step)
    return _give_up(step, Reason.INSUFFICIENT_MEMORY, why)


def _give_up(step: ModelPass, reason: Reason, why: str) -> str:
    """Stop what runs out of memory again and again: no servers until there is a place for them."""
    step.replicas, step.sleep = 0, step.sleep or Sleep(reason, why)
    return step.stop(C.PLACED, reason, why)


def _on_cpu(step: ModelPass) -> str | None:
    why = "runs on the CPU, as accelerator.vendor None asks"
    before = step.status.placement or PlacementStatus()
    step.status.placement = PlacementStatus(
        count=0, vendor="None", reason=why, nodes=before.nodes, failed_move=before.failed_move
    )
    _stand(step)
    if step.keeps_plan and step.status.memory:
        step.estimate = differs(step, 0)
    elif refused := remember_memory(step, 0):
        return refused
    if refused := admission(step):
        return refused
    moving.away_from_cpu(step)
    step.done(C.PLACED, Reason.NO_ACCELERATOR_NEEDED, why + admits(step))
    return None


def candidates(step: ModelPass, changes: Changes = AS_WRITTEN) -> tuple[Candidate, ...]:
    """One GPU, then as many of one node as the engine takes, each with its need; 0 MiB as long as nothing is known.

    Raises InvalidSpec where the engine would refuse the settings.
    """
    found = []
    for gpus in counts(step):
        needed = need(step, gpus, changes)
        found.append(Candidate(gpus, planned(step, gpus, max(needed.per_gpu_mib, default=0) if needed else 0)))
    return tuple(found)


def counts(step: ModelPass) -> tuple[int, ...]:
    """Numbers of GPUs that the model can be shared out over.

    Raises InvalidSpec where the spec fixes another.
    """
    engine, asked, fixed = engine_of(step), asked_of(step), step.model.spec.accelerator.count
    if fixed and (why := engine.unsplittable(asked, fixed)):
        raise InvalidSpec("InvalidSpec", f"spec.accelerator.count: {why}")
    return tuple(count for count in engine.gpu_counts if not engine.unsplittable(asked, count))


def decision(step: ModelPass, plans: tuple[Candidate, ...], *, replacing: bool) -> Decision:
    """What placement says now; with `replacing` (a Recreate rollout) what its own pods hold counts as free."""
    return decide(request(step, plans, replacing=replacing), _inventory(step), step.seen.reservations)


def _inventory(step: ModelPass) -> Inventory:
    return step.seen.inventory or Inventory(())


def request(step: ModelPass, plans: tuple[Candidate, ...], *, replacing: bool) -> Request:
    """The Model's request in placement's words."""
    spec, gpu = step.model.spec, step.model.spec.accelerator
    affinity = (spec.affinity or {}).get("nodeAffinity")
    leaving = [p["name"] for p in step.servers] if replacing else ()
    return Request(
        owner=owner(step),
        candidates=plans,
        vendor=gpu.vendor,
        count=gpu.count,
        memory_override_mib=override_mib(step),
        node_selector=spec.node_selector,
        tolerations=spec.tolerations,
        node_affinity=affinity,
        replicas=max(step.replicas if replacing else step.replicas - len(_nodes(step)), 1),
        placed=() if replacing else tuple(_nodes(step)),
        replacing=replacing,
        exact_class=engine_of(step).fills_gpu,
        volume_nodes=mountable(step.seen.volume, leaving),
        volume_pools=growable(step.seen.volume, leaving),
        weights_on=frozenset(step.seen.volume["mounted"]) if step.seen.volume else frozenset(),
        one_node=_one_node(step),
        late_pools=node_pools.late(step),
    )


def _one_node(step: ModelPass) -> bool:
    """Whether only one node can serve the files; as long as their claim is still to be made the spec says so.

    One replica alone is on one node anyway, and need not be bound to the planned one.
    """
    if max(step.model.spec.replicas, step.model.spec.scaling.max_replicas or 0) < 2:
        return False
    if step.seen.volume is not None or step.model.spec.source.download_ref:
        return one_node(step.seen.volume)
    storage = step.model.spec.storage
    return not storage.claim_name and one_node({"accessModes": [str(mode) for mode in storage.access_modes]})


def override_mib(step: ModelPass) -> int | None:
    """MiB needed on each GPU, where the spec says so itself."""
    override = step.model.spec.accelerator.memory_per_gpu_override
    return -(-quantity_bytes(override) // MIB) if override else None


def owner(step: ModelPass) -> str:
    """The Model as reservations and holders of GPUs name it."""
    return owner_of(step.model.metadata.namespace, step.model.metadata.name)


def owner_of(namespace: str, name: str) -> str:
    """The Model of that name as reservations and holders of GPUs name it."""
    return f"{namespace}/{names.dns_label(name)}"


def _take(step: ModelPass, found: Decision, inputs: str) -> str | None:
    before, status = step.status.placement, _status(step, found, inputs)
    asleep = step.replicas == 0 and found.reason in _COMING
    if found.candidate is None:
        step.status.placement = status
        remember_memory(step, (step.model.spec.accelerator.count or 1))
        if asleep:
            _asleep(step, found)
            return None
        _seek_remedies(step, found, before, inputs)
        if (past := history(step)) and not step.serves:  # its pods would only fail again on the GPUs that they have
            lasting = found.reason in (Reason.NO_GPU_FITS, Reason.UNKNOWN_GPU_MEMORY)
            return _give_up(step, Reason.INSUFFICIENT_MEMORY if lasting else found.reason, past + found.message)
        remedy = "" if step.seen.inventory and step.seen.inventory.has_gpus else NO_GPU_REMEDY
        return step.stop(C.PLACED, found.reason, found.message + remedy)
    node_pools.remember(step, status, found)
    step.status.placement = status
    if found.reason is not Reason.NO_NODE_CAME or asleep:
        step.status.remedies = []
    else:
        _seek_remedies(step, found, before, inputs)
    if refused := remember_memory(step, found.candidate.gpus) or admission(step, found):
        return refused
    if found.placed:
        step.done(C.PLACED, found.reason, found.message + _too_low(step) + admits(step, found))
    elif asleep:
        _asleep(step, found)
    else:
        node_pools.waits(step, found)  # and the steps go on: the autoscaler looks for pods that wait
    if step.replicas:
        step.reserve = found.reservations(owner(step))
    return None


def presses(step: ModelPass, found: Decision) -> bool:
    """Whether others may have to sleep for the Model.

    A new version that finds no second GPU beside the old one waits: nobody else has to sleep for it.
    """
    return step.replicas > 0 and not step.draft.was_true(C.SERVING) and found.reason is Reason.NO_GPU_FREE


def _seek_remedies(step: ModelPass, found: Decision, before: PlacementStatus | None, inputs: str) -> None:
    """Once for each decision, and not in a pass that is about to be made again with the neighbours in sight."""
    again = step.seen.around is None and presses(step, found)
    told = before and (before.next or before).reason
    new = step.resolved or before is None or (told, before.inputs_hash) != (found.message, inputs)
    if new and not again:
        step.status.remedies = model_remedies.of_settings(step)


def _too_low(step: ModelPass) -> str:
    """The end of a sentence where a person's figure cannot be meant: it is taken at its word, but not in silence."""
    override, memory = override_mib(step), step.status.memory or MemoryStatus()
    each = -(-(memory.weights_mib or 0) // max(1, len(memory.per_gpu_mib)))
    if override is None or override >= each:
        return ""
    said = step.model.spec.accelerator.memory_per_gpu_override
    weights = f"the weights alone, {text.size(each * MIB)} on each GPU"
    return f"; accelerator.memoryPerGPUOverride {said} is less than {weights}: the server will run out of memory"


def _status(step: ModelPass, found: Decision, inputs: str) -> PlacementStatus:
    return PlacementStatus(
        count=found.candidate.gpus if found.candidate else None,
        vendor=found.vendor or None,
        gpu_class=found.gpu_class or None,
        gpu_memory_mib=found.memory_mib or None,
        reason=found.message,
        nodes=step.status.placement.nodes if step.status.placement else [],
        rejected=[
            RejectedNodes(reason=r.reason.value, nodes=r.nodes, example=r.example, free_mib=r.free_mib)
            for r in found.rejected
        ],
        inputs_hash=inputs,
    )


def _asleep(step: ModelPass, found: Decision) -> None:
    step.done(C.PLACED, Reason.PLACED, f"asleep; loaded now it would have to wait: {found.message}")


def admission(step: ModelPass, found: Decision | None = None) -> str | None:
    """Say whether the namespace does not admit a server; asked only as long as there is no pod of the Model."""
    if not _asks(step):
        return None
    why = quota.refusal(*_charged(step, found), step.seen.quotas, step.seen.limit_ranges)
    return step.stop(C.PLACED, Reason.QUOTA_EXCEEDED, why) if why else None


def admits(step: ModelPass, found: Decision | None = None) -> str:
    """The end of a sentence where the namespace admits some of the servers only; empty where it admits all."""
    if not _asks(step) or step.replicas < 2:
        return ""
    number, why = quota.admitted(step.replicas, *_charged(step, found), step.seen.quotas, step.seen.limit_ranges)
    return f"; the namespace admits {number} of {step.replicas} servers: {why}" if why else ""


def _asks(step: ModelPass) -> bool:
    """Whether servers are wanted and none is charged to the namespace yet."""
    pods = [p for p in step.seen.pods if p["labels"].get(names.COMPONENT) == "server"]
    return step.replicas > 0 and all(p["phase"] in ("Failed", "Succeeded") for p in pods)


def _charged(step: ModelPass, found: Decision | None) -> tuple[Manifest, dict[str, int], str | None]:
    """What one server asks for: resources, devices by class, its priority class."""
    spec, gpus = step.model.spec, found.candidate.gpus if found and found.candidate else 0
    devices = {found.resource: gpus} if found and found.dra else {}
    host_mib = (step.status.memory and step.status.memory.host_mib) or 1024
    resource = found.resource if found and not found.dra else ""
    asked = resources(spec.resources or {}, host_mib, resource, gpus if resource else 0)
    return asked, devices, spec.priority_class_name


def remember_memory(step: ModelPass, gpus: int) -> str | None:
    """Keep the need in status; a message where the engine would refuse the settings."""
    try:
        step.status.memory = memory(step, gpus)
    except InvalidSpec as error:
        return step.stop(C.ACCEPTED, Reason.INVALID_SPEC, error.message)
    return None


def _bound(step: ModelPass) -> bool:
    """Whether as many servers of the wanted version as are wanted have a node; those of an older one do not count."""
    live = step.seen.deployment or {}
    if live.get("observedGeneration", 0) < live.get("generation", 0) and not step.draft.was_true(C.PLACED):
        return False  # whose pods there are is not counted yet
    older = max(live.get("replicas", 0) - live.get("updated", 0), 0)
    return bool(_nodes(step)) and len(_nodes(step)) - older >= step.replicas


def _nodes(step: ModelPass) -> list[str]:
    return sorted(p["node"] for p in step.servers if p["node"])


def _inputs(step: ModelPass, plans: tuple[Candidate, ...]) -> str:
    """Hash of what a decision is about: the need and what the spec says of nodes and GPUs."""
    spec = step.model.spec
    where = [spec.accelerator.dump(), spec.node_selector, spec.tolerations, spec.affinity]
    return names.digest([[(c.gpus, c.mib) for c in plans], where])
