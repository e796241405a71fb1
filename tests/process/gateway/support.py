"""What the gateway's process tests share: a gateway on loopback, a client byte by byte, engines that misbehave."""

import asyncio
import contextlib
import json
import socket
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Self

from moorage.gateway.app import Gateway
from moorage.gateway.keys import Key, digest
from moorage.gateway.routes import Alias, Hold, Model, Snapshot
from moorage.gateway.settings import Settings
from tests.support.eventually import PATIENCE, eventually
from tests.support.mockengine import Behaviour, MockEngine

CHAT = "/v1/chat/completions"
# A time-out that these tests shorten is this long: far more than loopback needs, far less than a person notices.
SHORT = 0.3
QUICK = Settings(linger_timeout=1.0, drain_delay=0.0, grace_period=10.0, grace_reserve=0.0)


@dataclass
class Reply:
    """One answer as a client saw it. `whole`: it ended as HTTP says, not by a cut."""

    status: int
    headers: dict[str, str]
    body: bytes
    whole: bool = True

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The error of an answer in OpenAI's shape, checked."""
        error: dict[str, Any] = self.json["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert isinstance(error["message"], str)
        assert self.headers["content-type"] == "application/json"
        return error

    @property
    def events(self) -> list[Any]:
        """The data of a stream's events, parsed where it is JSON."""
        lines = [line[6:] for line in self.body.decode().splitlines() if line.startswith("data: ")]
        return [line if line == "[DONE]" else json.loads(line) for line in lines]


class Client:
    """A connection to the gateway, byte by byte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    @contextlib.asynccontextmanager
    async def connected(cls, address: tuple[str, int], **options: Any) -> AsyncIterator[Self]:
        reader, writer = await asyncio.open_connection(*address, limit=1 << 26, **options)
        try:
            yield cls(reader, writer)
        finally:
            writer.transport.abort()

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def post(self, body: Any, path: str = CHAT, **headers: str) -> None:
        await self.send(post(body, path, **headers))

    async def ask(self, body: Any, path: str = CHAT, **headers: str) -> Reply:
        await self.post(body, path, **headers)
        return await self.reply()

    async def head(self) -> tuple[int, dict[str, str]]:
        async with asyncio.timeout(PATIENCE):
            lines = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        pairs = [line.split(":", 1) for line in lines[1:] if line]
        headers = {name.lower(): value.strip() for name, value in pairs}
        assert len(headers) == len(pairs), f"a header came twice: {lines}"
        return int(lines[0].split()[1]), headers

    async def reply(self) -> Reply:
        """The next answer, whole or cut."""
        status, headers = await self.head()
        if status == 100:
            return Reply(status, headers, b"")
        async with asyncio.timeout(PATIENCE):
            if "content-length" in headers:
                return await self._sized(status, headers, int(headers["content-length"]))
            if headers.get("transfer-encoding") == "chunked":
                return await self._chunked(status, headers)
            return Reply(status, headers, await self.reader.read())

    async def closed(self) -> bytes:
        """What still comes until the gateway closes."""
        async with asyncio.timeout(PATIENCE):
            with contextlib.suppress(ConnectionResetError):
                return await self.reader.read()
        return b""

    async def chunk(self) -> bytes:
        """The next chunk of a body; empty: it ended."""
        async with asyncio.timeout(PATIENCE):
            size = int((await self.reader.readuntil(b"\r\n")), 16)
            return (await self.reader.readexactly(size + 2))[:-2]

    async def _sized(self, status: int, headers: dict[str, str], length: int) -> Reply:
        try:
            return Reply(status, headers, await self.reader.readexactly(length))
        except asyncio.IncompleteReadError as cut:
            return Reply(status, headers, cut.partial, whole=False)

    async def _chunked(self, status: int, headers: dict[str, str]) -> Reply:
        body = b""
        try:
            while piece := await self.chunk():
                body += piece
        except asyncio.IncompleteReadError:
            return Reply(status, headers, body, whole=False)
        return Reply(status, headers, body)


def post(body: Any, path: str = CHAT, **headers: str) -> bytes:
    """A request's bytes; `body` is JSON unless it is bytes already. Underscores in header names mean hyphens."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"POST {path} HTTP/1.1", "Host: gateway", "Content-Type: application/json", f"Content-Length: {len(data)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + data


def get(path: str, **headers: str) -> bytes:
    lines = [f"GET {path} HTTP/1.1", "Host: gateway", *(f"{n.replace('_', '-')}: {v}" for n, v in headers.items())]
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


def chat(model: str = "m", text: str = "hello", **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": text}], **more}


def key(name: str, secret: str, names: Iterable[str] | None = None, **more: Any) -> Key:
    return Key(name, (digest(secret),), None if names is None else frozenset(names), **more)


class Bed:
    """A gateway that serves, and clients for it."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway

    def apply(
        self, models: Iterable[Model], aliases: Iterable[Alias] = (), keys: Iterable[Key] = (), own: Hold | None = None
    ) -> None:
        self.gateway.apply(Snapshot.build(models, aliases, keys, own=own or Hold()))

    def client(self, **options: Any) -> contextlib.AbstractAsyncContextManager[Client]:
        return Client.connected(self.gateway.address, **options)

    async def ask(self, body: Any, path: str = CHAT, **headers: str) -> Reply:
        """One request on a connection of its own."""
        async with self.client() as client:
            return await client.ask(body, path, **headers)

    async def raw(self, data: bytes) -> Reply:
        """The answer to these bytes."""
        async with self.client() as client:
            await client.send(data)
            return await client.reply()

    async def admin(self, path: str) -> Reply:
        async with Client.connected(self.gateway.admin_address) as client:
            await client.send(get(path))
            return await client.reply()

    async def metric(self, name: str, **labels: str) -> float:
        """One number of the metrics page; 0 where it is not there."""
        for line in (await self.admin("/metrics")).body.decode().splitlines():
            found, _, value = line.rpartition(" ")
            if found.partition("{")[0] == name and all(f'{k}="{v}"' in found for k, v in labels.items()):
                return float(value)
        return 0.0

    def outstanding(self) -> int:
        return sum(pool.in_flight for pool in self.gateway.proxy.fleet.pools.values())


@contextlib.asynccontextmanager
async def serving(
    models: Iterable[Model] = (), aliases: Iterable[Alias] = (), keys: Iterable[Key] = (), **changes: Any
) -> AsyncIterator[Bed]:
    """A gateway with this table; `own` holds for Models' own names, anything else changes a setting."""
    own = changes.pop("own", None)
    gateway = Gateway(replace(QUICK, **changes))
    bed = Bed(gateway)
    bed.apply(models, aliases, keys, own)
    await gateway.start(("127.0.0.1", 0), ("127.0.0.1", 0))
    try:
        yield bed
        # Whatever a test did, nothing may be left of it: no slot, no waiter, no call.
        await eventually(lambda: not bed.outstanding() and not gateway.proxy.fleet.held, PATIENCE)
    finally:
        await gateway.stop()


def mock(**behaviour: Any) -> MockEngine:
    return MockEngine(Behaviour(**{"ttft": 0.0, "tpot": 0.0, **behaviour}))


def address(engine: "MockEngine | RawEngine") -> str:
    return engine.url.removeprefix("http://")


def model(name: str = "m", *engines: "MockEngine | RawEngine", **more: Any) -> Model:
    return Model(name, endpoints=tuple(address(engine) for engine in engines), **more)


@dataclass
class Arrived:
    """One request as an engine got it."""

    line: str
    headers: dict[str, str]
    data: bytes

    @property
    def body(self) -> Any:
        return json.loads(self.data)


@dataclass(eq=False)
class EngineSide:
    """A raw engine's side of one connection. `gone_at` is when the gateway closed it (monotonic seconds)."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    number: int
    requests: list[Arrived]  # of the whole engine, in the order they came
    gone_at: float = 0.0

    async def request(self) -> Arrived:
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {k.lower(): v.strip() for k, v in (line.split(":", 1) for line in head[1:] if line)}
        arrived = Arrived(head[0], headers, await self.reader.readexactly(int(headers.get("content-length", 0))))
        self.requests.append(arrived)
        return arrived

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def json(self, value: Any, status: int = 200, extra: str = "") -> None:
        data = json.dumps(value).encode()
        head = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n{extra}\r\n"
        await self.send(head.encode() + data)

    async def start_events(self, extra: str = "") -> None:
        await self.send(
            f"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n{extra}\r\n".encode()
        )

    async def event(self, value: Any) -> None:
        text = value if isinstance(value, bytes) else b"data: " + json.dumps(value).encode() + b"\n\n"
        await self.send(b"%x\r\n%b\r\n" % (len(text), text))

    async def end_events(self) -> None:
        await self.event(b"data: [DONE]\n\n")
        await self.send(b"0\r\n\r\n")

    def close(self) -> None:
        self.writer.close()

    def reset(self) -> None:
        """Close so that the other side gets a reset."""
        sock: socket.socket = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def gone(self) -> None:
        """Wait until the gateway closes the connection."""
        with contextlib.suppress(ConnectionError):
            while await self.reader.read(1 << 16):
                pass
        self.gone_at = time.monotonic()


Script = Callable[[EngineSide], Awaitable[None]]


async def turns() -> None:
    """Turns of the loop that engine and gateway share: by then the gateway has read what the engine sent.

    One long sleep would not do: a machine that holds the process up for as long fires the timer before it looks at
    sockets.
    """
    for _ in range(50):
        await asyncio.sleep(0.001)


class RawEngine:
    """An engine that does on each connection what `script` says, and then leaves the connection as it is."""

    def __init__(self, script: Script) -> None:
        self.sides: list[EngineSide] = []
        self.requests: list[Arrived] = []
        self.url = ""
        self._script = script
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=1 << 26)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        for side in self.sides:
            side.writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        side = EngineSide(reader, writer, len(self.sides) + 1, self.requests)
        self.sides.append(side)
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            await self._script(side)


def always(value: Any, status: int = 200) -> Script:
    """A script that answers each request with `value`."""

    async def script(side: EngineSide) -> None:
        while True:
            await side.request()
            await side.json(value, status)

    return script


OK = {"object": "chat.completion", "choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}


@contextlib.asynccontextmanager
async def dead_socket() -> AsyncIterator[socket.socket]:
    """A socket whose address refuses connections as long as it does not listen, and that nobody else gets meanwhile."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken


@contextlib.asynccontextmanager
async def dead_address() -> AsyncIterator[str]:
    """An address that refuses connections."""
    async with dead_socket() as taken:
        yield f"127.0.0.1:{taken.getsockname()[1]}"


@contextlib.asynccontextmanager
async def deaf_address() -> AsyncIterator[str]:
    """An address where connections are neither refused nor made: the queue of its socket is full."""
    with contextlib.ExitStack() as sockets:
        server = sockets.enter_context(socket.socket())
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        for _ in range(3):
            filler = sockets.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(server.getsockname())
        yield f"127.0.0.1:{server.getsockname()[1]}"
