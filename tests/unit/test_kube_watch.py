from collections.abc import AsyncIterator

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moorage.errors import Gone, Unavailable
from moorage.kube.watch import WatchEvent, event_batches


def line(kind: str, name: str = "a", **more: object) -> bytes:
    return orjson.dumps({"type": kind, "object": {"metadata": {"name": name}, **more}}) + b"\n"


async def chunks(data: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


async def read(data: bytes, size: int) -> list[WatchEvent]:
    return [event async for batch in event_batches(chunks(data, size)) for event in batch]


@given(st.integers(1, 300))
async def test_events_come_whole_however_the_stream_is_cut(size: int):
    data = line("ADDED", "ä") + line("MODIFIED", "b\n") + b"\n" + line("BOOKMARK", "") + line("DELETED", "c")
    events = await read(data, size)
    assert [event.type for event in events] == ["ADDED", "MODIFIED", "BOOKMARK", "DELETED"]
    assert [event.object["metadata"]["name"] for event in events] == ["ä", "b\n", "", "c"]


async def test_a_line_of_several_mib():
    events = await read(line("ADDED", data="x" * (5 << 20)), 64 << 10)
    assert len(events[0].object["data"]) == 5 << 20


async def test_a_last_line_cut_in_the_middle_is_dropped():
    data = line("ADDED") + line("DELETED")[:-10]
    assert [event.type for event in await read(data, 7)] == ["ADDED"]


async def test_events_before_an_error_count():
    gone = orjson.dumps({"type": "ERROR", "object": {"kind": "Status", "code": 410, "message": "too old"}}) + b"\n"
    seen = []
    with pytest.raises(Gone, match="too old"):
        async for batch in event_batches(chunks(line("ADDED") + gone, 1 << 20)):
            seen += batch
    assert [event.type for event in seen] == ["ADDED"]


@pytest.mark.parametrize("data", [b"<html>\n", b"[]\n", b"{}\n", b'{"type": "ADDED"}\n'])
async def test_what_is_no_event_is_an_error_worth_another_try(data: bytes):
    with pytest.raises(Unavailable, match="no event"):
        await read(data, 100)
