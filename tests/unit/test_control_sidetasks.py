"""Questions asked beside the queue: so many at once, pauses after failures, and everybody gets an answer."""

import asyncio
from typing import Any

import pytest

from moorage.control import sidetasks
from moorage.control.sidetasks import SideTasks
from moorage.control.store import MODEL, Key
from moorage.errors import SourceError
from tests.support.eventually import eventually


def key(name: str) -> Key:
    return Key(MODEL, "n", name)


async def test_a_thousand_questions_do_not_storm_the_hub():
    running = most = 0
    done: list[Key] = []

    async def run(_key: Key, _ask: Any) -> dict[str, Any]:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        return {}

    ask: Any = object()
    tasks = SideTasks(run, done.append)
    for i in range(1000):
        tasks.ask(key(str(i)), ask, "inputs")
    await eventually(lambda: len(done) == 1000)
    assert most <= sidetasks.AT_ONCE
    await tasks.close()


async def test_those_told_to_come_back_later_do_not_come_back_together(monkeypatch: pytest.MonkeyPatch):
    async def run(_key: Key, _ask: Any) -> dict[str, Any]:
        raise SourceError("RateLimited", "slow down", retryable=True, retry_after=60.0)

    ask: Any = object()
    tasks = SideTasks(run, lambda _key: None)
    keys = [key(str(i)) for i in range(20)]
    for one in keys:
        tasks.ask(one, ask, "inputs")
    await eventually(lambda: all(tasks.answer(one) for one in keys))
    pauses = [tasks.ask(one, ask, "inputs") or 0.0 for one in keys]
    assert min(pauses) > 59
    assert max(pauses) - min(pauses) > 1
    await tasks.close()
