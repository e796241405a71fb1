"""The gateway's reports to the operator: nothing is lost, nothing is late, and nobody waits for them."""

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from moorage.errors import InvalidSpec
from moorage.gateway.ledger import Ledger
from moorage.gateway.reporter import Operator, Pace, Reporter
from moorage.gateway.routes import Alias
from moorage.usage import ModelUse, Report
from tests.process.gateway.support import (
    OK,
    QUICK,
    Bed,
    EngineSide,
    RawEngine,
    always,
    chat,
    dead_socket,
    model,
    serving,
)
from tests.support.eventually import PATIENCE, SLACK, eventually

TOKEN = "shared-secret-1"
SOON = Pace(changed=0.1, alive=0.4, urgent=0.01, answer=PATIENCE, first_retry=0.02, last_retry=0.1)
# Only demand is reported with these, for nothing else is due within a test.
RARELY = Pace(changed=600, alive=600, urgent=0.01, first_retry=0.02, last_retry=0.1)


class MockOperator(RawEngine):
    """Takes reports as the operator does: adds up the newest entry of each name and instance."""

    def __init__(self, token: str = TOKEN) -> None:
        super().__init__(self._answer)
        self.token = token
        self.epoch = "epoch-1"
        self.reports: list[Report] = []
        self.models: dict[tuple[str, str], ModelUse] = {}
        self.refused = 0
        self.trouble: list[Callable[[EngineSide], Any]] = []  # instead of the next answers

    def restart(self) -> None:
        self.epoch += "+"
        self.models.clear()
        self.reports.clear()

    def total(self, name: str, field: str) -> int:
        return sum(getattr(use, field) for (_, model), use in self.models.items() if model == name)

    async def _answer(self, side: EngineSide) -> None:
        while True:
            arrived = await side.request()
            assert arrived.line == "POST /v1/usage HTTP/1.1"
            if arrived.headers["authorization"] != f"Bearer {self.token}":
                self.refused += 1
                await side.json({"error": "wrong token"}, 401)
            elif self.trouble:
                await self.trouble.pop(0)(side)
            else:
                report = Report.parse(arrived.data)
                self.reports.append(report)
                self.models |= {(report.instance, name): use for name, use in report.models.items()}
                await side.json({"epoch": self.epoch})


@contextlib.asynccontextmanager
async def reporting(bed: Bed, operator: RawEngine, path: Path, pace: Pace = SOON) -> AsyncIterator[Reporter]:
    token = path / "token"
    if not token.exists():
        token.write_text(TOKEN + "\n")
    gateway = bed.gateway
    ledger = Ledger("gateway-1", "team", gateway.stats, gateway.demand, gateway.proxy.fleet)
    reporter = Reporter(ledger, Operator(operator.url, token, QUICK), pace)
    gateway.demand.on_ask = reporter.hurry
    task = asyncio.create_task(reporter.run())
    try:
        yield reporter
        assert not task.done(), "it reports for ever"
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_what_was_used_is_told_by_model_and_alias(tmp_path):
    aliases = [Alias("chat", (("m", 1),)), Alias("other/chat", (("other/n", 1),))]
    async with RawEngine(always(OK)) as engine, MockOperator() as operator:
        models = [model("m", engine), model("other/n", engine)]
        async with serving(models, aliases) as bed, reporting(bed, operator, tmp_path):
            for name in ("m", "chat", "chat", "other/chat"):
                await bed.ask(chat(name))
            await eventually(lambda: operator.total("team/m", "ok") == 3, PATIENCE)
            assert operator.total("team/m", "completion_tokens") == 6
            assert operator.total("team/m", "prompt_tokens") == 9
            assert abs(operator.total("team/m", "last_used") - time.time()) < SLACK
            assert operator.total("other/n", "ok") == 1
            told = {name: use.ok for report in operator.reports for name, use in report.aliases.items()}
            assert told == {"team/chat": 2, "other/chat": 1}


async def test_a_request_that_runs_is_told_of_soon_so_that_nobody_puts_its_model_to_sleep(tmp_path):
    pace = Pace(changed=600, alive=600, glance=0.05, urgent=0.01)

    async def stalls(side: EngineSide) -> None:
        await side.request()
        await side.start_events()
        await side.gone()

    async with (
        RawEngine(stalls) as engine,
        MockOperator() as operator,
        serving([model("m", engine)]) as bed,
        reporting(bed, operator, tmp_path, pace),
        bed.client() as client,
    ):
        await eventually(lambda: operator.reports, PATIENCE)
        await client.post(chat(stream=True))
        await eventually(lambda: operator.total("team/m", "in_flight") == 1, PATIENCE)
        count = len(operator.reports)
        await client.post(chat(stream=True))  # waits behind the other
        await asyncio.sleep(0.3)
        assert len(operator.reports) == count, "who is known to be busy is no news"


