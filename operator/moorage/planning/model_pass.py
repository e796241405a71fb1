"""What the steps of a Model's plan share: the observation, the status being drafted, and the actions collected."""

from dataclasses import dataclass, field

from moorage import names
from moorage.api.conditions import ModelCondition as C
from moorage.api.conditions import Reason
from moorage.api.model import Model
from moorage.api.model_status import MemoryStatus, ModelStatus, PlacementStatus, SourceStatus
from moorage.placement.inventory import Reservation
from moorage.placement.request import Decision
from moorage.planning.draft import FALSE, TRUE, UNKNOWN, Draft
from moorage.planning.model_scale import Sleep
from moorage.planning.types import Ask, Manifest, ObservedModel, Patch, PlannedEvent, Ref
from moorage.sources import CATALOG

# Reasons that only a person can mend: the Model is Blocked and nothing is tried until something changes.
PERSON = {
    Reason.INSUFFICIENT_MEMORY,
    Reason.INVALID_SPEC,
    Reason.NAME_TAKEN,
    Reason.IMAGE_REQUIRED,
    Reason.UNSUPPORTED_FORMAT,
    Reason.NO_NODE_CAME,
    Reason.NO_GPU_FITS,
    Reason.UNKNOWN_GPU_MEMORY,
    Reason.QUOTA_EXCEEDED,
    Reason.FORBIDDEN,
    Reason.CLAIM_NOT_FOUND,
    Reason.DOWNLOAD_NOT_FOUND,
    Reason.DOWNLOAD_FAILED,
    Reason.DEADLINE_EXCEEDED,
    Reason.SECRET_NOT_FOUND,
    *(Reason(reason) for reason, facts in CATALOG.items() if facts.exit_code and not facts.retryable),
}


@dataclass
class ModelPass:
    """One pass over one Model. Steps read `seen`, `model` and `replicas`, and write the rest.

    `replicas` is how many servers there should be now; the spec says how many a person wants. `sleep` says why there
    are to be none, `note` what there is to say of a Model that is awake.
    """

    seen: ObservedModel
    model: Model
    status: ModelStatus
    draft: Draft
    replicas: int
    sleep: Sleep | None = None
    note: tuple[Reason, str] = (Reason.RUNNING, "")
    apply: list[Manifest] = field(default_factory=list)
    patch: list[Patch] = field(default_factory=list)
    delete: list[Ref] = field(default_factory=list)
    ask: list[Ask] = field(default_factory=list)
    tell: list[PlannedEvent] = field(default_factory=list)
    held: str | None = None  # why servers may not start yet, although everything else is ready
    held_version: bool = False  # and they are those of a new version
    requeue: float | None = None
    lame: bool = False  # serves, but one of its servers does not start
    surge: int = 0  # further servers, until they can take the place of those whose node is about to go
    ran: tuple[PlacementStatus | None, MemoryStatus | None] = (None, None)  # what the last pass said of what runs
    unread: bool = False  # the header in status is another version's, and is being read again
    stands: bool = False  # the servers that there are were made for what is wanted now
    stays: bool = False  # and all of them have their place
    estimate: str = ""  # what a start would be planned with today, where that differs
    moving: str = ""  # marks the servers that get a replacement by a rollout, because their node is about to go
    leaving: str = ""  # what there is to say of servers on such a node
    decision: Decision | None = None
    reserve: tuple[Reservation, ...] = ()
    evict: tuple[str, ...] = ()  # owners of GPUs that are to sleep for this Model
    look_around: bool = False
    resolved: bool = False  # its source was, in this very pass
    admitted: bool = False  # among the loaded Models of its namespace

    def __post_init__(self) -> None:
        """Note what the last pass left; steps replace the parts of a status and do not write into them."""
        self.ran = (self.status.placement, self.status.memory)

    @property
    def source(self) -> SourceStatus:
        """The source part of the status, made where there was none."""
        if self.status.source is None:
            self.status.source = SourceStatus()
        return self.status.source

    @property
    def asleep(self) -> bool:
        """Whether it is to have no servers for as long as nobody wants it, and not for lack of a place."""
        return self.sleep is not None and self.sleep.reason != Reason.LOADED_MODELS_LIMIT

    @property
    def servers(self) -> list[Manifest]:
        """Server pods that count: none of a benchmark, none that is going; remains of dead ones only if none lives."""
        pods = [p for p in self.seen.pods if p["labels"].get(names.COMPONENT) == "server" and not p.get("deleting")]
        return [p for p in pods if p["phase"] not in ("Failed", "Succeeded")] or pods

    @property
    def serves(self) -> bool:
        """Whether a server is ready: what another one lacks is no reason to start that one anew."""
        return any(pod["ready"] for pod in self.servers)

    @property
    def keeps_plan(self) -> bool:
        """Whether what was planned for the servers that there are holds, also for those that come beside them."""
        return self.stays or (self.stands and self.serves)

    def done(self, kind: C, reason: Reason, message: str) -> None:
        """Say that the step of `kind` is complete."""
        self.draft.set(kind, TRUE, reason, message)

    def stop(self, kind: C, reason: Reason | str, message: str) -> str:
        """Say that the pass ends at `kind` because of `reason`; later steps wait, unless they hold from before."""
        self.draft.set(kind, FALSE, reason, message)
        return message

    def wait(self, kind: C, message: str) -> str:
        """Say that `kind` is on its way."""
        self.draft.set(kind, UNKNOWN, Reason.PROGRESSING, message)
        return message

    def wake_in(self, seconds: float) -> None:
        """Have the Model looked at again in `seconds`, or sooner where something else asked for that."""
        self.requeue = seconds if self.requeue is None else min(self.requeue, seconds)
