"""Conditions, phases and the closed list of reasons, with a line of help for each reason.

Conditions follow the Kubernetes API conventions; `Reconciling` and `Stalled` are read by kstatus (Flux, Argo CD).
"""

from collections.abc import Iterable, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Annotated

from pydantic import Field

from moorage.api.common import Cut, Extension, Sentence, StatusPart, Time


class ConditionStatus(StrEnum):
    """What a condition says."""

    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


class ModelPhase(StrEnum):
    """The one word that `kubectl get models` prints."""

    PENDING = "Pending"
    PLACING = "Placing"
    DOWNLOADING = "Downloading"
    LOADING = "Loading"
    READY = "Ready"
    SCALED_TO_ZERO = "ScaledToZero"
    PREEMPTED = "Preempted"
    DEGRADED = "Degraded"
    BLOCKED = "Blocked"
    FAILED = "Failed"


class DownloadPhase(StrEnum):
    """The one word that `kubectl get modeldownloads` prints."""

    PENDING = "Pending"
    RESOLVING = "Resolving"
    CHECKING = "Checking"
    DOWNLOADING = "Downloading"
    VERIFYING = "Verifying"
    READY = "Ready"
    RETRYING = "Retrying"
    PAUSED = "Paused"
    CANCELLED = "Cancelled"
    FAILED = "Failed"


class ModelCondition(StrEnum):
    """Condition types of a Model; Ready is the roll-up of the first four."""

    ACCEPTED = "Accepted"
    PLACED = "Placed"
    DOWNLOADED = "Downloaded"
    SERVING = "Serving"
    BENCHMARKED = "Benchmarked"
    UP_TO_DATE = "UpToDate"
    ACTIVE = "Active"
    NAME_CONFLICT = "NameConflict"
    RECONCILING = "Reconciling"
    STALLED = "Stalled"
    READY = "Ready"


class DownloadCondition(StrEnum):
    """Condition types of a ModelDownload."""

    RESOLVED = "Resolved"
    SPACE_AVAILABLE = "SpaceAvailable"
    DOWNLOADED = "Downloaded"
    VERIFIED = "Verified"
    RECONCILING = "Reconciling"
    STALLED = "Stalled"
    READY = "Ready"


class AliasCondition(StrEnum):
    """Condition types of a ModelAlias. NameConflict and Shadowing are there only while they are True."""

    RESOLVED = "Resolved"
    FAILED_OVER = "FailedOver"
    NAME_CONFLICT = "NameConflict"
    SHADOWING = "Shadowing"
    READY = "Ready"


