"""Clients that are wrong, slow, huge or hostile: an answer with the right status, and nobody else notices."""

import asyncio
import contextlib
import json
import socket
import time

import pytest

from moorage.gateway.routes import Alias, Parameters
from tests.process.gateway.support import (
    CHAT,
    OK,
    SHORT,
    Client,
    EngineSide,
    RawEngine,
    always,
    chat,
    get,
    key,
    mock,
    model,
    post,
    serving,
)
from tests.support.eventually import PATIENCE, SLACK, eventually

HEAD = f"POST {CHAT} HTTP/1.1\r\nHost: g\r\n".encode()
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
BODY = json.dumps(chat()).encode()
SIZE = b"%x" % len(BODY)
LAST = b"\r\n0\r\n\r\n"
LENGTH = b"Content-Length: %d\r\n" % len(BODY)
SMUGGLED = post(chat("smuggled"))

# What a careful front door must not read in one way and an engine in another.
AMBIGUOUS = {
    "length and chunked": HEAD + LENGTH + b"Transfer-Encoding: chunked\r\n\r\n" + SIZE + b"\r\n" + BODY + LAST,
    "chunked and length": HEAD + b"Transfer-Encoding: chunked\r\n" + LENGTH + b"\r\n0\r\n\r\n" + SMUGGLED,
    "two lengths": HEAD + LENGTH + b"Content-Length: 0\r\n\r\n" + BODY,
    "the same length twice": HEAD + LENGTH + LENGTH + b"\r\n" + BODY,
    "a list of lengths": HEAD + b"Content-Length: 5, 5\r\n\r\nabcde",
    "a signed length": HEAD + b"Content-Length: +5\r\n\r\nabcde",
    "a negative length": HEAD + b"Content-Length: -5\r\n\r\nabcde",
    "a hexadecimal length": HEAD + b"Content-Length: 0x5\r\n\r\nabcde",
    "an overflowing length": HEAD + b"Content-Length: 99999999999999999999999\r\n\r\nabcde",
    "an empty length": HEAD + b"Content-Length:\r\n\r\nabcde",
    "a folded line": HEAD + b"X-A: b\r\n c\r\n" + LENGTH + b"\r\n" + BODY,
    "a folded coding": HEAD + b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
    "space before the colon": HEAD + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "space before the first header": f"POST {CHAT} HTTP/1.1\r\n Host: g\r\n\r\n".encode(),
    "a coding twice": HEAD + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a coding after chunked": HEAD + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "a hidden coding": HEAD + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "an unknown coding": HEAD + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "a coding in HTTP/1.0": HEAD.replace(b"1.1", b"1.0") + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "bare line feeds": HEAD.replace(b"\r\n", b"\n") + b"\n",
    "a bare line feed": HEAD + b"X: a\n" + LENGTH + b"\r\n" + BODY,
    "a bare carriage return": HEAD + b"X: a\r" + LENGTH + b"\r\n" + BODY,
    "a NUL": HEAD + b"X: a\0b\r\n\r\n",
    "a line without colon": HEAD + b"nonsense\r\n\r\n",
    "a header without name": HEAD + b": a\r\n\r\n",
    "a chunk size that is none": CHUNKED + b"zz\r\n{}\r\n0\r\n\r\n",
    "a chunk size with a space": CHUNKED + b"2 \r\n{}\r\n0\r\n\r\n",
    "a chunk size with a prefix": CHUNKED + b"0x2\r\n{}\r\n0\r\n\r\n",
    "a negative chunk size": CHUNKED + b"-2\r\n{}\r\n0\r\n\r\n",
    "an overflowing chunk size": CHUNKED + b"10000000000000002\r\n{}\r\n0\r\n\r\n",
    "a chunk without its end": CHUNKED + b"2\r\n{}0\r\n\r\n",
    "chunks with bare line feeds": CHUNKED + b"2\n{}\n0\n\n",
    "an extension with a bare line feed": CHUNKED + b"2;a\nb\r\n{}\r\n0\r\n\r\n",
    "a length in the trailer": CHUNKED + b"2\r\n{}\r\n0\r\nContent-Length: 5\r\n\r\n",
    "two hosts": HEAD + b"Host: other\r\n" + LENGTH + b"\r\n" + BODY,
    "two keys": HEAD + b"Authorization: Bearer a\r\nAuthorization: Bearer b\r\n" + LENGTH + b"\r\n" + BODY,
    "no host": HEAD.replace(b"Host: g\r\n", b"") + LENGTH + b"\r\n" + BODY,
    "another version": HEAD.replace(b"1.1", b"2.0") + LENGTH + b"\r\n" + BODY,
    "no version": f"GET {CHAT}\r\n\r\n".encode(),
    "no HTTP at all": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 64,
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
}  # fmt: skip


