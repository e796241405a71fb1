"""Asks a freshly started server for a first answer through its Service, and for what it can do."""

import asyncio
import contextlib
import time
from typing import Any, Protocol

import aiohttp
import orjson

from moorage.control import bounded
from moorage.errors import SourceError
from moorage.planning.types import WarmUp

_TIMEOUT = aiohttp.ClientTimeout(total=60, connect=3)


# What is asked of a server by what it is for, and where its answer has to have something.
_QUESTIONS: dict[str, tuple[str, dict[str, Any], str]] = {
    "chat": ("chat/completions", {"max_tokens": 1, "messages": [{"role": "user", "content": "Hello"}]}, "choices"),
    "completion": ("completions", {"max_tokens": 1, "prompt": "Hello"}, "choices"),
    "embeddings": ("embeddings", {"input": "Hello", "encoding_format": "base64"}, "data"),
    "rerank": ("rerank", {"query": "Hello", "documents": ["Hello"]}, "results"),
}


class Prober(Protocol):
    """Finds out whether a Model answers."""

    async def warm_up(self, ask: WarmUp) -> dict[str, Any]:
        """`{firstTokenMilliseconds, version, report}` once an answer came; raises SourceError(WarmUpFailed) otherwise.

        `report` is what the server says it can do: `{tools, reasoning, vision, audio}`, or None.
        """
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...


class HttpProber:
    """The real one: a first request at the Service's cluster IP.

    Of a server that generates text one token, by a chat completion; of a base model without a chat template, which vLLM
    refuses to chat with, by a plain one.
    """

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None

    async def warm_up(self, ask: WarmUp) -> dict[str, Any]:
        """See Prober."""
        started = time.monotonic()
        wanted = ask.capability
        status, told = await self._post(ask, wanted)
        if wanted == "chat" and status == 400 and b"chat template" in told.lower():
            wanted = "completion"
            status, told = await self._post(ask, wanted)
        text = told.decode(errors="replace")[:300]
        if status != 200:
            raise _failed(f"the server answered {status} to a first request ({wanted}): {text}")
        found = _json(told)
        if not isinstance(found, dict) or not found.get(_QUESTIONS[wanted][2]):
            raise _failed(f"the server answered without {_QUESTIONS[wanted][2]} to a first request ({wanted}): {text}")
        answer_ms = int((time.monotonic() - started) * 1000)
        version = str(found.get("system_fingerprint") or "")[:64]
        report = await self._report(ask) if ask.reporter else None
        return {"firstTokenMilliseconds": answer_ms, "version": version, "report": report}

    async def _report(self, ask: WarmUp) -> dict[str, bool] | None:
        """What llama.cpp says at /props of its chat template and its projector; None where it says nothing sensible.

        `chat_template_caps` comes from rendering the template with and without tools, so it is surer than any reading.
        """
        with contextlib.suppress(aiohttp.ClientError, TimeoutError, OSError, ValueError):
            async with self._open().get(f"http://{ask.reporter}/props", allow_redirects=False) as answer:
                return _reported(orjson.loads(await bounded.read(answer))) if answer.status == 200 else None
        return None

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=_TIMEOUT)
        return self._session

    async def _post(self, ask: WarmUp, wanted: str) -> tuple[int, bytes]:
        """Status and body of the answer; raises SourceError(WarmUpFailed) where there is none."""
        path, question, _ = _QUESTIONS[wanted]
        asked = {"model": ask.model, **question}
        try:
            async with self._open().post(f"{_base(ask)}/v1/{path}", json=asked, allow_redirects=False) as answer:
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


def _base(ask: WarmUp) -> str:
    host = f"[{ask.cluster_ip}]" if ":" in ask.cluster_ip else ask.cluster_ip
    return f"http://{host}:{ask.port}"


def _reported(props: Any) -> dict[str, bool] | None:
    """`{tools, reasoning, vision, audio}`, as far as `props` says."""
    if not isinstance(props, dict):
        return None
    told: dict[str, bool] = {}
    template, senses = props.get("chat_template_caps"), props.get("modalities")
    if isinstance(template, dict):
        told |= {"tools": template["supports_tools"]} if isinstance(template.get("supports_tools"), bool) else {}
        # Templates of models that reason do not all keep old thoughts or take an effort: False would say nothing.
        thinks = any(template.get(f"supports_{what}") is True for what in ("preserve_reasoning", "reasoning_effort"))
        told |= {"reasoning": True} if thinks else {}
    if isinstance(senses, dict):
        told |= {sense: senses[sense] for sense in ("vision", "audio") if isinstance(senses.get(sense), bool)}
    return told or None


def _json(told: bytes) -> Any:
    try:
        return orjson.loads(told)
    except ValueError as error:
        raise _failed(f"the server's answer is not JSON: {error}") from error


def _failed(message: str) -> SourceError:
    return SourceError("WarmUpFailed", message, retryable=True)
