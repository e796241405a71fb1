"""The gateway as applications meet it: their own clients, real llama-server behind.

`chat` goes to random weights, which talk as long as one likes; `talk` to a table of weights (small_talk.py), which says
known things and calls tools.
"""

import asyncio
import contextlib
import json
import os
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from moorage.gateway.routes import Alias, Card, Hold, Model, Obstacle, Parameters
from tests.process.gateway.support import Bed, key, serving
from tests.support.eventually import eventually

pytestmark = pytest.mark.timeout(600)

HERE = Path(__file__).parent
SECRET = "sk-moorage-0123456789abcdef0123456789"
UNLIMITED = "sk-moorage-unlimited-0123456789abcdef"  # as in speak_openai.py
TALKS_SECONDS = 120


@contextlib.asynccontextmanager
async def ended(child: asyncio.subprocess.Process) -> AsyncIterator[None]:
    """The child does not outlive the block, however that ends."""
    try:
        yield
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()


class Stand:
    """A gateway with everything that can happen to a name, and applications that talk to it."""

    def __init__(self, bed: Bed, python: Path, models: list[Model]) -> None:
        self.bed, self._python, self.models = bed, python, models

    @property
    def url(self) -> str:
        host, port = self.bed.gateway.address
        return f"http://{host}:{port}/v1"

    async def talk(self, script: str, scenario: str) -> Any:
        """What an application found out: its last line, as JSON."""
        quiet = {
            "PATH": os.environ["PATH"],
            "HOME": os.environ.get("HOME", "/"),
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        }
        child = await asyncio.create_subprocess_exec(
            str(self._python), str(HERE / script), self.url, scenario, SECRET,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env=quiet,
        )  # fmt: skip
        async with ended(child):
            out, err = await asyncio.wait_for(child.communicate(), TALKS_SECONDS)
        assert child.returncode == 0, err.decode()[-3000:]
        return json.loads(out.decode().strip().splitlines()[-1])

    async def openai(self, scenario: str) -> Any:
        return await self.talk("speak_openai.py", scenario)

    async def framework(self, scenario: str) -> Any:
        return await self.talk("speak_frameworks.py", scenario)


ALIASES = [
    Alias("chat", (("tiny", 100),), parameters=Parameters(defaults={"temperature": 0, "seed": 7})),
    Alias("asleep", (("sleeping", 1),), hold=Hold(max_pending=0)),
    Alias("full", (("sleeping", 1),), hold=Hold(max_pending=1, timeout=600)),
    Alias("patient", (("sleeping", 1),), hold=Hold(timeout=0.5)),
    Alias("rising", (("later", 1),), hold=Hold(max_pending=0)),
]
ALLOWED = [*(alias.name for alias in ALIASES), "tiny", "talk", "embed", "rank", "too-large", "acme/tiny"]
KEYS = [key("team", SECRET, ALLOWED), key("all", UNLIMITED)]
CARD = Card(2048, ("chat", "completion", "structured_outputs"), "Small and quick.", ("test",))
NO_ROOM = Obstacle("insufficient_gpu_memory", "needs 40.0Gi, the largest GPU has 24.0Gi")


@pytest.fixture
async def stand(
    clients_python: Path, chat_engine: str, talking_engine: str, embedding_engine: str, ranking_engine: str
) -> AsyncIterator[Stand]:
    models = [
        Model("tiny", served_name="tiny", endpoints=(chat_engine,), max_in_flight=4, card=CARD),
        Model("acme/tiny", endpoints=(chat_engine,)),
        Model("talk", endpoints=(talking_engine,)),
        Model("embed", endpoints=(embedding_engine,)),
        Model("rank", endpoints=(ranking_engine,)),
        Model("sleeping"),
        Model("later"),
        Model("too-large", obstacle=NO_ROOM),
        Model("forbidden", endpoints=(chat_engine,)),
    ]
    async with serving(models, ALIASES, KEYS) as bed:
        yield Stand(bed, clients_python, models)


async def test_chat(stand: Stand):
    found = await stand.openai("chat")
    assert found["text"].strip()
    assert (found["finish"], found["completion"]) == ("length", 8)


async def test_stream(stand: Stand):
    found = await stand.openai("stream")
    assert found["pieces"] > 1
    assert (found["finish"], found["usage"]) == ("length", []), "no chunk that nobody asked for"
    assert await stand.openai("stream_with_usage") == {"choices": 0, "completion": 8}


def busy_slots(engine: str) -> int:
    with urllib.request.urlopen(f"http://{engine}/slots", timeout=60) as answer:
        return sum(slot["is_processing"] for slot in json.load(answer))


@pytest.mark.parametrize(("scenario", "got"), [("leaves_a_stream", True), ("loses_patience", False)])
async def test_the_engine_stops_for_a_client_that_leaves(stand: Stand, chat_engine: str, scenario: str, got: bool):
    """What was asked for would take the engine many minutes, and nobody but the gateway can tell it to stop."""
    asking, worked = asyncio.create_task(stand.openai(scenario)), got
    while not asking.done():
        worked = worked or busy_slots(chat_engine) > 0
        await asyncio.sleep(0.05)
    assert await asking == {"got": got}
    assert worked
    await eventually(lambda: busy_slots(chat_engine) == 0, what="the engine at rest")
    assert stand.bed.gateway.stats.route("chat", "tiny").cancelled == 1


