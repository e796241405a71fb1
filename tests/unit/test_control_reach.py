"""What the operator asks of pods over HTTP: it goes where it means to, and takes no more than it needs."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from moorage.control.prober import HttpProber
from moorage.control.progress import ProgressPoller
from moorage.control.store import DOWNLOAD, Key
from moorage.errors import SourceError
from moorage.planning.types import Progress, WarmUp
from tests.support.eventually import eventually

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[int]:
    """A server on loopback whose every path is answered by `handler`; its port."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
    finally:
        await runner.cleanup()


async def endless(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    while True:
        await response.write(b" " * 65536)


class Elsewhere:
    """Where nobody should be sent: a metadata service, the API server."""

    def __init__(self) -> None:
        self.visits = 0

    async def answer(self, _request: web.Request) -> web.StreamResponse:
        self.visits += 1
        return web.json_response({"choices": [{}], "secret": "hush"})


@pytest.mark.parametrize("status", [301, 307])
async def test_a_server_cannot_send_the_operator_elsewhere(status: int):
    elsewhere = Elsewhere()
    async with serving(elsewhere.answer) as there:

        async def redirect(_request: web.Request) -> web.StreamResponse:
            return web.Response(status=status, headers={"Location": f"http://127.0.0.1:{there}/latest/meta-data"})

        async with serving(redirect) as port:
            prober = HttpProber()
            with pytest.raises(SourceError) as told:
                await prober.warm_up(WarmUp("t", "m", "127.0.0.1", port))
            await prober.close()
    assert elsewhere.visits == 0
    assert "hush" not in told.value.message


async def test_a_server_that_never_stops_talking_is_cut_off():
    async with serving(endless) as port:
        prober = HttpProber()
        with pytest.raises(SourceError) as told:
            await prober.warm_up(WarmUp("t", "m", "127.0.0.1", port))
        await prober.close()
    assert len(told.value.message) < 1000


async def test_a_base_model_without_a_chat_template_answers_a_plain_completion():
    """vLLM's words: a chat with such a model is a bad request."""
    asked = []

    async def answer(request: web.Request) -> web.StreamResponse:
        asked.append(request.path)
        if request.path.endswith("/chat/completions"):
            error = {"message": "default chat template is no longer allowed, so you must provide a chat template"}
            return web.json_response({"error": error}, status=400)
        return web.json_response({"choices": [{"text": "!"}], "system_fingerprint": "vllm-0.32.0-ab12cd34"})

    async with serving(answer) as port:
        prober = HttpProber()
        found = await prober.warm_up(WarmUp("t", "m", "127.0.0.1", port))
        await prober.close()
    assert asked == ["/v1/chat/completions", "/v1/completions"]
    assert found["version"] == "vllm-0.32.0-ab12cd34"


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [(400, '{"error": "no such model"}', "answered 400"), (200, "{}", "without choices"), (200, "oh", "not JSON")],
)
async def test_an_answer_without_a_token_is_told_in_the_servers_words(status: int, body: str, words: str):
    async def answer(_request: web.Request) -> web.StreamResponse:
        return web.Response(status=status, text=body)

    async with serving(answer) as port:
        prober = HttpProber()
        with pytest.raises(SourceError, match=words):
            await prober.warm_up(WarmUp("t", "m", "127.0.0.1", port))
        await prober.close()


PROPS = {
    "chat_template_caps": {"supports_tools": True, "supports_tool_calls": True, "supports_system_role": True},
    "modalities": {"vision": True, "video": False, "audio": False},
}
"""The part of llama-server's /props (build 11669) that tells what it can do."""


@pytest.mark.parametrize(
    ("props", "report"),
    [
        (PROPS, {"tools": True, "vision": True, "audio": False}),
        (
            {**PROPS, "chat_template_caps": {"supports_tools": False, "supports_reasoning_effort": True}},
            {"tools": False, "reasoning": True, "vision": True, "audio": False},
        ),
        ({"modalities": {"vision": "yes"}}, None),
        ({"modalities": None, "chat_template_caps": []}, None),
        (["no", "object"], None),
        (None, None),  # 404
    ],
)
async def test_a_server_is_asked_what_it_can_do(props: object, report: dict[str, bool] | None):
    async def answer(request: web.Request) -> web.StreamResponse:
        if request.path == "/props":
            return web.json_response(props, status=404 if props is None else 200)
        return web.json_response({"choices": [{"text": "!"}]})

    async with serving(answer) as port:
        prober = HttpProber()
        found = await prober.warm_up(WarmUp("t", "m", "127.0.0.1", port, reporter=f"127.0.0.1:{port}"))
        await prober.close()
    assert found["report"] == report


@pytest.mark.parametrize(
    ("capability", "path", "answered"),
    [
        ("embeddings", "/v1/embeddings", {"data": [{"embedding": "AAAA"}]}),
        ("rerank", "/v1/rerank", {"results": [{"index": 0, "relevance_score": 1.4}]}),
    ],
)
async def test_a_server_that_generates_nothing_is_asked_for_what_it_is_for(
    capability: str, path: str, answered: dict[str, object]
):
    """llama-server with --embeddings ends when it is asked for text (seen with build 11669)."""
    asked = []

    async def answer(request: web.Request) -> web.StreamResponse:
        asked.append(request.path)
        return web.json_response(answered)

    async with serving(answer) as port:
        prober = HttpProber()
        found = await prober.warm_up(WarmUp("t", "m", "127.0.0.1", port, capability))
        await prober.close()
    assert (asked, found["report"]) == ([path], None)


async def test_a_download_pod_cannot_fill_the_operators_memory_or_send_it_elsewhere():
    elsewhere, asked = Elsewhere(), 0

    async with serving(elsewhere.answer) as there:

        async def answer(request: web.Request) -> web.StreamResponse:
            nonlocal asked
            asked += 1
            if asked == 1:
                return web.Response(status=307, headers={"Location": f"http://127.0.0.1:{there}/"})
            if asked == 2:
                return await endless(request)
            return web.json_response({"phase": "Downloading"})

        async with serving(answer) as port:
            poller = ProgressPoller(lambda _key: None)
            key = Key(DOWNLOAD, "n", "d")
            poller.follow(key, Progress("pod", f"http://127.0.0.1:{port}/progress"))
            await eventually(lambda: poller.latest(key) == {"phase": "Downloading"}, timeout=15)
            await poller.close()
    assert elsewhere.visits == 0
