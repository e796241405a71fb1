"""What the operator keeps of the objects it watches: the few fields that planning reads, as small plain dicts.

A cluster's pods and nodes are large; a projection is a few hundred bytes. None means: nothing here concerns us.
"""

import json
from collections import Counter
from typing import Any

from moorage import names
from moorage.placement.memory import ANNOTATION as GPU_MEMORY
from moorage.placement.vendors import is_gpu

Manifest = dict[str, Any]

SELECTED_NODE = "volume.kubernetes.io/selected-node"
"""Where kube-scheduler wants the volume of a claim that waits for its first pod to be made."""


def child_meta(obj: Manifest) -> Manifest:
    """Identity, ownership and hashes of one of our children."""
    meta = obj["metadata"]
    annotations = meta.get("annotations") or {}
    owner = next((o for o in meta.get("ownerReferences", ()) if o.get("controller")), None)
    return {
        "name": meta["name"],
        "namespace": meta.get("namespace", ""),
        "uid": meta["uid"],
        "generation": meta.get("generation", 0),
        "deleting": "deletionTimestamp" in meta,
        "labels": {k: v for k, v in (meta.get("labels") or {}).items() if k.startswith(names.GROUP)},
        "owner": owner["uid"] if owner else None,
        "manifestHash": annotations.get(names.MANIFEST_HASH),
        "inputsHash": annotations.get(names.INPUTS_HASH),
    }


def stranger(obj: Manifest) -> Manifest | None:
    """Someone else's object, of which only the name matters: that it is taken. None where the object is ours."""
    labels = obj["metadata"].get("labels") or {}
    if labels.get(names.MANAGED_BY) == "moorage":
        return None
    return {"stranger": True, "uid": obj["metadata"]["uid"]}


def deployment(obj: Manifest) -> Manifest | None:
    """A Deployment of ours: wanted and ready replicas, the conditions, its image; or a stranger."""
    if other := stranger(obj):
        return other
    status, spec = obj.get("status", {}), obj["spec"]
    return {
        **child_meta(obj),
        "wanted": spec.get("replicas", 1),
        "observedGeneration": status.get("observedGeneration", 0),
        "replicas": status.get("replicas", 0),
        "updated": status.get("updatedReplicas", 0),
        "ready": status.get("readyReplicas", 0),
        "available": status.get("availableReplicas", 0),
        "image": spec["template"]["spec"]["containers"][0]["image"],
        "claim": next(iter(_claims(spec["template"]["spec"])), None),
        "placement": _placement(spec["template"]["spec"]),
        "inputs": (obj["metadata"].get("annotations") or {}).get(names.INPUTS, ""),
        "restartAt": (obj["metadata"].get("annotations") or {}).get(names.RESTART_AT, ""),
        "progressDeadline": spec.get("progressDeadlineSeconds", 600),
        "moved": (obj["metadata"].get("annotations") or {}).get(names.MOVED, ""),
        "imageFor": (obj["metadata"].get("annotations") or {}).get(names.IMAGE_FOR, ""),
        "imageFrom": (obj["metadata"].get("annotations") or {}).get(names.IMAGE_FROM, ""),
        "conditions": {
            c["type"]: {"status": c["status"], "reason": c.get("reason", ""), "message": c.get("message", "")}
            for c in status.get("conditions", ())
        },
    }


def _node_affinity(pod: Manifest) -> str:
    """What a template requires and prefers of nodes, as JSON; empty where nothing."""
    found = (pod.get("affinity") or {}).get("nodeAffinity")
    return json.dumps(found, sort_keys=True) if found else ""


def _placement(pod: Manifest) -> str:
    """What a server's template says of nodes and GPUs, as JSON (read only while a pod waits); empty where nothing."""
    node_affinity = (pod.get("affinity") or {}).get("nodeAffinity")
    limits = (pod["containers"][0].get("resources") or {}).get("limits") or {}
    gpus = {resource: str(count) for resource, count in limits.items() if is_gpu(resource)}
    claims = [c.get("resourceClaimTemplateName", "") for c in pod.get("resourceClaims") or ()]
    said = {"nodeAffinity": node_affinity, "gpus": gpus, "claims": claims}
    return json.dumps(said) if any(said.values()) else ""


def _claims(pod: Manifest) -> list[str]:
    """The claims that a pod mounts."""
    volumes = pod.get("volumes", ())
    return [v["persistentVolumeClaim"]["claimName"] for v in volumes if "persistentVolumeClaim" in v]


def service(obj: Manifest) -> Manifest | None:
    """A Service of ours: where it answers; or a stranger."""
    if other := stranger(obj):
        return other
    spec = obj["spec"]
    return {**child_meta(obj), "clusterIP": spec.get("clusterIP", ""), "port": spec["ports"][0]["port"]}


