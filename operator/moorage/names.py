"""Every name Moorage writes into a cluster: the API group, labels, annotations, field managers and child names.

Child names are deterministic, so that nothing has to be remembered between two passes: the same owner always yields the
same name, and a name that does not fit a Kubernetes limit is cut and given a hash of the whole.
"""

import hashlib
import json
import re
from typing import Any

GROUP = "moorage.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"

FIELD_MANAGER = "moorage"

# Labels of children. `managed-by` is Kubernetes' recommended label; the others say whose child it is.
MANAGED_BY = "app.kubernetes.io/managed-by"
PART_OF = "app.kubernetes.io/part-of"
COMPONENT = "app.kubernetes.io/component"
MODEL_LABEL = f"{GROUP}/model"
DOWNLOAD_LABEL = f"{GROUP}/download"
CLAIM_LABEL = f"{GROUP}/claim"  # on pods that have to run where others with the same volume do

# A Secret that is an API key of the gateway, and what the key may do.
KEY_LABEL = f"{GROUP}/api-key"
KEY_NAMESPACES = f"{GROUP}/namespaces"
KEY_ALIASES = f"{GROUP}/aliases"
KEY_REQUESTS = f"{GROUP}/requests-per-minute"
KEY_TOKENS = f"{GROUP}/tokens-per-minute"
KEY_CONCURRENCY = f"{GROUP}/max-concurrency"
KEY_EXPIRES = f"{GROUP}/expires-at"

# Annotations on children: what was applied (equal hash: no request), and what shaped the pod: a hash that names it, and
# digests of its parts that another version of Moorage can compare (equal: only replicas move).
MANIFEST_HASH = f"{GROUP}/manifest-hash"
INPUTS_HASH = f"{GROUP}/inputs-hash"
INPUTS = f"{GROUP}/inputs"
IMAGE_FOR = f"{GROUP}/image-for"  # engine and vendor of accelerators: LlamaCpp/AMD
IMAGE_FROM = f"{GROUP}/image-from"  # "spec" where spec.image chose the engine image, absent where the chart did

# Annotations by which a person asks for something once; the value is an RFC 3339 time, as in `kubectl rollout restart`.
BENCHMARK_AT = f"{GROUP}/benchmark-at"
RESTART_AT = f"{GROUP}/restart-at"
REFRESH_AT = f"{GROUP}/refresh-at"
MOVED = f"{GROUP}/moved"  # on servers and their Deployment: whose place they took when a node was about to go
DELETION_COST = (
    "controller.kubernetes.io/pod-deletion-cost"  # Kubernetes' own: the lower, the sooner a ReplicaSet drops it
)
LEAST_GPU_MEMORY = f"{GROUP}/least-gpu-memory"  # on pods: learned, and a new value makes them anew
VERIFY_AT = f"{GROUP}/verify-at"
WAKE_AT = f"{GROUP}/wake-at"
SLEEP_AT = f"{GROUP}/sleep-at"

# Annotation on a Namespace: how many of its Models may be loaded at once.
MAX_LOADED = f"{GROUP}/max-loaded-models"

ENGINE_PORT = 8080
ENGINE_PORT_NAME = "http"
PROGRESS_PORT = 9400
MODEL_MOUNT = "/models"
ENGINE_FILES = "/etc/moorage"
ENGINE_FILE = f"{GROUP}/file-"  # annotations of a server's pod that its container finds as files
TERMINATION_LOG = "/dev/termination-log"  # Kubernetes' default
CHAT_TEMPLATE_MOUNT = "/etc/moorage/chat-template"

_DNS_LABEL_LIMIT = 63


def digest(value: Any, length: int = 12) -> str:
    """Short hex SHA-256 of any JSON-able value; equal values give equal digests whatever the key order."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def inputs(content: Any, asked: str, known: str | None) -> str:
    """Hash of `content` and of a person's request `asked` (an annotation; empty: none) to look at it again.

    `known` is the hash that was acted upon last: a request that is taken back asks for nothing, so it stays.
    """
    what = digest(content)
    if asked:
        return f"{what}-{digest(asked, 4)}"
    return known if known and known.partition("-")[0] == what else what


def acted_upon(known: str | None, asked: str) -> bool:
    """Whether `known`, made by `inputs` in any version of Moorage, holds a person's request `asked` (empty: none)."""
    return bool(known) and (not asked or str(known).partition("-")[2] == digest(asked, 4))


def dns_label(name: str, limit: int = _DNS_LABEL_LIMIT) -> str:
    """`name` as a DNS-1035-ish label of at most `limit` characters.

    A name that already is one comes back unchanged; otherwise dots become hyphens and a short hash of the original is
    appended, so that `a.b` and `a-b` never meet.
    """
    if len(name) <= limit and re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name):
        return name
    clean = re.sub(r"[^a-z0-9-]", "-", name.lower()).strip("-")
    if not clean or not clean[0].isalpha():
        clean = f"m-{clean}"
    return f"{clean[: limit - 7].rstrip('-')}-{digest(name, 6)}"


def model_child(model: str) -> str:
    """Name of a Model's Deployment and Service: the Model's own, mended only where DNS forbids it."""
    return dns_label(model)


def download_name(model_source: dict[str, Any], repo_hint: str) -> str:
    """Name of the ModelDownload shared by all Models of one content: a readable hint and a hash of the content key."""
    hint = dns_label(re.sub(r"[^a-z0-9-]", "-", repo_hint.lower()).strip("-")[:40].strip("-") or "files", 40)
    return f"{hint}-{digest(model_source, 10)}"


def download_child(download: str) -> str:
    """Name of a ModelDownload's claim and Job."""
    return dns_label(download)


def benchmark_job(model: str, run: str) -> str:
    """Name of the Job of one benchmark run; `run` identifies what is measured (template, commit, request)."""
    return f"{dns_label(model, 39)}-bench-{run}"  # run: 17 characters at most; a Job's name ends up in a label, 63