async def test_only_what_changed_is_told_and_silence_is_broken_now_and_then(tmp_path):
    async with RawEngine(always(OK)) as engine, MockOperator() as operator:
        models = [model("m", engine), model("n", engine)]
        async with serving(models) as bed, reporting(bed, operator, tmp_path):
            await bed.ask(chat("m"))
            await eventually(lambda: operator.total("team/m", "ok") == 1, PATIENCE)
            operator.reports.clear()
            await bed.ask(chat("n"))
            await eventually(lambda: operator.total("team/n", "ok") == 1, PATIENCE)
            assert [name for report in operator.reports for name in report.models] == ["team/n"]
            operator.reports.clear()
            began = time.monotonic()
            await eventually(lambda: len(operator.reports) >= 2, PATIENCE, "two signs of life")
            assert not any(report.models or report.aliases for report in operator.reports)
            assert time.monotonic() - began > SOON.alive, "no oftener than that"


async def test_demand_for_a_sleeper_is_told_at_once(tmp_path):
    async with (
        RawEngine(always(OK)) as engine,
        MockOperator() as operator,
        serving([model("m")]) as bed,
        reporting(bed, operator, tmp_path, RARELY),
    ):
        await eventually(lambda: operator.reports, PATIENCE, "the first report")
        began = time.monotonic()
        asked = asyncio.create_task(bed.ask(chat("m")))
        await eventually(lambda: operator.total("team/m", "wanted") == 1, PATIENCE, every=0.002)
        assert time.monotonic() - began < SLACK, "and not when the next report is due"
        assert operator.total("team/m", "pending") == 1
        assert abs(operator.total("team/m", "wanted_at") - time.time()) < SLACK
        bed.apply([model("m", engine)])
        assert (await asked).status == 200


async def test_requests_under_way_are_told_and_their_end_too(tmp_path):
    release = asyncio.Event()

    async def script(side: EngineSide) -> None:
        await side.request()
        await release.wait()
        await side.json(OK)

    async with (
        RawEngine(script) as engine,
        MockOperator() as operator,
        serving([model("m", engine)]) as bed,
        reporting(bed, operator, tmp_path),
    ):
        asked = asyncio.create_task(bed.ask(chat("m")))
        await eventually(lambda: operator.total("team/m", "in_flight") == 1, PATIENCE)
        release.set()
        await asked
        await eventually(lambda: operator.total("team/m", "in_flight") == 0, PATIENCE)


async def drop(side: EngineSide) -> None:
    side.reset()
    raise ConnectionResetError


async def fail(side: EngineSide) -> None:
    await side.json({"error": "not now"}, 503)


async def nonsense(side: EngineSide) -> None:
    await side.json({"weather": "fine"})


async def stall(side: EngineSide) -> None:
    await asyncio.sleep(PATIENCE)


async def half(side: EngineSide) -> None:
    await side.send(b'HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"epoch"')
    raise ConnectionResetError


@pytest.mark.parametrize("trouble", [drop, fail, nonsense, stall, half])
async def test_a_report_that_is_lost_is_made_good_by_the_next(trouble, tmp_path, caplog):
    caplog.set_level("INFO")
    async with RawEngine(always(OK)) as engine, MockOperator() as operator:
        operator.trouble = [trouble] * 3
        pace = replace(SOON, answer=1.0)
        async with serving([model("m", engine)]) as bed, reporting(bed, operator, tmp_path, pace):
            await bed.ask(chat("m"))
            await eventually(lambda: operator.total("team/m", "ok") == 1, PATIENCE)
            assert operator.trouble == []
    said = [r for r in caplog.records if r.name.endswith("reporter")]
    assert [r.levelno for r in said] == [logging.WARNING, logging.INFO], "trouble is told once, and its end"


async def test_an_operator_that_starts_anew_is_told_everything(tmp_path):
    async with RawEngine(always(OK)) as engine, MockOperator() as operator:
        models = [model("m", engine), model("n", engine)]
        async with serving(models, [Alias("chat", (("m", 1),))]) as bed, reporting(bed, operator, tmp_path):
            await bed.ask(chat("chat"))
            await eventually(lambda: operator.total("team/m", "ok") == 1, PATIENCE)
            operator.restart()
            await bed.ask(chat("n"))
            await eventually(lambda: operator.total("team/m", "ok") == operator.total("team/n", "ok") == 1, PATIENCE)
            assert {name for report in operator.reports for name in report.aliases} == {"team/chat"}


