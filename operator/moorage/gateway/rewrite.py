"""Request bodies: parsed once, changed in place, dumped once. Pure.

The body stays untyped JSON, so that fields nobody here has heard of reach the engine as they came. A key is injected
only where it is absent. Precedence, highest first: what `overrides` say, what the client says (less what `drop`
takes from it), the alias's defaults, the Model's defaults. `max_tokens` and `max_completion_tokens` are two names of
one thing: whoever says either has said both.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Self

import orjson

from moorage.gateway.refusals import Refusal, bad_request

LENGTH_NAMES = frozenset({"max_tokens", "max_completion_tokens"})
# Below this no body can cost more than a few megabytes, whatever is in it.
_COUNTED_FROM = 1 << 20


class Kind(Enum):
    """What a path asks for."""

    CHAT = "/v1/chat/completions"
    COMPLETION = "/v1/completions"
    EMBEDDING = "/v1/embeddings"
    RERANK = "/v1/rerank"

    @property
    def generates(self) -> bool:
        """Whether sampling parameters mean anything here."""
        return self.chats or self is Kind.COMPLETION

    @property
    def chats(self) -> bool:
        """Whether it has messages."""
        return self is Kind.CHAT


class Unusable(Exception):
    """The body cannot be used; `refusal` says why."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


@dataclass(frozen=True, slots=True)
class Rewrite:
    """What is done to each body on its way to one Model."""

    served_name: str
    drop: tuple[str, ...] = ()
    overrides: Mapping[str, Any] | None = None
    defaults: tuple[tuple[str, Any], ...] = ()
    length: tuple[str, Any] | None = None  # the default among LENGTH_NAMES
    system_prompt: str = ""

    @classmethod
    def of(
        cls,
        served_name: str,
        defaults: Iterable[Mapping[str, Any]] = (),
        *,
        overrides: Mapping[str, Any] | None = None,
        drop: Iterable[str] = (),
        system_prompt: str = "",
    ) -> Self:
        """The rewrite of these rules; of `defaults` the first that names a key wins."""
        merged: dict[str, Any] = {}
        length: tuple[str, Any] | None = None
        for layer in defaults:
            for key, value in layer.items():
                if key not in LENGTH_NAMES:
                    merged.setdefault(key, value)
            length = length or next(((k, v) for k, v in layer.items() if k in LENGTH_NAMES), None)
        dropped = set(drop)
        if LENGTH_NAMES & (dropped | set(overrides or ())):
            dropped |= LENGTH_NAMES
        return cls(
            served_name,
            tuple(sorted(dropped)),
            dict(overrides or {}) or None,
            tuple(merged.items()),
            length,
            system_prompt,
        )

    def apply(self, body: dict[str, Any], kind: Kind, *, counted: bool = False) -> bool:
        """Change `body`, not what is in it; True where a usage chunk was asked for that the client must not see.

        `counted`: the client's tokens are limited, so that they are asked for even where it wants no usage.
        Raises Unusable where a field that has to be changed has the wrong type.
        """
        if kind.generates:
            self._inject(body)
            if self.system_prompt and kind.chats:
                _prepend(body, self.system_prompt)
        body["model"] = self.served_name
        return kind.generates and "stream" in body and _ask_for_usage(body, counted)

    def _inject(self, body: dict[str, Any]) -> None:
        for key in self.drop:
            body.pop(key, None)
        if self.overrides is not None:
            body.update(self.overrides)
        for key, value in self.defaults:
            if key not in body:
                body[key] = value
        # Under the name that was configured: each engine is sure to know the one its owner chose.
        if self.length is not None and LENGTH_NAMES.isdisjoint(body):
            body[self.length[0]] = self.length[1]


def parse(data: bytes | bytearray, max_marks: int) -> dict[str, Any]:
    """The JSON object in `data`. Raises Unusable for anything else."""
    if len(data) > _COUNTED_FROM and _marks(data) > max_marks:
        raise Unusable(bad_request("The request body has too many values.", "request_too_complex"))
    try:
        body = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise Unusable(bad_request(f"The request body is not valid JSON: {error}", "invalid_json")) from None
    if not isinstance(body, dict):
        raise Unusable(bad_request("The request body must be a JSON object.", "invalid_json"))
    return body


def dump(body: dict[str, Any]) -> bytes:
    """`body` as JSON. Raises Unusable where it is nested deeper than can be written."""
    try:
        return orjson.dumps(body)
    except orjson.JSONEncodeError:
        raise Unusable(bad_request("The request body is nested too deeply.", "invalid_json")) from None


def model_of(body: dict[str, Any]) -> str:
    """The name the client asks for. Raises Unusable where there is none."""
    name = body.get("model")
    if not isinstance(name, str) or not name:
        raise Unusable(bad_request("You must provide the name of a model as a string.", "missing_model", "model"))
    return name


def is_stream(body: dict[str, Any]) -> bool:
    """Whether the client wants events. Raises Unusable where `stream` is neither a boolean nor null."""
    stream = body.get("stream")
    if stream is None or isinstance(stream, bool):
        return bool(stream)
    raise Unusable(bad_request("`stream` must be a boolean.", "invalid_type", "stream"))


def _marks(data: bytes | bytearray) -> int:
    return data.count(b",") + data.count(b"[") + data.count(b"{")


def _prepend(body: dict[str, Any], prompt: str) -> None:
    messages = body.get("messages")
    if not isinstance(messages, list):
        raise Unusable(bad_request("`messages` must be a list.", "invalid_type", "messages"))
    first = messages[0] if messages else None
    if not (isinstance(first, dict) and first.get("role") == "system"):
        body["messages"] = [{"role": "system", "content": prompt}, *messages]


def _ask_for_usage(body: dict[str, Any], counted: bool) -> bool:
    if not is_stream(body):
        return False
    options = body.get("stream_options")
    if options is None:
        body["stream_options"] = {"include_usage": True}
        return True
    if not isinstance(options, dict):
        raise Unusable(bad_request("`stream_options` must be an object.", "invalid_type", "stream_options"))
    if "include_usage" in options and (options["include_usage"] is True or not counted):
        return False
    body["stream_options"] = {**options, "include_usage": True}
    return True
