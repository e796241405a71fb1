"""An alias goes past a target that fails or gets slow, and comes back to it."""

import asyncio
from dataclasses import replace

from moorage.gateway.ledger import Ledger
from moorage.gateway.routes import Alias, Failover
from tests.process.gateway.support import (
    OK,
    EngineSide,
    RawEngine,
    always,
    chat,
    model,
    serving,
)
from tests.support.eventually import PATIENCE, eventually

POLICY = Failover(min_success_percent=80, max_first_token=0.5, window=600, min_requests=5, recover_after=600)
SHORT = replace(POLICY, recover_after=2.0)
GOOD = {**OK, "model": "good"}
BAD = {"error": {"message": "out of order", "type": "server_error", "param": None, "code": None}}


class Moody(RawEngine):
    """An engine that answers 500 while `ill`, and 200 otherwise."""

    def __init__(self) -> None:
        super().__init__(self._serve_all)
        self.ill = True

    async def _serve_all(self, side: EngineSide) -> None:
        while True:
            await side.request()
            await side.json(BAD if self.ill else OK, 500 if self.ill else 200)


async def statuses(bed, count: int, name: str = "chat") -> list[int]:
    return [(await bed.ask(chat(name))).status for _ in range(count)]


async def test_it_goes_past_a_target_that_fails_and_comes_back_when_it_is_well(caplog):
    caplog.set_level("INFO")
    alias = Alias("chat", (("m", 1),), ("spare",), failover=SHORT)
    async with (
        Moody() as engine,
        RawEngine(always(GOOD)) as spare,
        serving([model("m", engine), model("spare", spare)], [alias]) as bed,
    ):
        gateway = bed.gateway
        ledger = Ledger(
            "g", "team", gateway.stats, gateway.demand, gateway.proxy.fleet, gateway.proxy.health.failed_over
        )
        assert await statuses(bed, 10) == [500] * 5 + [200] * 5
        assert len(engine.requests) == 5
        assert await bed.metric("moorage_gateway_failed_over", alias="chat", model="m") == 1
        told = ledger.report().aliases["team/chat"].failed_over
        assert told["team/m"].why == "5 of 5 requests failed within 600 s"
        assert "alias chat goes past m" in caplog.text
        assert await statuses(bed, 1, "m") == [500], "who asks for the Model itself gets the Model"

        await asyncio.sleep(2.1)  # recover_after
        assert (await statuses(bed, 8)).count(500) == 5, "a trial costs no more than its seats"
        engine.ill = False
        await asyncio.sleep(2.1)
        assert await statuses(bed, 20) == [200] * 20
        assert len(engine.requests) == 5 + 1 + 5 + 20
        assert ledger.report().aliases["team/chat"].failed_over == {}
        assert "alias chat uses m again" in caplog.text


async def test_a_target_that_gets_slow_is_left_for_the_other_target():
    async def slow(side: EngineSide) -> None:
        while True:
            await side.request()
            await asyncio.sleep(0.6)
            await side.start_events()
            await side.event({"choices": [{"delta": {"content": "x"}}]})
            await side.end_events()

    alias = Alias("chat", (("m", 1), ("n", 1)), failover=POLICY)
    async with (
        RawEngine(slow) as engine,
        RawEngine(always(GOOD)) as other,
        serving([model("m", engine), model("n", other)], [alias]) as bed,
    ):
        while len(engine.requests) < 5:
            assert (await bed.ask(chat("chat", stream=True))).status == 200
        for _ in range(20):
            assert (await bed.ask(chat("chat", stream=True))).status == 200
        assert len(engine.requests) == 5


async def test_with_nobody_better_the_bad_target_serves_and_a_sleeping_stand_in_is_woken():
    alias = Alias("chat", (("m", 1),), ("spare",), failover=POLICY)
    async with Moody() as engine, RawEngine(always(GOOD)) as spare:
        models = [model("m", engine), model("spare")]
        async with serving(models, [alias]) as bed:
            assert await statuses(bed, 5) == [500] * 5
            assert bed.gateway.demand.wanted("spare").requests == 0
            assert await statuses(bed, 2) == [500] * 2, "better than nobody"
            assert bed.gateway.demand.wanted("spare").requests == 2
            bed.apply([model("m", engine), model("spare", spare)], [alias])
            assert await statuses(bed, 3) == [200] * 3


async def test_clients_that_leave_and_cold_starts_prove_nothing():
    release = asyncio.Event()

    async def script(side: EngineSide) -> None:
        while True:
            await side.request()
            await release.wait()
            await side.start_events()
            await side.end_events()

    alias = Alias("chat", (("m", 1),), ("spare",), failover=POLICY)
    async with (
        RawEngine(script) as engine,
        RawEngine(always(GOOD)) as spare,
        serving([model("m"), model("spare")], [alias]) as bed,
    ):
        held = [asyncio.create_task(bed.ask(chat("chat", stream=True))) for _ in range(10)]
        await eventually(lambda: bed.gateway.proxy.fleet.held == 10, PATIENCE)
        await asyncio.sleep(0.6)  # longer than a first token may take
        bed.apply([model("m", engine), model("spare", spare)], [alias])
        await eventually(lambda: len(engine.requests) == 10, PATIENCE)
        for _ in range(10):
            async with bed.client() as client:
                await client.post(chat("chat", stream=True))
                count = len(engine.requests)
                await eventually(lambda count=count: len(engine.requests) > count or bed.outstanding(), PATIENCE)
        release.set()
        assert [(await task).status for task in held] == [200] * 10
        assert bed.gateway.proxy.health.failed_over() == {}
        assert spare.requests == []


async def test_an_engine_that_hangs_is_left_although_its_clients_give_up_first():
    async def hangs(side: EngineSide) -> None:
        await side.request()
        await side.gone()

    alias = Alias("chat", (("m", 1),), ("spare",), failover=POLICY)
    async with (
        RawEngine(hangs) as engine,
        RawEngine(always(GOOD)) as spare,
        serving([model("m", engine), model("spare", spare)], [alias]) as bed,
    ):
        for patience in (0.0, 0.6, 0.6, 0.6, 0.6, 0.6):  # the first is too short to say anything
            async with bed.client() as client:
                count = len(engine.requests)
                await client.post(chat("chat", stream=True))
                await eventually(lambda before=count: len(engine.requests) > before, PATIENCE)
                await asyncio.sleep(patience)
            await eventually(lambda: bed.outstanding() == 0, PATIENCE)
        assert (await bed.ask(chat("chat", stream=True))).status == 200
        assert (len(engine.requests), len(spare.requests)) == (6, 1)
