"""How many servers a Model has when: scaling and preemption in its spec, what is remembered of them in its status."""

from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import Field

from moorage.api.common import Count, Cut, Duration, Rule, SpecPart, StatusPart, StatusWord, Time

LARGEST = 64  # of spec.replicas too


class Scaling(SpecPart):
    """How many servers run when: none while nobody asks, more of them under load."""

    rules: ClassVar = (
        Rule(
            "!has(self.targetRequests) || has(self.maxReplicas)",
            "spec.scaling.targetRequests needs spec.scaling.maxReplicas, the most servers that load may bring",
        ),
        Rule(
            "has(self.targetRequests) || !has(self.maxReplicas)",
            "spec.scaling.maxReplicas has no effect without spec.scaling.targetRequests, the requests that one server "
            "is to have at once; set both or none",
        ),
        Rule(
            "has(self.targetRequests) || self.minReplicas == 1",
            "spec.scaling.minReplicas has no effect without spec.scaling.targetRequests; spec.replicas says how many "
            "servers run otherwise",
        ),
        Rule(
            "!has(self.maxReplicas) || self.minReplicas <= self.maxReplicas",
            "spec.scaling.minReplicas must be at most spec.scaling.maxReplicas",
        ),
        Rule(
            "!has(self.scaleToZeroAfter) || duration(self.scaleToZeroAfter) >= duration('10s')",
            "spec.scaling.scaleToZeroAfter must be at least 10s, because gateways tell of requests every few seconds",
        ),
    )

    min_replicas: int = Field(
        default=1, ge=1, le=LARGEST, description="Fewest servers of a Model that is awake, with targetRequests."
    )
    max_replicas: int | None = Field(
        default=None, ge=1, le=LARGEST, description="Most servers that load may bring; needs targetRequests."
    )
    scale_to_zero_after: Duration | None = Field(
        default=None,
        description="How long no request may come before the Model is put to sleep, such as 10m; the next request "
        "wakes it. Needs the gateway, which tells of requests. Absent: it never sleeps for being idle.",
    )
    target_requests: int | None = Field(
        default=None,
        ge=1,
        le=10000,
        description="Requests that one server is to have at once, served and waiting; load then decides the number of "
        "servers between minReplicas and maxReplicas instead of spec.replicas.",
    )


class PreemptionPolicy(StrEnum):
    """Whether Moorage may put a Model to sleep to make room for another."""

    WHEN_IDLE = "WhenIdle"
    NEVER = "Never"


class Preemption(SpecPart):
    """Whether this Model gives its GPUs to another one that has no room."""

    policy: PreemptionPolicy = Field(
        default=PreemptionPolicy.WHEN_IDLE,
        description="WhenIdle: it may be put to sleep while it serves no request. Never: it stays. Requests that do "
        "not come through the gateway are not seen.",
    )
    min_residency: Duration = Field(
        default="2m", description="How long it stays after it became ready, idle or not, such as 2m."
    )
    priority: int = Field(
        default=0,
        ge=-1000000,
        le=1000000,
        description="Only a Model of the same or a higher priority may have its place.",
    )


class SleepCause(StrEnum):
    """Why Moorage put a Model to sleep."""

    IDLE = "Idle"
    PREEMPTED = "Preempted"
    ASKED = "Asked"
    LOADED_MODELS_LIMIT = "LoadedModelsLimit"


class ScalingStatus(StatusPart):
    """What Moorage has to remember of sleep, so that a restart changes nothing."""

    asleep_since: Time | None = Field(default=None, description="When it was put to sleep; absent: it is awake.")
    cause: SleepCause | None = Field(
        default=None, description="Why it sleeps: Idle, Preempted, Asked or LoadedModelsLimit."
    )
    preempted_for: StatusWord | None = Field(
        default=None, description="NAMESPACE/NAME of the Model that it last made room for."
    )
    preempted_at: Time | None = Field(default=None, description="When it last made room for another Model.")
    wake_at: StatusWord | None = Field(
        default=None, description="The request to wake (annotation moorage.dev/wake-at) that was carried out last."
    )
    sleep_at: StatusWord | None = Field(
        default=None, description="The request to sleep (annotation moorage.dev/sleep-at) that was carried out last."
    )


class CountedUse(StatusPart):
    """What the totals hold of one gateway process' counts, which begin at zero with each process."""

    instance: StatusWord = Field(description="The gateway process.")
    requests: Count = Field(default=0, description="Requests that ended.")
    errors: Count = Field(default=0, description="Requests that failed.")
    cancelled: Count = Field(default=0, description="Requests that the client gave up.")
    prompt_tokens: Count = Field(default=0, description="Tokens of prompts.")
    completion_tokens: Count = Field(default=0, description="Generated tokens.")
    total_milliseconds: Count = Field(default=0, description="Sum of the requests' durations.")


class UsageStatus(StatusPart):
    """Requests that came through the gateways since the object was made; written at most once a minute."""

    requests: Count = Field(default=0, description="Requests that ended, however they did.")
    errors: Count = Field(default=0, description="Requests that failed.")
    cancelled: Count = Field(default=0, description="Requests that the client gave up.")
    prompt_tokens: Count = Field(default=0, description="Tokens of prompts.")
    completion_tokens: Count = Field(default=0, description="Generated tokens.")
    total_milliseconds: Count = Field(default=0, description="Sum of the requests' durations.")
    mean_latency_milliseconds: Count | None = Field(default=None, description="Mean duration of a request.")
    last_used: Time | None = Field(default=None, description="When the last request ended.")
    counted: Annotated[list[CountedUse], Cut(32)] = Field(
        default=[], description="What these totals hold of each gateway process; for Moorage itself."
    )
