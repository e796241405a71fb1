"""The Deployment, the Service and the PodDisruptionBudget of a Model."""

from dataclasses import dataclass, field
from typing import Any

from moorage import names
from moorage.api.engine_settings import ConfigMapKey
from moorage.engines.base import EngineContainer, Probe, Scratch
from moorage.engines.drain import DRAIN_SECONDS, FORGET_SECONDS
from moorage.manifests.common import Manifest, container_security, metadata, pod_security, stamped, without_none

CONTAINER = "engine"
GPU_CLAIM = "gpu"
TERMINATION_GRACE_SECONDS = FORGET_SECONDS + DRAIN_SECONDS + 30  # the last is the engine's own
HANG_GRACE_SECONDS = 30
STARTUP_MARGIN_SECONDS = 120  # image pull and scheduling, on top of the engine's own patience


@dataclass(frozen=True)
class ServerPod:
    """Everything that shapes a Model's pod; `passthrough` holds core/v1 pod fields taken from the spec as they are.

    GPUs come by `gpu_resource` from a device plugin, or by the ResourceClaimTemplate `claim_template` from DRA.
    """

    image: str
    engine: EngineContainer
    claim: str
    memory_request_mib: int
    chat_template: ConfigMapKey | None = None
    gpu_resource: str = ""
    gpus: int = 0
    claim_template: str = ""
    runtime_class: str | None = None
    pull_secrets: tuple[str, ...] = ()
    resources: dict[str, Any] = field(default_factory=dict)
    env: tuple[dict[str, Any], ...] = ()
    env_from: tuple[dict[str, Any], ...] = ()
    pod_labels: dict[str, str] = field(default_factory=dict)
    pod_annotations: dict[str, str] = field(default_factory=dict)
    passthrough: dict[str, Any] = field(default_factory=dict)


def labels(model: str) -> dict[str, str]:
    """Labels of a Model's Deployment, Service and pods."""
    return {names.COMPONENT: "server", names.MODEL_LABEL: names.dns_label(model)}


def selector(model: str) -> str:
    """The label selector of a Model's pods, as the scale subresource shows it."""
    return ",".join(f"{k}={v}" for k, v in sorted(labels(model).items()))


def deployment(owner: Manifest, pod: ServerPod, *, replicas: int, notes: dict[str, str], surge: bool) -> Manifest:
    """The Deployment; `notes` are its annotations, `surge` starts a new pod before an old one stops."""
    model = owner["metadata"]["name"]
    strategy: Manifest = {"type": "Recreate"}
    if surge:
        strategy = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
    return stamped(
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": metadata(names.model_child(model), owner, labels(model), annotations=notes),
            "spec": {
                "replicas": replicas,
                "revisionHistoryLimit": 3,
                "progressDeadlineSeconds": pod.engine.startup.failures + STARTUP_MARGIN_SECONDS,
                "selector": {"matchLabels": labels(model)},
                "strategy": strategy,
                "template": pod_template(model, pod),
            },
        }
    )


def service(owner: Manifest) -> Manifest:
    """The Service that carries the Model's name and answers OpenAI requests on port 80."""
    model = owner["metadata"]["name"]
    return stamped(
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": metadata(names.model_child(model), owner, labels(model)),
            "spec": {
                "type": "ClusterIP",
                "selector": labels(model),
                "ports": [
                    {
                        "name": names.ENGINE_PORT_NAME,
                        "port": 80,
                        "targetPort": names.ENGINE_PORT_NAME,
                        "protocol": "TCP",
                    }
                ],
            },
        }
    )


def disruption_budget(owner: Manifest, unavailable: int = 1) -> Manifest:
    """The PodDisruptionBudget that lets so many servers be missing; those that are not ready may always go."""
    model = owner["metadata"]["name"]
    return stamped(
        {
            "apiVersion": "policy/v1",
            "kind": "PodDisruptionBudget",
            "metadata": metadata(names.model_child(model), owner, labels(model)),
            "spec": {
                "maxUnavailable": unavailable,
                "unhealthyPodEvictionPolicy": "AlwaysAllow",
                "selector": {"matchLabels": labels(model)},
            },
        }
    )


def pod_template(model: str, pod: ServerPod) -> Manifest:
    """The pod template; the person's labels come first, so that ours (which select the pods) win."""
    spec = without_none(
        {
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            # Linux keeps SIGTERM from a process 1 without a handler: one that loads would end only after the grace.
            "shareProcessNamespace": True,
            "terminationGracePeriodSeconds": TERMINATION_GRACE_SECONDS,
            "securityContext": pod_security(),
            "runtimeClassName": pod.runtime_class,
            "imagePullSecrets": [{"name": s} for s in pod.pull_secrets],
            "resourceClaims": _claims(pod),
            "containers": [_container(pod)],
            "volumes": [
                {"name": "models", "persistentVolumeClaim": {"claimName": pod.claim, "readOnly": True}},
                *({"name": _volume_name(s.path), "emptyDir": _empty_dir(s)} for s in pod.engine.scratch),
                *_chat_template(pod.chat_template),
                *_files(pod.engine),
            ],
            **pod.passthrough,
        }
    )
    meta = without_none(
        {
            "labels": {**pod.pod_labels, names.MANAGED_BY: "moorage", **labels(model)},
            "annotations": {
                **pod.pod_annotations,
                **{f"{names.ENGINE_FILE}{name}": content for name, content in pod.engine.files.items()},
            },
        }
    )
    return {"metadata": meta, "spec": spec}