async def test_an_operator_that_is_away_delays_nobody_and_hears_all_of_it_later(tmp_path):
    operator = MockOperator()
    async with RawEngine(always(OK)) as engine, dead_socket() as taken:
        operator.url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        async with serving([model("m", engine), model("s")]) as bed, reporting(bed, operator, tmp_path):
            began = time.monotonic()
            asked = asyncio.create_task(bed.ask(chat("s")))
            for _ in range(20):
                assert (await bed.ask(chat("m"))).status == 200
            assert time.monotonic() - began < SLACK
            operator._server = await asyncio.start_server(operator._serve, sock=taken)
            await eventually(lambda: operator.total("team/m", "ok") == 20, PATIENCE)
            assert operator.total("team/s", "wanted") == 1
            bed.apply([model("m", engine), model("s", engine)])
            await asked
        await operator.__aexit__()


async def test_a_gateway_that_starts_anew_counts_from_zero_under_another_instance(tmp_path):
    async with RawEngine(always(OK)) as engine, MockOperator() as operator:
        for _ in range(2):
            async with serving([model("m", engine)]) as bed, reporting(bed, operator, tmp_path, RARELY) as reporter:
                await bed.ask(chat("m"))
                await reporter.finish(PATIENCE)
        assert operator.total("team/m", "ok") == 2
        assert len({report.instance for report in operator.reports}) == 2
        assert {report.gateway for report in operator.reports} == {"gateway-1"}


async def test_a_defect_does_not_end_the_reports(tmp_path, caplog, monkeypatch):
    async with (
        RawEngine(always(OK)) as engine,
        MockOperator() as operator,
        serving([model("m", engine)]) as bed,
        reporting(bed, operator, tmp_path) as reporter,
    ):
        await eventually(lambda: operator.reports, PATIENCE)
        with monkeypatch.context() as broken:
            broken.setattr(reporter._ledger, "report", lambda: 1 / 0)
            await eventually(lambda: "a defect" in caplog.text, PATIENCE)
        await bed.ask(chat("m"))
        await eventually(lambda: operator.total("team/m", "ok") == 1, PATIENCE)


async def test_a_wrong_token_is_told_once_and_a_new_one_is_read(tmp_path, caplog):
    async with MockOperator("another") as operator, serving() as bed, reporting(bed, operator, tmp_path):
        await eventually(lambda: operator.refused >= 3, PATIENCE)
        (tmp_path / "new").write_text("another")
        (tmp_path / "new").rename(tmp_path / "token")
        await eventually(lambda: operator.reports, PATIENCE)
    assert caplog.text.count("401") == 1
    assert TOKEN not in caplog.text
    assert "another" not in caplog.text


@pytest.mark.parametrize("text", ["", "two\r\nlines", "\N{SNOWMAN}"])
async def test_what_is_no_token_is_never_sent(text, tmp_path, caplog):
    (tmp_path / "token").write_text(text)
    async with MockOperator() as operator, serving() as bed, reporting(bed, operator, tmp_path):
        await eventually(lambda: "holds no token" in caplog.text, PATIENCE)
        assert operator.requests == []


async def test_a_missing_token_file_is_waited_for(tmp_path, caplog):
    async with MockOperator() as operator, serving() as bed, reporting(bed, operator, tmp_path) as reporter:
        (tmp_path / "token").unlink()
        reporter.hurry()
        await eventually(lambda: "cannot be read" in caplog.text, PATIENCE)
        count = len(operator.reports)
        (tmp_path / "token").write_text(TOKEN)
        await eventually(lambda: len(operator.reports) > count, PATIENCE)


async def test_the_last_words_do_not_wait_for_ever(tmp_path, caplog):
    async with MockOperator() as operator, serving() as bed, reporting(bed, operator, tmp_path, RARELY) as reporter:
        await eventually(lambda: operator.reports, PATIENCE)
        operator.trouble = [stall]
        began = time.monotonic()
        await reporter.finish(0.2)
        assert time.monotonic() - began < SLACK
        assert "last usage report" in caplog.text


@pytest.mark.parametrize("url", ["operator:8080", "https://operator", "http://", "http://operator/path", "http://a@b"])
def test_what_is_no_address_is_refused(url, tmp_path):
    with pytest.raises(InvalidSpec, match="not http://HOST"):
        Operator(url, tmp_path / "token", QUICK)


async def test_ten_thousand_idle_models_are_no_work():
    async with serving([model(f"m{n}") for n in range(10_000)]) as bed:
        gateway = bed.gateway
        ledger = Ledger("g", "team", gateway.stats, gateway.demand, gateway.proxy.fleet)
        for n in range(10_000):
            gateway.stats.route("", f"m{n}")
        ledger.report()
        began = time.process_time()
        assert json.loads(ledger.report().dump()).keys() == {"gateway", "instance"}
        assert time.process_time() - began < 0.1
