"""A day of a gateway in minutes: well-behaved clients among clients, engines and people that are not, all counted.

Every client knows how its request has to end, and `Day.check` compares what all of them saw with what the gateway
counted: not one request more or less, in any column.
"""

import asyncio
import contextlib
import hashlib
import itertools
import random
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import yaml

from tests.process.gateway.moody import MoodyEngine
from tests.process.gateway.support import Client, Reply, get, post
from tests.support.eventually import PATIENCE, eventually

Address = tuple[str, int]
KEYS: dict[str, dict[str, int]] = {
    "sk-everything": {},
    "sk-few-at-once": {"maxConcurrency": 6},
    "sk-few-a-minute": {"requestsPerMinute": 600},
    "sk-few-tokens": {"tokensPerMinute": 3000},
}
GOOD, CROWDED = "sk-everything", "sk-few-at-once"
# Refusals of requests that never were on their way to a Model, and so are in no Model's numbers.
AT_THE_DOOR = (
    *("malformed_request", "invalid_json", "model_not_found", "unknown_url", "method_not_allowed"),
    *("request_too_large", "invalid_api_key", "rate_limit_exceeded"),
)


def table(engine: str, turn: int) -> str:
    """routes.yaml in second `turn`: `chat` moves between two Models, `napper` sleeps every other second."""
    models = [
        {"name": "a", "endpoints": [engine]},
        {"name": "b", "endpoints": [engine]},
        {"name": "rough", "endpoints": [engine]},
        {"name": "narrow", "endpoints": [engine], "maxInFlight": 2},
        {"name": "napper", "endpoints": [engine] if turn % 2 else []},
        {"name": "asleep", "endpoints": []},
    ]
    defaults = {"temperature": turn / 10, "stop": ["###"]}
    aliases: list[dict[str, Any]] = [
        {"name": "chat", "targets": [{"model": "ab"[turn % 2]}], "request": {"defaults": defaults}},
        {"name": "hurried", "targets": [{"model": "asleep"}], "hold": {"maxPending": 1, "timeoutSeconds": 0.3}},
    ]
    keys = [{"name": key, "sha256": hashlib.sha256(key.encode()).hexdigest(), **limits} for key, limits in KEYS.items()]
    return yaml.safe_dump({"apiKeys": keys, "models": models, "aliases": aliases})


_REFUSED = 'moorage_gateway_refused_total{code="%s"}'
_NOW = re.compile("moorage_gateway_(held|in_flight|connections)")
_LENGTH = re.compile(rb"(?i)\r\ncontent-length: (\d+)")


def asking(model: str, mood: str, key: str = GOOD, text: str = "", **more: Any) -> bytes:
    """A chat that makes the engine do `mood`."""
    body = {"model": model, "messages": [{"role": "user", "content": f"mood:{mood} {text}"}], **more}
    return post(body, Authorization=f"Bearer {key}")