class Reason(StrEnum):
    """Every reason a condition may have. `REASON_HELP` says what each means and what to do."""

    # Good and on the way
    ACCEPTED = "Accepted"
    RESOLVED = "Resolved"
    SPACE_AVAILABLE = "SpaceAvailable"
    DOWNLOADED = "Downloaded"
    VERIFIED = "Verified"
    PLACED = "Placed"
    NO_ACCELERATOR_NEEDED = "NoAcceleratorNeeded"
    SERVING = "Serving"
    PARTIALLY_OFFLOADED = "PartiallyOffloaded"
    COMPLETED = "Completed"
    READY = "Ready"
    UP_TO_DATE = "UpToDate"
    DISABLED = "Disabled"
    SCALED_TO_ZERO = "ScaledToZero"
    PREEMPTED = "Preempted"
    SETTLED = "Settled"
    PENDING = "Pending"
    PROGRESSING = "Progressing"
    DOWNLOADING = "Downloading"
    LOADING = "Loading"
    VERIFYING = "Verifying"
    NOT_VERIFIED = "NotVerified"
    RUNNING = "Running"
    BUSY = "Busy"
    NO_USAGE_REPORTS = "NoUsageReports"
    WAITING_FOR_ROOM = "WaitingForRoom"
    LOADED_MODELS_LIMIT = "LoadedModelsLimit"
    WAITING_FOR_NODE = "WaitingForNode"
    WAITING_FOR_VOLUME = "WaitingForVolume"
    WAITING_FOR_MEMORY = "WaitingForMemory"
    ROLLOUT_AVAILABLE = "RolloutAvailable"
    STALE = "Stale"
    RETRYING = "Retrying"
    PAUSED = "Paused"
    QUEUED = "Queued"
    OUTSIDE_WINDOW = "OutsideWindow"
    CANCELLED = "Cancelled"
    DELETING = "Deleting"
    # A person must act
    INVALID_SPEC = "InvalidSpec"
    NAME_TAKEN = "NameTaken"
    UNSUPPORTED_FORMAT = "UnsupportedFormat"
    AMBIGUOUS_SELECTION = "AmbiguousSelection"
    IMAGE_REQUIRED = "ImageRequired"
    NO_NODE_CAME = "NoNodeCame"
    NO_GPU_FITS = "NoGPUFits"
    NO_GPU_FREE = "NoGPUFree"
    UNKNOWN_GPU_MEMORY = "UnknownGPUMemory"
    INSUFFICIENT_MEMORY = "InsufficientMemory"
    QUOTA_EXCEEDED = "QuotaExceeded"
    FORBIDDEN = "Forbidden"
    SECRET_NOT_FOUND = "SecretNotFound"
    CLAIM_NOT_FOUND = "ClaimNotFound"
    DOWNLOAD_NOT_FOUND = "DownloadNotFound"
    DOWNLOAD_FAILED = "DownloadFailed"
    DEADLINE_EXCEEDED = "DeadlineExceeded"
    TARGET_NOT_FOUND = "TargetNotFound"
    TARGET_NOT_READY = "TargetNotReady"
    TARGET_NOT_PERMITTED = "TargetNotPermitted"
    TARGET_FALLS_SHORT = "TargetFallsShort"
    NAME_CONFLICT = "NameConflict"
    SHADOWING = "Shadowing"
    FAILED_OVER = "FailedOver"
    # The server did not come up
    IMAGE_PULL_FAILED = "ImagePullFailed"
    CRASH_LOOP = "CrashLoop"
    OUT_OF_MEMORY = "OutOfMemory"
    UNSCHEDULABLE = "Unschedulable"
    ROLLOUT_FAILED = "RolloutFailed"
    WARM_UP_FAILED = "WarmUpFailed"
    NOT_READY = "NotReady"
    BENCHMARK_FAILED = "BenchmarkFailed"
    INTERNAL_ERROR = "InternalError"
    API_UNAVAILABLE = "APIUnavailable"
    # The source
    SOURCE_NOT_FOUND = "SourceNotFound"
    REPO_NOT_FOUND_OR_PRIVATE = "RepoNotFoundOrPrivate"
    GATED_ACCESS_DENIED = "GatedAccessDenied"
    ACCESS_DENIED = "AccessDenied"
    UNAUTHORIZED = "Unauthorized"
    REVISION_NOT_FOUND = "RevisionNotFound"
    FILE_NOT_FOUND = "FileNotFound"
    NO_FILES_MATCHED = "NoFilesMatched"
    HUB_UNREACHABLE = "HubUnreachable"
    SERVER_ERROR = "ServerError"
    RATE_LIMITED = "RateLimited"
    NOT_A_HUB = "NotAHub"
    HOST_NOT_ALLOWED = "HostNotAllowed"
    UNEXPECTED_CONTENT = "UnexpectedContent"
    UNSAFE_NAME = "UnsafeName"
    SIZE_MISMATCH = "SizeMismatch"
    CHECKSUM_MISMATCH = "ChecksumMismatch"
    INSUFFICIENT_STORAGE = "InsufficientStorage"
    STORAGE_ERROR = "StorageError"
    VOLUME_BUSY = "VolumeBusy"
    VOLUME_IN_USE = "VolumeInUse"
    VOLUME_ON_ONE_NODE = "VolumeOnOneNode"
    REQUEST_REFUSED = "RequestRefused"
    CERTIFICATE_ERROR = "CertificateError"
    INTERRUPTED = "Interrupted"
    NETWORK = "Network"
    TIMEOUT = "Timeout"
    STALLED = "Stalled"


