"""The ModelAlias: a name that points at Models."""

from typing import Annotated, ClassVar

from pydantic import Field

from moorage.api.capabilities import Capabilities
from moorage.api.common import (
    Count,
    Cut,
    Duration,
    Line,
    Resource,
    Rule,
    Sentence,
    SpecPart,
    StatusPart,
    StatusWord,
    Time,
)
from moorage.api.conditions import Conditions
from moorage.api.naming import ModelRef, ServedNames
from moorage.api.request import AliasRequest
from moorage.api.scaling import UsageStatus

HISTORY_LIMIT = 50


def _unique(field: str) -> str:
    """CEL: each Model is named once in the list `field`; `namespace` is a word of CEL's own, hence the underscores."""
    other = "has(other.modelRef.__namespace__) ? other.modelRef.__namespace__ : ''"
    one = "has(one.modelRef.__namespace__) ? one.modelRef.__namespace__ : ''"
    same = f"other.modelRef.name == one.modelRef.name && ({other}) == ({one})"
    return f"self.{field}.all(one, self.{field}.exists_one(other, {same}))"


class Target(SpecPart):
    """A Model that serves a share of the requests."""

    model_ref: ModelRef = Field(description="The Model.")
    weight: int = Field(
        default=100, ge=0, le=1000, description="Share of the requests, relative to the other targets; 0: none."
    )


class Fallback(SpecPart):
    """A Model that serves when no target can."""

    model_ref: ModelRef = Field(description="The Model.")


class Hold(SpecPart):
    """How requests wait while no Model can take them."""

    max_pending: int = Field(
        default=100,
        ge=0,
        le=10000,
        description="Requests that wait at once in each gateway pod; further ones get 429, and 0 means 503 at once.",
    )
    timeout: Duration = Field(default="5m", description="How long a request waits before it gets 504, such as 5m.")


class Failover(SpecPart):
    """When requests go past a target that serves badly, to the others or to the fallbacks, and when they come back."""

    rules: ClassVar = (
        Rule(
            "has(self.minSuccessPercent) || has(self.maxTtftMilliseconds)",
            "spec.failover needs minSuccessPercent or maxTtftMilliseconds, or it would never do anything",
        ),
    )

    min_success_percent: int | None = Field(
        default=None,
        ge=1,
        le=100,
        description="Share of the window's requests that must succeed; 5xx and answers that break off are failures.",
    )
    max_ttft_milliseconds: int | None = Field(
        default=None,
        ge=1,
        le=3600000,
        description="Half of the window's streams at least must begin within this time.",
    )
    window: Duration = Field(default="1m", description="Time over which requests are judged, such as 1m.")
    min_requests: int = Field(
        default=20,
        ge=1,
        le=100000,
        description="Requests of one gateway pod within the window, before which nothing is concluded.",
    )
    recover_after: Duration = Field(
        default="5m", description="Time after which minRequests requests go to the target again, as a trial."
    )


class Requires(SpecPart):
    """What the applications behind an alias count on. A Model that falls short gets none of their requests."""

    rules: ClassVar = (
        Rule(
            "has(self.contextLength) || (has(self.capabilities) && self.capabilities.size() > 0)",
            "spec.requires needs contextLength or capabilities, or it would require nothing",
        ),
    )

    context_length: int | None = Field(
        default=None,
        ge=512,
        le=16777216,
        description="Tokens that one request may use, prompt and answer together.",
    )
    capabilities: Capabilities = Field(
        default=[], description="What the Models have to be able to do, such as tools; see their status.capabilities."
    )


