"""One streaming chat completion with its clock, and the few questions a server answers about itself."""

import asyncio
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import orjson

from moorage import __version__
from moorage.bench.connection import BrokenConnectionError, Exchange, OnBody, Pool
from moorage.bench.settings import Settings
from moorage.bench.stream import Transcript, Usage, error_text

MAX_ERROR_BYTES = 4 << 10
MAX_FACTS_BYTES = 1 << 20
FACTS_TIMEOUT = 3.0
# After `[DONE]` the clock stands still; the end of the body follows in the same packet or the next one.
CLOSING_TIMEOUT = 1.0


class FailureKind(StrEnum):
    """What went wrong with one request."""

    UNREACHABLE = "unreachable"
    TIMED_OUT = "timed out"
    SERVER_ERROR = "server error"
    REJECTED = "rejected"
    BROKEN_STREAM = "broken stream"
    NO_USAGE = "no usage"


@dataclass(frozen=True)
class Answer:
    """One answered request. Times are nanoseconds of one monotonic clock; `text_ns` has one per chunk that bore text
    (none where all tokens were special, or parts of a character).
    """

    sent_ns: int
    text_ns: tuple[int, ...]
    end_ns: int
    usage: Usage


@dataclass(frozen=True)
class Failure:
    """One request that has no numbers."""

    kind: FailureKind
    message: str


Outcome = Answer | Failure


@dataclass(frozen=True)
class Engine:
    """Who answers, as far as it says; empty strings where it does not."""

    name: str = ""
    version: str = ""


class EngineClient:
    """Sends chat completions to one server. Use `close` when done."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._pool = Pool(settings.target)

    def close(self) -> None:
        """Close every idle connection."""
        self._pool.close()

    async def complete(self, prompt: str, max_tokens: int) -> Outcome:
        """One streaming chat completion of exactly `max_tokens` tokens, if the server obeys."""
        request = self._request("POST", "/v1/chat/completions", self._body(prompt, max_tokens))
        transcript = Transcript()
        over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        error_body = bytearray()

        def on_body(exchange: Exchange, data: bytes, now_ns: int) -> None:
            if exchange.status != 200:
                error_body.extend(data[: MAX_ERROR_BYTES - len(error_body)])
                return
            transcript.feed(data, now_ns)
            if transcript.over and not over.done():
                over.set_result(None)

        try:
            async with asyncio.timeout(self._settings.request_timeout):
                exchange = await self._exchange(request, on_body, over)
        except TimeoutError:
            return Failure(FailureKind.TIMED_OUT, f"no complete answer within {self._settings.request_timeout:g} s")
        except BrokenConnectionError as error:
            kind = FailureKind.UNREACHABLE if error.before_answer else FailureKind.BROKEN_STREAM
            return Failure(kind, str(error))
        return _outcome(exchange, transcript, bytes(error_body))

    async def learn(self) -> Engine:
        """After a first answer: whether the server keeps connections, and who it is."""
        await self._pool.learn()
        return await self._engine()

    async def _engine(self) -> Engine:
        """Name and version of the server: llama-server's `/props`, vLLM's `/version`, else the Server header."""
        props, header = await self._facts("/props")
        if isinstance(build := props.get("build_info"), str):
            return Engine("llama.cpp", build)
        version, header = await self._facts("/version", header)
        if isinstance(number := version.get("version"), str):
            return Engine("vllm", number)
        return Engine(header)

    async def _facts(self, path: str, header: str = "") -> tuple[dict[str, Any], str]:
        """JSON object at `path` ({} for anything else) and the Server header (`header` where there is none)."""
        body = bytearray()

        def on_body(_: Exchange, data: bytes, __: int) -> None:
            body.extend(data[: MAX_FACTS_BYTES - len(body)])

        try:
            async with asyncio.timeout(FACTS_TIMEOUT):
                exchange = await self._exchange(self._request("GET", path), on_body)
            value = orjson.loads(body) if exchange.status == 200 else {}
        except (TimeoutError, BrokenConnectionError, orjson.JSONDecodeError):
            return {}, header
        return (value if isinstance(value, dict) else {}), exchange.headers.get("server", header)

    async def _exchange(self, request: bytes, on_body: OnBody, over: asyncio.Future[None] | None = None) -> Exchange:
        """Send `request`, wait for the end of its response, or for `over` and a moment longer."""
        connection = await self._pool.take()
        exchange = Exchange(on_body)
        try:
            connection.send(request, exchange)
            if over is None:
                await exchange.ended
            else:
                await _settled(exchange, over)
        finally:
            self._pool.give(connection)
        return exchange

    def _body(self, prompt: str, max_tokens: int) -> bytes:
        return orjson.dumps(
            {
                "model": self._settings.model,
                "messages": [{"role": "user", "content": prompt}],
                "stream": True,
                "stream_options": {"include_usage": True},
                "max_tokens": max_tokens,
                "min_tokens": max_tokens,
                "ignore_eos": True,
            }
        )

    def _request(self, method: str, path: str, body: bytes = b"") -> bytes:
        target = self._settings.target
        head = [
            f"{method} {target.path}{path} HTTP/1.1",
            f"Host: {target.authority}",
            f"Connection: {'keep-alive' if self._pool.keeps else 'close'}",
            f"User-Agent: moorage-bench/{__version__}",
            "Accept: text/event-stream, application/json",
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
        ]
        if self._settings.api_key:
            head.append(f"Authorization: Bearer {self._settings.api_key}")
        return "\r\n".join([*head, "", ""]).encode("latin-1") + body


async def _settled(exchange: Exchange, over: asyncio.Future[None]) -> None:
    """Wait until the stream said its last, then briefly for the end of the response. Raises BrokenConnectionError."""
    await asyncio.wait({exchange.ended, over}, return_when=asyncio.FIRST_COMPLETED)
    if over.done():
        await asyncio.wait({exchange.ended}, timeout=CLOSING_TIMEOUT)
    else:
        exchange.ended.result()


def _outcome(exchange: Exchange, transcript: Transcript, error_body: bytes) -> Outcome:
    if exchange.status != 200:
        # 429 and 408 are the server's state, not a fault of the request.
        refused = 400 <= exchange.status < 500 and exchange.status not in (408, 429)
        kind = FailureKind.REJECTED if refused else FailureKind.SERVER_ERROR
        return Failure(kind, f"HTTP {exchange.status}: {_error_message(error_body)}")
    if not exchange.headers.get("content-type", "").startswith("text/event-stream"):
        return Failure(FailureKind.REJECTED, "the answer is not a stream of server-sent events")
    if transcript.error:
        return Failure(FailureKind.BROKEN_STREAM, transcript.error)
    if transcript.usage is None:
        return Failure(FailureKind.NO_USAGE, "the stream ended without the server's token counts (usage)")
    end_ns = transcript.done_ns or exchange.ended_ns
    return Answer(exchange.sent_ns, tuple(transcript.text_ns), end_ns, transcript.usage)


def _error_message(body: bytes) -> str:
    try:
        return error_text(orjson.loads(body))
    except orjson.JSONDecodeError:
        return body.decode("utf-8", "replace")[:300].strip() or "(no body)"
