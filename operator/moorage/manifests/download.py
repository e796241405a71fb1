"""The claim and the Job of a ModelDownload."""

from dataclasses import dataclass, field

from moorage import names
from moorage.manifests.common import (
    Manifest,
    container_security,
    metadata,
    pod_security,
    stamped,
    without_none,
)

# Exit codes 10..29 of `moorage download` are permanent (design: contracts); a Job must not try those again.
PERMANENT_EXIT_CODES = list(range(10, 30))
BACKOFF_LIMIT = 4
TERMINATION_GRACE_SECONDS = 10
FINISHED_TTL_SECONDS = 3600
CONTAINER = "download"


@dataclass(frozen=True)
class TokenRef:
    """One key of a Secret in the download's namespace."""

    name: str
    key: str


@dataclass(frozen=True)
class DownloadJob:
    """What the Job of one ModelDownload runs: `args` follow `moorage download`; the claim is mounted at /models."""

    image: str
    args: tuple[str, ...]
    claim: str
    inputs: str
    read_only: bool = False
    token: TokenRef | None = None
    headers: TokenRef | None = None
    ca_bundle: TokenRef | None = None
    pull_secrets: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    node_selector: Manifest = field(default_factory=dict)
    tolerations: tuple[Manifest, ...] = ()
    affinity: Manifest = field(default_factory=dict)


def labels(download: str, component: str = "download") -> dict[str, str]:
    """Labels of a ModelDownload's children; the label value is cut to what Kubernetes allows."""
    return {names.COMPONENT: component, names.DOWNLOAD_LABEL: names.dns_label(download)}


def claim(
    owner: Manifest, name: str, *, size: str, storage_class: str | None, access_modes: list[str], owned: bool
) -> Manifest:
    """The PersistentVolumeClaim, `size` a quantity; `owned=False` (reclaimPolicy Retain) lets it outlive the owner."""
    spec = without_none(
        {
            "accessModes": access_modes,
            "storageClassName": storage_class,
            "resources": {"requests": {"storage": size}},
        }
    )
    return stamped(
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": metadata(name, owner, labels(owner["metadata"]["name"]), owned=owned),
            "spec": spec,
        }
    )


def job(owner: Manifest, name: str, what: DownloadJob) -> Manifest:
    """The Job that fetches, verifies or inspects; it has no rights in the cluster and no service account token."""
    pod_labels = {names.MANAGED_BY: "moorage", **labels(owner["metadata"]["name"])}
    return stamped(
        {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": metadata(
                name, owner, labels(owner["metadata"]["name"]), annotations={names.INPUTS_HASH: what.inputs}
            ),
            "spec": {
                "backoffLimit": BACKOFF_LIMIT,
                "ttlSecondsAfterFinished": FINISHED_TTL_SECONDS,
                "podReplacementPolicy": "Failed",  # never two writers on one volume
                "podFailurePolicy": {
                    "rules": [
                        {
                            "action": "FailJob",
                            "onExitCodes": {
                                "containerName": CONTAINER,
                                "operator": "In",
                                "values": PERMANENT_EXIT_CODES,
                            },
                        },
                        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]},
                    ]
                },
                "template": {"metadata": {"labels": pod_labels}, "spec": _pod(what)},
            },
        }
    )


def _pod(what: DownloadJob) -> Manifest:
    return without_none(
        {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": TERMINATION_GRACE_SECONDS,
            "securityContext": pod_security(),
            "imagePullSecrets": [{"name": s} for s in what.pull_secrets],
            "nodeSelector": what.node_selector,
            "tolerations": list(what.tolerations),
            "affinity": what.affinity,
            "containers": [_container(what)],
            "volumes": _volumes(what),
        }
    )


def _container(what: DownloadJob) -> Manifest:
    token = what.token
    env: list[Manifest] = [{"name": "HOME", "value": "/tmp"}]
    env += [{"name": name, "value": value} for name, value in what.env]
    if token:
        env.append({"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": token.name, "key": token.key}}})
    mounts: list[Manifest] = [
        without_none({"name": "models", "mountPath": names.MODEL_MOUNT, "readOnly": what.read_only or None}),
        {"name": "tmp", "mountPath": "/tmp"},
    ]
    if what.headers:
        mounts.append({"name": "headers", "mountPath": "/etc/moorage/headers", "readOnly": True})
    if what.ca_bundle:
        mounts.append({"name": "ca", "mountPath": "/etc/moorage/ca", "readOnly": True})
    return {
        "name": CONTAINER,
        "image": what.image,
        "imagePullPolicy": "IfNotPresent",
        "args": ["download", *what.args],
        "env": env,
        "ports": [{"name": "progress", "containerPort": names.PROGRESS_PORT}],
        "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "512Mi"}},
        "securityContext": container_security(),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": mounts,
    }


def _volumes(what: DownloadJob) -> list[Manifest]:
    volumes: list[Manifest] = [
        {
            "name": "models",
            "persistentVolumeClaim": without_none({"claimName": what.claim, "readOnly": what.read_only or None}),
        },
        {"name": "tmp", "emptyDir": {"sizeLimit": "64Mi"}},
    ]
    if what.headers:
        items = [{"key": what.headers.key, "path": "headers"}]
        volumes.append({"name": "headers", "secret": {"secretName": what.headers.name, "items": items}})
    if what.ca_bundle:
        ca = what.ca_bundle
        items = [{"key": ca.key, "path": "ca.crt"}]
        volumes.append({"name": "ca", "configMap": {"name": ca.name, "items": items}})
    return volumes
