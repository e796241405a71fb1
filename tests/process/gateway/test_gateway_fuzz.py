"""Damaged bytes from both sides at a gateway that runs: always an answer or a closed connection, never a wrong one."""

import asyncio
import contextlib
import json

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.process.gateway.support import (
    CHAT,
    OK,
    Bed,
    Client,
    EngineSide,
    RawEngine,
    always,
    chat,
    model,
    post,
    serving,
)

BOUNDED = settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
MARK = "the-marked-request"

GOOD = post(chat(text=MARK))
CHUNKED = (
    f"POST {CHAT} HTTP/1.1\r\nHost: g\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    + b"%x\r\n" % len(json.dumps(chat()))
    + json.dumps(chat()).encode()
    + b"\r\n0\r\n\r\n"
)
PIECES = [
    b"",
    b"\r\n",
    b"\n",
    b"\r",
    b"\0",
    b" ",
    b":",
    b"0",
    b"chunked",
    b"Content-Length: 3\r\n",
    b"\xff",
    b"{",
    b"]",
]
damage = st.lists(st.tuples(st.integers(0, 330), st.sampled_from(PIECES), st.integers(0, 4)), min_size=1, max_size=4)


async def served(bed: Bed) -> None:
    """The next client gets its answer; what these tests shorten is too short for a machine that is held up."""
    for _ in range(20):
        reply = await bed.ask(chat())
        if reply.status not in (408, 504):
            break
    assert reply.json == OK


def damaged(data: bytes, changes: list[tuple[int, bytes, int]]) -> bytes:
    for place, insert, removed in changes:
        data = data[:place] + insert + data[place + removed :]
    return data


@BOUNDED
@given(st.sampled_from([GOOD, CHUNKED]), damage, st.integers(1, 400))
async def test_damaged_requests_harm_nobody(request_bytes, changes, cut):
    """The engine sees whole JSON requests and nothing else; the next client is served."""
    async with (
        RawEngine(always(OK)) as engine,
        serving([model("m", engine)], body_timeout=0.2, head_timeout=0.2) as bed,
    ):
        data = damaged(request_bytes, changes)
        async with bed.client() as client:
            with contextlib.suppress(ConnectionError):
                await client.send(data[:cut])
                await asyncio.sleep(0)
                await client.send(data[cut:])
            answer = await client.closed()
        assert not answer or answer.startswith(b"HTTP/1.1 ")
        assert b"HTTP/1.1 500" not in answer
        await served(bed)
        for arrived in engine.requests:
            assert arrived.line == f"POST {CHAT} HTTP/1.1"
            assert isinstance(arrived.body["model"], str)
            assert set(arrived.headers) <= {"host", "content-type", "content-length", "x-request-id"}


STREAM = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    b'20\r\ndata: {"choices": [{"delta":0}]}\r\n2\r\n\n\n\r\n0\r\n\r\n'
)
WHOLE = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(json.dumps(OK))


@BOUNDED
@given(st.sampled_from([STREAM, WHOLE + json.dumps(OK).encode()]), damage, st.integers(1, 300), st.booleans())
async def test_damaged_answers_harm_only_their_own_request(answer, changes, cut, stream):
    """What a client gets is well formed HTTP or a cut, and never a byte of the next client's answer."""

    async def script(side: EngineSide) -> None:
        while True:
            request = await side.request()
            if request.body["messages"][0]["content"] != MARK:
                await side.json(OK)
                continue
            data = damaged(answer, changes)
            await side.send(data[:cut])
            await asyncio.sleep(0)
            await side.send(data[cut:])

    async with (
        RawEngine(script) as engine,
        serving([model("m", engine)], silence_timeout=0.2, first_byte_timeout=0.2) as bed,
    ):
        async with bed.client() as client:
            reply = await client.ask(chat(text=MARK, stream=stream))
            assert 100 <= reply.status <= 999
            if not reply.whole:
                assert await client.closed() == b""
        for _ in range(2):
            await served(bed)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300))
async def test_noise_is_refused(data):
    async with serving(head_timeout=0.1) as bed:
        async with Client.connected(bed.gateway.address) as client:
            with contextlib.suppress(ConnectionError):
                await client.send(data)
            answer = await client.closed()
        assert not answer or answer.split(b" ")[1] in (b"400", b"404", b"405", b"408", b"431")
