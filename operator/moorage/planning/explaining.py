"""A Model's placement laid out for people: what it needs, what was tried, and each node with what speaks against it.

The decision is made by the very functions that the operator plans with; here it is only told in more words.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from moorage.api.conditions import ModelCondition as C
from moorage.api.conditions import Reason, get_condition
from moorage.api.model import Model
from moorage.placement.decide import decide
from moorage.placement.inventory import Inventory, Pool
from moorage.placement.request import Candidate, Decision, Rejection, Request
from moorage.placement.survey import Offer, closest, survey
from moorage.placement.text import gib, gib_down, listed, plural
from moorage.planning import model_awake, model_memory, model_place, model_remedies, model_source
from moorage.planning.draft import Draft
from moorage.planning.model_pass import ModelPass
from moorage.planning.types import ObservedModel

Told = dict[str, Any]

CHOSEN, FITS = "Chosen", "Fits"
STEPS = (C.ACCEPTED, C.PLACED, C.DOWNLOADED, C.SERVING)


def explain(seen: ObservedModel) -> Told:
    """Everything about a Model's place, as plain data; what it holds itself counts as free.

    Raises InvalidSpec where its spec does not parse, or the engine would refuse the settings.
    """
    model = Model.read(seen.model)
    told = _status(model)
    draft = Draft(model.status.conditions, model.metadata.generation, seen.now)
    step = ModelPass(seen, model, model.status.model_copy(deep=True), draft, replicas=model.spec.replicas)
    model_awake.decide(step)
    if refused := model_source.accept(step):
        return {**told, "decision": {"reason": "NotAccepted", "message": refused}}
    if model.spec.accelerator.vendor == "None":
        step.replicas = max(step.replicas, 1)
        refused = model_place.place(step) or ""
        condition = draft.get(C.PLACED)
        assert condition is not None
        return {**told, "memory": _memory(step, 0), "decision": _plain(condition.reason, refused or condition.message)}
    plans = model_place.candidates(step)
    asked = model_place.request(step, plans, replacing=True)
    inventory = seen.inventory or Inventory(())
    found = decide(asked, inventory, seen.reservations)
    quota = model_place.admission(step, found) if found.candidate else None
    coming = found.candidate is not None and found.reason is not Reason.NO_NODE_CAME
    decision = {**_plain("QuotaExceeded", quota)} if quota else _decision(found)
    decision["message"] += "" if quota else model_place.admits(step, found)
    return {
        **told,
        "memory": _memory(step, found.candidate.gpus if found.candidate else asked.count or 1),
        "decision": decision,
        "candidates": [_tried(asked, c, inventory, seen) for c in asked.candidates],
        "nodes": _nodes(asked, inventory, seen, found),
        "nodePools": _pools(inventory),
        "remedies": [] if quota or coming else _remedies(step),
    }


def where_it_stands(seen: ObservedModel) -> Told:
    """What the operator itself wrote about the Model, for people who see too little to decide again.

    Raises InvalidSpec where its spec does not parse.
    """
    model = Model.read(seen.model)
    status = model.status
    told = _status(model)
    placed = status.placement.dump() if status.placement else {}
    memory = status.memory.dump() if status.memory else {}
    return {
        **told,
        "memory": memory,
        "rejected": placed.get("rejected", []),
        "remedies": [r.dump() for r in status.remedies],
    }


def _status(model: Model) -> Told:
    """Where the operator says that the Model stands, and the first thing it waits for."""
    status = model.status
    found = [c for kind in STEPS if (c := get_condition(status.conditions, kind))]
    unmet = next((c for c in found if c.status != "True"), None)
    placed = get_condition(status.conditions, C.PLACED)
    return {
        "model": model.metadata.name,
        "namespace": model.metadata.namespace,
        "phase": status.phase.value if status.phase else "New",
        "waitsFor": {"step": unmet.type, "reason": unmet.reason, "message": unmet.message} if unmet else None,
        "operator": _plain(placed.reason, placed.message) if placed else None,
        "capabilities": [found.dump() for found in status.capabilities],
        "runsOn": list(status.placement.nodes) if status.placement else [],
    }


def _plain(reason: str, message: str) -> Told:
    return {"reason": str(reason), "message": message}


def _memory(step: ModelPass, gpus: int) -> Told:
    memory: Told = model_memory.memory(step, gpus).dump()
    return memory


def _decision(found: Decision) -> Told:
    chosen = found.candidate
    told = _plain(found.reason.value, found.message)
    if chosen is None:
        return told
    pools = {"nodePools": list(found.node_pools)} if found.node_pools else {}
    by = "ResourceClaim" if found.dra else "DevicePlugin"
    return {
        **told, "gpus": chosen.gpus, "perGpuMiB": chosen.mib, "gpuClass": found.gpu_class, "vendor": found.vendor,
        "resource": found.resource, "by": by, "nodes": [n for n in found.nodes if "/" not in n], **pools,
    }  # fmt: skip


def _tried(asked: Request, candidate: Candidate, inventory: Inventory, seen: ObservedModel) -> Told:
    left = replace(asked, candidates=(candidate,), replicas=1)
    found = decide(left, inventory, seen.reservations)
    need = left.plans[0].mib if left.plans else candidate.mib
    return {"gpus": candidate.gpus, "perGpuMiB": need, **_plain(found.reason.value, found.message)}


def _remedies(step: ModelPass) -> list[Told]:
    around = step.seen.around
    found = model_remedies.of_settings(step) + (model_remedies.of_sleep(step, around) if around else [])
    return [remedy.dump() for remedy in found]


# -- nodes ------------------------------------------------------------------------------------------------------------


def _nodes(asked: Request, inventory: Inventory, seen: ObservedModel, found: Decision) -> list[Told]:
    looked = survey(asked, inventory, seen.reservations)
    blocked = {b.node.name: b for b in looked.blocked}
    offers: dict[str, list[Offer]] = {}
    for offer in looked.offers:
        offers.setdefault(offer.pool.node, []).append(offer)
    plans = [found.candidate] if found.candidate else asked.plans
    rows = []
    for node in inventory.nodes:
        here = offers.get(node.name, [])
        if node.name in blocked:
            verdict, why = blocked[node.name].reason.value, f"it {blocked[node.name].detail}"
        elif not here:
            verdict, why = Rejection.NO_GPU.value, "it has no GPU"
        else:
            verdict, why = _verdict(asked, here, plans, looked.promised.get(node.name, ()))
        if verdict == FITS and node.name in found.nodes:
            verdict = CHOSEN
        free = {o.pool.book: o.free for o in here}
        gpus = [_pool(p, inventory, free.get(p.book)) for p in node.pools]
        rows.append({"node": node.name, "verdict": verdict, "why": why, "gpus": gpus})
    return rows


def _pool(pool: Pool, inventory: Inventory, free: int | None) -> Told:
    """One kind of GPU of a node; where the pod may not run at all, those that nobody holds are free."""
    left = max(pool.count - inventory.used(pool), 0) if free is None else free
    told: Told = {"vendor": pool.vendor, "resource": pool.resource, "count": pool.count, "free": left}
    return told | {"memoryMiB": pool.total_mib, "usableMiB": pool.usable_mib, "product": pool.product}


def _verdict(
    asked: Request, here: list[Offer], plans: Iterable[Candidate], promised: tuple[str, ...]
) -> tuple[str, str]:
    candidates = tuple(plans)
    reason = closest(asked, here, candidates)
    if reason is None:
        return FITS, ""
    need = min((c.mib for c in candidates), default=0)
    best = max(here, key=lambda o: (o.pool.usable_mib, o.pool.resource))
    problem = next((o.pool.detail for o in here if o.pool.problem), "")
    match reason:
        case Rejection.TOO_SMALL:
            why = f"{gib(need)} is more than the {gib_down(best.pool.usable_mib)} that can be planned of a GPU"
        case Rejection.TOO_FEW:
            least = min((c.gpus for c in candidates if c.mib <= best.pool.usable_mib), default=1)
            why = f"a server needs {plural(least, 'GPU')} of this size, it has {best.pool.count}"
        case Rejection.TAKEN:
            holders = sorted({h for o in here for h in o.holders})
            why = f"held by {listed([*holders, *(f'{p} (promised)' for p in promised)], 4) or 'nobody'}"
        case Rejection.OTHER_VENDOR:
            why = f"accelerator.vendor asks for {asked.vendor}"
        case _:
            why = problem
    return reason.value, why


def _pools(inventory: Inventory) -> list[Told]:
    return [
        {
            "name": shape.name,
            "gpus": shape.gpus,
            "memoryMiB": shape.gpu_memory_mib,
            "maximum": shape.maximum,
            "room": inventory.room[shape.name],
        }
        for shape in inventory.node_pools
    ]
