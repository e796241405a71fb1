"""Carries plans out in memory: the source answers with the given header, the download is there at once."""

from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from moorage import names
from moorage.api.conditions import ModelCondition, Reason
from moorage.errors import InvalidSpec
from moorage.placement.inventory import Inventory
from moorage.planning.explaining import explain
from moorage.planning.model import plan_model
from moorage.planning.neighbours import Around, Neighbour
from moorage.planning.types import Answer, Defaults, Manifest, ObservedModel, Plan, Resolve

COMMIT = "0" * 40
"""Stands for the commit that the hub would have named."""
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
STEPS = 8


def rendered(
    model: Manifest,
    facts: dict[str, Any] | None,
    inventory: Inventory,
    defaults: Defaults,
    neighbours: Iterable[Neighbour] = (),
) -> dict[str, Any]:
    """`{memory, placement, capabilities, remedies, conditions, manifests}` of `model` as soon as its files are there.

    `neighbours` are the other Models that hold GPUs; whether one of them is idle nobody knows here, so none is put to
    sleep, and whose sleep would help is among the remedies.
    `facts` are what the resolver would answer (files, header facts); None where no header was given, then the Model is
    planned as far as that goes. Raises InvalidSpec with the operator's own words.
    """
    obj = _stored(model)
    download: Manifest | None = None
    resolved: Answer | None = None
    manifests: dict[tuple[str, str], Manifest] = {}
    for _ in range(STEPS):
        plan = plan_model(_observed(obj, download, resolved, inventory, defaults))
        before = (obj.get("status"), download, resolved)
        obj = {**obj, "status": plan.status}
        for manifest in plan.apply:
            manifests[(manifest["kind"], manifest["metadata"]["name"])] = manifest
            if manifest["kind"] == "ModelDownload":
                download = _there(manifest, facts)
        resolved = _answered(plan, facts) or resolved
        if before == (obj["status"], download, resolved):
            break
    status = obj["status"] or {}
    last = replace(_observed(obj, download, resolved, inventory, defaults), around=Around(tuple(neighbours)))
    return {
        "memory": status.get("memory", {}),
        "placement": status.get("placement", {}),
        "capabilities": status.get("capabilities", []),
        "remedies": explain(last).get("remedies", []) if _unplaced(status) else [],
        "conditions": status.get("conditions", []),
        "manifests": list(manifests.values()),
    }


def _unplaced(status: Manifest) -> bool:
    """Whether it was looked for GPUs in vain."""
    looked = (c for c in status.get("conditions", ()) if c["type"] == ModelCondition.PLACED)
    return any(c["status"] == "False" and c["reason"] != Reason.QUOTA_EXCEEDED for c in looked)


def _stored(model: Manifest) -> Manifest:
    """`model` with what the API server would have added."""
    if model.get("kind") != "Model" or model.get("apiVersion") != names.API_VERSION:
        raise InvalidSpec("InvalidSpec", f"not a Model of {names.API_VERSION}: kind {model.get('kind')!r}")
    meta = model.get("metadata") or {}
    if not meta.get("name"):
        raise InvalidSpec("InvalidSpec", "metadata.name is missing")
    added = {"namespace": "default", "uid": "not-applied-yet", "generation": 1, "resourceVersion": "1"}
    return {**model, "metadata": {**added, **meta}}


def _observed(
    obj: Manifest, download: Manifest | None, resolved: Answer | None, inventory: Inventory, defaults: Defaults
) -> ObservedModel:
    return ObservedModel(
        model=obj, now=EPOCH, defaults=defaults, download=download, resolved=resolved, inventory=inventory
    )


def _answered(plan: Plan, facts: dict[str, Any] | None) -> Answer | None:
    ask = next((a for a in plan.ask if isinstance(a, Resolve)), None)
    return Answer(ask.inputs, {"commit": COMMIT, **facts}) if ask and facts else None


def _there(manifest: Manifest, facts: dict[str, Any] | None) -> Manifest:
    """The ModelDownload as it stands when all is verified."""
    name = manifest["metadata"]["name"]
    prefilled = (manifest["spec"]["source"].get("persistentVolumeClaim")) or {}
    ready = {"type": "Ready", "status": "True", "reason": "Ready", "message": "imagined"}
    return {
        **manifest,
        "status": {
            "phase": "Ready",
            "conditions": [ready],
            "claimName": prefilled.get("claimName") or names.download_child(name),
            "path": prefilled.get("path", "") if prefilled else f"{names.download_child(name)}/{COMMIT}",
            "facts": (facts or {}).get("facts", {}),
        },
    }