async def test_text_completion(stand: Stand):
    assert (await stand.openai("completion"))["completion"] == 4


async def test_json_mode(stand: Stand):
    assert await stand.openai("json_mode") == {
        "free": "Fair winds.",
        "json_object": {"answer": "fair"},
        "json_schema": {"city": "Oslo"},
        "parsed": "Rome",
    }


async def test_tools(stand: Stand):
    call = ["weather", {"city": "Oslo"}]
    assert await stand.openai("tool_choice") == {
        "auto": ["tool_calls", "", [call]],
        "auto, not needed": ["stop", "Fair winds.", []],
        "required, not needed": ["tool_calls", "Fair winds.", [call]],
        # As docs/how-to/use-the-gateway.md tells of this build:
        "a function, not needed": ["stop", "Fair winds.", []],
        "none": ["stop", '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>', []],
    }
    assert await stand.openai("tool_result") == {
        "sunny": ["stop", "Take a hat.", []],
        "rainy": ["stop", "Bring an umbrella.", []],
    }


async def test_tools_in_a_stream(stand: Stand):
    found = await stand.openai("tool_call_in_a_stream")
    assert found.pop("pieces") > 1
    assert found == {"arguments": {"city": "Oslo"}, "helper": ["weather", {"city": "Oslo"}]}


async def test_rerank(stand: Stand):
    found = await stand.openai("rerank")
    assert found.pop("different") == 3
    assert all(found.values()), found


async def test_embeddings(stand: Stand):
    assert await stand.openai("embeddings") == {"vectors": 2, "dimensions": 1, "same": True}


async def test_models(stand: Stand):
    found = await stand.openai("models")
    assert set(found["listed"]) == set(ALLOWED)
    assert (found["one"], found["served"]) == ("chat", "acme/tiny")
    assert found["able"] == ["chat", "completion", "structured_outputs"]


async def test_errors_are_the_clients_own_exceptions(stand: Stand):
    async with stand.bed.client() as waiting:
        body = json.dumps({"model": "full", "messages": [{"role": "user", "content": "Hello"}]}).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {SECRET}\r\n"
        await waiting.send(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)  # takes the only place
        found = await stand.openai("errors")
    assert {name: tuple(raised[:3]) for name, raised in found.items()} == {
        "nowhere": ("NotFoundError", 404, "model_not_found"),
        "asleep": ("InternalServerError", 503, "model_loading"),
        "too-large": ("InternalServerError", 503, "insufficient_gpu_memory"),
        "full": ("RateLimitError", 429, "hold_queue_full"),
        "patient": ("InternalServerError", 504, "hold_timeout"),
        "forbidden": ("PermissionDeniedError", 403, "model_not_allowed"),
        "bad key": ("AuthenticationError", 401, "invalid_api_key"),
        "bad request": ("BadRequestError", 400, found["bad request"][2]),
    }
    assert NO_ROOM.message in found["too-large"][3]


async def test_the_clients_own_retries_outlast_a_model_that_is_being_loaded(stand: Stand, chat_engine: str):
    asking = asyncio.create_task(stand.openai("waits_and_tries_again"))
    while not stand.bed.gateway.demand.wanted("later").requests:
        assert not asking.done()
        await asyncio.sleep(0.05)
    up = [Model(m.name, endpoints=(chat_engine,)) if m.name == "later" else m for m in stand.models]
    stand.bed.apply(up, ALIASES, KEYS)
    assert await asking == {"finish": "length"}


async def test_curl(stand: Stand):
    body = json.dumps(
        {"model": "chat", "stream": True, "max_tokens": 3, "messages": [{"role": "user", "content": "Hi"}]}
    )
    child = await asyncio.create_subprocess_exec(
        "curl", "--no-buffer", "--silent", "--show-error", "--fail-with-body", "--max-time", "60",
        f"{stand.url}/chat/completions", "-H", f"Authorization: Bearer {SECRET}",
        "-H", "Content-Type: application/json", "-d", body, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    async with ended(child):
        out, _ = await asyncio.wait_for(child.communicate(), 60)
    assert child.returncode == 0
    assert out.startswith(b"data: {")
    assert out.endswith(b"data: [DONE]\n\n")


async def test_dspy(stand: Stand):
    assert await stand.framework("dspy_chat") == {"answers": 1, "counted": 8}
    programs = await stand.framework("dspy_programs")
    assert programs == {"notation": "Harbors", "schema": "fair", "tool": ["rainy in Oslo"]}
    assert "may not use the model `nowhere`" in (await stand.framework("dspy_error"))["says"]


async def test_pydantic_ai(stand: Stand):
    sunny, rainy = "Take a hat.", "Bring an umbrella."
    assert await stand.framework("agent_calls_a_tool") == {"sunny": [["Oslo"], sunny], "rainy": [["Oslo"], rainy]}
    streamed = await stand.framework("agent_streams_around_a_tool")
    assert (streamed["asked"], "".join(streamed["pieces"])) == (["Oslo"], rainy)
    assert len(streamed["pieces"]) > 1
    assert await stand.framework("agent_wants_a_type") == {"city": "Oslo"}
