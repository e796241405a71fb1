"""API keys and the gateway's own process, logging all it can: the words of each limit, changes, secrets nowhere."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from moorage.gateway.keys import digest, new_secret
from tests.process.gateway.support import OK, PATIENCE, Client, RawEngine, Reply, address, always, chat, get
from tests.process.gateway.test_gateway_command import Process, command

LIMITED = "429 rate_limit_exceeded"
LIMITS: dict[str, tuple[dict[str, Any], list[str], str]] = {  # options, what three requests get, and why
    "requests": ({"requestsPerMinute": 2}, ["ok", "ok", LIMITED], "2 requests a minute"),
    "tokens": ({"tokensPerMinute": 6}, ["ok", "ok", LIMITED], "6 tokens a minute"),  # each answer is five
    "alias": ({"aliases": ["chat"]}, ["403 model_not_allowed"] * 3, "may not use the model `m`"),
    "at-once": ({"maxConcurrency": 1}, ["ok"] * 3, ""),
}


@dataclass
class Door:
    """A gateway that reads its keys from a file; `made` is every key there ever was, by name."""

    file: Path
    engine: RawEngine
    process: Process = field(default_factory=lambda: Process(process=None))  # type: ignore[arg-type]
    made: dict[str, str] = field(default_factory=dict)

    def write(self, *keys: dict[str, Any]) -> None:
        models = [{"name": "m", "endpoints": [address(self.engine)]}, {"name": "asleep", "endpoints": []}]
        aliases = [{"name": "chat", "targets": [{"model": "m"}]}]
        self.file.write_text(yaml.safe_dump({"apiKeys": list(keys), "models": models, "aliases": aliases}))

    def key(self, name: str, **options: Any) -> dict[str, Any]:
        secret = self.made.setdefault(name, new_secret())
        return {"name": name, "sha256": digest(secret).hex(), **options}

    async def ask(self, name: str, model: str = "m") -> Reply:
        async with Client.connected(self.process.public) as client:
            return await client.ask(chat(model), Authorization=f"Bearer {self.made[name]}")

    async def until(self, name: str, good: Callable[[Reply], bool], model: str = "m") -> float:
        """Seconds until a request with this key is answered so."""
        began = time.monotonic()
        while not good(reply := await self.ask(name, model)):
            assert time.monotonic() - began < PATIENCE, reply
            await asyncio.sleep(0.01)
        return time.monotonic() - began


@pytest.fixture
async def door(tmp_path: Path) -> AsyncIterator[Door]:
    async with RawEngine(always(OK)) as engine:
        made = Door(tmp_path / "routes.yaml", engine)
        made.write(*(made.key(name, **options) for name, (options, _, _) in LIMITS.items()))
        async with command(made.file, "--verbose", "--require-keys", "--drain-delay", "0") as made.process:
            yield made


async def test_each_limit_is_refused_in_its_own_words_and_no_key_goes_anywhere(door: Door):
    for name, (_, wanted, why) in LIMITS.items():
        replies = [await door.ask(name) for _ in wanted]
        codes = ["ok" if r.status == 200 else f"{r.status} {r.error['code']}" for r in replies]
        assert codes == wanted, name
        if why:
            assert why in replies[-1].error["message"]
        if wanted[-1] == LIMITED:
            assert replies[-1].error["type"] == "rate_limit_error"
            assert 1 <= int(replies[-1].headers["retry-after"]) <= 60
    assert (await door.ask("alias", "chat")).status == 200

    async with Client.connected(door.process.public) as waiting:  # a request that waits is under way, too
        await waiting.post(chat("asleep"), Authorization=f"Bearer {door.made['at-once']}")
        await door.until("at-once", lambda reply: reply.status == 429)
        refused = await door.ask("at-once")
        assert "1 requests at once" in refused.error["message"]
        assert refused.headers["retry-after"] == "1"
    await door.until("at-once", lambda reply: reply.status == 200)

    async with Client.connected(door.process.admin) as admin:
        await admin.send(get("/metrics"))
        shown = (await admin.reply()).body.decode()
    heard = "".join(f"{request.line} {request.headers} {request.data!r}" for request in door.engine.requests)
    assert "POST /v1/chat/completions" in heard
    assert "serving on" in door.process.log
    for text in (door.process.log, shown, heard):
        assert [name for name, secret in door.made.items() if secret in text] == []
        assert "authorization" not in text.lower()
        assert "bearer" not in text.lower()


async def test_keys_that_change_count_within_a_moment_and_without_a_restart(door: Door):
    def unknown(reply: Reply) -> bool:
        return reply.status == 401

    def known(reply: Reply) -> bool:
        return reply.status == 200

    took = {}
    door.write(door.key("old"), door.key("new"))
    took["a second one"] = await door.until("new", known)
    assert (await door.ask("old")).status == 200
    door.write(door.key("new"))
    took["the first one taken away"] = await door.until("old", unknown)
    assert (await door.ask("new")).status == 200
    door.write(door.key("new", aliases=["chat"]))
    took["fewer aliases"] = await door.until("new", lambda reply: reply.status == 403)
    door.write()
    took["none left"] = await door.until("new", unknown)
    print("\n" + ", ".join(f"{what}: {1000 * seconds:.0f} ms" for what, seconds in took.items()))
    assert "no API key has been made" in (await door.ask("new")).error["message"]
    assert door.process.process.returncode is None
    assert [name for name, secret in door.made.items() if secret in door.process.log] == []
