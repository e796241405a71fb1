"""Clients and engines that mean harm, or do it: nothing they say is read twice, in two ways, or by somebody else."""

import asyncio
import contextlib
import json

import pytest

from moorage.gateway.routes import Alias, Parameters
from tests.process.gateway.support import (
    CHAT,
    OK,
    EngineSide,
    RawEngine,
    always,
    chat,
    get,
    key,
    model,
    post,
    serving,
)
from tests.support.eventually import PATIENCE, eventually


@pytest.mark.parametrize("path", [CHAT, "/v1/models", "/nowhere"])
async def test_an_answer_to_head_has_no_body_that_could_be_taken_for_the_next_answer(path):
    async with RawEngine(always(OK)) as engine, serving([model("m", engine)]) as bed, bed.client() as client:
        await client.send(f"HEAD {path} HTTP/1.1\r\nHost: g\r\n\r\n".encode())
        status, _ = await client.head()
        assert status in (404, 405)
        await client.send(get("/v1/models"))
        reply = await client.reply()
        assert (reply.status, reply.json["object"]) == (200, "list")


async def test_trailers_change_nothing():
    body = json.dumps(chat()).encode()
    trailers = (
        b"Authorization: Bearer sk-all\r\nX-Request-Id: forged\r\nHost: other\r\nX-Big: " + b"x" * 30_000 + b"\r\n"
    )
    head = f"POST {CHAT} HTTP/1.1\r\nHost: g\r\nX-Request-Id: real\r\n"
    head += "Transfer-Encoding: chunked\r\nTrailer: Authorization\r\n"
    chunks = b"%x\r\n%b\r\n0\r\n%b\r\n" % (len(body), body, trailers)
    async with RawEngine(always(OK)) as engine, serving([model("m", engine)]) as bed, bed.client() as client:
        await client.send(head.encode() + b"\r\n" + chunks + post(chat()))
        reply = await client.reply()
        assert (reply.status, reply.headers["x-request-id"]) == (200, "real")
        assert (await client.reply()).status == 200
        assert engine.requests[0].headers["x-request-id"] == "real"
        assert not any("authorization" in request.headers for request in engine.requests)
    async with serving([model("m")], keys=[key("all", "sk-all")]) as bed:
        reply = await bed.raw(head.encode() + b"\r\n" + chunks)
        assert reply.status == 401, "a key in a trailer comes too late"


async def test_of_a_pipeline_what_was_whole_is_answered_and_what_follows_nonsense_is_not():
    async with RawEngine(always(OK)) as engine, serving([model("m", engine)]) as bed, bed.client() as client:
        await client.send(post(chat(text="one")) + b"NONSENSE\r\n\r\n" + post(chat(text="smuggled")))
        assert (await client.reply()).status == 200
        assert b"HTTP/1.1 200" not in await client.closed()
        assert len(engine.requests) == 1


async def test_a_pipeline_of_streams_and_refusals_keeps_its_order():
    async def script(side: EngineSide) -> None:
        while True:
            await side.request()
            await side.start_events()
            await side.event({"choices": []})
            await side.end_events()

    async with RawEngine(script) as engine, serving([model("m", engine)]) as bed, bed.client() as client:
        stream, unknown = post(chat(stream=True)), post(chat("nobody"))
        await client.send((stream + unknown + get("/v1/models")) * 5)
        for _ in range(5):
            assert [(await client.reply()).status for _ in range(3)] == [200, 404, 200]


async def test_a_client_that_closes_its_half_has_left():
    """A closed half cannot be told from a client that is gone, and an engine must not go on for the latter."""

    async def script(side: EngineSide) -> None:
        await side.request()
        await side.gone()

    async with RawEngine(script) as engine, serving([model("m", engine)]) as bed, bed.client() as client:
        await client.post(chat())
        await eventually(lambda: engine.requests, PATIENCE)
        client.writer.write_eof()
        await eventually(lambda: engine.sides[0].gone_at, PATIENCE)
        assert bed.gateway.stats.route("", "m").cancelled == 1


@pytest.mark.parametrize(
    "name", ["x\r\nSet-Cookie: a=b", "x\r\n\r\nHTTP/1.1 200 OK", "\0", "é" * 100, "../../slots", "%0d%0a"]
)
async def test_names_and_values_of_aliases_stay_inside_the_body(name):
    parameters = Parameters({"x\r\ny": "a\r\nb"}, {"user": name}, system_prompt=name)
    aliases = [Alias(name, (("m", 1),), parameters=parameters, sticky_header=name)]
    async with RawEngine(always(OK)) as engine, serving([model("m", engine)], aliases) as bed, bed.client() as client:
        reply = await client.ask(chat(name))
        assert reply.status == 200
        assert set(reply.headers) == {"content-type", "content-length", "x-request-id"}
        assert engine.requests[0].body["user"] == name
        assert set(engine.requests[0].headers) == {"host", "content-type", "content-length", "x-request-id"}
        reply = await client.ask(chat(name + "?"))
        assert reply.error["code"] == "model_not_found"
        assert len(engine.requests) == 1


