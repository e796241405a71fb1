"""Asks a freshly started server for one token, through its Service."""

import asyncio
import time
from typing import Any, Protocol

import aiohttp
import orjson

from moorage.control import bounded
from moorage.errors import SourceError
from moorage.planning.types import WarmUp

_TIMEOUT = aiohttp.ClientTimeout(total=60, connect=3)


class Prober(Protocol):
    """Finds out whether a Model answers."""

    async def warm_up(self, ask: WarmUp) -> dict[str, Any]:
        """`{firstTokenMilliseconds, version}` once one token came; raises SourceError(WarmUpFailed) otherwise."""
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...


class HttpProber:
    """The real one: a completion of one token at the Service's cluster IP.

    A chat completion first; of a base model without a chat template, which vLLM refuses to chat with, a plain one.
    """

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None

    async def warm_up(self, ask: WarmUp) -> dict[str, Any]:
        """See Prober."""
        started = time.monotonic()
        status, told = await self._post(ask, "chat/completions", {"messages": [{"role": "user", "content": "Hello"}]})
        if status == 400 and b"chat template" in told.lower():
            status, told = await self._post(ask, "completions", {"prompt": "Hello"})
        text = told.decode(errors="replace")[:300]
        if status != 200:
            raise _failed(f"the server answered {status} to a request for one token: {text}")
        found = _json(told)
        if not isinstance(found, dict) or not found.get("choices"):
            raise _failed(f"the server answered without a choice: {text}")
        answer_ms = int((time.monotonic() - started) * 1000)
        return {"firstTokenMilliseconds": answer_ms, "version": str(found.get("system_fingerprint") or "")[:64]}

    async def _post(self, ask: WarmUp, path: str, body: dict[str, Any]) -> tuple[int, bytes]:
        """Status and body of the answer; raises SourceError(WarmUpFailed) where there is none."""
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=_TIMEOUT)
        host = f"[{ask.cluster_ip}]" if ":" in ask.cluster_ip else ask.cluster_ip
        url = f"http://{host}:{ask.port}/v1/{path}"
        asked = {"model": ask.model, "max_tokens": 1, **body}
        try:
            async with self._session.post(url, json=asked, allow_redirects=False) as answer:
                return answer.status, await bounded.read(answer)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise _failed(f"no answer through the Service: {error or type(error).__name__}") from error

    async def close(self) -> None:
        """See Prober."""
        if self._session is not None:
            await self._session.close()


class FakeProber:
    """For nodes that run no processes (kwok's simulated ones): believes that every ready pod answers."""

    async def warm_up(self, ask: WarmUp) -> dict[str, Any]:
        """Always one token, in no time."""
        await asyncio.sleep(0)
        return {"firstTokenMilliseconds": 0}

    async def close(self) -> None:
        """Nothing is held."""


def _json(told: bytes) -> Any:
    try:
        return orjson.loads(told)
    except ValueError as error:
        raise _failed(f"the server's answer is not JSON: {error}") from error


def _failed(message: str) -> SourceError:
    return SourceError("WarmUpFailed", message, retryable=True)
