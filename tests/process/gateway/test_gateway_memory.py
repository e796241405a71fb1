"""What clients can make the gateway keep is little, whatever they send ahead and however few answers they take."""

import asyncio
import json
import socket
import tracemalloc

import pytest

from moorage.gateway.routes import Alias
from moorage.gateway.server import State
from tests.process.gateway.support import (
    OK,
    PATIENCE,
    Client,
    EngineSide,
    RawEngine,
    always,
    chat,
    get,
    model,
    post,
    serving,
)
from tests.support.eventually import eventually


@pytest.mark.parametrize("size", [1_000, 100_000, 1_000_000, 5_000_000])
async def test_a_client_that_leaves_a_pipeline_behind_is_noticed_at_once(size):
    async def script(side: EngineSide) -> None:
        await side.request()
        await side.gone()

    async with RawEngine(script) as engine, serving([model("m", engine)]) as bed, bed.client() as client:
        await client.send(post(chat()))
        await eventually(lambda: engine.requests)
        ahead = post(chat(text="x" * 1000))
        client.writer.write(ahead * (size // len(ahead)))
        client.writer.close()
        await eventually(lambda: engine.sides[0].gone_at, 5, what="the engine is let go")
        assert bed.gateway.stats.route("", "m").cancelled == 1
        assert len(engine.requests) == 1, "nothing of the rest is begun"
        await eventually(lambda: bed.gateway.public.held == 0)


async def test_a_pipeline_is_read_no_further_than_there_is_room():
    """Beyond that a client's leaving shows when its answer is done."""
    done = asyncio.Event()

    async def script(side: EngineSide) -> None:
        while True:
            await side.request()
            await done.wait()
            await side.json(OK)

    settings = {"max_body_bytes": 2_000_000, "max_held_bytes": 8_000_000}
    async with RawEngine(script) as engine, serving([model("m", engine)], **settings) as bed:
        clients = []
        for _ in range(6):
            _, writer = await asyncio.open_connection(*bed.gateway.address)
            writer.write(post(chat()) + post(chat(text="x" * 1000)) * 20_000)
            clients.append(writer)
        await eventually(lambda: len(engine.requests) == 6)
        held = -1
        while held != bed.gateway.public.held:  # until nothing more is read
            held = bed.gateway.public.held
            await asyncio.sleep(0.3)
        one_read = 256 << 10
        assert 4_000_000 < held < 4_000_000 + 6 * (one_read + (64 << 10))
        for writer in clients:
            writer.transport.abort()
        done.set()
        await eventually(lambda: bed.gateway.public.held == 0)


async def test_answers_wait_until_the_client_takes_those_before():
    """A list of a thousand Models is far longer than the request for it."""
    aliases = [Alias(f"a-rather-long-name-of-an-alias-{n:04}", (("m", 1),)) for n in range(1000)]
    count = 2000
    async with RawEngine(always(OK)) as engine, serving([model("m", engine)], aliases) as bed:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, bed.gateway.address)
        reader, writer = await asyncio.open_connection(sock=sock, limit=1 << 26)
        client = Client(reader, writer)
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        tracemalloc.start()
        writer.write(get("/v1/models") * count + post(chat()))
        await eventually(lambda: any(c.blocked for c in bed.gateway.public.connections))
        await asyncio.sleep(0.3)
        kept, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        reader._transport.resume_reading()  # type: ignore[attr-defined]
        size = len((await client.reply()).body)
        assert size > 50_000
        assert kept < 10_000_000, f"{count * size} bytes of answers would be too many"
        for _ in range(count - 1):
            assert len((await client.reply()).body) == size
        assert (await client.reply()).json == OK
        writer.transport.abort()


async def test_a_client_that_takes_no_answers_is_cut_off_between_them():
    aliases = [Alias(f"a-rather-long-name-of-an-alias-{n:04}", (("m", 1),)) for n in range(1000)]
    async with serving([model("m")], aliases, write_timeout=0.3) as bed:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, bed.gateway.address)
        await asyncio.get_running_loop().sock_sendall(sock, get("/v1/models") * 100)
        await eventually(lambda: bed.gateway.public.connections)
        await eventually(lambda: not bed.gateway.public.connections, PATIENCE, "cut off")
        sock.close()


async def test_many_clients_with_unfinished_heads_are_refused_before_they_fill_the_memory():
    """Each is within its limits; no API key is needed for that."""
    limit, clients = 200_000, 40
    async with serving(max_held_bytes=limit, max_connections=clients) as bed:
        streams = [await asyncio.open_connection(*bed.gateway.address) for _ in range(clients)]
        for _, writer in streams:
            writer.write(b"GET /v1/models HTTP/1.1\r\nHost: g\r\nX: " + b"x" * 60_000)
        listener = bed.gateway.public
        refused = lambda: sum(c.state is State.LINGER for c in listener.connections)  # noqa: E731
        await eventually(lambda: bed.gateway.stats.refused["overloaded"], PATIENCE)
        await eventually(lambda: not refused(), PATIENCE, "those refused are gone")
        assert listener.held <= 2 * limit + clients * limit // clients
        async with bed.client() as small:
            await small.send(get("/v1/models"))
            assert (await small.reply()).status == 200
        for _, writer in streams:
            writer.transport.abort()


async def test_requests_that_wait_take_no_more_than_their_bytes():
    """100 kB of empty lists are 1.6 MB once they are parsed."""
    text = json.dumps(chat("asleep", x=[[]] * 25_000)).encode()
    async with RawEngine(always(OK)) as engine, serving([model("asleep")]) as bed:
        tracemalloc.start()
        asked = [asyncio.create_task(bed.ask(text)) for _ in range(20)]
        await eventually(lambda: bed.gateway.proxy.fleet.held == 20)
        kept, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert kept < 20 * len(text) * 3
        bed.apply([model("asleep", engine)])
        assert [(await one).status for one in asked] == [200] * 20
        assert engine.requests[0].body["x"] == [[]] * 25_000
