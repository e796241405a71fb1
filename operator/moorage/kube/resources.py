"""The API resources Moorage uses, as a static table, so that a start needs no discovery request.

Paths follow https://kubernetes.io/docs/reference/using-api/api-concepts/#resource-uris.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from moorage.names import GROUP, VERSION


@dataclass(frozen=True)
class Resource:
    """One kind of object and where the API server keeps it; the core group is the empty string."""

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        """The `apiVersion` of a manifest: `v1`, `apps/v1`."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str | None = None, name: str | None = None, subresource: str | None = None) -> str:
        """URL path of one object, of a collection in a namespace, or (no namespace) of the collection in all of them.

        Raises ValueError where the parts cannot name an object: a namespaced one without a namespace, `..` as a name.
        """
        if name is not None and self.namespaced and not namespace:
            raise ValueError(f"{self.kind} {name!r} needs a namespace")
        path = f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"
        if self.namespaced and namespace:
            path += f"/namespaces/{_segment(namespace)}"
        path += f"/{self.plural}"
        if name is not None:
            path += f"/{_segment(name)}"
        return f"{path}/{subresource}" if subresource else path


def _segment(text: str) -> str:
    """`text` as one URL path segment; a name typed by a person must not climb out of its collection."""
    if text in {"", ".", ".."}:
        raise ValueError(f"{text!r} is not a name")
    return quote(text, safe=":")


MODELS = Resource(GROUP, VERSION, "models", "Model")
MODEL_ALIASES = Resource(GROUP, VERSION, "modelaliases", "ModelAlias")
MODEL_DOWNLOADS = Resource(GROUP, VERSION, "modeldownloads", "ModelDownload")

CLAIMS = Resource("", "v1", "persistentvolumeclaims", "PersistentVolumeClaim")
CONFIG_MAPS = Resource("", "v1", "configmaps", "ConfigMap")
EVENTS = Resource("", "v1", "events", "Event")
LIMIT_RANGES = Resource("", "v1", "limitranges", "LimitRange")
NAMESPACES = Resource("", "v1", "namespaces", "Namespace", namespaced=False)
NODES = Resource("", "v1", "nodes", "Node", namespaced=False)
PODS = Resource("", "v1", "pods", "Pod")
RESOURCE_QUOTAS = Resource("", "v1", "resourcequotas", "ResourceQuota")
SECRETS = Resource("", "v1", "secrets", "Secret")
SERVICES = Resource("", "v1", "services", "Service")
SERVICE_ACCOUNTS = Resource("", "v1", "serviceaccounts", "ServiceAccount")
VOLUMES = Resource("", "v1", "persistentvolumes", "PersistentVolume", namespaced=False)

CUSTOM_RESOURCE_DEFINITIONS = Resource(
    "apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition", namespaced=False
)
DEPLOYMENTS = Resource("apps", "v1", "deployments", "Deployment")
DISRUPTION_BUDGETS = Resource("policy", "v1", "poddisruptionbudgets", "PodDisruptionBudget")
ENDPOINT_SLICES = Resource("discovery.k8s.io", "v1", "endpointslices", "EndpointSlice")
JOBS = Resource("batch", "v1", "jobs", "Job")
LEASES = Resource("coordination.k8s.io", "v1", "leases", "Lease")
NETWORK_POLICIES = Resource("networking.k8s.io", "v1", "networkpolicies", "NetworkPolicy")
PRIORITY_CLASSES = Resource("scheduling.k8s.io", "v1", "priorityclasses", "PriorityClass", namespaced=False)
REPLICA_SETS = Resource("apps", "v1", "replicasets", "ReplicaSet")
STORAGE_CLASSES = Resource("storage.k8s.io", "v1", "storageclasses", "StorageClass", namespaced=False)

# Dynamic resource allocation: GA as resource.k8s.io/v1 since Kubernetes 1.34.
DEVICE_CLASSES = Resource("resource.k8s.io", "v1", "deviceclasses", "DeviceClass", namespaced=False)
RESOURCE_CLAIMS = Resource("resource.k8s.io", "v1", "resourceclaims", "ResourceClaim")
RESOURCE_CLAIM_TEMPLATES = Resource("resource.k8s.io", "v1", "resourceclaimtemplates", "ResourceClaimTemplate")
RESOURCE_SLICES = Resource("resource.k8s.io", "v1", "resourceslices", "ResourceSlice", namespaced=False)

RESOURCES: tuple[Resource, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Resource))

_BY_KIND = {(resource.api_version, resource.kind): resource for resource in RESOURCES}


def resource_of(manifest: Mapping[str, Any]) -> Resource:
    """The resource a manifest belongs to, by `apiVersion` and `kind`; ValueError where the table has none."""
    key = (manifest.get("apiVersion"), manifest.get("kind"))
    resource = _BY_KIND.get(key)  # type: ignore[arg-type]
    if resource is None:
        raise ValueError(f"no resource in moorage.kube.resources for apiVersion {key[0]!r}, kind {key[1]!r}")
    return resource
