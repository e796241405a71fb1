"""Projections of dynamic resource allocation (resource.k8s.io/v1): devices, who has them, and our claim templates."""

from typing import Any

from moorage.control.projections import child_meta
from moorage.placement.inventory import holder_of
from moorage.placement.slices import PARTS
from moorage.placement.vendors import DRA_DRIVERS

Manifest = dict[str, Any]


def resource_slice(obj: Manifest) -> Manifest | None:
    """GPUs that a driver publishes for one node; None for other devices, and for those of no node in particular."""
    spec = obj["spec"]
    if spec.get("driver") not in DRA_DRIVERS or not spec.get("nodeName"):
        return None
    pool = spec.get("pool") or {}
    return {
        "node": spec["nodeName"],
        "driver": spec["driver"],
        "pool": pool.get("name", ""),
        "generation": pool.get("generation", 0),
        "devices": [{part: device[part] for part in PARTS if part in device} for device in spec.get("devices") or ()],
    }


def resource_claim(obj: Manifest) -> Manifest | None:
    """A claim that has devices: which, and who holds them; None while it has none."""
    meta, status = obj["metadata"], obj.get("status") or {}
    results = ((status.get("allocation") or {}).get("devices") or {}).get("results") or ()
    held = [r for r in results if r.get("driver") in DRA_DRIVERS and not r.get("adminAccess")]
    devices = [{k: r.get(k, "") for k in ("driver", "pool", "device")} for r in held]
    if not devices:
        return None
    pod = next((r["name"] for r in status.get("reservedFor") or () if r.get("resource") == "pods"), "")
    about = {"namespace": meta["namespace"], "name": pod, "labels": meta.get("labels") or {}}
    known = bool(pod) or holder_of(about) != holder_of({**about, "labels": {}})
    return {
        "namespace": meta["namespace"],
        "name": meta["name"],
        "holder": holder_of(about) if known else "",
        "devices": devices,
    }


def claim_template(obj: Manifest) -> Manifest | None:
    """A ResourceClaimTemplate of a Model; None for other people's."""
    found = child_meta(obj)
    return found if found["labels"] and found["manifestHash"] else None