def _container(pod: ServerPod) -> Manifest:
    engine = pod.engine
    env = [{"name": k, "value": v} for k, v in engine.env.items()]
    return without_none(
        {
            "name": CONTAINER,
            "image": pod.image,
            "imagePullPolicy": "IfNotPresent",
            "command": list(engine.command),
            "args": list(engine.args),
            "env": [*env, *pod.env],
            "envFrom": list(pod.env_from),
            "ports": [{"name": names.ENGINE_PORT_NAME, "containerPort": engine.port}],
            "resources": without_none(
                {
                    **resources(pod.resources, pod.memory_request_mib, pod.gpu_resource, pod.gpus),
                    "claims": [{"name": claim["name"]} for claim in _claims(pod)],
                }
            ),
            "securityContext": container_security(),
            "startupProbe": _probe(engine.startup),
            "readinessProbe": _probe(engine.readiness),
            # One that hangs has nothing to end, and would be waited for like one that is deep in a prompt.
            "livenessProbe": {**_probe(engine.liveness), "terminationGracePeriodSeconds": HANG_GRACE_SECONDS},
            "terminationMessagePolicy": "FallbackToLogsOnError",
            "lifecycle": {"preStop": {"exec": {"command": list(engine.drain)}}},
            "volumeMounts": [
                {"name": "models", "mountPath": names.MODEL_MOUNT, "readOnly": True},
                *({"name": _volume_name(s.path), "mountPath": s.path} for s in engine.scratch),
                *_chat_template_mount(pod.chat_template),
                *([{"name": "files", "mountPath": names.ENGINE_FILES, "readOnly": True}] if engine.files else []),
            ],
        }
    )


def claim_template(owner: Manifest, spec: Manifest) -> Manifest:
    """The ResourceClaimTemplate of a server's GPUs, named by its content: its spec can never change.

    `spec` is that of the claims to be made. They carry the Model's label, by which their holder is known.
    """
    model = owner["metadata"]["name"]
    name = f"{names.model_child(model)}-{names.digest(spec)}"
    body = {"metadata": {"labels": labels(model)}, "spec": spec}
    meta = metadata(name, owner, labels(model))
    return stamped(
        {"apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaimTemplate", "metadata": meta, "spec": body}
    )


def _claims(pod: ServerPod) -> list[Manifest]:
    if not pod.claim_template:
        return []
    return [{"name": GPU_CLAIM, "resourceClaimTemplateName": pod.claim_template}]


def resources(asked: Manifest, memory_mib: int, gpu_resource: str = "", gpus: int = 0) -> Manifest:
    """The core/v1 ResourceRequirements of a server: what the spec asks for, else `memory_mib`; and its GPUs."""
    requests = {"memory": f"{memory_mib}Mi", **asked.get("requests", {})}
    limits = dict(asked.get("limits", {}))
    if "memory" in limits and "memory" not in asked.get("requests", {}):
        requests["memory"] = limits["memory"]  # a request above the limit would be refused
    if gpus and gpu_resource:
        limits[gpu_resource] = str(gpus)
    return without_none({"requests": requests, "limits": limits})


def _probe(probe: Probe) -> Manifest:
    return {
        "httpGet": {"path": probe.path, "port": names.ENGINE_PORT_NAME},
        "periodSeconds": probe.period,
        "timeoutSeconds": probe.timeout,
        "failureThreshold": probe.failures,
    }


def _chat_template(key: ConfigMapKey | None) -> list[Manifest]:
    if key is None:
        return []
    items = [{"key": key.key, "path": key.key}]
    return [{"name": "chat-template", "configMap": {"name": key.name, "items": items}}]


def _chat_template_mount(key: ConfigMapKey | None) -> list[Manifest]:
    if key is None:
        return []
    return [{"name": "chat-template", "mountPath": names.CHAT_TEMPLATE_MOUNT, "readOnly": True}]


def _files(engine: EngineContainer) -> list[Manifest]:
    """Annotations of the pod as files: no object of their own to make, name and remove."""
    if not engine.files:
        return []
    items = [
        {"path": name, "fieldRef": {"fieldPath": f"metadata.annotations['{names.ENGINE_FILE}{name}']"}}
        for name in sorted(engine.files)
    ]
    return [{"name": "files", "downwardAPI": {"items": items}}]


def _empty_dir(scratch: Scratch) -> Manifest:
    return {"sizeLimit": scratch.size, **({"medium": "Memory"} if scratch.memory else {})}


def _volume_name(path: str) -> str:
    return path.strip("/").replace("/", "-")
