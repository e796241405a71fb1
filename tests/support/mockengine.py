"""A mock of an OpenAI-compatible engine whose timing is exactly known, because it notes what it really did.

In the test's own process:

    async with MockEngine(Behaviour(ttft=0.05, tpot=0.005)) as engine:
        ...  # engine.url, engine.requests

As a process of its own, so that its clock does not share an event loop with the client's:

    with mock_process(Behaviour(ttft=0.05)) as url: ...     # fetch_requests(url)
    python -m tests.support.mockengine '{"ttft": 0.05}'     # prints its URL

Truth is what `Request` says, never the nominal sleep: on Linux `perf_counter_ns` is one clock for all processes, and each
time is read directly before the write it belongs to.
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
from typing import Any, Self

import uvloop
from aiohttp import web

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
    slots: int = 0  # requests served at once, the others wait; 0: all
    split: bool = False  # write each event in two pieces
    crlf: bool = False
    keep_alive: float = 75.0
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

    @property
    def ttft_ns(self) -> int:
        return self.text_ns[0] - self.received_ns

    @property
    def e2e_ns(self) -> int:
        return self.end_ns - self.received_ns

    @property
    def tpot_ns(self) -> float:
        return (self.e2e_ns - self.ttft_ns) / (self.completion_tokens - 1)


class Broken(Exception):
    """The fault that was asked for happened; nothing more is sent."""


class MockEngine:
    """The engine. As a context manager it listens on a free port of the loopback interface."""

    def __init__(self, behaviour: Behaviour | None = None, port: int = 0) -> None:
        self.behaviour = behaviour or Behaviour()
        self.requests: list[Request] = []
        self.url = ""
        self._port = port
        self._runner: web.AppRunner | None = None
        self._slots = asyncio.Semaphore(self.behaviour.slots or 1_000_000)

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=64 << 20)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/health", self._health)
        app.router.add_get("/mock/requests", self._truth)
        if self.behaviour.flavour == "llama.cpp":
            app.router.add_get("/props", self._props)
        if self.behaviour.flavour == "vllm":
            app.router.add_get("/version", self._version)
        self._runner = web.AppRunner(
            app, access_log=None, handler_cancellation=True, keepalive_timeout=self.behaviour.keep_alive
        )
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port, shutdown_timeout=0.1)
        await site.start()
        assert site._server is not None
        self._port = site._server.sockets[0].getsockname()[1]  # type: ignore[attr-defined]
        self.url = f"http://127.0.0.1:{self._port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    async def _models(self, _: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": "mock", "object": "model", "owned_by": "mock"}]})

    async def _health(self, _: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def _props(self, _: web.Request) -> web.Response:
        return web.json_response({"build_info": "b1-mock", "total_slots": self.behaviour.slots}, headers=self._server())

    async def _version(self, _: web.Request) -> web.Response:
        return web.json_response({"version": "0.0.1-mock"}, headers=self._server())

    async def _truth(self, _: web.Request) -> web.Response:
        return web.json_response([asdict(request) for request in self.requests])

    def _server(self) -> dict[str, str]:
        return {"Server": "mock" if self.behaviour.flavour == "none" else self.behaviour.flavour}

    async def _chat(self, http: web.Request) -> web.StreamResponse:
        received_ns = time.perf_counter_ns()
        body = json.loads(await http.read())
        text = "".join(str(message.get("content", "")) for message in body["messages"])
        prompt = self.behaviour.template_tokens + round(len(text.encode()) / self.behaviour.bytes_per_token)
        request = Request(len(self.requests) + 1, received_ns, body, prompt)
        self.requests.append(request)
        try:
            async with self._slots:
                return await self._answer(http, request)
        except (ConnectionError, asyncio.CancelledError):
            request.disconnected = True
            raise
        except Broken:
            return web.Response()

    async def _answer(self, http: web.Request, request: Request) -> web.StreamResponse:
        b = self.behaviour
        faulty = b.faulty(request.number)
        wanted = int(request.body.get("max_tokens", 16))
        if faulty and b.fault.isdigit():
            return _refused(int(b.fault), "asked to fail")
        if b.context and request.prompt_tokens + wanted > b.context:
            return _refused(400, f"the request exceeds the available context size ({b.context} tokens)")
        if faulty and b.fault == "silent":
            await asyncio.sleep(3600)
        if faulty and b.fault == "reset":
            _abort(http)
        if not request.body.get("stream") or (faulty and b.fault == "json"):
            return await self._whole(request, b.output_tokens or wanted)
        stream = _Stream(b, http, request)
        await stream.run(b.output_tokens or wanted, b.fault if faulty else "", self._server())
        return stream.response

    async def _whole(self, request: Request, tokens: int) -> web.Response:
        await asyncio.sleep(self.behaviour.ttft + self.behaviour.tpot * (tokens - 1))
        request.completion_tokens = tokens
        request.end_ns = time.perf_counter_ns()
        choice = {"index": 0, "message": {"role": "assistant", "content": "tok " * tokens}, "finish_reason": "length"}
        return web.json_response({"object": "chat.completion", "choices": [choice], "usage": _usage(request)})


class _Stream:
    """One streamed answer."""

    def __init__(self, behaviour: Behaviour, http: web.Request, request: Request) -> None:
        self.response = web.StreamResponse()
        self._b = behaviour
        self._http = http
        self._request = request
        self._start = asyncio.get_running_loop().time()

    async def run(self, tokens: int, fault: str, headers: dict[str, str]) -> None:
        self.response.headers.update({"Content-Type": "text/event-stream", **headers})
        await self.response.prepare(self._http)
        if self._b.role_chunk:
            await self._delta({"role": "assistant", "content": ""})
        await self._texts(tokens, fault)
        if self._b.usage == "last":
            await self._event({"choices": [], "usage": _usage(self._request)})
        self._request.end_ns = time.perf_counter_ns()
        if self._b.done:
            await self._write(b"data: [DONE]")
        await asyncio.sleep(self._b.linger)
        await self.response.write_eof()

    async def _texts(self, tokens: int, fault: str) -> None:
        sizes = [min(self._b.tokens_per_chunk, tokens - at) for at in range(0, tokens, self._b.tokens_per_chunk)]
        for index, size in enumerate(sizes):
            if fault and index == self._b.fault_chunks:
                await self._break(fault)
            # A chunk leaves when its last token is made; the first token takes `ttft`.
            due = self._start + self._b.ttft + self._b.tpot * (self._request.completion_tokens + size - 1)
            await asyncio.sleep(due - asyncio.get_running_loop().time())
            if self._b.empty_every and index % self._b.empty_every == 0:
                await self._delta({"content": None})
            self._request.completion_tokens += size
            if fault == "textless":
                await self._delta({"content": ""})
                continue
            self._request.text_ns.append(time.perf_counter_ns())
            await self._delta({self._b.text_key: "tok " * size})
        await self._event({"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]})

    async def _break(self, fault: str) -> None:
        if fault == "stall":
            await asyncio.sleep(3600)
        if fault == "cut":
            _abort(self._http)
        if fault == "error":
            await self._event({"error": {"message": "the engine broke", "code": 500}})
            _abort(self._http)
        if fault == "garbage":
            await self._write(b"data: {no json")
            _abort(self._http)

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
            await self.response.write(event)
            return
        # Cut behind the text, so that the event is whole only with its second piece.
        await self.response.write(event[:-3])
        await asyncio.sleep(0)
        await self.response.write(event[-3:])


def _usage(request: Request) -> dict[str, int]:
    prompt, completion = request.prompt_tokens, request.completion_tokens
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _refused(status: int, message: str) -> web.Response:
    return web.json_response({"error": {"message": message, "code": status}}, status=status)


def _abort(http: web.Request) -> None:
    assert http.transport is not None
    http.transport.abort()
    raise Broken


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
    with urllib.request.urlopen(f"{url}/mock/requests", timeout=10) as answer:
        return [Request(**fields) for fields in json.load(answer)]


async def _serve(behaviour: Behaviour) -> None:
    async with MockEngine(behaviour) as engine:
        print(engine.url, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(_serve(Behaviour(**json.loads(sys.argv[1] if len(sys.argv) > 1 else "{}"))))
