"""Answers as they pass by: whole server-sent events, and the engine's own token counts. Pure.

Nothing is parsed that need not be: a piece of a stream that ends an event and does not mention usage is passed on as
it came, which is nearly every one. (`"usage": null` is no mention.)
"""

import re

_USAGE = b'"usage"'
# Inside a JSON string the quotes are escaped, so these match keys and never what a model wrote.
_USAGE_OBJECT = re.compile(rb'"usage"\s*:\s*\{')
_PROMPT = re.compile(rb'"prompt_tokens"\s*:\s*(\d{1,15})')
_COMPLETION = re.compile(rb'"completion_tokens"\s*:\s*(\d{1,15})')
_NO_CHOICES = re.compile(rb'"choices"\s*:\s*\[\s*\]')
_EVENT_END = re.compile(rb"\r?\n\r?\n")
_USAGE_SPAN = 1024  # bytes after `"usage": {` in which the counts stand
# An event that grows beyond this is passed on in pieces: it is not a usage chunk.
_MAX_EVENT = 1 << 20


class Usage:
    """Prompt and completion tokens as the engine counted them; the last word of an answer counts."""

    __slots__ = ("_tail", "completion", "prompt")

    def __init__(self) -> None:
        self.prompt = 0
        self.completion = 0
        self._tail = b""

    def read(self, text: bytes) -> bool:
        """Take the counts from `text`, which holds whole objects; False where there are none."""
        at = text.rfind(_USAGE)
        while at >= 0 and text.find(b"{", at + 7, at + 12) < 0:  # null, or something else
            at = text.rfind(_USAGE, 0, at)
        if at < 0:
            return False
        prompt = _PROMPT.search(text, at, at + _USAGE_SPAN)
        completion = _COMPLETION.search(text, at, at + _USAGE_SPAN)
        self.prompt = int(prompt[1]) if prompt else 0
        self.completion = int(completion[1]) if completion else 0
        return prompt is not None or completion is not None

    def read_piece(self, piece: bytes) -> None:
        """Take the counts from a body that arrives in pieces, cut anywhere."""
        text = self._tail + piece
        if _USAGE in text:
            self.read(text)
        self._tail = text[-_USAGE_SPAN:]


class EventFilter:
    """Passes a stream on event by event, counts usage, and takes out the usage chunk where `hide` says so."""

    __slots__ = ("_hide", "_rest", "usage")

    def __init__(self, usage: Usage, *, hide: bool) -> None:
        self.usage = usage
        self._hide = hide
        self._rest = b""

    def feed(self, piece: bytes) -> bytes:
        """What of the stream can be passed on now: whole events, as they came."""
        if not self._rest and piece.endswith(b"\n\n") and (_USAGE not in piece or not _USAGE_OBJECT.search(piece)):
            return piece
        data = self._rest + piece
        end = _last_end(data)
        if end < 0:
            end = 0 if len(data) <= _MAX_EVENT else len(data)
        data, self._rest = data[:end], data[end:]
        return self._without_usage(data) if _USAGE in data else data

    def end(self) -> bytes:
        """What is left when the engine ends in the middle of an event."""
        rest, self._rest = self._rest, b""
        return rest

    def _without_usage(self, data: bytes) -> bytes:
        kept, start = [], 0
        for end in [*(match.end() for match in _EVENT_END.finditer(data)), len(data)]:
            event = data[start:end]
            start = end
            if _USAGE in event and self.usage.read(event) and self._hide and _NO_CHOICES.search(event):
                continue
            kept.append(event)
        return b"".join(kept)


def _last_end(data: bytes) -> int:
    """Where the last whole event of `data` ends; -1: there is none."""
    plain, windows = data.rfind(b"\n\n"), data.rfind(b"\r\n\r\n")
    return max(plain + 2 if plain >= 0 else -1, windows + 4 if windows >= 0 else -1)
