"""Server-sent events of a chat completion: when text came, and what the server counted.

The shape is OpenAI's: `data: {json}` lines, each a whole event, closed by `data: [DONE]`; with
`stream_options.include_usage` one chunk bears `usage`, usually the last and with empty `choices`. Servers differ in
where they put reasoning: `reasoning_content` (llama-server, older vLLM) or `reasoning` (vLLM).
"""

from dataclasses import dataclass, field
from typing import Any, TypeGuard

import orjson

MAX_EVENT_BYTES = 1 << 20
_TEXT_KEYS = ("content", "reasoning_content", "reasoning")


@dataclass(frozen=True)
class Usage:
    """The server's own token counts; `cached` is the part of the prompt it took from a prefix cache, if it says."""

    prompt: int
    completion: int
    cached: int | None = None


@dataclass
class Transcript:
    """What one stream has said so far. Times are the clock's nanoseconds, handed in with the bytes.

    The server may be broken: a line is bounded, and nothing here raises; `error` says what was wrong.
    """

    text_ns: list[int] = field(default_factory=list)
    usage: Usage | None = None
    done_ns: int | None = None
    error: str = ""
    _rest: bytes = b""

    @property
    def over(self) -> bool:
        """Whether nothing that comes now matters any more."""
        return self.done_ns is not None or bool(self.error)

    def feed(self, data: bytes, now_ns: int) -> None:
        """Take the next bytes of the body, which arrived at `now_ns`."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if self.over:
                return
            if line.startswith(b"data:"):
                self._event(line[5:].strip(), now_ns)
        if len(self._rest) > MAX_EVENT_BYTES:
            self.error = f"an event is longer than {MAX_EVENT_BYTES} bytes"

    def _event(self, payload: bytes, now_ns: int) -> None:
        if payload == b"[DONE]":
            self.done_ns = now_ns
            return
        try:
            chunk = orjson.loads(payload)
        except orjson.JSONDecodeError:
            self.error = f"an event is not JSON: {payload[:100]!r}"
            return
        if not isinstance(chunk, dict):
            self.error = f"an event is not a JSON object: {payload[:100]!r}"
            return
        if chunk.get("error"):
            self.error = f"the server broke off: {error_text(chunk)}"
            return
        if _has_text(chunk.get("choices")):
            self.text_ns.append(now_ns)
        self.usage = _usage(chunk.get("usage")) or self.usage


def error_text(body: Any) -> str:
    """The message inside an OpenAI-shaped error body, or the body itself; at most 300 characters."""
    error = body.get("error", body) if isinstance(body, dict) else body
    message = error.get("message", error) if isinstance(error, dict) else error
    return str(message)[:300]


def _has_text(choices: Any) -> bool:
    for choice in choices if isinstance(choices, list) else ():
        delta = choice.get("delta") if isinstance(choice, dict) else None
        if isinstance(delta, dict) and any(isinstance(text := delta.get(key), str) and text for key in _TEXT_KEYS):
            return True
    return False


def _usage(value: Any) -> Usage | None:
    if not isinstance(value, dict):
        return None
    prompt, completion = value.get("prompt_tokens"), value.get("completion_tokens")
    if not _is_count(prompt) or not _is_count(completion):
        return None
    details = value.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else None
    return Usage(prompt, completion, cached if _is_count(cached) else None)


def _is_count(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