def disruption_budget(obj: Manifest) -> Manifest | None:
    """A PodDisruptionBudget of ours, or a stranger and the pods that it selects."""
    if other := stranger(obj):
        return {**other, "selector": obj["spec"].get("selector")}
    return child_meta(obj)


def claim(obj: Manifest) -> Manifest | None:
    """A PersistentVolumeClaim, ours or one that a spec may name: its phase, size, volume, and whether it grows.

    `growing` is the type of the condition that says so: Resizing, or FileSystemResizePending, which waits for a pod.
    """
    meta, spec, status = obj["metadata"], obj["spec"], obj.get("status", {})
    conditions = [c["type"] for c in status.get("conditions", ()) if c.get("status") == "True"]
    return {
        **child_meta(obj),
        "phase": status.get("phase", "Pending"),
        "storageClass": spec.get("storageClassName"),
        "accessModes": spec.get("accessModes", []),
        "volume": spec.get("volumeName", ""),
        "node": (meta.get("annotations") or {}).get(SELECTED_NODE, ""),
        "request": spec.get("resources", {}).get("requests", {}).get("storage"),
        "capacity": status.get("capacity", {}).get("storage"),
        "growing": next((c for c in conditions if c in ("FileSystemResizePending", "Resizing")), ""),
        "created": meta.get("creationTimestamp"),
    }


def volume(obj: Manifest) -> Manifest | None:
    """A PersistentVolume that only some nodes can mount: whose it is, and the terms that select them."""
    spec = obj.get("spec") or {}
    required = (spec.get("nodeAffinity") or {}).get("required") or {}
    claim_ref = spec.get("claimRef")
    if not claim_ref or not required.get("nodeSelectorTerms"):
        return None
    return {
        "name": obj["metadata"]["name"],
        "claim": (claim_ref.get("namespace", ""), claim_ref.get("name", "")),
        "terms": required["nodeSelectorTerms"],
    }


def job(obj: Manifest) -> Manifest | None:
    """A Job of ours: running, complete or failed, and why; or a stranger."""
    if other := stranger(obj):
        return other
    status = obj.get("status", {})
    conditions = {c["type"]: c for c in status.get("conditions", ()) if c.get("status") == "True"}
    failed = conditions.get("Failed") or {}
    return {
        **child_meta(obj),
        "active": status.get("active", 0),
        "failedPods": status.get("failed", 0),
        "complete": "Complete" in conditions,
        "failed": bool(failed),
        "reason": failed.get("reason", ""),
        "message": failed.get("message", ""),
        "suspended": bool(obj["spec"].get("suspend")),
        "nodeAffinity": _node_affinity(obj["spec"]["template"]["spec"]),
        "started": status.get("startTime"),
    }


def pod(obj: Manifest) -> Manifest | None:
    """A pod of ours in some detail, an agent's address, a stranger's that holds GPUs or claims; else None."""
    meta, spec, status = obj["metadata"], obj["spec"], obj.get("status", {})
    gpus = gpu_requests(spec)
    base: Manifest = {
        "name": meta["name"],
        "namespace": meta["namespace"],
        "uid": meta["uid"],
        "node": spec.get("nodeName", ""),
        "phase": status.get("phase", "Pending"),
        "gpus": gpus,
        "claims": _claims(spec),
    }
    labels = meta.get("labels") or {}
    if labels.get(names.PART_OF) == "moorage" and labels.get(names.COMPONENT) == "agent":
        return {**base, "labels": {}, "agent": True, "ip": status.get("podIP", "")}
    if labels.get(names.MANAGED_BY) != "moorage":
        return {**base, "labels": {}} if gpus or base["claims"] else None
    conditions = {c["type"]: c for c in status.get("conditions", ())}
    scheduled = conditions.get("PodScheduled", {})
    return {
        **base,
        "labels": {k: v for k, v in labels.items() if k.startswith(names.GROUP) or k == names.COMPONENT},
        "templateHash": labels.get("pod-template-hash", ""),
        "owner": next((o["uid"] for o in meta.get("ownerReferences", ()) if o.get("controller")), None),
        "created": meta.get("creationTimestamp"),
        "started": status.get("startTime"),
        "deleting": "deletionTimestamp" in meta,
        "deletionCost": (meta.get("annotations") or {}).get(names.DELETION_COST, ""),
        "ip": status.get("podIP", ""),
        "ready": conditions.get("Ready", {}).get("status") == "True",
        "readyAt": conditions.get("Ready", {}).get("lastTransitionTime"),
        "scheduledAt": scheduled.get("lastTransitionTime") if scheduled.get("status") == "True" else None,
        "unschedulable": scheduled.get("message", "") if scheduled.get("status") == "False" else "",
        "disrupted": "DisruptionTarget" in conditions,
        "reason": status.get("reason", ""),
        "message": status.get("message", ""),
        "containers": [_container(c) for c in status.get("containerStatuses", ())],
    }


