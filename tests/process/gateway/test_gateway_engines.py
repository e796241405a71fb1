"""Engines that refuse, reset, stall or lie: retried while that is safe, a clean error where it is not."""

import asyncio
import json
import time

import pytest

from moorage.gateway.routes import Model
from tests.process.gateway.support import (
    OK,
    SHORT,
    EngineSide,
    RawEngine,
    address,
    always,
    chat,
    dead_address,
    deaf_address,
    model,
    serving,
    turns,
)
from tests.support.eventually import PATIENCE, SLACK, eventually

DATA = json.dumps(OK).encode()
LENGTH = b"Content-Length: %d\r\n" % len(DATA)
CHUNKED = b"%x\r\n%b\r\n0\r\n\r\n" % (len(DATA), DATA)


async def resets(side: EngineSide) -> None:
    await side.request()
    side.reset()


async def closes(side: EngineSide) -> None:
    await side.request()
    side.close()


async def closes_at_once(side: EngineSide) -> None:
    side.close()


async def stalls(side: EngineSide) -> None:
    await side.request()
    await side.gone()


async def begins(side: EngineSide) -> None:
    """A stream's head and one event."""
    await side.request()
    await side.start_events()
    await side.event({"choices": [{"delta": {"content": "a"}}]})


# Before the first byte


@pytest.mark.parametrize("fault", [resets, closes, closes_at_once])
async def test_a_request_without_any_answer_is_sent_to_another_endpoint(fault):
    async with RawEngine(fault) as bad, RawEngine(always(OK)) as good, serving([model("m", bad, good)]) as bed:
        for _ in range(6):
            assert (await bed.ask(chat())).json == OK
        assert bad.sides, "the bad one was tried"
        assert await bed.metric("moorage_gateway_retries_total") >= 1
        assert bed.gateway.stats.route("", "m").error == 0


async def test_a_refused_connection_is_tried_elsewhere_and_avoided_for_a_while():
    async with (
        dead_address() as dead,
        RawEngine(always(OK)) as good,
        serving([Model("m", endpoints=(dead, address(good)))]) as bed,
    ):
        for _ in range(20):
            assert (await bed.ask(chat())).status == 200
        assert bed.gateway.stats.retries == 1, "an endpoint that is dead is not asked each time"


async def test_an_avoided_endpoint_is_asked_again_later():
    async with (
        dead_address() as dead,
        RawEngine(always(OK)) as good,
        serving([Model("m", endpoints=(dead, address(good)))], avoid_seconds=0.05) as bed,
    ):

        async def ask() -> None:
            while bed.gateway.stats.retries < 2:
                assert (await bed.ask(chat())).status == 200

        await asyncio.wait_for(ask(), PATIENCE)


@pytest.mark.parametrize("fault", [resets, closes])
async def test_a_request_is_sent_three_times_at_most(fault):
    async with RawEngine(fault) as engine, serving([model("m", engine)]) as bed:
        reply = await bed.ask(chat())
        assert (reply.status, reply.error["code"]) == (502, "engine_unreachable")
        assert len(engine.requests) == 3
        assert await bed.metric("moorage_gateway_requests_total", model="m", outcome="error") == 1


async def test_each_retry_prefers_an_endpoint_that_was_not_tried():
    engines = [RawEngine(resets) for _ in range(3)]
    async with engines[0], engines[1], engines[2], serving([model("m", *engines)]) as bed:
        assert (await bed.ask(chat())).status == 502
        assert [len(engine.requests) for engine in engines] == [1, 1, 1]


async def test_a_connection_that_went_stale_is_replaced_unnoticed():
    """An engine that closes a kept connection just as the next request is on its way."""

    async def script(side: EngineSide) -> None:
        await side.request()
        await side.json(OK)
        if side.number == 1:
            await side.request()
            side.reset()
        else:
            await side.request()
            await side.json(OK)

    async with RawEngine(script) as engine, serving([model("m", engine)]) as bed, bed.client() as client:
        assert (await client.ask(chat())).json == OK
        assert (await client.ask(chat())).json == OK
        assert len(engine.sides) == 2


