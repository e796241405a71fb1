"""`routes.yaml` as a routing table: what `moorage gateway --routes` reads instead of a cluster. Pure.

    apiKeys: [{name: team-a, sha256: HEX, aliases: ["*"],
               requestsPerMinute: 0, tokensPerMinute: 0, maxConcurrency: 0}]     # none: open; 0: no limit
    models:  [{name: qwen3-8b, engine: LlamaCpp, servedName: qwen3-8b, endpoints: ["127.0.0.1:9001"], maxInFlight: 4,
               request: {defaults: {}}}]
    aliases: [{name: chat, targets: [{model: qwen3-8b, weight: 100}], fallbacks: [], stickyHeader: "",
               request: {defaults: {}, overrides: {}, drop: [], systemPrompt: ""},
               hold: {maxPending: 100, timeoutSeconds: 300},
               failover: {minSuccessPercent: 90, maxTtftMilliseconds: 2000, windowSeconds: 60, minRequests: 20,
                          recoverAfterSeconds: 300}}]

Every key but `name`, `endpoints` and `targets` may be left out.
"""

from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.alias_generators import to_camel

from moorage.errors import InvalidSpec
from moorage.gateway.keys import Key, Limits
from moorage.gateway.routes import Alias, Failover, Hold, Model, Parameters, Snapshot

Name = Annotated[str, Field(min_length=1, max_length=253)]
Address = Annotated[str, Field(pattern=r"^(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):[0-9]{1,5}$")]

# The C loader where there is one: with 1,000 Models the other takes the event loop for most of a second.
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Part(BaseModel):
    """Keys are camelCase; one without a value counts as left out; unknown ones are kept to be told about."""

    model_config = ConfigDict(alias_generator=to_camel, extra="allow", frozen=True, strict=True)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, value: Any) -> Any:
        return {k: v for k, v in value.items() if v is not None} if isinstance(value, dict) else value

    def unknown(self) -> list[str]:
        """Keys that mean nothing here, below this part too."""
        found = list(self.model_extra or ())
        for field in type(self).model_fields:
            value = getattr(self, field)
            for part in value if isinstance(value, list) else [value]:
                found += part.unknown() if isinstance(part, _Part) else []
        return found


class _Request(_Part):
    defaults: dict[str, Any] = {}
    overrides: dict[str, Any] = {}
    drop: list[str] = []
    system_prompt: str = ""


class _ModelRequest(_Part):
    defaults: dict[str, Any] = {}


class _Hold(_Part):
    max_pending: int = Field(default=100, ge=0)
    timeout_seconds: float = Field(default=300.0, gt=0, strict=False)


class _Target(_Part):
    model: Name
    weight: int = Field(default=100, ge=0, le=1_000_000)


class _ApiKey(_Part):
    name: Name
    sha256: str = Field(pattern=r"^[0-9a-fA-F]{64}$")
    aliases: list[Name] = ["*"]
    requests_per_minute: int = Field(default=0, ge=0)
    tokens_per_minute: int = Field(default=0, ge=0)
    max_concurrency: int = Field(default=0, ge=0)


class _Model(_Part):
    name: Name
    engine: str = ""
    served_name: str = ""
    endpoints: list[Address]
    max_in_flight: int = Field(default=0, ge=0)
    request: _ModelRequest = _ModelRequest()


class _Failover(_Part):
    min_success_percent: int = Field(default=0, ge=0, le=100)
    max_ttft_milliseconds: int = Field(default=0, ge=0)
    window_seconds: float = Field(default=60.0, gt=0, strict=False)
    min_requests: int = Field(default=20, ge=1)
    recover_after_seconds: float = Field(default=300.0, gt=0, strict=False)


class _Alias(_Part):
    name: Name
    targets: list[_Target] = Field(min_length=1)
    fallbacks: list[Name] = []
    request: _Request = _Request()
    hold: _Hold = _Hold()
    sticky_header: str = ""
    failover: _Failover | None = None


class _Document(_Part):
    api_keys: list[_ApiKey] = []
    models: list[_Model]
    aliases: list[_Alias] = []


def read_routes(text: str | bytes, own_hold: Hold, *, closed: bool = False) -> tuple[Snapshot, list[str]]:
    """The table in `text`, and the keys in it that mean nothing; `own_hold` is for Models called by their own name.

    A `closed` table serves nobody without an API key, even where it has none.

    Raises InvalidSpec with what to change where the text is no YAML, is empty, or has the wrong shape.
    """
    try:
        document = _Document.model_validate(yaml.load(text, _LOADER))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidSpec("InvalidSpec", f"not YAML: {error}") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "the document"
        raise InvalidSpec("InvalidSpec", f"{place}: {first['msg']}") from None
    snapshot = Snapshot.build(
        [_model(m) for m in document.models],
        [_alias(a) for a in document.aliases],
        [_key(k) for k in document.api_keys],
        own=own_hold,
        closed=closed,
    )
    return snapshot, document.unknown()


def _model(given: _Model) -> Model:
    return Model(
        name=given.name,
        engine=given.engine,
        served_name=given.served_name or given.name,
        endpoints=tuple(dict.fromkeys(given.endpoints)),
        max_in_flight=given.max_in_flight,
        defaults=given.request.defaults,
    )


def _alias(given: _Alias) -> Alias:
    request = given.request
    return Alias(
        name=given.name,
        targets=tuple((target.model, target.weight) for target in given.targets),
        fallbacks=tuple(given.fallbacks),
        parameters=Parameters(request.defaults, request.overrides, frozenset(request.drop), request.system_prompt),
        hold=Hold(given.hold.max_pending, given.hold.timeout_seconds),
        sticky_header=given.sticky_header,
        failover=_failover(given.failover) if given.failover else None,
    )


def _failover(given: _Failover) -> Failover:
    return Failover(
        min_success_percent=given.min_success_percent,
        max_first_token=given.max_ttft_milliseconds / 1000,
        window=given.window_seconds,
        min_requests=given.min_requests,
        recover_after=given.recover_after_seconds,
    )


def _key(given: _ApiKey) -> Key:
    names = None if "*" in given.aliases else frozenset(given.aliases)
    limits = Limits(given.requests_per_minute, given.tokens_per_minute, given.max_concurrency)
    return Key(given.name, (bytes.fromhex(given.sha256),), names, limits=limits)