@pytest.mark.parametrize("request_bytes", AMBIGUOUS.values(), ids=AMBIGUOUS.keys())
async def test_an_ambiguous_request_is_refused_and_its_connection_closed(request_bytes):
    async with RawEngine(always(OK)) as engine, serving([model("m", engine), model("smuggled", engine)]) as bed:
        async with bed.client() as client:
            await client.send(request_bytes)
            reply = await client.reply()
            assert reply.status in (400, 501)
            assert reply.error["type"] in ("invalid_request_error", "server_error")
            assert reply.headers["connection"] == "close" or reply.error["code"] == "malformed_request"
            with contextlib.suppress(ConnectionError):
                await client.send(SMUGGLED)
            assert await client.closed() == b""
        assert engine.requests == []
        assert (await bed.ask(chat())).status == 200


async def test_a_stacked_coding_is_refused():
    async with serving() as bed:
        reply = await bed.raw(HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n")
        assert (reply.status, reply.error["code"]) == (501, "unsupported_transfer_encoding")


async def test_a_compressed_body_is_refused():
    async with serving() as bed:
        assert (await bed.ask(chat(), Content_Encoding="gzip")).status == 415


async def test_an_unknown_expectation_is_refused():
    async with serving() as bed:
        assert (await bed.ask(chat(), Expect="miracles")).status == 417


async def test_connect_is_refused():
    async with serving() as bed:
        assert (await bed.raw(b"CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n")).status == 405


async def test_the_end_of_a_refused_request_is_not_taken_for_a_request():
    """Bytes after a malformed request stay unread, whatever they say."""
    async with mock() as engine, serving([model("smuggled", engine)]) as bed, bed.client() as client:
        await client.send(AMBIGUOUS["two lengths"] + SMUGGLED * 3)
        assert (await client.reply()).status == 400
        assert await client.closed() == b""
        assert engine.requests == []


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_json"),
        (b"{", "invalid_json"),
        (b"not json", "invalid_json"),
        (b"[]", "invalid_json"),
        (b'"text"', "invalid_json"),
        (b"null", "invalid_json"),
        (b'{"model": NaN}', "invalid_json"),
        (b'{"model": "m", "user": "\\ud800"}', "invalid_json"),
        (b'{"model": "\xff"}', "invalid_json"),
        (b"[" * 100_000, "invalid_json"),
        (b'{"model": "m", "x": ' + b"[" * 300 + b"]" * 300 + b"}", "invalid_json"),
        (b'{"model": "m", "x": [' + b"[]," * 1_100_000 + b"[]]}", "request_too_complex"),
        (b"{}", "missing_model"),
        (b'{"model": null}', "missing_model"),
        (b'{"model": 7}', "missing_model"),
        (b'{"model": ""}', "missing_model"),
        (b'{"model": "m", "stream": "yes"}', "invalid_type"),
        (b'{"model": "m", "stream": true, "stream_options": 7}', "invalid_type"),
        (b'{"model": "prompted", "messages": "text"}', "invalid_type"),
        (b'{"model": "prompted", "messages": {"role": "user"}}', "invalid_type"),
        (b'{"model": "prompted"}', "invalid_type"),
    ],
)
async def test_a_body_that_cannot_be_used_is_400(body, code):
    prompted = Alias("prompted", (("m", 1),), parameters=Parameters(system_prompt="Be brief."))
    async with (
        RawEngine(always(OK)) as engine,
        serving([model("m", engine)], [prompted]) as bed,
        bed.client() as client,
    ):
        reply = await client.ask(body)
        assert (reply.status, reply.error["code"]) == (400, code)
        assert engine.requests == []
        assert (await client.ask(chat())).status == 200, "the connection can still be used"