async def test_the_same_body_is_sent_again():
    async with (
        RawEngine(resets) as bad,
        RawEngine(always(OK)) as good,
        serving([model("m", bad, good, defaults={"temperature": 0.5})]) as bed,
    ):
        while not bad.requests:
            await bed.ask(chat(text="x" * 200_000))
        assert bad.requests[0].data == good.requests[0].data
        assert bad.requests[0].headers["x-request-id"] in {r.headers["x-request-id"] for r in good.requests}


async def test_a_kept_connection_is_not_used_after_four_seconds():
    """vLLM and llama-server close theirs after five: the rule, with both numbers divided by two."""

    async def script(side: EngineSide) -> None:
        while True:
            await asyncio.wait_for(side.request(), 2.5)
            await side.json(OK)

    async with RawEngine(script) as engine, serving([model("m", engine)], engine_idle_timeout=2.0) as bed:
        async with bed.client() as client:
            for pause in (0.0, 0.5, 2.1, 2.3):
                await asyncio.sleep(pause)
                assert (await client.ask(chat())).status == 200
        assert bed.gateway.stats.retries == 0
        assert len(engine.sides) == 3


async def test_idle_connections_are_closed_though_nobody_asks():
    gone = asyncio.Event()

    async def script(side: EngineSide) -> None:
        await side.request()
        await side.json(OK)
        await side.gone()
        gone.set()

    async with RawEngine(script) as engine, serving([model("m", engine)], engine_idle_timeout=0.2) as bed:
        await bed.ask(chat())
        await asyncio.wait_for(gone.wait(), PATIENCE)


async def test_an_engine_that_never_answers_is_504_and_not_retried():
    async with RawEngine(stalls) as engine, serving([model("m", engine)], first_byte_timeout=SHORT) as bed:
        reply = await bed.ask(chat())
        assert (reply.status, reply.error["code"]) == (504, "engine_timeout")
        await eventually(lambda: engine.sides[0].gone_at)
        assert len(engine.requests) == 1


async def test_an_endpoint_that_makes_no_connection_is_given_up_soon():
    loop = asyncio.get_running_loop()
    async with deaf_address() as deaf, serving([Model("m", endpoints=(deaf,))], connect_timeout=0.1) as bed:
        began = loop.time()
        reply = await bed.ask(chat())
        assert (reply.status, reply.error["code"]) == (502, "engine_unreachable")
        assert 0.25 < loop.time() - began < SLACK, "three attempts of 0.1 s each"


# After the first byte


