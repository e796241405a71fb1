"""What a file request is answered with: ranges, and the faults that change the body."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from e2e.hub.faults import Rule


class HangupError(Exception):
    """This connection has nothing more to say."""


@dataclass
class Body:
    """Status, headers and the span of the file to send; `length` may be a lie that a fault asked for."""

    status: int
    start: int
    length: int
    headers: dict[str, str] = field(default_factory=dict)


def parse_range(header: str | None, size: int) -> tuple[int, int] | None:
    """`bytes=a-b`, `a-` or `-n` as (start, end exclusive); None where absent, odd or unsatisfiable."""
    if not header or not header.startswith("bytes=") or "," in header:
        return None
    first, _, last = header[6:].partition("-")
    try:
        if not first:
            return max(0, size - int(last)), size
        start, end = int(first), min(int(last) + 1 if last else size, size)
    except ValueError:
        return None
    return (start, end) if start < end else None


def plan(rule: Rule | None, span: tuple[int, int] | None, size: int, asked: bool) -> Body:
    """The answer to a request for `span` of a file of `size` bytes."""
    kind = rule.kind if rule else ""
    if rule and kind in ("short", "long"):
        size = max(0, size + (rule.bytes if kind == "long" else -rule.bytes))
        if span:
            span = (min(span[0], size), min(span[1], size) if kind == "short" else span[1])
    if not asked or kind == "norange":
        return Body(200, 0, size)
    if span is None or span[0] >= size:
        return Body(416, 0, 0, {"Content-Range": f"bytes */{size}"})
    start, end = span
    said = start + rule.bytes if rule and kind == "wrongrange" else start
    return Body(206, said, end - start, {"Content-Range": f"bytes {said}-{said + end - start - 1}/{size}"})


def chunks(content: Any, body: Body, rule: Rule | None) -> Iterator[bytes | memoryview]:
    """The body in pieces; zeros where it is longer than the file."""
    position, left = body.start, body.length
    for chunk in content.chunks(position, left):
        yield damaged(chunk, position, rule) if rule and rule.kind == "corrupt" else chunk
        position, left = position + len(chunk), left - len(chunk)
    while left > 0:
        step = min(left, 1 << 20)
        yield bytes(step)
        left -= step


def damaged(chunk: bytes | memoryview, position: int, rule: Rule) -> bytes:
    """`chunk`, which lies at file offset `position`, with one bit or every bit flipped."""
    if rule.all:
        return bytes(b ^ 0xFF for b in chunk)
    changed, offset = bytearray(chunk), (rule.at or 0) - position
    if 0 <= offset < len(changed):
        changed[offset] ^= 0x01
    return bytes(changed)