async def test_expect_in_http_1_0_and_without_a_body_is_not_waited_for():
    async with RawEngine(always(OK)) as engine, serving([model("m", engine)]) as bed:
        body = json.dumps(chat()).encode()
        head = f"POST {CHAT} HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        assert (await bed.raw(head + body)).status == 200
        reply = await bed.raw(
            f"POST {CHAT} HTTP/1.1\r\nHost: g\r\nExpect: 100-continue\r\nContent-Length: 0\r\n\r\n".encode()
        )
        assert reply.status == 400


async def test_an_offered_upgrade_cannot_carry_a_second_request_past_the_checks():
    offer = f"POST {CHAT} HTTP/1.1\r\nHost: g\r\nConnection: Upgrade, HTTP2-Settings\r\n"
    offer += "Upgrade: h2c\r\nHTTP2-Settings: AAAA\r\n"
    body = json.dumps(chat()).encode()
    async with RawEngine(always(OK)) as engine, serving([model("m", engine)], keys=[key("all", "sk-all")]) as bed:
        async with bed.client() as client:
            one = f"{offer}Authorization: Bearer sk-all\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
            await client.send(one + post(chat(text="smuggled")) + one)
            assert [(await client.reply()).status for _ in range(3)] == [200, 401, 200]
        assert len(engine.requests) == 2


@pytest.mark.parametrize(
    "line",
    [b"X-A: b\rSet-Cookie: c", b"X-A: b\nSet-Cookie: c", b"X-A: b\r\n folded", b"X A: b", b"X-A\0: b", b"X-A: \0"],
)
async def test_a_header_of_an_engine_splits_no_answer(line):
    async def script(side: EngineSide) -> None:
        await side.request()
        data = json.dumps(OK).encode()
        await side.send(b"HTTP/1.1 200 OK\r\n" + line + b"\r\nContent-Length: %d\r\n\r\n" % len(data) + data)

    async with RawEngine(script) as engine, serving([model("m", engine)]) as bed:
        reply = await bed.ask(chat())
        assert (reply.status, reply.error["code"]) == (502, "engine_error")


async def test_an_engine_that_never_ends_its_interim_answers_is_given_up():
    async def script(side: EngineSide) -> None:
        await side.request()
        with contextlib.suppress(ConnectionError):
            for _ in range(100_000):
                await side.send(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")

    async with RawEngine(script) as engine, serving([model("m", engine)]) as bed:
        reply = await bed.ask(chat())
        assert (reply.status, reply.error["code"]) == (502, "engine_error")


@pytest.mark.parametrize(
    "headers",
    [
        "Connection: close, X-Secret\r\nX-Secret: 1\r\nKeep-Alive: timeout=5\r\nUpgrade: h2c\r\n"
        "Proxy-Connection: x\r\n",
        "Access-Control-Allow-Origin: *\r\nAccess-Control-Allow-Credentials: true\r\nSet-Cookie: a=b\r\n"
        "Strict-Transport-Security: max-age=9\r\nAlt-Svc: h3\r\nClear-Site-Data: *\r\nServer: x\r\n",
    ],
    ids=["hop by hop", "for browsers"],
)
async def test_an_engine_says_nothing_about_connections_and_browsers(headers):
    async def script(side: EngineSide) -> None:
        await side.request()
        await side.json(OK, extra=headers)
        side.close()

    async with RawEngine(script) as engine, serving([model("m", engine)]) as bed, bed.client() as client:
        reply = await client.ask(chat())
        assert set(reply.headers) == {"content-type", "content-length", "x-request-id"}
        assert reply.json == OK


async def test_many_clients_that_send_a_head_and_stop_hold_nobody_up():
    async with RawEngine(always(OK)) as engine, serving([model("m", engine)], head_timeout=3.0) as bed:
        async with contextlib.AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(bed.client()) for _ in range(200)]
            await asyncio.gather(*(client.send(f"POST {CHAT} HTTP/1.1\r\nHost:".encode()) for client in clients))
            assert (await bed.ask(chat())).status == 200
            replies = await asyncio.gather(*(client.reply() for client in clients))
        assert {reply.status for reply in replies} == {408}
        await eventually(lambda: not bed.gateway.public.connections, PATIENCE)