async def test_nothing_is_retried_after_the_first_byte():
    async def script(side: EngineSide) -> None:
        await side.request()
        await side.send(b"H")
        await turns()
        side.reset()

    async with RawEngine(script) as engine, serving([model("m", engine)]) as bed:
        reply = await bed.ask(chat())
        assert (reply.status, reply.error["code"]) == (502, "engine_error")
        assert len(engine.requests) == 1


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (len(DATA) + 10) + DATA,
        b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (len(DATA) - 10) + DATA,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n" % (len(DATA) + 10) + DATA,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n" + DATA,
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nabcdef",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n" + DATA,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n" + CHUNKED,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n" + CHUNKED,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + CHUNKED + b"extra",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + CHUNKED[:-2] + b"Content-Length: 5\r\n\r\n",
        b"HTTP/1.1 199 X\r\nContent-Length: 2\r\n\r\n[]HTTP/1.1 200 OK\r\n%b\r\n" % LENGTH + DATA,
        b"HTTP/1.1 204 No Content\r\n%b\r\n" % LENGTH + DATA,
        b"HTTP/1.1 302 Found\r\nLocation: http://elsewhere/\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 304 Not Modified\r\n\r\n",
        b"HTTP/1.1 600 X\r\n%b\r\n" % LENGTH + DATA,
        b"HTTP/1.1 200 OK\n%b\n" % LENGTH.replace(b"\r", b"") + DATA,
        b"HTTP/1.1 200 OK\r\n%bConnection: close\r\n\r\n" % LENGTH + DATA + b"extra",
        b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 400_000,
        b"SSH-2.0-OpenSSH\r\n",
        b"\0\0\0\0\0",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
    ],
    ids=[
        "too long a length", "too short a length", "cut chunk", "bad chunk", "length and chunked", "two lengths",
        "negative length", "gzip coding", "gzip under chunks", "chunked twice", "more after the last chunk",
        "a length in the trailer", "an interim answer with a body", "204 with a body", "a redirect", "304",
        "status 600", "bare line feeds", "more after the last answer", "switching protocols", "half a head",
        "endless head", "ssh", "zeros", "two answers",
    ],
)  # fmt: skip
async def test_an_answer_that_lies_is_502_and_its_connection_never_used_again(answer):
    async def script(side: EngineSide) -> None:
        while True:
            await side.request()
            if side.number > 1:
                await side.json(OK)
                continue
            await side.send(answer)
            await turns()
            side.close()

    async with RawEngine(script) as engine, serving([model("m", engine)]) as bed, bed.client() as client:
        reply = await client.ask(chat())
        assert (reply.status, reply.error["code"]) == (502, "engine_error")
        assert (await client.ask(chat())).json == OK
        assert len(engine.sides) == 2


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\n%b\r\n" % LENGTH
        + DATA,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n%x;a=b\r\n%b\r\n0\r\nX: y\r\n\r\n" % (len(DATA), DATA),
        b"HTTP/1.1 200\r\n%b\r\n" % LENGTH + DATA,
        b"HTTP/1.0 200 OK\r\n\r\n" + DATA,
        b"HTTP/1.1 200 OK\r\nConnection: keep-alive\r\n\r\n" + DATA,
    ],
    ids=["interim answers", "extensions and trailers", "no reason", "HTTP/1.0", "ended by closing"],
)  # fmt: skip
async def test_unusual_answers_are_passed_on(answer):
    async def script(side: EngineSide) -> None:
        await side.request()
        for start in range(0, len(answer), 7):
            await side.send(answer[start : start + 7])
        side.close()

    async with RawEngine(script) as engine, serving([model("m", engine)]) as bed:
        reply = await bed.ask(chat())
        assert (reply.status, reply.body, reply.headers["content-length"]) == (200, DATA, str(len(DATA)))


async def test_bytes_after_an_answer_are_never_the_next_one():
    answered, late = asyncio.Event(), asyncio.Event()

    async def script(side: EngineSide) -> None:
        await side.request()
        await side.json(OK)
        if side.number == 1:
            await answered.wait()
            await side.json({"choices": ["for nobody"]})
            late.set()
        await side.request()
        await side.json(OK)

    async with RawEngine(script) as engine, serving([model("m", engine)]) as bed, bed.client() as client:
        assert (await client.ask(chat())).json == OK
        answered.set()
        await late.wait()
        await turns()
        assert (await client.ask(chat())).json == OK
        assert len(engine.sides) == 2


@pytest.mark.parametrize("end", ["reset", "close"])
async def test_a_stream_that_breaks_ends_with_an_error_and_a_cut(end):
    async def script(side: EngineSide) -> None:
        await begins(side)
        await turns()
        getattr(side, end)()

    async with RawEngine(script) as engine, serving([model("m", engine)]) as bed:
        reply = await bed.ask(chat(stream=True))
        assert (reply.status, reply.whole) == (200, False)
        assert reply.events[0]["choices"][0]["delta"]["content"] == "a"
        assert reply.events[-1]["error"]["code"] == "engine_error"
        assert "[DONE]" not in reply.events
        assert bed.gateway.stats.route("", "m").error == 1


async def test_a_stream_that_stalls_is_ended():
    async def script(side: EngineSide) -> None:
        await begins(side)
        await side.gone()

    async with RawEngine(script) as engine, serving([model("m", engine)], silence_timeout=SHORT) as bed:
        reply = await bed.ask(chat(stream=True))
        assert reply.events[-1]["error"]["code"] == "engine_timeout"
        assert not reply.whole
        await eventually(lambda: engine.sides[0].gone_at)


async def test_a_stream_that_trickles_is_not_ended():
    async def script(side: EngineSide) -> None:
        await begins(side)
        for _ in range(6):
            await asyncio.sleep(0.5)
            await side.event({"choices": []})
        await side.end_events()

    async with RawEngine(script) as engine, serving([model("m", engine)], silence_timeout=2.5) as bed:
        assert (await bed.ask(chat(stream=True))).events[-1] == "[DONE]"


