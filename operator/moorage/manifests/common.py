"""What every object Moorage makes has in common: owner, labels, manifest hash, restricted security context."""

from typing import Any

from moorage import names

Manifest = dict[str, Any]

NON_ROOT_USER = 65532


def owner_reference(owner: Manifest) -> Manifest:
    """The controller owner reference to `owner`, a full object with apiVersion, kind and metadata.uid.

    Without blockOwnerDeletion: nothing waits for a Model's children to be gone, and where the admission plugin
    OwnerReferencesPermissionEnforcement is on (OpenShift) it would take a further right, and half a minute after the
    CRDs were installed until the plugin has heard of them (seen: 27 s).
    """
    return {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
        "controller": True,
    }


def metadata(
    name: str,
    owner: Manifest,
    labels: dict[str, str],
    annotations: dict[str, str] | None = None,
    *,
    owned: bool = True,
) -> Manifest:
    """Metadata of a child of `owner`, in its namespace; `owned=False` leaves the owner reference out (kept objects)."""
    result: Manifest = {
        "name": name,
        "namespace": owner["metadata"]["namespace"],
        "labels": {names.MANAGED_BY: "moorage", **labels},
    }
    if annotations:
        result["annotations"] = annotations
    if owned:
        result["ownerReferences"] = [owner_reference(owner)]
    return result


def stamped(manifest: Manifest) -> Manifest:
    """`manifest` with the hash of its own content as an annotation, by which an unchanged one needs no request."""
    content = names.digest(manifest, 16)
    annotations = {**manifest["metadata"].get("annotations", {}), names.MANIFEST_HASH: content}
    return {**manifest, "metadata": {**manifest["metadata"], "annotations": annotations}}


def pod_security() -> Manifest:
    """Pod-level security context that Pod Security `restricted` accepts."""
    return {
        "runAsNonRoot": True,
        "runAsUser": NON_ROOT_USER,
        "runAsGroup": NON_ROOT_USER,
        "fsGroup": NON_ROOT_USER,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def container_security() -> Manifest:
    """Container-level security context: nothing to escalate with, nothing to write to but mounts."""
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def without_none(value: Manifest) -> Manifest:
    """`value` without the keys whose value is None or an empty list or dict."""
    return {k: v for k, v in value.items() if v is not None and v not in ([], {})}