async def test_numbers_texts_and_unknown_fields_reach_the_engine_unchanged():
    fields = (
        '"tools": [], "seed": 12345678901234567, "x": 1e-7, "s": "a/b \\u00e4 \\n", "n": null, "stop": ["\\"usage\\""]'
    )
    body = f'{{"model": "m", "messages": [], {fields}}}'.encode()
    async with RawEngine(always(OK)) as engine, serving([model("m", engine)]) as bed:
        assert (await bed.ask(body)).status == 200
        assert engine.requests[0].body == json.loads(body)


async def test_a_body_over_the_limit_is_413_before_it_is_sent():
    async with mock() as engine, serving([model("m", engine)], max_body_bytes=10_000) as bed, bed.client() as client:
        await client.send(HEAD + b"Content-Length: 1000000000\r\n\r\n")
        reply = await client.reply()
        assert (reply.status, reply.error["code"]) == (413, "request_too_large")


async def test_a_client_that_asks_first_never_sends_a_body_over_the_limit():
    async with serving(max_body_bytes=10_000) as bed:
        assert (await bed.raw(HEAD + b"Expect: 100-continue\r\nContent-Length: 10001\r\n\r\n")).status == 413


async def test_a_client_in_the_middle_of_too_much_gets_to_read_its_413():
    """Closing at once would reset the connection and take the answer with it."""
    async with serving(max_body_bytes=100_000, linger_timeout=30.0) as bed, bed.client() as client:
        piece = b"%x\r\n%b\r\n" % (50_000, b"x" * 50_000)
        await client.send(CHUNKED)
        for _ in range(40):
            client.writer.write(piece)
        assert (await client.reply()).status == 413
        for _ in range(5):  # and to send on until it notices
            await client.send(piece)
            await asyncio.sleep(0.02)


async def test_a_body_of_exactly_the_limit_is_served():
    text = json.dumps(chat(text="x" * 5000)).encode()
    async with mock() as engine, serving([model("m", engine)], max_body_bytes=len(text)) as bed:
        assert (await bed.ask(text)).status == 200
        assert (await bed.ask(text + b" ")).status == 413


@pytest.mark.parametrize(
    "head",
    [
        b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n",
        HEAD + b"X: " + b"a" * 70_000 + b"\r\n\r\n",
        HEAD + b"".join(b"X-%d: a\r\n" % n for n in range(200)) + b"\r\n",
        HEAD + b"X: " + b"a" * 300_000,  # never ends
    ],
    ids=["target", "value", "count", "endless"],
)
async def test_a_head_over_the_limit_is_431(head):
    async with serving() as bed, bed.client() as client:
        with contextlib.suppress(ConnectionError):
            await client.send(head)
        assert (await client.reply()).status in (404, 431)
        assert bed.gateway.stats.refused["request_header_fields_too_large"] or b"GET" in head


@pytest.mark.parametrize(
    "flood", [b"2;" + b"x" * 200_000, b"0\r\nX-Trailer: " + b"x" * 200_000], ids=["extension", "trailer"]
)
async def test_framing_that_outweighs_its_body_is_refused(flood):
    async with serving() as bed, bed.client() as client:
        await client.send(CHUNKED + flood)
        assert (await client.reply()).status == 400