async def test_a_stream_that_dies_before_its_first_event_is_a_clean_502():
    async def script(side: EngineSide) -> None:
        await side.request()
        await side.start_events()
        await turns()
        side.reset()

    async with RawEngine(script) as engine, serving([model("m", engine)]) as bed:
        reply = await bed.ask(chat(stream=True))
        assert (reply.status, reply.error["code"]) == (502, "engine_error")


async def test_a_long_answer_that_breaks_is_cut_and_never_looks_whole():
    async def script(side: EngineSide) -> None:
        await side.request()
        await side.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        await side.send(b"%x\r\n%b\r\n" % (1_000_000, b"x" * 1_000_000))
        await turns()
        side.close()

    async with RawEngine(script) as engine, serving([model("m", engine)]) as bed:
        reply = await bed.ask(chat())
        assert (reply.status, reply.whole, len(reply.body)) == (200, False, 1_000_000)


async def test_an_engine_that_answers_before_the_question_is_over_is_heard():
    async def script(side: EngineSide) -> None:
        await side.reader.readuntil(b"\r\n\r\n")
        await side.json({"error": {"message": "too long"}}, 413)
        await side.gone()

    async with RawEngine(script) as engine, serving([model("m", engine)]) as bed:
        assert (await bed.ask(chat(text="x" * 20_000_000))).status == 413
        await eventually(lambda: engine.sides[0].gone_at, what="the half-sent connection is not kept")


async def test_errors_name_neither_engine_nor_address():
    async with RawEngine(resets) as engine, serving([model("m", engine, served_name="secret-name")]) as bed:
        reply = await bed.ask(chat())
        text = reply.body.decode() + str(reply.headers)
        assert reply.status == 502
        for secret in (address(engine), address(engine).rpartition(":")[2], "127.0.0.1", "secret-name", "reset"):
            assert secret not in text


# Clients that leave


async def leave(wait_for_answer: bool) -> float:
    """How long after the client left the engine saw it, in seconds."""

    async def script(side: EngineSide) -> None:
        await side.request()
        if wait_for_answer:
            await side.start_events()
            await side.event({"choices": []})
        await side.gone()

    async with RawEngine(script) as engine, serving([model("m", engine)]) as bed:
        async with bed.client() as client:
            await client.post(chat(stream=True))
            await eventually(lambda: engine.requests)
            if wait_for_answer:
                await client.head()
            left = time.monotonic()
        await eventually(lambda: engine.sides[0].gone_at, every=0.001)
        stats = bed.gateway.stats.route("", "m")
        assert (stats.cancelled, stats.error, stats.ok) == (1, 0, 0), "a client that leaves is no failure"
        return engine.sides[0].gone_at - left


@pytest.mark.parametrize("answering", [False, True])
async def test_a_client_that_leaves_takes_its_engine_connection_along(answering):
    delays = sorted([await leave(answering) for _ in range(5)])
    assert delays[0] < 0.05, f"where the machine lets it, at once: {delays}"


async def test_a_client_that_leaves_while_the_connection_is_made_leaves_nothing():
    async with deaf_address() as deaf, serving([Model("m", endpoints=(deaf,))]) as bed:
        async with bed.client() as client:
            await client.post(chat())
            await eventually(lambda: bed.outstanding() == 1)
        await eventually(lambda: bed.outstanding() == 0)
        assert bed.gateway.stats.route("", "m").cancelled == 1


async def test_requests_go_to_the_least_busy_endpoint():
    async def slow(side: EngineSide) -> None:
        await side.request()
        await release.wait()
        await side.json(OK)

    release = asyncio.Event()
    engines = [RawEngine(slow) for _ in range(3)]
    async with engines[0], engines[1], engines[2], serving([model("m", *engines)]) as bed:
        asked = [asyncio.create_task(bed.ask(chat())) for _ in range(9)]
        await eventually(lambda: sum(len(engine.requests) for engine in engines) == 9)
        assert [len(engine.requests) for engine in engines] == [3, 3, 3]
        release.set()
        assert {reply.status for reply in await asyncio.gather(*asked)} == {200}
