"""What is asked of placement, and its answer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from moorage.api.conditions import Reason
from moorage.placement import memory
from moorage.placement.inventory import Book, Reservation

AUTO = "Auto"


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to serve a Model: `gpus` GPUs of one node, with `mib` MiB needed on each of them."""

    gpus: int
    mib: int


@dataclass(frozen=True)
class Request:
    """What one Model asks for.

    owner          namespace/name, as reservations and pods' holders name the Model
    candidates     in order of preference; what the engine cannot do is not among them
    vendor         Auto, Nvidia or AMD; `count` the number of GPUs if the spec fixes it
    memory_override_mib   the need on each GPU as the spec says it: wins over the candidates', and GPUs of unknown size
                   are taken on the person's word when no other will do
    node_selector, tolerations, node_affinity   of the spec, as in core/v1
    replicas       how many to place now; `placed` nodes of those that run and stay: others go elsewhere if they can
    replacing      the Model's own pods stop before new ones start, so what they hold counts as free
    weights_on     nodes that have the files mounted: the first choice among GPUs of one class
    volume_nodes   nodes that can mount the volume; None: all. `one_node`: only one node will, so all replicas go to one
    volume_pools   node pools whose new nodes may mount it; None: all
    late_pools     node pools that were waited for and brought no node in time: others are tried first
    exact_class    the engine's arguments depend on the GPU's size: one class only, required and not just preferred
    """

    owner: str
    candidates: tuple[Candidate, ...]
    vendor: str = AUTO
    count: int | None = None
    memory_override_mib: int | None = None
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: Sequence[Mapping[str, Any]] = ()
    node_affinity: Mapping[str, Any] | None = None
    replicas: int = 1
    placed: tuple[str, ...] = ()
    replacing: bool = False
    weights_on: frozenset[str] = frozenset()
    volume_nodes: frozenset[str] | None = None
    volume_pools: frozenset[str] | None = None
    one_node: bool = False
    late_pools: frozenset[str] = frozenset()
    exact_class: bool = False

    @property
    def plans(self) -> tuple[Candidate, ...]:
        """The candidates that the spec leaves, with the need that it says."""
        left = [c for c in self.candidates if self.count in (None, c.gpus)]
        if self.memory_override_mib is None:
            return tuple(left)
        return tuple(Candidate(c.gpus, self.memory_override_mib) for c in left)


class Rejection(StrEnum):
    """Why a node was not chosen; a pod cannot run on it, its GPUs cannot be used, or they do not suffice."""

    NOT_READY = "NotReady"
    CORDONED = "Cordoned"
    TAINTED = "Tainted"
    NOT_SELECTED = "NotSelected"
    VOLUME_ELSEWHERE = "VolumeElsewhere"
    NO_GPU = "NoGPU"
    OTHER_VENDOR = "OtherVendor"
    NO_DEVICE_PLUGIN = "NoDevicePlugin"
    SHARED_GPU = "SharedGPU"
    UNKNOWN_MEMORY = "UnknownGPUMemory"
    TOO_SMALL = "TooSmall"
    TOO_FEW = "TooFewGPUs"
    TAKEN = "Taken"


@dataclass(frozen=True)
class Rejected:
    """Nodes that were not chosen for one reason: how many, one of them, and the most MiB one of their free GPUs has."""

    reason: Rejection
    nodes: int
    example: str
    free_mib: int


@dataclass(frozen=True)
class Decision:
    """Where a Model goes, or why nowhere.

    reason, message   Placed, WaitingForNode, NoNodeCame, NoGPUFree, NoGPUFits or UnknownGPUMemory, and a sentence
                   with the numbers
    candidate      what was chosen: how many GPUs, and the need on each
    vendor, resource, dra   whose GPUs, and what the pod asks for: an extended resource, or a claim with the DRA driver
    memory_mib     nominal memory of one chosen GPU (the smallest, where replicas get several sizes); 0: not known
    nodes, books   the planned node of each replica that fits, and the ledger there that gives the GPUs; kube-scheduler
                   may take another that suffices
    missing        replicas that fit nowhere
    node_pools     the node pools that a node is waited for from: the planned one, or all where none brought one in time
    affinity, tolerations   for the pod: `affinity.merged` joins it with the spec's, tolerations are added to the spec's
    claim_template with `dra`: the spec of a ResourceClaimTemplate, whose request is named `gpu`
    rejected       the other nodes by reason, most first
    """

    reason: Reason
    message: str
    candidate: Candidate | None = None
    vendor: str = ""
    resource: str = ""
    dra: bool = False
    memory_mib: int = 0
    nodes: tuple[str, ...] = ()
    books: tuple[Book, ...] = ()
    missing: int = 0
    node_pools: tuple[str, ...] = ()
    affinity: Mapping[str, Any] = field(default_factory=dict)
    tolerations: tuple[Mapping[str, Any], ...] = ()
    claim_template: Mapping[str, Any] | None = None
    rejected: tuple[Rejected, ...] = ()

    @property
    def placed(self) -> bool:
        """Whether a replica at least has a place now."""
        return self.reason is Reason.PLACED

    @property
    def gpu_class(self) -> str:
        """The class of the chosen GPU in a word: 24Gi."""
        return f"{memory.size_class(self.memory_mib)}Gi" if self.memory_mib else ""

    def reservations(self, owner: str) -> tuple[Reservation, ...]:
        """What to hold back for the planned replicas until their pods are bound (also on nodes still to come)."""
        if self.candidate is None:
            return ()
        gpus = self.candidate.gpus
        return tuple(Reservation(owner, node, book, gpus) for node, book in zip(self.nodes, self.books, strict=True))