REASON_HELP: dict[Reason, str] = {
    Reason.ACCEPTED: "The spec is valid and its source resolves to a repository, a commit and files.",
    Reason.RESOLVED: "Everything the object points at was found.",
    Reason.SPACE_AVAILABLE: "The volume has room for all files.",
    Reason.DOWNLOADED: "All files lie complete in the volume.",
    Reason.VERIFIED: "Every file has the expected size and, where the source names one, the expected checksum.",
    Reason.PLACED: "A node with enough free GPU memory was chosen.",
    Reason.NO_ACCELERATOR_NEEDED: "`accelerator.vendor: None`: the model runs on CPUs, any node will do.",
    Reason.SERVING: "The wanted number of servers is ready and one generated a token through the Service.",
    Reason.PARTIALLY_OFFLOADED: "It serves, but not all weights and cache are in GPU memory: slower than it should be.",
    Reason.COMPLETED: "The benchmark ran to its end; the figures are in `status.benchmark`.",
    Reason.READY: "All that readiness asks for is true.",
    Reason.UP_TO_DATE: "The running pods are what the present spec and chart would render.",
    Reason.DISABLED: "Switched off in the spec; nothing is wrong.",
    Reason.SCALED_TO_ZERO: "No server runs and no GPU is held: `replicas` is 0 (scale it up to load the model), or the "
    "Model sleeps because nobody used it (a request wakes it).",
    Reason.PREEMPTED: "Put to sleep while idle to make room for another Model, or because its namespace had too many "
    "loaded ones; a request, room or `moorage.dev/wake-at` wakes it.",
    Reason.SETTLED: "Nothing is left to do.",
    Reason.PENDING: "Not looked at yet, or an earlier step has to finish first.",
    Reason.PROGRESSING: "A change is on its way; the message says which step.",
    Reason.DOWNLOADING: "The download Job runs; the ModelDownload shows bytes, speed and time left.",
    Reason.LOADING: "A server has started and reads the weights into memory.",
    Reason.VERIFYING: "All bytes are there and their checksums are being compared.",
    Reason.NOT_VERIFIED: "Nobody compared anything: `verify: None`, or a pre-filled folder without a manifest.",
    Reason.RUNNING: "The benchmark Job runs.",
    Reason.NO_USAGE_REPORTS: "No gateway tells of requests, so nobody knows whether the Model is idle; it is not "
    "put to sleep.",
    Reason.WAITING_FOR_ROOM: "Idle Models are being put to sleep to make room; the message names them and the node.",
    Reason.LOADED_MODELS_LIMIT: "The namespace has as many loaded Models as it may (`maxLoadedModels`, or the "
    "annotation `moorage.dev/max-loaded-models` of the namespace).",
    Reason.BUSY: "The benchmark waits until no request of the gateways is under way (`spec.benchmark.when: Idle`).",
    Reason.WAITING_FOR_NODE: "No node is there yet that the pod may run on; a cluster autoscaler may add one.",
    Reason.WAITING_FOR_VOLUME: "The claim is not bound yet; see the events of the PersistentVolumeClaim.",
    Reason.WAITING_FOR_MEMORY: "The GPU that was chosen is free by Kubernetes' books, but its memory is in use; the "
    "start waits, up to the chart's `agent.maxWaitSeconds`.",
    Reason.ROLLOUT_AVAILABLE: "The chart has a newer engine image; set the annotation `moorage.dev/restart-at`, or "
    "`updatePolicy: Rolling`, to roll it out.",
    Reason.STALE: "The figures were measured with an earlier spec, revision or image.",
    Reason.RETRYING: "An attempt failed for a passing reason and is repeated; the message says why and when.",
    Reason.PAUSED: "`state: Paused`: the files so far are kept; set `state: Active` to go on.",
    Reason.QUEUED: "As many downloads as the chart allows are running; this one starts when one of them ends.",
    Reason.OUTSIDE_WINDOW: "The time is outside `spec.window`; what was fetched is kept and it goes on by itself.",
    Reason.CANCELLED: "`state: Cancelled`: partial files were discarded; set `state: Active` to start again.",
    Reason.DELETING: "The object is being deleted.",
    Reason.INVALID_SPEC: "The spec cannot work as written; the message names the field and what to change.",
    Reason.NAME_TAKEN: "An object that Moorage did not make already has a child's name; rename one of the two.",
    Reason.UNSUPPORTED_FORMAT: "No engine of this version can serve files of this format.",
    Reason.AMBIGUOUS_SELECTION: "The repository holds several models; choose with `quantization` or `include`.",
    Reason.IMAGE_REQUIRED: "Neither the Model nor the chart names an engine image; set `spec.image`.",
    Reason.NO_NODE_CAME: "A node pool that can grow brought no node in time; the cluster autoscaler knows why.",
    Reason.NO_GPU_FITS: "No GPU of the cluster is large enough; the message names the need and the largest.",
    Reason.NO_GPU_FREE: "A GPU is large enough, but all such GPUs are taken.",
    Reason.UNKNOWN_GPU_MEMORY: "Nodes have GPUs but neither an agent nor labels say how much memory they have.",
    Reason.INSUFFICIENT_MEMORY: "The server ran out of GPU memory, was planned once more with more room, and no GPU "
    "has more, or that was not enough either; no further start is tried.",
    Reason.QUOTA_EXCEEDED: "A ResourceQuota or LimitRange of the namespace does not admit the pod or claim.",
    Reason.FORBIDDEN: "The API server refused what the operator wanted to write: rights or an admission policy.",
    Reason.SECRET_NOT_FOUND: "A Secret or ConfigMap that the source names, or its key, is not in the namespace.",
    Reason.CLAIM_NOT_FOUND: "The PersistentVolumeClaim that the spec names does not exist in the namespace.",
    Reason.DOWNLOAD_NOT_FOUND: "The ModelDownload that `downloadRef` names does not exist in the namespace.",
    Reason.DOWNLOAD_FAILED: "The ModelDownload failed for good; its own conditions say why.",
    Reason.DEADLINE_EXCEEDED: "The files were not there within `retry.deadline`; a longer one goes on from there.",
    Reason.TARGET_NOT_FOUND: "A Model that the alias points at does not exist; requests go past it.",
    Reason.TARGET_NOT_READY: "A Model that the alias points at is not ready; its own conditions say why.",
    Reason.TARGET_NOT_PERMITTED: "A Model of another namespace does not permit the alias to point at it; its "
    "`spec.allowedNamespaces` says who may. Requests go past it.",
    Reason.TARGET_FALLS_SHORT: "A Model that the alias points at offers less than the alias' `spec.requires`; requests "
    "go past it.",
    Reason.NAME_CONFLICT: "A name claimed in `spec.servedNames` does not lead here: it is another object's own name or "
    "older claim, or begins with a namespace, whose it is.",
    Reason.FAILED_OVER: "Requests go past a target that fails or is slow, as `spec.failover` says; a trial brings them "
    "back.",
    Reason.SHADOWING: "The alias has the name of a Model, so that requests for the name go where the alias points.",
    Reason.IMAGE_PULL_FAILED: "The engine image cannot be pulled; check its name, the registry and imagePullSecrets.",
    Reason.CRASH_LOOP: "The server exits again and again; the message has its last words.",
    Reason.OUT_OF_MEMORY: "The server ran out of host memory, or of GPU memory that a new plan is about to widen.",
    Reason.UNSCHEDULABLE: "kube-scheduler finds no node for the pod; the message is the scheduler's.",
    Reason.ROLLOUT_FAILED: "The new version did not become ready in time; an old one keeps serving.",
    Reason.WARM_UP_FAILED: "The server reports ready but gave no right answer to a first request.",
    Reason.NOT_READY: "A server that was ready is not; it is being watched.",
    Reason.BENCHMARK_FAILED: "The benchmark gave no valid figures; the Model serves all the same.",
    Reason.INTERNAL_ERROR: "Moorage itself failed; the operator's log has the stack trace. It is tried again.",
    Reason.API_UNAVAILABLE: "The Kubernetes API did not answer; tried again with growing pauses.",
    Reason.SOURCE_NOT_FOUND: "The source does not exist: check the repository, revision, URL or path.",
    Reason.REPO_NOT_FOUND_OR_PRIVATE: "The hub shows no such repository; it is misspelt, or private and needs a token.",
    Reason.GATED_ACCESS_DENIED: "The repository is gated: accept its terms on the hub with the account of the token.",
    Reason.ACCESS_DENIED: "The source refused access; check the token and what it may read.",
    Reason.UNAUTHORIZED: "The source wants a token, or the one given is invalid or has expired.",
    Reason.REVISION_NOT_FOUND: "The repository has no such branch, tag or commit.",
    Reason.FILE_NOT_FOUND: "A file that was asked for is not in the source.",
    Reason.NO_FILES_MATCHED: "No file of the repository matches include, exclude and quantization.",
    Reason.HUB_UNREACHABLE: "The source's host does not answer: DNS, a firewall, a proxy or an outage.",
    Reason.SERVER_ERROR: "The source answers with server errors; tried again with growing pauses.",
    Reason.RATE_LIMITED: "The source asked to slow down; the download goes on when it said. A token raises the limit.",
    Reason.NOT_A_HUB: "The endpoint answers, but not as a Hugging Face hub does; check `endpoint`.",
    Reason.HOST_NOT_ALLOWED: "The host, or one it redirects to, is not among those the operator may fetch from.",
    Reason.UNEXPECTED_CONTENT: "The source sent something else than the file, such as a login page.",
    Reason.UNSAFE_NAME: "A file name in the source would leave the volume's folder, so it was refused.",
    Reason.SIZE_MISMATCH: "A file has another size than the source said.",
    Reason.CHECKSUM_MISMATCH: "A file's SHA-256 differs from the expected one even after it was fetched again.",
    Reason.INSUFFICIENT_STORAGE: "The volume has too little room for the files; give it a larger `storage.size`.",
    Reason.VOLUME_BUSY: "Another download writes to the same folder of the volume; tried again.",
    Reason.VOLUME_IN_USE: "A ReadWriteOnce volume is mounted on another node; the message names the pod that has it.",
    Reason.VOLUME_ON_ONE_NODE: "A ReadWriteOnce volume lies on one node or in one zone that has no place for the pod.",
    Reason.REQUEST_REFUSED: "The source refused the request as such; check the address.",
    Reason.CERTIFICATE_ERROR: "The source's TLS certificate is not trusted; name its authority in `caBundleRef`.",
    Reason.INTERRUPTED: "The download pod was stopped; what was fetched is kept and the next one goes on from there.",
    Reason.STORAGE_ERROR: "Reading or writing the volume failed; the message has the system's words.",
    Reason.NETWORK: "Connections to the source break; tried again.",
    Reason.TIMEOUT: "The source took too long to answer.",
    Reason.STALLED: "No byte arrived for longer than `retry.stallTimeout`, several times in a row.",
}


