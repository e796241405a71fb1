"""What rough clients do, one function for each kind: each knows how its requests have to end."""

import asyncio
import random
import socket

from tests.process.gateway.hostileday import CROWDED, GOOD, KEYS, Act, Day, asking
from tests.process.gateway.moody import LARGE_EVENTS
from tests.process.gateway.support import CHAT, Client, get, post

BAD_BYTES = (
    b"NONSENSE\r\n\r\n",
    b"POST %b HTTP/1.1\r\nHost: g\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef" % CHAT.encode(),
    b"POST %b HTTP/1.1\r\nHost: g\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" % CHAT.encode(),
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 64,
)
BEARER = {"Authorization": f"Bearer {GOOD}"}


async def any_key(day: Day, chance: random.Random) -> None:
    await day.ask(asking("chat", "answers", chance.choice(list(KEYS))), 200, 429)


async def engine_fails(day: Day, chance: random.Random) -> None:
    await day.ask(asking("rough", "fails", chance.choice((GOOD, CROWDED))), 500, 429)


async def engine_declines(day: Day, chance: random.Random) -> None:
    await day.ask(asking("rough", "declines"), 422)


async def engine_resets(day: Day, chance: random.Random) -> None:
    await day.ask(asking("rough", "resets", chance.choice((GOOD, CROWDED))), 502, 429)


async def engine_lies(day: Day, chance: random.Random) -> None:
    await day.ask(asking("rough", "lies", chance.choice((GOOD, CROWDED))), 502, 429)


async def engine_breaks_off(day: Day, chance: random.Random) -> None:
    async with day.client() as client:
        await client.send(asking("rough", "breaks", chance.choice((GOOD, CROWDED)), stream=True))
        reply = await client.reply()
        day.note(reply, 200, 429, whole=reply.status == 429)


async def leaves_within_a_stream(day: Day, chance: random.Random) -> None:
    async with day.client() as client:
        await client.send(asking("rough", "endless", chance.choice((GOOD, CROWDED)), stream=True))
        await left(day, client, chance.randint(0, 3))


async def leaves_before_an_answer(day: Day, chance: random.Random) -> None:
    async with day.client() as client:
        await client.send(asking("rough", "silent"))
        await asyncio.sleep(chance.uniform(0.01, 0.1))
    day.ended["cancelled"] += 1


async def leaves_its_place_in_the_queue(day: Day, chance: random.Random) -> None:
    """Whether it still waits or has just been let in when it goes."""
    async with day.client() as client:
        await client.send(asking("napper", "silent"))
        await asyncio.sleep(chance.uniform(0.01, 0.7))
    day.ended["cancelled"] += 1


async def leaves_a_pipeline(day: Day, chance: random.Random) -> None:
    """What stands behind the request that is being answered never begins."""
    async with day.client() as client:
        await client.send(asking("rough", "silent") + asking("chat", "answers", text="x" * 1000) * 80)
        await asyncio.sleep(0.05)
    day.ended["cancelled"] += 1


async def reads_slowly(day: Day, chance: random.Random) -> None:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, day.public)
    reader, writer = await asyncio.open_connection(sock=sock, limit=4096)
    try:
        writer.write(asking("rough", "large", stream=True))
        events, tail = 0, b""
        while not tail.endswith(b"0\r\n\r\n"):
            data = await reader.read(1 << 15)
            assert data, "a slow client was cut off"
            tail = tail[-40:] + data
            events += tail.count(b'xx"}}]}') - tail[:40].count(b'xx"}}]}')
            await asyncio.sleep(0.002)
        assert events == LARGE_EVENTS, events
        day.ended["ok"] += 1
    finally:
        writer.transport.abort()


async def is_held(day: Day, chance: random.Random) -> None:
    await day.ask(asking("napper", "dawdles", chance.choice((GOOD, CROWDED))), 200, 429)


async def waits_its_turn(day: Day, chance: random.Random) -> None:
    await asyncio.gather(*(day.ask(asking("narrow", "answers"), 200) for _ in range(6)))


async def waits_in_vain(day: Day, chance: random.Random) -> None:
    await day.ask(asking("hurried", "answers", chance.choice((GOOD, CROWDED))), 504, 429)


async def pipelines(day: Day, chance: random.Random) -> None:
    async with day.client() as client:
        await client.send((asking("chat", "answers") + asking("chat", "streams", stream=True)) * 3)
        for _ in range(6):
            day.note(await client.reply(), 200)


async def sends_too_much(day: Day, chance: random.Random) -> None:
    async with day.client() as client:
        await client.send(post(b"", **BEARER).replace(b"Length: 0", b"Length: %d" % (1 << 30)) + b"x" * 100_000)
        day.note(await client.reply(), 413)


async def sends_nonsense(day: Day, chance: random.Random) -> None:
    await day.ask(chance.choice(BAD_BYTES), 400)
    await day.ask(post(b'{"model": "chat"', **BEARER), 400)


async def sends_half(day: Day, chance: random.Random) -> None:
    """No request, and so in nobody's numbers."""
    async with day.client() as client:
        request = asking("chat", "answers", text="x" * chance.choice((10, 50_000)))
        await client.send(request[: chance.randint(1, len(request) - 1)])
        await asyncio.sleep(0.01)


async def knocks_at_wrong_doors(day: Day, chance: random.Random) -> None:
    await day.ask(asking("chat", "answers", "sk-nobodys"), 401)
    await day.ask(asking("nowhere", "answers"), 404)
    await day.ask(get("/slots", **BEARER), 404)
    await day.ask(get(CHAT, **BEARER), 405)


async def left(day: Day, client: Client, events: int) -> None:
    """Read the head and some events of an endless stream, and be counted as gone; or be told to wait."""
    status, headers = await client.head()
    if status == 429:
        await client.reader.readexactly(int(headers["content-length"]))
        day.ended["refused"] += 1
        return
    assert status == 200, status
    for _ in range(events):
        assert await client.chunk()
    day.ended["cancelled"] += 1


async def engine_stalls(day: Day, chance: random.Random) -> None:
    await day.ask(asking("rough", "silent"), 504)


ACTS: tuple[Act, ...] = (
    any_key, engine_fails, engine_declines, engine_resets, engine_lies, engine_breaks_off, leaves_within_a_stream,
    leaves_before_an_answer, leaves_its_place_in_the_queue, leaves_a_pipeline, reads_slowly, is_held, waits_its_turn,
    waits_in_vain, pipelines, sends_too_much, sends_nonsense, sends_half, knocks_at_wrong_doors,
)  # fmt: skip