def _container(status: Manifest) -> Manifest:
    state, last = status.get("state", {}), status.get("lastState", {})
    return {
        "name": status["name"],
        "ready": status.get("ready", False),
        "restarts": status.get("restartCount", 0),
        "startedAt": state.get("running", {}).get("startedAt"),
        "waiting": _pick(state.get("waiting"), "reason", "message"),
        "terminated": _terminated(state.get("terminated")),
        "last": _terminated(last.get("terminated")),
    }


def _terminated(state: Manifest | None) -> Manifest | None:
    return _pick(state, "exitCode", "signal", "reason", "message", "startedAt", "finishedAt")


def _pick(state: Manifest | None, *keys: str) -> Manifest | None:
    return None if state is None else {k: state[k] for k in keys if k in state}


def gpu_requests(spec: Manifest) -> dict[str, int]:
    """GPUs a pod holds, by resource name: the sum over containers, or one init container's where that is more."""
    running: Counter[str] = Counter()
    for container in spec.get("containers", ()):
        running.update(_gpu_limits(container))
    for container in spec.get("initContainers", ()):
        for resource, count in _gpu_limits(container).items():
            running[resource] = max(running[resource], count)
    return {resource: count for resource, count in running.items() if count}


def _gpu_limits(container: Manifest) -> dict[str, int]:
    limits = (container.get("resources") or {}).get("limits") or {}
    return {resource: whole(count) for resource, count in limits.items() if is_gpu(resource)}


def whole(quantity: Any) -> int:
    """A count of devices as the API server writes it; what is no whole number counts as none."""
    text = str(quantity)
    return int(text) if text.isdigit() else 0


def node(obj: Manifest) -> Manifest | None:
    """A node: whether it can take pods, the GPUs it offers, and what pods may select it by."""
    meta, status, spec = obj["metadata"], obj.get("status", {}), obj.get("spec", {})
    ready = any(c["type"] == "Ready" and c["status"] == "True" for c in status.get("conditions", ()))
    annotations = meta.get("annotations") or {}
    return {
        "name": meta["name"],
        "ready": ready,
        "unschedulable": bool(spec.get("unschedulable")),
        "gpus": {r: whole(count) for r, count in status.get("allocatable", {}).items() if is_gpu(r)},
        "labels": dict(meta.get("labels") or {}),
        "taints": [{k: t.get(k, "") for k in ("key", "value", "effect")} for t in spec.get("taints", ())],
        "annotations": {k: annotations[k] for k in (GPU_MEMORY,) if k in annotations},
    }


def quota(obj: Manifest) -> Manifest | None:
    """A ResourceQuota: what it grants, what is used of that, and the pods it is for."""
    spec, status = obj.get("spec", {}), obj.get("status", {})
    scoped = (spec.get("scopeSelector") or {}).get("matchExpressions") or ()
    return {
        "name": obj["metadata"]["name"],
        "hard": dict(status.get("hard") or spec.get("hard") or {}),
        "used": dict(status.get("used") or {}),
        "selectors": [*({"scopeName": s, "operator": "Exists"} for s in spec.get("scopes") or ()), *scoped],
    }


def limit_range(obj: Manifest) -> Manifest | None:
    """A LimitRange: its items as they are."""
    return {"name": obj["metadata"]["name"], "items": list((obj.get("spec") or {}).get("limits") or ())}


def namespace(obj: Manifest) -> Manifest | None:
    """A Namespace: its labels, by which Models permit aliases, and how many of its Models may be loaded at once.

    A limit that is no whole number is none.
    """
    said = str((obj["metadata"].get("annotations") or {}).get(names.MAX_LOADED, ""))
    limit = int(said) if said.isascii() and said.isdigit() else None
    return {"labels": dict(obj["metadata"].get("labels") or {}), "maxLoaded": limit}


def storage_class(obj: Manifest) -> Manifest | None:
    """A StorageClass: its name, whether it is the default, who makes its volumes and when, whether they can grow."""
    annotations = obj["metadata"].get("annotations") or {}
    return {
        "name": obj["metadata"]["name"],
        "default": annotations.get("storageclass.kubernetes.io/is-default-class") == "true",
        "provisioner": obj.get("provisioner", ""),
        "bindingMode": obj.get("volumeBindingMode", "Immediate"),
        "expandable": bool(obj.get("allowVolumeExpansion")),
    }
