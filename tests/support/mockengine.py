"""A mock of an OpenAI-compatible engine whose timing is exactly known, because it notes what it really did.

In the test's own process:

    async with MockEngine(Behaviour(ttft=0.05, tpot=0.005)) as engine:
        ...  # engine.url, engine.requests

As a process of its own, so that its clock does not share an event loop with the client's:

    with mock_process(Behaviour(ttft=0.05)) as url: ...     # fetch_requests(url)
    python -m tests.support.mockengine '{"ttft": 0.05}'     # prints its URL

Truth is what `Request` says, never the nominal sleep: on Linux `perf_counter_ns` is one clock for all processes, and
each time is read where the first byte of a request arrives, or directly before the write it belongs to.
"""

import asyncio
import contextlib
import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self, cast

import httptools
import uvloop

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Behaviour:
    """How the mock behaves. Times are seconds."""

    ttft: float = 0.05  # request received -> first text
    tpot: float = 0.005  # per token after the first
    tokens_per_chunk: int = 1
    role_chunk: bool = True  # a first chunk with a role and empty content, sent at once
    empty_every: int = 0  # a chunk without text before every n-th one with text
    text_key: str = "content"  # where the text stands in `delta`
    usage: str = "last"  # last: own chunk with empty choices; every: in each chunk, running; none
    done: bool = True  # close with `data: [DONE]`
    linger: float = 0.0  # seconds between [DONE] and the end of the body
    output_tokens: int = 0  # answers have this many tokens whatever was asked for; 0: max_tokens
    bytes_per_token: float = 1.0
    template_tokens: int = 0  # what the chat template adds to each prompt
    context: int = 0  # 400 beyond this many tokens; 0: no limit
    closes: bool = False  # close after each stream although `Keep-Alive` is announced, as llama-server does
    slots: int = 0  # requests served at once, the others wait; 0: all
    split: bool = False  # write each event in two pieces
    crlf: bool = False
    chunked: bool = True  # False: the body ends with the connection
    flavour: str = "llama.cpp"  # llama.cpp | vllm | none: who it says it is
    # What goes wrong, from request number `fault_from` (1 is the first) on, with every `fault_every`-th.
    fault: str = ""  # an HTTP status, or reset | stall | cut | error | garbage | silent | textless | json
    fault_from: int = 1
    fault_every: int = 1
    fault_chunks: int = 0  # chunks with text before stall, cut, error and garbage

    def faulty(self, number: int) -> bool:
        return bool(self.fault) and number >= self.fault_from and (number - self.fault_from) % self.fault_every == 0


@dataclass
class Request:
    """What really happened to one chat completion; times are `perf_counter_ns`."""

    number: int
    received_ns: int
    body: dict[str, Any]
    prompt_tokens: int
    completion_tokens: int = 0
    text_ns: list[int] = field(default_factory=list)
    end_ns: int = 0
    disconnected: bool = False
    authorization: str = ""

    @property
    def ttft_ns(self) -> int:
        return self.text_ns[0] - self.received_ns

    @property
    def e2e_ns(self) -> int:
        return self.end_ns - self.received_ns

    @property
    def tpot_ns(self) -> float:
        return (self.e2e_ns - self.ttft_ns) / (self.completion_tokens - 1)


class BrokenOffError(Exception):
    """The fault that was asked for happened; nothing more is sent."""


