"""The types that explain the operator: what was observed, what is asked for, and the plan that comes out.

All of them are plain data (dicts as the API server speaks them, numbers, strings), so that an observation can be
written down as JSON, replayed, and tried with changes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from moorage.placement.gpu_report import GpuReport
from moorage.placement.inventory import Inventory, Reservation
from moorage.planning.neighbours import Around
from moorage.planning.usage import Usage

Manifest = dict[str, Any]


@dataclass(frozen=True)
class Defaults:
    """What the installation decides for every Model: images, what a source may be, and what a server may run."""

    moorage_image: str
    llamacpp_image: str
    llamacpp_nvidia_image: str = ""
    llamacpp_amd_image: str = ""
    vllm_image: str = ""
    vllm_nvidia_image: str = ""
    vllm_amd_image: str = ""
    remote_code_allowed: bool = False
    huggingface_endpoint: str = "https://huggingface.co"
    allowed_hosts: tuple[str, ...] = ()
    denied_networks: tuple[str, ...] = ()
    allow_loopback: bool = False
    proxy_env: tuple[tuple[str, str], ...] = ()
    image_pull_secrets: tuple[str, ...] = ()
    preemption_cooldown_seconds: int = 600
    max_loaded_models: int | None = None
    node_deadline_seconds: float = 900.0
    memory_wait_seconds: int = 0  # for which a start waits for GPU memory in use; 0: it does not

    def engine_image(self, engine: str, vendor: str | None) -> str:
        """The image of `engine` for a vendor's GPUs, or for the CPU; empty where the installation has none."""
        images = {
            "LlamaCpp": (self.llamacpp_image, self.llamacpp_nvidia_image, self.llamacpp_amd_image),
            "VLLM": (self.vllm_image, self.vllm_nvidia_image, self.vllm_amd_image),
        }
        cpu, nvidia, amd = images[engine]
        return {"Nvidia": nvidia, "AMD": amd}.get(vendor or "", cpu)


@dataclass(frozen=True)
class Ref:
    """One object to delete or patch; with `uid` only that very object, never a namesake made since."""

    api_version: str
    kind: str
    namespace: str
    name: str
    uid: str | None = None


@dataclass(frozen=True)
class Patch:
    """A merge patch of one child, for what must change without rendering the whole manifest again (replicas)."""

    ref: Ref
    body: Manifest
    subresource: str | None = None


@dataclass(frozen=True)
class PlannedEvent:
    """A Kubernetes Event on the planned object; `type` is Normal or Warning."""

    type: str
    reason: str
    message: str


@dataclass(frozen=True)
class Resolve:
    """Ask: read the source at the hub (commit, files, header facts). `inputs` identifies the question."""

    inputs: str
    source: Manifest
    files: tuple[str, ...] = ()


@dataclass(frozen=True)
class WarmUp:
    """Ask: a first answer through the Model's Service. `template` identifies the pods that are to answer.

    `capability` is what is asked for: chat (one token), embeddings or rerank. `reporter` is `host:port` of a pod that
    can also be asked what it can do, empty where none can: through the Service an old one may answer for a while.
    """

    template: str
    model: str
    cluster_ip: str
    port: int
    capability: str = "chat"
    reporter: str = ""


@dataclass(frozen=True)
class Progress:
    """Ask: follow a download pod's progress at `url` for as long as it is asked for."""

    pod: str
    url: str


@dataclass(frozen=True)
class FreeMemory:
    """Ask: have the agents of `nodes` read every second, for as long as it is asked for."""

    nodes: tuple[str, ...]


@dataclass(frozen=True)
class Credentials:
    """Ask: notice when one of these Secrets or ConfigMaps of the namespace changes; a refusal may end with that."""

    secrets: tuple[str, ...] = ()
    config_maps: tuple[str, ...] = ()


Ask = Resolve | WarmUp | Progress | FreeMemory | Credentials


@dataclass(frozen=True)
class Answer:
    """What a side task found: `value` on success, else `reason` and `message`; `inputs` names the question.

    `failures` counts attempts in a row that failed.
    """

    inputs: str
    value: Manifest | None = None
    reason: str = ""
    message: str = ""
    retryable: bool = True
    failures: int = 0


