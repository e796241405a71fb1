"""What a gateway tells the operator: who was used, who is wanted, who waits. The one shape that both sides speak.

Every number is cumulative since the gateway's process started, so that a report which gets lost is made good by the
next one. `instance` is new with each process: its numbers begin at zero. A report holds the names that changed since
the operator last answered; an answer with another `epoch` comes from an operator that knows nothing yet, and the next
report then holds all of them. Names are `namespace/name`.

    POST /v1/usage            Authorization: Bearer TOKEN
    {"gateway": "moorage-gateway-6d9f-x", "instance": "b0c1...", "models": {"team/qwen": {...}}, "aliases": {...}}
    200 {"epoch": "5f3a..."}
"""

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from moorage.errors import InvalidSpec

PATH = "/v1/usage"
CHANGED_SECONDS = 5.0
"""A gateway whose numbers changed reports this often; demand for a Model that sleeps goes out at once."""
ALIVE_SECONDS = 15.0
"""A gateway with nothing new reports this often; silent for four times as long, what it held no longer counts."""
LONGEST_BYTES = 16 * 1024 * 1024

Counted = Annotated[int, Field(ge=0, le=1 << 62)]
Name = Annotated[str, Field(pattern=r"^[^/\s]{1,63}/[^/\s]{1,253}$")]


class _Part(BaseModel):
    """Unknown fields are those of a newer version: ignored."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="ignore", frozen=True)


class Use(_Part):
    """How one name was used through one gateway process.

    `ok`, `error` and `cancelled` count requests by their end, `milliseconds` is the sum of their durations, `last_used`
    (Unix seconds, 0: never) the end of the last one.
    """

    ok: Counted = 0
    error: Counted = 0
    cancelled: Counted = 0
    prompt_tokens: Counted = 0
    completion_tokens: Counted = 0
    milliseconds: Counted = 0
    last_used: Counted = 0


class ModelUse(Use):
    """The same of a Model, and what it is to do now.

    `in_flight` requests are being served and `pending` wait for it at this moment; `wanted` counts those that found it
    without an endpoint (whether a fallback served them or not), the last at `wanted_at` (Unix seconds, 0: never).
    """

    in_flight: Counted = 0
    pending: Counted = 0
    wanted: Counted = 0
    wanted_at: Counted = 0


class FailedOver(_Part):
    """Why an alias' requests go past one of its targets, and since when (Unix seconds)."""

    since: Counted = 0
    why: Annotated[str, Field(max_length=256)] = ""


class AliasUse(Use):
    """The same of an alias; `failed_over` holds the targets that its `failover` takes no requests to at this moment."""

    failed_over: dict[Name, FailedOver] = {}


class Report(_Part):
    """One report of one gateway process."""

    gateway: Annotated[str, Field(min_length=1, max_length=253)]
    instance: Annotated[str, Field(min_length=8, max_length=64)]
    models: dict[Name, ModelUse] = {}
    aliases: dict[Name, AliasUse] = {}

    def dump(self) -> bytes:
        """As JSON; what is zero is left out."""
        return self.model_dump_json(by_alias=True, exclude_defaults=True).encode()

    @classmethod
    def parse(cls, body: bytes) -> Self:
        """The report in `body`; raises InvalidSpec with the first fault where it is none."""
        if len(body) > LONGEST_BYTES:
            raise InvalidSpec("InvalidReport", f"a report has at most {LONGEST_BYTES} bytes, this one {len(body)}")
        try:
            return cls.model_validate_json(body)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            raise InvalidSpec("InvalidReport", f"usage report: {where}: {first['msg']}") from error