class MockEngine:
    """The engine. As a context manager it listens on a free port of the loopback interface."""

    def __init__(self, behaviour: Behaviour | None = None, port: int = 0) -> None:
        self.behaviour = behaviour or Behaviour()
        self.requests: list[Request] = []
        self.connections = 0  # accepted so far
        self.url = ""
        self._port = port
        self._server: asyncio.Server | None = None
        self._wires: set[_Wire] = set()
        self._slots = asyncio.Semaphore(self.behaviour.slots or 1_000_000)

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Wire(self), "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self._port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for wire in list(self._wires):
            wire.abort()

    async def respond(self, wire: "_Wire", method: str, path: str, body: bytes) -> None:
        """Answer one request on `wire`."""
        facts: dict[str, Any] = {
            "/v1/models": {"object": "list", "data": [{"id": "mock", "object": "model", "owned_by": "mock"}]},
            "/health": {"status": "ok"},
        }
        if path == "/mock/requests":
            facts[path] = [asdict(request) for request in self.requests]
        if self.behaviour.flavour == "llama.cpp":
            facts["/props"] = {"build_info": "b1-mock", "total_slots": self.behaviour.slots}
        if self.behaviour.flavour == "vllm":
            facts["/version"] = {"version": "0.0.1-mock"}
        if method == "POST" and path == "/v1/chat/completions":
            await self._chat(wire, json.loads(body))
        elif method == "GET" and path in facts:
            wire.whole(200, facts[path])
        else:
            wire.whole(404, _refusal(404, "no such path"))

    async def _chat(self, wire: "_Wire", body: dict[str, Any]) -> None:
        text = "".join(str(message.get("content", "")) for message in body["messages"])
        prompt = self.behaviour.template_tokens + round(len(text.encode()) / self.behaviour.bytes_per_token)
        request = Request(
            len(self.requests) + 1, wire.received_ns, body, prompt, authorization=wire.headers.get("authorization", "")
        )
        self.requests.append(request)
        try:
            async with self._slots:
                await self._answer(wire, request)
        except asyncio.CancelledError:
            request.disconnected = True
        except BrokenOffError:
            wire.abort()

    async def _answer(self, wire: "_Wire", request: Request) -> None:
        b = self.behaviour
        fault = b.fault if b.faulty(request.number) else ""
        wanted = int(request.body.get("max_tokens", 16))
        if fault.isdigit():
            return wire.whole(int(fault), _refusal(int(fault), "asked to fail"))
        if b.context and request.prompt_tokens + wanted > b.context:
            return wire.whole(400, _refusal(400, f"the request exceeds the context size ({b.context} tokens)"))
        if fault == "silent":
            await asyncio.sleep(3600)
        if fault == "reset":
            raise BrokenOffError
        if fault == "json" or not request.body.get("stream"):
            return await self._whole(wire, request, b.output_tokens or wanted)
        return await _Stream(b, wire, request, fault).run(b.output_tokens or wanted)

    async def _whole(self, wire: "_Wire", request: Request, tokens: int) -> None:
        await asyncio.sleep(self.behaviour.ttft + self.behaviour.tpot * (tokens - 1))
        request.completion_tokens = tokens
        request.end_ns = time.perf_counter_ns()
        choice = {"index": 0, "message": {"role": "assistant", "content": "tok " * tokens}, "finish_reason": "length"}
        wire.whole(200, {"object": "chat.completion", "choices": [choice], "usage": _usage(request)})


class _Wire(asyncio.Protocol):
    """The server's side of one connection: bytes to requests, and the clock at the first byte of each."""

    def __init__(self, engine: MockEngine) -> None:
        self.received_ns = 0
        self.headers: dict[str, str] = {}
        self._engine = engine
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport
        self._now = 0
        self._path = ""
        self._body = bytearray()
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._engine._wires.add(self)
        self._engine.connections += 1

    def data_received(self, data: bytes) -> None:
        self._now = time.perf_counter_ns()
        self._parser.feed_data(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._engine._wires.discard(self)
        if self._task is not None:
            self._task.cancel()

    def on_message_begin(self) -> None:
        self.received_ns, self._path, self._body, self.headers = self._now, "", bytearray(), {}

    def on_url(self, url: bytes) -> None:
        self._path += url.decode()

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.decode().lower()] = value.decode()

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        self._task = asyncio.create_task(self._serve(self._parser.get_method().decode()))

    async def _serve(self, method: str) -> None:
        await self._engine.respond(self, method, self._path, bytes(self._body))
        self._task = None
        if not self._parser.should_keep_alive():
            self._transport.close()

    def whole(self, status: int, body: Any) -> None:
        """A response with a JSON body."""
        data = json.dumps(body).encode()
        self._head(status, f"Content-Type: application/json\r\nContent-Length: {len(data)}")
        self._transport.write(data)

    def start_stream(self) -> None:
        """The head of a stream of events."""
        body = "Transfer-Encoding: chunked" if self._engine.behaviour.chunked else "Connection: close"
        self._head(200, f"Content-Type: text/event-stream\r\nKeep-Alive: timeout=5, max=100\r\n{body}")

    def event(self, data: bytes) -> None:
        """A piece of the stream, written at once."""
        framed = b"%x\r\n%s\r\n" % (len(data), data) if self._engine.behaviour.chunked else data
        self._transport.write(framed)

    def end_stream(self) -> None:
        """The end of the stream."""
        if self._engine.behaviour.chunked:
            self._transport.write(b"0\r\n\r\n")
        else:
            self._transport.close()
        if self._engine.behaviour.closes:
            # Not in the same breath: a client that is quick enough sends its next request into the closing connection.
            asyncio.get_running_loop().call_later(0.005, self._transport.close)

    def abort(self) -> None:
        """Break the connection."""
        self._transport.abort()

    def _head(self, status: int, lines: str) -> None:
        server = {"none": "mock"}.get(self._engine.behaviour.flavour, self._engine.behaviour.flavour)
        self._transport.write(f"HTTP/1.1 {status} Mock\r\nServer: {server}\r\n{lines}\r\n\r\n".encode())


