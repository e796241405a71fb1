"""The reader of agents against agents on real sockets: whom it believes, what it tells, and what never stops it."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import orjson
import pytest
from aiohttp import web

from moorage.control import agents
from moorage.control.agents import AgentReader, Listeners
from moorage.control.store import MODEL, Key
from moorage.placement.gpu_report import Gpu, GpuReport, Holder, to_json
from tests.support.eventually import eventually

KEY = Key(MODEL, "ns", "tiny")
WHOSE = Holder("ns", "tiny-1", "engine")


def report(used: int = 9000, total: int = 24_564, age_ms: int = 100) -> GpuReport:
    return GpuReport(
        "liar", age_ms, "580", (Gpu(0, "GPU-1", 0, "L4", total, 460, used, total - 460 - used, pods=(WHOSE,)),)
    )


@dataclass
class Told:
    totals: int = 0
    used: list[Any] = field(default_factory=list)
    woken: list[Key] = field(default_factory=list)


class FakeAgent:
    """One socket that answers as the agent of every node."""

    def __init__(self) -> None:
        self.answer: bytes = orjson.dumps(to_json(report()))
        self.status, self.hang, self.asked = 200, 0.0, 0

    async def handle(self, _request: web.Request) -> web.Response:
        self.asked += 1
        await asyncio.sleep(self.hang)
        return web.Response(body=self.answer, status=self.status)

    def say(self, what: GpuReport) -> None:
        self.answer = orjson.dumps(to_json(what))


@dataclass
class Bed:
    agent: FakeAgent
    reader: AgentReader
    told: Told
    pods: list[dict[str, Any]]

    async def read(self) -> None:
        for node in self.reader._nodes.values():
            node.tried = 0.0
        await self.reader.settle(10)


@pytest.fixture
async def bed() -> AsyncIterator[Bed]:
    agent, told = FakeAgent(), Told()
    app = web.Application()
    app.add_routes([web.get("/v1/gpus", agent.handle)])
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    pods = [{"node": "gpu-1", "ip": "127.0.0.1"}]

    def totals() -> None:
        told.totals += 1

    reader = AgentReader(lambda: pods, Listeners(totals, told.used.append, told.woken.append), port=port)
    yield Bed(agent, reader, told, pods)
    await reader.close()
    await runner.cleanup()


async def test_an_agent_is_believed_about_the_node_its_pod_runs_on(bed: Bed):
    await bed.read()
    assert set(bed.reader.reports()) == {"gpu-1"}, "and not about the node that it names"
    assert bed.reader.totals() == {"gpu-1": (24_564,)}
    assert bed.told.totals == 1
    assert bed.told.used == [("ns", "tiny-1")]


async def test_only_news_are_told(bed: Bed):
    await bed.read()
    bed.agent.say(report(used=9010))
    await bed.read()
    assert (bed.told.totals, len(bed.told.used)) == (1, 1)
    bed.agent.say(report(used=9100))
    await bed.read()
    assert (bed.told.totals, len(bed.told.used)) == (1, 2)
    bed.agent.say(report(used=9100, total=16_000))
    await bed.read()
    assert bed.told.totals == 2


@pytest.mark.parametrize("answer", [b"", b"{", b"[]", b'{"version": 9}', b" " * 100_000, b'{"version": 1, "gpus": 7}'])
async def test_nonsense_changes_nothing(bed: Bed, answer: bytes):
    await bed.read()
    bed.agent.answer = answer
    await bed.read()
    assert bed.reader.totals() == {"gpu-1": (24_564,)}
    bed.agent.status = 500
    await bed.read()
    assert bed.reader.reports()["gpu-1"].gpus


async def test_a_silent_agent_holds_nobody_up_and_its_report_grows_old(bed: Bed, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(agents, "TIMEOUT_SECONDS", 0.2)
    await bed.read()
    bed.agent.hang = 30.0
    bed.reader._nodes["gpu-1"].received -= 40
    bed.reader._reports = None
    assert bed.reader.reports()["gpu-1"].age_ms >= 40_000
    bed.pods.append({"node": "gpu-2", "ip": "192.0.2.1"})  # TEST-NET: nobody answers, ever
    await bed.reader.settle(0.5)
    assert "gpu-2" not in bed.reader.reports()


async def test_a_node_whose_agent_is_gone_for_long_counts_as_one_without(bed: Bed):
    await bed.read()
    bed.pods.clear()
    bed.reader.poll()
    assert bed.reader.totals(), "a restart of the agent is not worth a word"
    node = bed.reader._nodes["gpu-1"]
    node.tried = node.received = node.received - agents.FORGET_SECONDS - 1
    bed.reader.poll()
    assert bed.reader.totals() == {}
    assert bed.told.totals == 2


async def test_whoever_waits_has_the_agent_read_every_second_and_is_woken(bed: Bed, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(agents, "EAGER_SECONDS", 0.1)
    running = asyncio.create_task(bed.reader.run())
    await eventually(lambda: bed.agent.asked == 1)
    assert bed.told.woken == []
    bed.reader.wait(KEY, ("gpu-1",))
    await eventually(lambda: len(bed.told.woken) >= 3)
    assert bed.told.woken[0] == KEY
    assert bed.reader.waited(KEY) > 0
    since = bed.reader._waiting[KEY][1]
    bed.reader.wait(KEY, ("gpu-1", "gpu-2"))
    assert bed.reader._waiting[KEY][1] == since, "the time goes on counting"
    bed.reader.forget(KEY)
    assert bed.reader.waited(KEY) == 0
    running.cancel()