async def test_a_head_that_does_not_come_is_cut_off():
    async with serving(head_timeout=SHORT) as bed, bed.client() as client:
        began = time.monotonic()
        await client.send(b"POST /v1/chat")
        assert (await client.reply()).status == 408
        assert SHORT * 0.9 < time.monotonic() - began < SLACK


async def test_a_head_that_drips_is_cut_off_too():
    async with serving(head_timeout=SHORT) as bed, bed.client() as client:

        async def drip() -> None:
            with contextlib.suppress(ConnectionError):
                for byte in post(chat()):
                    await client.send(bytes([byte]))
                    await asyncio.sleep(SHORT / 20)

        dripping = asyncio.create_task(drip())
        assert (await client.reply()).status == 408
        dripping.cancel()


async def test_an_idle_connection_is_closed_without_a_word():
    async with serving(head_timeout=SHORT) as bed, bed.client() as client:
        assert await client.closed() == b""


async def test_a_body_that_does_not_come_is_cut_off():
    async with mock() as engine, serving([model("m", engine)], body_timeout=SHORT) as bed, bed.client() as client:
        await client.send(post(chat())[:-5])
        reply = await client.reply()
        assert (reply.status, reply.error["code"]) == (408, "request_timeout")
        assert engine.requests == []


async def test_a_client_that_takes_nothing_is_cut_off_and_its_engine_freed():
    gone = asyncio.Event()

    async def script(side: EngineSide) -> None:
        await side.request()
        await side.start_events()
        with contextlib.suppress(ConnectionError):
            while True:
                await side.event({"choices": [{"delta": {"content": "x" * 50_000}}]})
        gone.set()

    async with RawEngine(script) as engine, serving([model("m", engine)], write_timeout=SHORT) as bed:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, bed.gateway.address)
        await asyncio.get_running_loop().sock_sendall(sock, post(chat(stream=True)))
        async with asyncio.timeout(PATIENCE):
            await gone.wait()
        sock.close()
        await eventually(lambda: bed.gateway.stats.route("", "m").cancelled == 1)


async def test_a_slow_client_slows_its_engine_instead_of_filling_memory():
    sent = 0

    async def script(side: EngineSide) -> None:
        nonlocal sent
        await side.request()
        await side.start_events()
        for _ in range(400):
            await side.event({"choices": [{"delta": {"content": "x" * 100_000}}]})
            sent += 1
        await side.end_events()

    async with RawEngine(script) as engine, serving([model("m", engine)]) as bed:
        reader, writer = await asyncio.open_connection(*bed.gateway.address, limit=1 << 12)
        writer.write(post(chat(stream=True)))
        await eventually(lambda: sent > 0)
        before = -1
        while before != sent:  # until the engine stands still
            before = sent
            await asyncio.sleep(0.2)
        assert sent < 300, "the engine was let run"
        rest = await asyncio.wait_for(reader.read(), PATIENCE) if reader.at_eof() else b""
        client = Client(reader, writer)
        total = len(rest)
        await client.head()
        while piece := await client.chunk():
            total += len(piece)
        assert sent == 400
        assert total > 40_000_000, "and nothing of the answer is lost"
        writer.transport.abort()


async def test_more_connections_than_allowed_are_told_so():
    async with serving(max_connections=2) as bed, bed.client(), bed.client(), bed.client() as third:
        reply = await third.reply()
        assert (reply.status, reply.error["code"]) == (503, "too_many_connections")


async def test_one_bad_client_disturbs_nobody():
    async with mock(ttft=0.2) as engine, serving([model("m", engine)], [], [key("a", "sk")]) as bed:
        bearer = {"Authorization": "Bearer sk"}
        good = [asyncio.create_task(bed.ask(chat(max_tokens=5, stream=True), **bearer)) for _ in range(10)]
        for request in AMBIGUOUS.values():
            async with bed.client() as client:
                await client.send(request)
                await client.reply()
        async with bed.client() as client:
            await client.send(post(b"[" * 1_000_000, **bearer))
            assert (await client.reply()).status == 400
        for reply in await asyncio.gather(*good):
            assert (reply.status, reply.whole, reply.events[-1]) == (200, True, "[DONE]")