class Condition(StatusPart):
    """One condition of an object, as metav1.Condition."""

    type: str = Field(max_length=64, description="What this is about, such as Ready.")
    status: ConditionStatus = Field(description="True, False or Unknown.")
    reason: Annotated[str, Cut(128)] = Field(default="", description="Why, as one word of a closed list.")
    message: Sentence = Field(default="", description="Why, as a sentence for a person.")
    observed_generation: int | None = Field(default=None, description="The metadata.generation this was said about.")
    last_transition_time: Time | None = Field(default=None, description="When `status` last changed.")


# The conditions of an object, one of each type.
Conditions = Annotated[
    list[Condition],
    Cut(16),
    Extension("x-kubernetes-list-type", "map"),
    Extension("x-kubernetes-list-map-keys", ["type"]),
]


def get_condition(conditions: Iterable[Condition], kind: str) -> Condition | None:
    """The condition of type `kind`, or None."""
    return next((condition for condition in conditions if condition.type == kind), None)


def is_true(conditions: Iterable[Condition], kind: str) -> bool:
    """Whether the condition of type `kind` is there and True."""
    found = get_condition(conditions, kind)
    return found is not None and found.status == ConditionStatus.TRUE


def set_condition(conditions: Sequence[Condition], new: Condition, now: datetime) -> list[Condition]:
    """`conditions` with `new` in place of the one of its type, or at the end; the order never changes.

    `lastTransitionTime` is kept while `status` stays the same and is `now` otherwise; what `new` has there is ignored.
    """
    old = get_condition(conditions, new.type)
    since = old.last_transition_time if old and old.status == new.status and old.last_transition_time else now
    stamped = new.model_copy(update={"last_transition_time": since.replace(microsecond=0)})
    if old is None:
        return [*conditions, stamped]
    return [stamped if condition.type == new.type else condition for condition in conditions]