@dataclass(frozen=True)
class Plan:
    """What to do about one object, and why.

    `status` is the whole wanted status (None: leave it), `requeue_after` seconds until the object should be looked at
    again even if nothing changes, `ask` the facts that the next pass needs, `reserve` the GPUs held for pods to come,
    `follow_load` whether every change of the requests in flight matters. `evict` names the Models (`namespace/label`)
    that are to sleep for it, `loaded` says whether it takes one of its namespace's places. `look_around`: it has no
    room, and should be planned once more with its neighbours in sight. `words_wait`: the next pass would say all of
    `status` again, so where something is made it need not be written before the mirror shows that.
    """

    apply: tuple[Manifest, ...] = ()
    patch: tuple[Patch, ...] = ()
    delete: tuple[Ref, ...] = ()
    status: Manifest | None = None
    events: tuple[PlannedEvent, ...] = ()
    ask: tuple[Ask, ...] = ()
    reserve: tuple[Reservation, ...] = ()
    requeue_after: float | None = None
    follow_load: bool = False
    evict: tuple[str, ...] = ()
    loaded: bool = False
    look_around: bool = False
    words_wait: bool = False
    why: str = ""


@dataclass(frozen=True)
class Pointing:
    """An alias that points at a Model, and the labels of its namespace (None: nobody knows such a namespace)."""

    namespace: str
    name: str
    namespace_labels: dict[str, str] | None = None


@dataclass(frozen=True)
class ObservedModel:
    """A Model and everything that its next step depends on. Children are projections, None where absent."""

    model: Manifest
    now: datetime
    defaults: Defaults
    download: Manifest | None = None
    deployment: Manifest | None = None
    service: Manifest | None = None
    pods: tuple[Manifest, ...] = ()
    jobs: tuple[Manifest, ...] = ()
    inventory: Inventory | None = None
    reservations: tuple[Reservation, ...] = ()
    resolved: Answer | None = None
    warmed: Answer | None = None
    gpu_reports: Mapping[str, GpuReport] = field(default_factory=dict)  # by node; their age counted up to now
    waited_seconds: float = 0.0  # since FreeMemory was asked first
    volume: Manifest | None = None  # of the claim that the files lie in, as control/volumes.py puts it together
    usage: Usage = field(default_factory=Usage)
    claim_templates: tuple[Manifest, ...] = ()  # for DRA, the Model's own
    budget: Manifest | None = None  # the PodDisruptionBudget of the Model's name, whose ever it is
    budgets: tuple[Manifest, ...] = ()  # those that people made in the namespace
    quotas: tuple[Manifest, ...] = ()  # of the namespace
    limit_ranges: tuple[Manifest, ...] = ()
    taken: dict[str, str] = field(default_factory=dict)  # served names that it has not got, and why not
    aliases: tuple[Pointing, ...] = ()
    around: Around | None = None  # shown only to a Model that has no room
    evicted_for: str = ""  # the Model that is to have its place
    loaded: bool = False
    loaded_limit: int | None = None  # of its namespace
    loaded_others: tuple[str, ...] = ()  # in its namespace, where there is a limit


@dataclass(frozen=True)
class Window:
    """Whether a download's window is open, and in how many seconds that changes; `problem` where it makes no sense."""

    open: bool
    changes_in: float
    problem: str = ""


@dataclass(frozen=True)
class Server:
    """Where a Model that uses a download wants its servers: what its spec says of nodes, and the nodes planned.

    `pools` are the labels of the node pools that a node is waited for from.
    """

    node_selector: Manifest = field(default_factory=dict)
    tolerations: tuple[Manifest, ...] = ()
    node_affinity: Manifest | None = None
    nodes: tuple[str, ...] = ()
    pools: tuple[dict[str, str], ...] = ()


@dataclass(frozen=True)
class ObservedDownload:
    """A ModelDownload, its claim, Job and pods, and the Models that use it."""

    download: Manifest
    now: datetime
    defaults: Defaults
    claim: Manifest | None = None
    job: Manifest | None = None
    pods: tuple[Manifest, ...] = ()
    users: tuple[str, ...] = ()
    progress: Manifest | None = None
    resolved: Answer | None = None
    storage_class: Manifest | None = None  # of the claim, or of the one to be made
    storage_class_missing: str | None = None
    ahead: int = 0  # downloads that run or wait before this one may start; 0: it may
    window: Window | None = None
    volume: Manifest | None = None
    credentials_changed: bool = False  # since the source refused them
    server: Server | None = None  # of the Model that decides where a volume that is still to be made goes


@dataclass(frozen=True)
class ObservedAlias:
    """A ModelAlias and the Models it names, by `namespace/name` (None: there is no such Model).

    `taken` are served names that it has not got, and why not, as a clause; `shadows`: a Model has the alias' own name.
    """

    alias: Manifest
    now: datetime
    models: dict[str, Manifest | None] = field(default_factory=dict)
    usage: Usage = field(default_factory=Usage)
    namespace_labels: dict[str, str] | None = None
    taken: dict[str, str] = field(default_factory=dict)
    shadows: bool = False