async def test_a_body_behind_another_request_has_a_bodys_time():
    async with mock() as engine, serving([model("m", engine)], body_timeout=SHORT) as bed, bed.client() as client:
        half = post(chat())[:-5]
        await client.send(post(chat(max_tokens=1)) + half)
        assert (await client.reply()).status == 200
        assert (await client.reply()).status == 408


async def test_a_flood_of_pipelined_requests_is_answered_one_after_the_other():
    async with mock() as engine, serving([model("m", engine)]) as bed, bed.client() as client:
        requests = [post(chat(max_tokens=1)) if n % 10 == 0 else get("/v1/models") for n in range(2000)]
        sending = asyncio.create_task(client.send(b"".join(requests)))
        lists = [(await client.reply()).json["object"] == "list" for _ in requests]
        assert lists == [n % 10 != 0 for n in range(2000)]
        await sending


class Defective:
    """An endpoint with a bug in it."""

    address, outstanding, avoid_until = "defective:1", 0, 0.0

    def head(self, path: bytes) -> bytes:
        raise ZeroDivisionError

    def close_idle(self) -> None:
        pass


async def test_a_fault_of_the_gateway_itself_is_500_and_keeps_nothing(caplog):
    async with mock() as engine, serving([model("m", engine, max_in_flight=1)]) as bed, bed.client() as client:
        pool, defective = bed.gateway.proxy.fleet.pools["m"], Defective()
        pool.endpoints, sound = [defective], pool.endpoints
        reply = await client.ask(chat())
        assert (reply.status, reply.error["code"]) == (500, "internal_error")
        assert "ZeroDivisionError" in caplog.text
        assert defective.outstanding == 0
        pool.endpoints = sound
        assert (await client.ask(chat())).status == 200, "the only slot was given back"


async def test_many_large_requests_at_once_are_refused_before_they_fill_the_memory():
    gone = asyncio.Event()

    async def slow(side: EngineSide) -> None:
        while True:
            await side.request()
            await gone.wait()
            await side.json(OK)

    large = chat(text="x" * 200_000)
    async with RawEngine(slow) as engine, serving([model("m", engine)], max_held_bytes=700_000) as bed:
        first = [asyncio.create_task(bed.ask(large)) for _ in range(3)]
        await eventually(lambda: len(engine.requests) == 3)
        refused = await bed.ask(large)
        assert (refused.status, refused.error["code"]) == (503, "overloaded")
        small = asyncio.create_task(bed.ask(chat()))
        await eventually(lambda: len(engine.requests) == 4, what="small ones are served")
        gone.set()
        assert [reply.status for reply in await asyncio.gather(*first, small)] == [200] * 4
        assert (await bed.ask(large)).status == 200
        await eventually(lambda: bed.gateway.public.held == 0)


async def test_what_a_client_had_answered_is_given_back_though_more_is_always_waiting():
    request = post(chat(text="x" * 10_000))
    async with RawEngine(always(OK)) as engine, serving([model("m", engine)]) as bed, bed.client() as client:
        await client.send(request * 2)
        for _ in range(30):
            await client.send(request)
            assert (await client.reply()).status == 200
        assert bed.gateway.public.held <= 3 * len(request)


async def test_what_a_client_that_leaves_had_sent_is_given_back():
    async with mock() as engine, serving([model("m", engine)]) as bed:
        async with bed.client() as client:
            await client.send(post(chat(text="x" * 200_000))[:-5])
            await eventually(lambda: bed.gateway.public.held > 200_000)
        await eventually(lambda: bed.gateway.public.held == 0)
