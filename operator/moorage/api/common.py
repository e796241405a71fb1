"""What the types of all three kinds are made of: base classes, bounded strings and lists, quantities, durations, CEL.

Names are snake_case in Python and camelCase in manifests. A field that a newer Moorage wrote is ignored when read, so
that going back a version never crashes on it.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated, Any, ClassVar, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    PlainSerializer,
    ValidationError,
    WithJsonSchema,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from moorage.errors import InvalidSpec

# Words whose capitals differ from plain camelCase: KVCache as in the field's papers, MiB as in Kubernetes' units.
_CAPITALS = {"mib": "MiB", "kv": "KV"}
_WHOLE = {"memory_per_gpu_override": "memoryPerGPUOverride"}


def camel(name: str) -> str:
    """The manifest's name of a Python field: `perGpuMiB` for `per_gpu_mib`."""
    if name in _WHOLE:
        return _WHOLE[name]
    first, *rest = name.split("_")
    return first + "".join(_CAPITALS.get(word, word.capitalize()) for word in rest)


@dataclass(frozen=True)
class Rule:
    """A CEL rule that the API server checks; `message` is a sentence that a person can act on.

    The same object serves for a class (in its `rules`) and for one string (inside `Annotated`).
    Source: https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/#validation-rules
    """

    cel: str
    message: str

    def manifest(self) -> dict[str, str]:
        """The rule as an item of `x-kubernetes-validations`."""
        return {"rule": self.cel, "message": self.message}

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Append the rule to the schema of the annotated type."""
        schema = handler(core)
        schema["x-kubernetes-validations"] = [*schema.get("x-kubernetes-validations", []), self.manifest()]
        return schema


@dataclass(frozen=True)
class Extension:
    """One `x-kubernetes-...` key of the schema of the annotated type, such as the list type."""

    key: str
    value: Any

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Add the key to the schema."""
        return handler(core) | {self.key: self.value}


class Part(BaseModel):
    """A piece of a kind: camelCase outside, unknown fields ignored, with the CEL rules of its class."""

    model_config = ConfigDict(alias_generator=camel, populate_by_name=True, extra="ignore")
    rules: ClassVar[tuple[Rule, ...]] = ()

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler, /) -> JsonSchemaValue:
        """Add the class' rules to its schema."""
        schema = handler.resolve_ref_schema(handler(core))
        if cls.rules:
            schema["x-kubernetes-validations"] = [rule.manifest() for rule in cls.rules]
        return schema

    def dump(self) -> dict[str, Any]:
        """The part as it stands in a manifest: camelCase, absent fields left out, plain JSON types."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)

    def identity(self) -> dict[str, Any]:
        """As `dump`, less what has its default: hashes of it outlive a version that adds fields."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_defaults=True)


class SpecPart(Part):
    """A part of a spec: what a person wrote. Never changed."""

    model_config = ConfigDict(frozen=True)


class StatusPart(Part):
    """A part of a status: what Moorage found. Too long texts and lists are cut to their bounds, never refused."""

    model_config = ConfigDict(validate_assignment=True)

    def dump(self) -> dict[str, Any]:
        """As for every part, and without empty lists and objects: they say nothing to a reader."""
        filled: dict[str, Any] = _filled(super().dump())
        return filled

    @classmethod
    def read(cls, raw: dict[str, Any] | None) -> Self:
        """The status stored in an object; a field that does not parse (another version's) is left out, not an error."""
        known = dict(raw or {})
        while True:
            try:
                return cls.model_validate(known)
            except ValidationError as error:
                for problem in error.errors(include_url=False):
                    known.pop(str(problem["loc"][0]), None)


def _filled(value: Any) -> Any:
    """`value` without empty lists and objects, at any depth."""
    if isinstance(value, dict):
        return {k: v for k, v in ((k, _filled(v)) for k, v in value.items()) if v not in ([], {})}
    return [_filled(v) for v in value] if isinstance(value, list) else value


class ObjectMeta(Part):
    """The part of metadata that decisions look at."""

    model_config = ConfigDict(frozen=True)
    name: str = ""
    namespace: str = ""
    uid: str = ""
    generation: int = 0
    resource_version: str = ""
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    creation_timestamp: datetime | None = None
    deletion_timestamp: datetime | None = None


class Resource(Part):
    """A whole object of one of the three kinds. Subclasses add `spec` and `status`."""

    model_config = ConfigDict(frozen=True)
    metadata: ObjectMeta = ObjectMeta()

    @classmethod
    def read(cls, raw: dict[str, Any]) -> Self:
        """The object as the API server or a manifest has it.

        Raises InvalidSpec with a sentence per problem where the spec does not parse; a status never fails.
        """
        status = cls.model_fields["status"].annotation
        assert isinstance(status, type) and issubclass(status, StatusPart)
        try:
            return cls.model_validate({**raw, "status": status.read(raw.get("status"))})
        except ValidationError as error:
            raise InvalidSpec("InvalidSpec", _sentences(error)) from error


def _sentences(error: ValidationError) -> str:
    problems = error.errors(include_url=False, include_input=False)
    lines = [f"{'.'.join(str(step) for step in problem['loc'])}: {problem['msg']}" for problem in problems[:8]]
    return "; ".join(lines)