@dataclass
class Day:
    """One gateway's day: `total` requests. `ended` is how clients saw them end, by the gateway's names of outcomes.

    `apply` puts a routes.yaml in force; `every` is told each second how many requests have ended.
    """

    engine: MoodyEngine
    public: Address
    admin: Address
    apply: Callable[[str], None]
    total: int
    every: Callable[[int], None] = lambda done: None
    ended: Counter[str] = field(default_factory=Counter)
    acts: Counter[str] = field(default_factory=Counter)
    surprises: list[str] = field(default_factory=list)
    scrapes: int = 0
    steady: int = 0  # requests of well-behaved clients
    connections: int = 16  # of well-behaved clients
    baseline: int = 0  # refusals before the day

    @property
    def done(self) -> int:
        """Requests that have ended."""
        return self.ended.total()

    @property
    def going(self) -> bool:
        """Whether clients go on asking: until the total is reached, or something ended as it must not."""
        return self.done < self.total and not self.surprises

    def begin(self) -> None:
        """Put the first table in force."""
        self.apply(table(self.engine.address, 1))

    async def run(self, acts: "Sequence[Act]", rough: int = 64) -> None:
        """Well-behaved clients, and `rough` others that do one of `acts` after the other."""
        self.begin()
        around = [asyncio.create_task(self._people()), asyncio.create_task(self._scrape())]
        clients = [asyncio.create_task(self._steady()) for _ in range(self.connections)]
        clients += [asyncio.create_task(self._rough(acts, random.Random(number))) for number in range(rough)]
        try:
            await asyncio.gather(*clients)
        finally:
            for task in (*around, *clients):
                task.cancel()
            await asyncio.gather(*around, *clients, return_exceptions=True)
        assert not self.surprises, self.surprises[0]
        assert all(self.acts[act.__name__] for act in acts), f"too short a day: {self.acts}"

    async def check(self, idle: float) -> None:
        """Everything balances, and nothing is left; the gateway keeps idle engine connections for `idle` seconds."""
        await self._places()
        async with asyncio.timeout(PATIENCE):
            page = await self.scrape()
            while any(value for name, value in page.items() if _NOW.match(name)):
                await asyncio.sleep(0.05)
                page = await self.scrape()
        counted = {
            outcome: int(sum(value for name, value in page.items() if f'outcome="{outcome}"' in name))
            for outcome in ("ok", "error", "cancelled")
        }
        counted["refused"] = await self.refused() - self.baseline
        assert counted == dict(self.ended), f"the gateway counted {counted}, its clients {dict(self.ended)}"
        await eventually(lambda: not self.engine.open, idle + PATIENCE, "no connection to the engine is left")

    async def refused(self) -> int:
        """Refusals at the door so far."""
        page = await self.scrape()
        return int(sum(page.get(_REFUSED % code, 0) for code in AT_THE_DOOR))

    async def scrape(self) -> dict[str, float]:
        """The metrics page."""
        async with Client.connected(self.admin) as client:
            await client.send(get("/metrics"))
            reply = await client.reply()
        assert reply.status == 200
        lines = (line.rpartition(" ") for line in reply.body.decode().splitlines() if not line.startswith("#"))
        return {name: float(value) for name, _, value in lines}

    def client(self, **options: Any) -> contextlib.AbstractAsyncContextManager[Client]:
        """A connection to the gateway."""
        return Client.connected(self.public, **options)

    async def ask(self, request: bytes, *expected: int) -> Reply:
        """One request on a connection of its own, which has to end with one of these statuses."""
        async with self.client() as client:
            await client.send(request)
            return self.note(await client.reply(), *expected)

    def note(self, reply: Reply, *expected: int, whole: bool = True) -> Reply:
        """Count an answer, and be surprised where it is not as it has to be."""
        code = reply.json["error"].get("code", "") if reply.status >= 400 else ""
        if reply.status not in expected or reply.whole != whole:
            self.surprises.append(f"{reply.status}, not {expected}; whole: {reply.whole}; {reply.body[:200]!r}")
        failed = reply.status >= 500 or not reply.whole or code in ("hold_queue_full",)
        self.ended["refused" if code in AT_THE_DOOR else "error" if failed else "ok"] += 1
        return reply

    async def _people(self) -> None:
        """Somebody changes the table every second."""
        for turn in itertools.count(2):
            await asyncio.sleep(1)
            self.apply(table(self.engine.address, turn))
            self.every(self.done)

    async def _scrape(self) -> None:
        while True:
            await self.scrape()
            self.scrapes += 1
            await asyncio.sleep(0.25)

    async def _steady(self) -> None:
        """A client that does everything right, on one connection."""
        _, steady = await asyncio.get_running_loop().create_connection(lambda: Steady(self), *self.public)
        await steady.finished

    async def _rough(self, acts: "Sequence[Act]", chance: random.Random) -> None:
        while self.going:
            for act in chance.sample(acts, len(acts)):
                if not self.going:
                    break
                self.acts[act.__name__] += 1
                try:
                    async with asyncio.timeout(PATIENCE):
                        await act(self, chance)
                except Exception as error:
                    self.surprises.append(f"{act.__name__}: {error!r}")
                    raise
                await asyncio.sleep(0.005)

    async def _places(self) -> None:
        """A key with so many places still has all of them, and no more."""
        places = KEYS[CROWDED]["maxConcurrency"]
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(places):
                client = await stack.enter_async_context(self.client())
                await client.send(asking("rough", "silent", CROWDED))
            await eventually(lambda: len(self.engine.silent) == places, what=f"{places} places of a key")
            await self.ask(asking("rough", "answers", CROWDED), 429)
        self.ended["cancelled"] += places


Act = Callable[[Day, random.Random], Awaitable[None]]


class Steady(asyncio.Protocol):
    """A well-behaved client: the next request when the answer to the last one is whole, every second one a stream."""

    def __init__(self, day: Day) -> None:
        self.finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._day = day
        self._requests = itertools.cycle((asking("chat", "answers"), asking("chat", "streams", stream=True)))
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(next(self._requests))

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, _, body = self._buffer.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if not (len(body) == int(length[1]) if length else body.endswith(b"0\r\n\r\n")):
            return
        right = length or (body.count(b'"x"') == 10 and b"[DONE]" in body)
        if not (head.startswith(b"HTTP/1.1 200 ") and right):
            self._day.surprises.append(f"a well-behaved client got {self._buffer[:300]!r}")
        self._buffer = b""
        self._day.ended["ok"] += 1
        self._day.steady += 1
        if self._day.going:
            self._transport.write(next(self._requests))
        else:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._day.going:
            self._day.surprises.append(f"a well-behaved client was cut off: {exc}, after {self._buffer[:300]!r}")
        if not self.finished.done():
            self.finished.set_result(None)
