"""The measurement of a Model: what a person may ask for."""

from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import Field

from moorage.api.common import Extension, Rule, SpecPart


class BenchmarkProfile(StrEnum):
    """What a benchmark measures."""

    LATENCY = "Latency"
    THROUGHPUT = "Throughput"


class BenchmarkWhen(StrEnum):
    """Whether a benchmark gives way to requests."""

    IDLE = "Idle"
    ALWAYS = "Always"


class Slo(SpecPart):
    """Service level that a request should meet."""

    ttft_milliseconds: int | None = Field(
        default=None, ge=1, le=3600000, description="Time to the first token, at most."
    )
    tpot_milliseconds: int | None = Field(default=None, ge=1, le=60000, description="Time per further token, at most.")


class Benchmark(SpecPart):
    """The measurement that runs once the Model serves, and again when what is served changes."""

    rules: ClassVar = (
        Rule(
            "self.concurrency.all(level, level <= self.requests)",
            "spec.benchmark.requests must be at least the largest concurrency, or that many requests never run at once",
        ),
    )

    enabled: bool = Field(default=True, description="Whether to measure at all.")
    profile: BenchmarkProfile = Field(
        default=BenchmarkProfile.LATENCY,
        description="Latency: requests one after another at each concurrency. Throughput: as many as the server takes.",
    )
    concurrency: Annotated[
        list[Annotated[int, Field(ge=1, le=256)]],
        Field(min_length=1, max_length=5),
        Extension("x-kubernetes-list-type", "set"),
    ] = Field(default=[1], description="Requests in flight at once; one row of figures for each.")
    input_tokens: int = Field(default=128, ge=1, le=131072, description="Prompt tokens of each request.")
    output_tokens: int = Field(default=64, ge=1, le=16384, description="Tokens that each request generates.")
    requests: int = Field(
        default=20, ge=20, le=1000, description="Requests per row; fewer than 20 give no percentiles."
    )
    when: BenchmarkWhen = Field(
        default=BenchmarkWhen.IDLE,
        description="Idle: a run begins when no request of the gateways is under way, so that neither disturbs the "
        "other. Always: it begins at once.",
    )
    slo: Slo | None = Field(default=None, description="Service level; the figures then say how many requests met it.")