@dataclass(frozen=True)
class Cut:
    """Bound of a status text or list: what is longer is cut to `limit`, a text with an ellipsis, instead of refused."""

    limit: int

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Cut before the bound is checked; the bound is what the CRD shows."""
        bounded = {**handler(source), "max_length": self.limit}
        return core_schema.no_info_before_validator_function(self._cut, bounded)

    def _cut(self, value: Any) -> Any:
        if not isinstance(value, str | list) or len(value) <= self.limit:
            return value
        return f"{value[: self.limit - 1]}…" if isinstance(value, str) else value[: self.limit]


def _rfc3339(value: datetime) -> str:
    return value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _whole_seconds(value: datetime) -> datetime:
    aware = value if value.tzinfo else value.replace(tzinfo=UTC)
    return aware.replace(microsecond=0)


# A moment, whole seconds, written as Kubernetes writes times. Aware; a naive one is taken as UTC.
Time = Annotated[
    datetime,
    AfterValidator(_whole_seconds),
    PlainSerializer(_rfc3339, when_used="json"),
    WithJsonSchema({"type": "string", "format": "date-time", "maxLength": 64}),
]

# Bounded texts. Word: a name, a version, a short value. Sentence: a message. Line: a message made for a column.
Word = Annotated[str, Field(max_length=253)]
Text = Annotated[str, Field(max_length=1024)]
StatusWord = Annotated[str, Cut(253)]
StatusPath = Annotated[str, Cut(1024)]
Sentence = Annotated[str, Cut(1024)]
Line = Annotated[str, Cut(120)]
Count = Annotated[int, Field(ge=0)]


def _below(limit: int) -> AfterValidator:
    """Refuse what no Moorage ever wrote, so that nobody counts that far; not part of the schema."""

    def check(value: int) -> int:
        if value > limit:
            raise ValueError(f"{value} is more than {limit}")
        return value

    return AfterValidator(check)


# Devices or servers of one Model.
Few = Annotated[Count, _below(4096)]

# What the memory need follows from (moorage.sizing), as compact JSON. Dropped whole where it would be too long to keep.
HeaderJson = Annotated[str, Field(max_length=6144)]

_DNS_NAME = "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"

# Name of another object of the same namespace.
ObjectName = Annotated[
    str,
    Field(min_length=1, max_length=253),
    Rule(
        f"self.matches('{_DNS_NAME}')",
        "an object's name has only lower-case letters, digits, '-' and '.', and begins and ends with a letter or digit",
    ),
]

# Path inside a repository or volume; `..` and absolute paths would leave it.
RelativePath = Annotated[
    str,
    Field(min_length=1, max_length=512),
    Rule(
        "!self.startsWith('/') && !self.contains('\\\\') && !self.matches('(^|/)[.][.](/|$)')",
        "write a path relative to the root of the repository or volume: without a leading '/', '..' or '\\'",
    ),
]

_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15} | {
    f"{unit}i": 1024**power for power, unit in enumerate("KMGTP", start=1)
}
QUANTITY_PATTERN = r"^[0-9]+([.][0-9]+)?(k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$"
DURATION_PATTERN = r"^([0-9]{1,5}(h|m|s|ms)){1,4}$"


def quantity_bytes(text: str) -> int:
    """Bytes of a Quantity, rounded up. Raises ValueError on anything else."""
    match = re.fullmatch(QUANTITY_PATTERN.strip("^$"), text)
    if match is None:
        raise ValueError(f"not a quantity: {text!r}")
    number = text.rstrip("kKMGTPi")
    return math.ceil(Decimal(number) * Decimal(_UNITS[text[len(number) :]]))


def duration_seconds(text: str) -> float:
    """Seconds of a Duration. Raises ValueError on anything else."""
    if re.fullmatch(DURATION_PATTERN.strip("^$"), text) is None:
        raise ValueError(f"not a duration: {text!r}")
    factor = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
    return sum(int(number) * factor[unit] for number, unit in re.findall(r"([0-9]+)(ms|h|m|s)", text))


def _readable(parse: Callable[[str], float]) -> AfterValidator:
    """Refuse what `parse` cannot read, so that who reads the field later never meets a ValueError."""

    def check(text: str) -> str:
        parse(text)
        return text

    return AfterValidator(check)


# Bytes as Kubernetes writes them (`10Gi`, `500M`, `1024`). Source: core/v1 resource.Quantity, less exponents
# and fractions of a byte.
Quantity = Annotated[
    str,
    _readable(quantity_bytes),
    Field(min_length=1, max_length=24),
    Rule(
        f"self.matches('{QUANTITY_PATTERN}')",
        "write an amount of bytes as a number with a unit such as 20Gi, 500Mi or 10G",
    ),
]

# Length of time as Gateway API writes it (`30s`, `1h30m`). Source: GEP-2257.
Duration = Annotated[
    str,
    _readable(duration_seconds),
    Field(min_length=1, max_length=24),
    Rule(
        f"self.matches('{DURATION_PATTERN}')", "write a length of time as a number with a unit such as 30s, 5m or 1h30m"
    ),
]