class _Stream:
    """One streamed answer."""

    def __init__(self, behaviour: Behaviour, wire: _Wire, request: Request, fault: str) -> None:
        self._b = behaviour
        self._wire = wire
        self._request = request
        self._fault = fault
        self._start = asyncio.get_running_loop().time()

    async def run(self, tokens: int) -> None:
        self._wire.start_stream()
        if self._b.role_chunk:
            await self._delta({"role": "assistant", "content": ""})
        await self._texts(tokens)
        if self._b.usage == "last":
            await self._event({"choices": [], "usage": _usage(self._request)})
        self._request.end_ns = time.perf_counter_ns()
        if self._b.done:
            await self._write(b"data: [DONE]")
        if self._b.linger:
            await asyncio.sleep(self._b.linger)
        self._wire.end_stream()

    async def _texts(self, tokens: int) -> None:
        sizes = [min(self._b.tokens_per_chunk, tokens - at) for at in range(0, tokens, self._b.tokens_per_chunk)]
        for index, size in enumerate(sizes):
            if self._fault and index == self._b.fault_chunks:
                await self._break()
            # A chunk leaves when its last token is made; the first token takes `ttft`.
            due = self._start + self._b.ttft + self._b.tpot * (self._request.completion_tokens + size - 1)
            await asyncio.sleep(due - asyncio.get_running_loop().time())
            if self._b.empty_every and index % self._b.empty_every == 0:
                await self._delta({"content": None})
            self._request.completion_tokens += size
            if self._fault == "textless":
                await self._delta({"content": ""})
                continue
            self._request.text_ns.append(time.perf_counter_ns())
            await self._delta({self._b.text_key: "tok " * size})
        await self._event({"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]})

    async def _break(self) -> None:
        if self._fault == "stall":
            await asyncio.sleep(3600)
        if self._fault == "error":
            await self._event({"error": {"message": "the engine broke", "code": 500}})
        if self._fault == "garbage":
            await self._write(b"data: {no json")
        if self._fault in ("cut", "error", "garbage"):
            raise BrokenOffError

    async def _delta(self, delta: dict[str, Any]) -> None:
        chunk: dict[str, Any] = {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]}
        chunk["usage"] = _usage(self._request) if self._b.usage == "every" else None
        await self._event(chunk)

    async def _event(self, chunk: dict[str, Any]) -> None:
        chunk = {"id": f"chatcmpl-{self._request.number}", "object": "chat.completion.chunk", **chunk}
        await self._write(b"data: " + json.dumps(chunk).encode())

    async def _write(self, line: bytes) -> None:
        event = line + (b"\r\n\r\n" if self._b.crlf else b"\n\n")
        if not self._b.split:
            self._wire.event(event)
            return
        # The cut is inside the line, so that it is whole only with its second piece.
        self._wire.event(event[:-5])
        await asyncio.sleep(0)
        self._wire.event(event[-5:])


def _usage(request: Request) -> dict[str, int]:
    prompt, completion = request.prompt_tokens, request.completion_tokens
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _refusal(status: int, message: str) -> dict[str, Any]:
    return {"error": {"message": message, "code": status}}


@contextlib.contextmanager
def mock_process(behaviour: Behaviour | None = None) -> Iterator[str]:
    """The mock as a process of its own; yields its URL."""
    command = [sys.executable, "-m", "tests.support.mockengine", json.dumps(asdict(behaviour or Behaviour()))]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert url, "the mock did not start"
        yield url
    finally:
        process.kill()
        process.wait()


def fetch_requests(url: str) -> list[Request]:
    """The truth of a mock that runs as a process."""
    with urllib.request.urlopen(f"{url}/mock/requests", timeout=120) as answer:
        return [Request(**fields) for fields in json.load(answer)]


async def _serve(behaviour: Behaviour) -> None:
    async with MockEngine(behaviour) as engine:
        print(engine.url, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(_serve(Behaviour(**json.loads(sys.argv[1] if len(sys.argv) > 1 else "{}"))))
