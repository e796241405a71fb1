"""Failover from end to end: real gateways whose engines fail or get slow, and an operator that tells of it."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from moorage.kube.resources import EVENTS, MODEL_ALIASES
from tests.conftest import TestCluster
from tests.process.gateway.support import OK, EngineSide, RawEngine, always, chat
from tests.process.gateway.support import Bed as Gate
from tests.support.bed import Bed, condition
from tests.support.eventually import eventually
from tests.support.reports import Reports

pytestmark = pytest.mark.api

ILL = {"error": {"message": "out of order", "type": "server_error", "param": None, "code": None}}
STAND_IN = {**OK, "model": "spare"}
WELL = "every target takes its share of the requests"
AWAY_SECONDS = 5
POLICY = {"window": "10m", "minRequests": 5, "recoverAfter": f"{AWAY_SECONDS}s"}


class Moody(RawEngine):
    """An engine that answers 500 while `ill`, and begins its streams after `pause` seconds."""

    def __init__(self) -> None:
        super().__init__(self._serve_all)
        self.ill, self.pause = False, 0.0

    async def _serve_all(self, side: EngineSide) -> None:
        while True:
            request = await side.request()
            if self.ill:
                await side.json(ILL, 500)
            elif not request.body.get("stream"):
                await side.json({**OK, "model": "m"})
            else:
                await asyncio.sleep(self.pause)
                await side.start_events()
                await side.event({"model": "m", "choices": [{"delta": {"content": "x"}}]})
                await side.end_events()


@pytest.fixture
async def bed(kwok_cluster: TestCluster) -> AsyncIterator[Bed]:
    async with Bed.made(kwok_cluster.kubeconfig) as made:
        await made.ready_download()
        yield made


@pytest.fixture
def reports(kwok_cluster: TestCluster, tmp_path: Path, bed: Bed) -> Reports:
    return Reports(kwok_cluster.kubeconfig, tmp_path, bed.namespace)


async def chat_on(bed: Bed, *gates: Gate, spare: bool = True, **failover: Any) -> None:
    """`chat` points at m, with spare as its fallback; they serve, and every gateway knows."""
    names = ("m", "spare") if spare else ("m",)
    for name in names:
        await bed.model(name)
    legs = [{"modelRef": {"name": name}} for name in names]
    await bed.create("ModelAlias", "chat", {"targets": legs[:1], "fallbacks": legs[1:], "failover": POLICY | failover})
    for name in names:
        await bed.until_condition(name, "Ready", "True")
    for gate in gates:
        await eventually(lambda gate=gate: _knows(gate, names), 60, "the alias and its servers in the gateway's table")
    await says(bed, "False", WELL)


def _knows(gate: Gate, names: tuple[str, ...]) -> bool:
    snapshot = gate.gateway.proxy.snapshot
    return "chat" in snapshot.routes and all(n in snapshot.models and snapshot.models[n].endpoints for n in names)


async def answers(gate: Gate, count: int, *, stream: bool = False) -> Counter[str]:
    """Who answered so many requests for the alias: m, spare, or `failed`."""
    found: Counter[str] = Counter()
    for _ in range(count):
        reply = await gate.ask(chat("chat", stream=stream))
        if reply.status != 200:
            found["failed"] += 1
        else:
            found[(reply.events[0] if reply.events else reply.json)["model"]] += 1
    return found


async def says(bed: Bed, status: str, message: str) -> dict[str, Any]:
    """The alias as soon as its condition FailedOver says this."""

    def good(obj: dict[str, Any]) -> bool:
        found = condition(obj, "FailedOver")
        return found.get("status") == status and found.get("message") == message

    return await bed.until(MODEL_ALIASES, "chat", good)


async def told(bed: Bed, reason: str) -> list[dict[str, Any]]:
    found, _ = await bed.kube.list(EVENTS, bed.namespace)
    return [e for e in found if e["involvedObject"]["name"] == "chat" and e["reason"] == reason]


async def test_an_alias_leaves_a_target_that_fails_says_so_and_comes_back(
    bed: Bed, reports: Reports, kwok_cluster: TestCluster
):
    def columns() -> str:
        return kwok_cluster.kubectl("-n", bed.namespace, "get", "modelaliases", "chat", "--no-headers").stdout

    async with Moody() as engine, RawEngine(always(STAND_IN)) as spare, AsyncExitStack() as stack:
        gate = await stack.enter_async_context(reports.gateway({"m": engine, "spare": spare}))
        with reports.operator():
            await chat_on(bed, gate, minSuccessPercent=90)
            assert await answers(gate, 5) == {"m": 5}
            engine.ill = True
            assert await answers(gate, 10) == {"failed": 1, "spare": 9}, "5 of 6 are fewer than 90 %"
            why = "requests go past m: 1 of 6 requests failed within 600 s"
            await says(bed, "True", why)
            assert why in columns()
            [event] = await bed.eventually(lambda: told(bed, "FailedOver"))
            assert (event["type"], event["message"]) == ("Warning", why)
        left = condition(await bed.get(MODEL_ALIASES, "chat"), "FailedOver")
        with reports.operator():  # one that knows nothing yet
            change = {"spec": {"request": {"defaults": {"max_tokens": 7}}}}
            patched = await bed.kube.merge_patch(MODEL_ALIASES, bed.namespace, "chat", change)
            seen = lambda a: a["status"]["observedGeneration"] == patched["metadata"]["generation"]  # noqa: E731
            now = condition(await bed.until(MODEL_ALIASES, "chat", seen), "FailedOver")
            assert (now["status"], now["lastTransitionTime"]) == ("True", left["lastTransitionTime"])
            assert await told(bed, "Recovered") == [], "nothing is well because a new operator has heard nothing"

            await asyncio.sleep(AWAY_SECONDS)
            began = time.monotonic()
            failed = (await answers(gate, 10))["failed"]
            trials = 1 + int((time.monotonic() - began) / AWAY_SECONDS)
            assert failed <= 5 * trials, "a trial costs no more than its seats"
            engine.ill = False
            health = gate.gateway.proxy.health

            async def back() -> bool:
                return (await answers(gate, 1))["m"] == 1 and health.failed_over() == {}

            await bed.eventually(back)
            assert await answers(gate, 5) == {"m": 5}
            await says(bed, "False", WELL)
            await bed.eventually(lambda: told(bed, "Recovered"))
            assert "m, spare answer" in columns()


async def test_late_first_tokens_count_too_and_of_two_gateways_each_is_heard(bed: Bed, reports: Reports):
    async with Moody() as engine, RawEngine(always(STAND_IN)) as spare, AsyncExitStack() as stack:
        engines = {"m": engine, "spare": spare}
        one, two = [await stack.enter_async_context(reports.gateway(engines)) for _ in range(2)]
        with reports.operator():
            await chat_on(bed, one, two, maxTtftMilliseconds=300, recoverAfter="10m")
            engine.pause = 0.5
            assert await answers(one, 7, stream=True) == {"m": 5, "spare": 2}
            why = "go past m: 5 of 5 streams began later than 300 ms within 600 s"
            await says(bed, "True", f"requests through 1 of 2 gateways {why}")
            assert await answers(two, 7, stream=True) == {"m": 5, "spare": 2}
            await says(bed, "True", f"requests {why}")
            assert not await told(bed, "Recovered")


async def test_with_nobody_to_stand_in_the_target_goes_on_and_the_alias_says_so(bed: Bed, reports: Reports):
    async with Moody() as engine, reports.gateway({"m": engine}) as gate:
        with reports.operator():
            await chat_on(bed, gate, spare=False, minSuccessPercent=90)
            engine.ill = True
            assert await answers(gate, 8) == {"failed": 8}
            await says(bed, "True", "m does badly, and nobody else is ready: 5 of 5 requests failed within 600 s")
