"""The lines of a watch: https://kubernetes.io/docs/reference/using-api/api-concepts/#efficient-detection-of-changes."""

from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import orjson

from moorage.errors import Unavailable
from moorage.kube.errors import from_status


class WatchEvent(NamedTuple):
    """`type` is ADDED, MODIFIED, DELETED or BOOKMARK (of whose object only the resource version means anything)."""

    type: str
    object: dict[str, Any]


async def event_batches(chunks: AsyncIterator[bytes]) -> AsyncIterator[list[WatchEvent]]:
    """Watch events as they arrive, in batches of what came together.

    Chunks need not end where lines do, and a line may be several MiB (aiohttp's own `readline` refuses those). A last
    line without its end was cut and is dropped: the watch is resumed before it. Raises what an ERROR event carries.
    """
    tail: list[bytes] = []
    async for chunk in chunks:
        end = chunk.rfind(b"\n")
        if end < 0:
            tail.append(chunk)
            continue
        tail.append(chunk[:end])
        lines = b"".join(tail).split(b"\n")
        tail = [chunk[end + 1 :]]
        batch: list[WatchEvent] = []
        for line in lines:
            if line:
                event = _event(line)
                if event.type == "ERROR":
                    if batch:  # what came before the error counts
                        yield batch
                    raise from_status(event.object)
                batch.append(event)
        if batch:
            yield batch


def _event(line: bytes) -> WatchEvent:
    try:
        data = orjson.loads(line)
        return WatchEvent(data["type"], data["object"])
    except (ValueError, KeyError, TypeError) as error:
        raise Unavailable(f"the watch sent something that is no event: {line[:200]!r}") from error