class AliasSpec(SpecPart):
    """Where the name points."""

    rules: ClassVar = (
        Rule(
            "self.targets.exists(target, target.weight > 0)",
            "at least one of spec.targets needs a weight above 0, or no request would be served",
        ),
        Rule(
            _unique("targets"),
            "spec.targets names a Model twice; name it once, with the sum of the weights",
        ),
        Rule(
            f"!has(self.fallbacks) || {_unique('fallbacks')}",
            "spec.fallbacks names a Model twice; name it once, where it should be tried first",
        ),
    )

    targets: Annotated[list[Target], Field(min_length=1, max_length=8)] = Field(
        description="Models that serve the requests, each by its weight."
    )
    fallbacks: Annotated[list[Fallback], Field(max_length=8)] = Field(
        default=[], description="Models that serve when the chosen target cannot, in this order."
    )
    served_names: ServedNames = Field(
        default=[],
        description="Further names that clients may use, such as llama3:instruct. Of two objects of a namespace that "
        "claim one name the older has it; names that begin with a namespace (team-b/x) are that namespace's alone. Who "
        "has lost a name says so in its condition NameConflict.",
    )
    request: AliasRequest | None = Field(default=None, description="What is done to requests on their way.")
    requires: Requires | None = Field(
        default=None,
        description="What the applications behind this name count on. Requests go past targets and fallbacks that "
        "fall short, and the condition Resolved names them; where all do, requests get an error.",
    )
    hold: Hold = Field(default=Hold(), description="How requests wait while no Model can take them.")
    sticky_header: (
        Annotated[
            str,
            Field(min_length=1, max_length=128),
            Rule("self.matches('^[A-Za-z0-9-]+$')", "write the name of an HTTP header such as X-User-Id"),
        ]
        | None
    ) = Field(
        default=None,
        description="Header by which targets are chosen: requests with the same value go to the same target. Absent: "
        "each request on its own.",
    )
    failover: Failover | None = Field(
        default=None, description="When requests go past a target that serves badly; absent: never."
    )
    revision_history_limit: int = Field(
        default=10,
        ge=0,
        le=HISTORY_LIMIT,
        description="Earlier targets kept in status.history, for `moorage rollback`.",
    )


class AliasSummary(StatusPart):
    """What the columns of `kubectl get modelaliases` print."""

    targets: StatusWord | None = Field(default=None, description="The targets and their shares in a line.")
    ready: StatusWord | None = Field(default=None, description="Ready targets and all targets, such as 1/2.")
    message: Line | None = Field(default=None, description="What is going on, in a line.")
    defaults: StatusWord | None = Field(default=None, description="The request's defaults and overrides in a line.")


class StatusModelRef(StatusPart):
    """A Model."""

    name: StatusWord = Field(description="Name of the Model.")
    namespace: StatusWord | None = Field(default=None, description="Its namespace, where it is not the alias' own.")


class PastTarget(StatusPart):
    """A target of some revision."""

    model_ref: StatusModelRef = Field(description="The Model.")
    weight: Count = Field(default=0, description="Share of the requests, relative to the other targets.")


class CurrentTarget(PastTarget):
    """A target as it stands now."""

    ready: bool = Field(
        default=False, description="Whether the Model suffices and can take requests, or wakes when one comes."
    )


class Revision(StatusPart):
    """Targets that the alias had for a while."""

    revision: Count = Field(description="Number of the revision; each change of the targets makes a new one.")
    targets: Annotated[list[PastTarget], Cut(8)] = Field(default=[], description="The targets.")
    since: Time | None = Field(default=None, description="When Moorage saw them first.")
    reason: Sentence | None = Field(
        default=None, description="The annotation kubernetes.io/change-cause at that time, or what changed."
    )


class AliasStatus(StatusPart):
    """Where the name points now."""

    observed_generation: Count | None = Field(default=None, description="The metadata.generation this status is about.")
    conditions: Conditions = Field(
        default=[],
        description="Resolved, Ready, with spec.failover FailedOver, and, only while they are true, NameConflict and "
        "Shadowing.",
    )
    summary: AliasSummary | None = Field(default=None, description="What the columns print.")
    revision: Count | None = Field(default=None, description="Number of the present revision.")
    current: Annotated[list[CurrentTarget], Cut(8)] = Field(default=[], description="The targets as they stand now.")
    usage: UsageStatus | None = Field(default=None, description="Requests that came through the gateways.")
    history: Annotated[list[Revision], Cut(HISTORY_LIMIT + 1)] = Field(
        default=[], description="The revisions, the present one first; spec.revisionHistoryLimit bounds the others."
    )


class ModelAlias(Resource):
    """A name that clients use, pointing at one or several Models, so that these can change behind it."""

    spec: AliasSpec = Field(description="Where the name points.")
    status: AliasStatus = Field(default=AliasStatus(), description="Where the name points now.")
