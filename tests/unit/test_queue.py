"""The keyed queue: never twice at once, nothing missed, delays and backoff."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moorage.control.queue import BACKOFF_LIMIT, KeyedQueue, backoff_seconds
from tests.support.eventually import eventually


async def running(queue: KeyedQueue[str]) -> asyncio.Task[None]:
    return asyncio.create_task(queue.run())


async def test_a_key_never_runs_twice_at_once_and_no_change_is_missed():
    at_once: set[str] = set()
    runs: list[str] = []
    gate = asyncio.Event()

    async def handle(key: str) -> None:
        assert key not in at_once
        at_once.add(key)
        await gate.wait()
        at_once.discard(key)
        runs.append(key)

    queue = KeyedQueue(handle, workers=4)
    task = await running(queue)
    queue.add("a")
    await eventually(lambda: at_once == {"a"})
    queue.add("a")  # changed while it runs: must run once more, and only once
    queue.add("a")
    gate.set()
    await eventually(lambda: len(runs) == 2)
    await asyncio.sleep(0)
    assert runs == ["a", "a"]
    task.cancel()


async def test_the_earliest_delay_counts():
    runs: list[str] = []

    async def handle(key: str) -> None:
        runs.append(key)

    queue = KeyedQueue(handle)
    task = await running(queue)
    queue.add_after("a", 30)
    queue.add_after("a", 0.01)
    queue.add_after("a", 20)
    await eventually(lambda: runs == ["a"])
    task.cancel()


async def test_a_failed_key_is_retried_and_others_are_not_held_up(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("moorage.control.queue.backoff_seconds", lambda failures: 0.01 * failures)
    seen: list[tuple[str, int]] = []
    runs: list[str] = []

    async def handle(key: str) -> None:
        runs.append(key)
        if key == "bad" and runs.count("bad") < 3:
            raise ValueError("no")

    queue = KeyedQueue(handle, workers=1, on_error=lambda key, _error, count: seen.append((key, count)))
    task = await running(queue)
    queue.add("bad")
    queue.add("good")
    await eventually(lambda: runs.count("bad") == 3 and "good" in runs)
    assert seen == [("bad", 1), ("bad", 2)]
    task.cancel()


async def test_a_requeue_time_brings_the_key_back():
    runs = 0

    async def handle(_key: str) -> float | None:
        nonlocal runs
        runs += 1
        return 0.01 if runs < 3 else None

    queue = KeyedQueue(handle)
    task = await running(queue)
    queue.add("a")
    await eventually(lambda: runs == 3)
    task.cancel()


@given(st.integers(min_value=1, max_value=10_000))
@settings(deadline=None)
def test_backoff_grows_to_its_limit(failures: int):
    now, later = backoff_seconds(failures, jitter=1.0), backoff_seconds(failures + 1, jitter=1.0)
    assert 1.0 <= now <= later <= BACKOFF_LIMIT


async def test_an_error_may_say_how_long_its_pauses_grow(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("moorage.control.queue.backoff_seconds", lambda _failures: 300.0)
    runs: list[str] = []

    async def handle(key: str) -> None:
        runs.append(key)
        raise ConnectionError

    queue = KeyedQueue(handle, longest=lambda error: 0.01 if isinstance(error, ConnectionError) else BACKOFF_LIMIT)
    task = await running(queue)
    queue.add("a")
    await eventually(lambda: len(runs) > 2)
    task.cancel()


async def test_the_background_lets_others_go_first_and_comes_to_an_end_all_the_same():
    runs: list[str] = []

    async def handle(key: str) -> None:
        runs.append(key)

    queue = KeyedQueue(handle, workers=1)
    for i in range(3):
        queue.add(f"old-{i}", background=True)
    for i in range(9):
        queue.add(f"new-{i}")
    assert queue.depth == 12
    task = await running(queue)
    await eventually(lambda: len(runs) == 12)
    told = [f"new-{i}" for i in range(9)]
    assert [r for r in runs if r.startswith("new")] == told
    assert runs == [*told[:4], "old-0", *told[4:8], "old-1", told[8], "old-2"]
    task.cancel()


async def test_a_key_of_the_background_that_changes_moves_up_and_runs_once():
    runs: list[str] = []

    async def handle(key: str) -> None:
        runs.append(key)

    queue = KeyedQueue(handle, workers=1)
    for key in ("a", "b", "c"):
        queue.add(key, background=True)
    queue.add("c")
    queue.add("c", background=True)
    task = await running(queue)
    await eventually(lambda: len(runs) == 3)
    await asyncio.sleep(0)
    assert runs == ["c", "a", "b"]
    task.cancel()
