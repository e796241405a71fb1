"""What is done to requests on their way to a Model: parameters of OpenAI's API, with OpenAI's names and ranges.

Below `request` names are OpenAI's own (snake_case), because they go into request bodies as they are.
Source: https://platform.openai.com/docs/api-reference/chat/create
"""

import json
from typing import Annotated, Any

from pydantic import AfterValidator, ConfigDict, Field, WithJsonSchema

from moorage.api.common import Extension, Rule, SpecPart

EXTRA_BYTES = 16384
"""JSON of one `extra` at most: it is copied into every request."""

_NEVER = ("model", "messages", "prompt", "input", "stream", "stream_options")
_OWN = (
    *("temperature", "top_p", "max_tokens", "max_completion_tokens", "stop", "frequency_penalty"),
    *("presence_penalty", "seed"),
)


def _extra(extra: dict[str, Any]) -> dict[str, Any]:
    """Refused when read, and said in a condition: CEL cannot look below a schema that takes any JSON."""
    if taken := sorted({*_OWN, *_NEVER} & set(extra)):
        raise ValueError(f"{', '.join(taken)}: a field of its own, beside extra, or the client's alone to say")
    if len(json.dumps(extra)) > EXTRA_BYTES:
        raise ValueError(f"takes more than {EXTRA_BYTES} bytes as JSON, and it is copied into every request")
    return extra


_EXTRA = {
    "type": "object",
    "maxProperties": 32,
    "additionalProperties": {"x-kubernetes-preserve-unknown-fields": True},
}

Extra = Annotated[dict[str, Any], Field(max_length=32), AfterValidator(_extra), WithJsonSchema(_EXTRA)]

ParameterName = Annotated[
    str,
    Field(min_length=1, max_length=64),
    Rule("self.matches('^[A-Za-z_][A-Za-z0-9_.-]*$')", "write a parameter as it stands in requests, such as top_k"),
    Rule(
        f"!(self in {list(_NEVER)})",
        "model, messages, prompt, input, stream and stream_options are what a client asks for and cannot be dropped",
    ),
]


class Parameters(SpecPart):
    """Request parameters by OpenAI's names."""

    model_config = ConfigDict(alias_generator=None)

    temperature: float | None = Field(
        default=None, ge=0, le=2, description="Randomness of the answer; 0: always the likeliest token."
    )
    top_p: float | None = Field(
        default=None, ge=0, le=1, description="Only the likeliest tokens that together have this probability."
    )
    max_tokens: int | None = Field(
        default=None,
        ge=1,
        le=16777216,
        description="Tokens generated at most. Counts as max_completion_tokens too: who says either has said both.",
    )
    stop: (
        Annotated[list[Annotated[str, Field(min_length=1, max_length=256)]], Field(min_length=1, max_length=4)] | None
    ) = Field(default=None, description="Texts at which the answer ends.")
    frequency_penalty: float | None = Field(
        default=None, ge=-2, le=2, description="Less (or, below 0, more) of what the text has often already."
    )
    presence_penalty: float | None = Field(
        default=None, ge=-2, le=2, description="Less (or, below 0, more) of what the text has already."
    )
    seed: int | None = Field(default=None, description="Makes answers repeatable where the engine can.")
    extra: Extra = Field(
        default={},
        description="Parameters that only some engines know, such as top_k, min_p or repeat_penalty, with any value.",
    )

    def flat(self) -> dict[str, Any]:
        """The parameters as they stand in a request body: `extra` beside the others."""
        return self.model_dump(exclude_none=True, exclude={"extra"}) | self.extra


class ModelRequest(SpecPart):
    """Parameters of requests to a Model."""

    defaults: Parameters = Field(
        default=Parameters(),
        description="For what neither the client nor the alias says. Changing it restarts nothing.",
    )


class AliasRequest(SpecPart):
    """What an alias does to requests. Precedence: overrides, the client, defaults, the Model's defaults."""

    defaults: Parameters = Field(default=Parameters(), description="For what the client does not say.")
    overrides: Parameters = Field(default=Parameters(), description="Whatever the client says.")
    drop: Annotated[list[ParameterName], Field(max_length=32), Extension("x-kubernetes-list-type", "set")] = Field(
        default=[], description="Parameters that are taken out of requests; defaults apply to them as if never said."
    )
    system_prompt: Annotated[str, Field(min_length=1, max_length=16384)] | None = Field(
        default=None, description="Put before the messages of a chat that does not begin with a system message."
    )
