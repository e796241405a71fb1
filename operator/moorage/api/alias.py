"""The ModelAlias: a name that points at Models."""

from typing import Annotated, ClassVar

from pydantic import Field

from moorage.api.common import Count, Cut, Duration, Line, ObjectName, Resource, Rule, SpecPart, StatusPart, StatusWord
from moorage.api.conditions import Conditions
from moorage.api.request import AliasRequest
from moorage.api.scaling import UsageStatus


class ModelRef(SpecPart):
    """A Model of the same namespace."""

    name: ObjectName = Field(description="Name of the Model.")


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


class AliasSpec(SpecPart):
    """Where the name points."""

    rules: ClassVar = (
        Rule(
            "self.targets.exists(target, target.weight > 0)",
            "at least one of spec.targets needs a weight above 0, or no request would be served",
        ),
        Rule(
            "self.targets.all(one, self.targets.exists_one(other, other.modelRef.name == one.modelRef.name))",
            "spec.targets names a Model twice; name it once, with the sum of the weights",
        ),
        Rule(
            "!has(self.fallbacks) || self.fallbacks.all(one, "
            "self.fallbacks.exists_one(other, other.modelRef.name == one.modelRef.name))",
            "spec.fallbacks names a Model twice; name it once, where it should be tried first",
        ),
    )

    targets: Annotated[list[Target], Field(min_length=1, max_length=8)] = Field(
        description="Models that serve the requests, each by its weight."
    )
    fallbacks: Annotated[list[Fallback], Field(max_length=8)] = Field(
        default=[], description="Models that serve when the chosen target cannot, in this order."
    )
    request: AliasRequest | None = Field(default=None, description="What is done to requests on their way.")
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


class AliasSummary(StatusPart):
    """What the columns of `kubectl get modelaliases` print."""

    targets: StatusWord | None = Field(default=None, description="The targets and their weights in a line.")
    ready: StatusWord | None = Field(default=None, description="Ready targets and all targets, such as 1/2.")
    message: Line | None = Field(default=None, description="What is going on, in a line.")


class StatusModelRef(StatusPart):
    """A Model of the same namespace."""

    name: StatusWord = Field(description="Name of the Model.")


class CurrentTarget(StatusPart):
    """A target as it stands now."""

    model_ref: StatusModelRef = Field(description="The Model.")
    weight: Count = Field(default=0, description="Share of the requests, relative to the other targets.")
    ready: bool = Field(default=False, description="Whether the Model is ready.")


class AliasStatus(StatusPart):
    """Where the name points now."""

    observed_generation: Count | None = Field(default=None, description="The metadata.generation this status is about.")
    conditions: Conditions = Field(default=[], description="Resolved and Ready.")
    summary: AliasSummary | None = Field(default=None, description="What the columns print.")
    current: Annotated[list[CurrentTarget], Cut(8)] = Field(default=[], description="The targets as they stand now.")
    usage: UsageStatus | None = Field(default=None, description="Requests that came through the gateways.")


class ModelAlias(Resource):
    """A name that clients use, pointing at one or several Models, so that these can change behind it."""

    spec: AliasSpec = Field(description="Where the name points.")
    status: AliasStatus = Field(default=AliasStatus(), description="Where the name points now.")
