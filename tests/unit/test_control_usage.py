"""What the operator makes of reports: who is looked at, what counts now, and when totals may be written."""

from typing import Any

import pytest

from moorage.control.store import ALIAS, MODEL, Key
from moorage.control.usage import FORGET_SECONDS, SHOWN_SECONDS, SILENT_SECONDS, UsageBook
from moorage.planning.usage import GonePast, Hearing, totals
from moorage.usage import Report

QWEN = Key(MODEL, "team", "qwen")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Desk:
    """A book with a clock that a test moves, and gateways that report to it."""

    def __init__(self, **kw: Any) -> None:
        self.clock = Clock()
        self.book = UsageBook(clock=self.clock, **kw)

    def later(self, seconds: float) -> "Desk":
        self.clock.now += seconds
        return self

    def report(self, instance: str = "instance-1", **use: Any) -> set[Key]:
        return self.book.take(
            Report.model_validate({"gateway": "g", "instance": instance, "models": {"team/qwen": use}})
        )

    @property
    def hearing(self) -> Hearing:
        return self.book.of(QWEN).hearing


def test_nothing_is_concluded_before_every_gateway_has_told_everything():
    desk = Desk()
    assert desk.hearing is Hearing.LISTENING
    desk.report(inFlight=1)
    assert desk.later(19).hearing is Hearing.LISTENING
    assert desk.later(2).hearing is Hearing.LISTENING, "its first report may hold only what has changed"
    desk.report(inFlight=1)
    assert desk.hearing is Hearing.COMPLETE
    desk.report("instance-2")
    assert desk.hearing is Hearing.LISTENING, "a new one: what it has is not known yet"
    desk.report("instance-2")
    assert desk.hearing is Hearing.COMPLETE
    assert desk.later(SILENT_SECONDS).hearing is Hearing.SILENT


def test_without_gateways_it_is_silent():
    assert Desk().later(21).hearing is Hearing.SILENT


def test_all_gateways_count_while_they_live():
    desk = Desk()
    desk.report("instance-1", inFlight=2, pending=1, lastUsed=50)
    desk.report("instance-2", inFlight=3, lastUsed=70)
    assert (desk.book.of(QWEN).in_flight, desk.book.of(QWEN).pending, desk.book.of(QWEN).last_used) == (5, 1, 70)
    desk.later(SILENT_SECONDS - 1).report("instance-1", inFlight=2)
    desk.later(1)
    assert desk.book.of(QWEN).in_flight == 2, "what a dead gateway had is over"
    assert desk.book.of(QWEN).last_used == 70


@pytest.mark.parametrize(
    ("before", "then", "woken"),
    [
        ({}, {"wanted": 1, "wantedAt": 5}, True),
        ({"wanted": 1}, {"wanted": 2}, True),
        ({}, {"pending": 1}, True),
        ({"pending": 1}, {"pending": 0}, True),
        ({}, {"inFlight": 1}, False),
        ({"wanted": 1}, {"wanted": 1, "inFlight": 9}, False),
    ],
)
def test_demand_wakes_at_once_and_mere_traffic_does_not(before: dict[str, int], then: dict[str, int], woken: bool):
    desk = Desk()
    desk.report(**before)
    assert (QWEN in desk.report(**then)) is woken


def test_load_is_told_of_those_that_are_followed():
    desk = Desk(window=300)
    desk.book.follow(QWEN, True)
    assert desk.report(inFlight=8) == {QWEN}
    assert desk.book.of(QWEN).peak is None, "not known for long enough"
    desk.later(100).report(inFlight=2)
    assert desk.later(200).book.of(QWEN).peak == 8
    desk.report(inFlight=2)
    desk.later(101).report(inFlight=2)
    assert desk.book.of(QWEN).peak == 2
    desk.book.follow(QWEN, False)
    assert desk.report(inFlight=9) == set()


def test_totals_change_once_a_minute():
    desk = Desk()
    assert desk.report(ok=1) == {QWEN}, "the first use is told at once"
    assert desk.book.of(QWEN).counts[0].requests == 1
    desk.report(ok=5)
    assert desk.book.due() == []
    assert desk.book.of(QWEN).counts[0].requests == 1
    desk.later(SHOWN_SECONDS)
    assert desk.book.due() == [QWEN]
    assert desk.book.of(QWEN).counts[0].requests == 5
    assert desk.book.due() == []


def test_a_gateway_that_comes_back_after_a_long_silence_is_not_counted_twice():
    desk = Desk()
    desk.report(ok=5)
    status = totals(None, desk.book.of(QWEN))
    desk.later(FORGET_SECONDS + 1).report("instance-2", ok=1)
    status = totals(status, desk.book.of(QWEN))
    assert status is not None
    assert [c.instance for c in status.counted] == ["instance-2"]
    desk.later(SHOWN_SECONDS).report("instance-1", ok=7)
    status = totals(status, desk.book.of(QWEN))
    assert status is not None
    assert status.requests == 8


def test_a_namesake_of_a_model_that_is_gone_begins_at_zero():
    desk = Desk()
    desk.report(ok=5)
    assert desk.book.of(QWEN).counts
    desk.book.forget(QWEN)
    assert desk.report(ok=7) == {QWEN}
    status = totals(None, desk.book.of(QWEN))
    assert status is not None
    assert status.requests == 2


def test_aliases_are_counted_too():
    desk = Desk()
    key = Key(ALIAS, "team", "chat")
    report = Report.model_validate({"gateway": "g", "instance": "instance-1", "aliases": {"team/chat": {"ok": 2}}})
    assert desk.book.take(report) == {key}
    assert desk.book.of(key).counts[0].requests == 2


def test_very_many_processes_are_bounded():
    desk = Desk()
    for i in range(200):
        desk.later(1).report(f"instance-{i}", ok=1)
    desk.later(SHOWN_SECONDS)
    assert len(desk.book.of(QWEN).counts) <= 64


def test_an_alias_that_goes_past_a_target_is_looked_at_at_once_and_until_no_gateway_does():
    desk, key = Desk(), Key(ALIAS, "team", "chat")

    def told(instance: str, since: int, **past: Any) -> set[Key]:
        failed = {model: {"since": since, "why": why} for model, why in past.items()}
        aliases = {"team/chat": {"failedOver": {f"team/{model}": facts for model, facts in failed.items()}}}
        return desk.book.take(Report.model_validate({"gateway": "g", "instance": instance, "aliases": aliases}))

    assert told("instance-1", 5) == set()
    assert told("instance-1", 20, qwen="slow") == {key}
    assert told("instance-1", 20, qwen="slow") == set()
    assert told("instance-2", 10, qwen="broken") == {key}
    assert desk.book.of(key).gone_past == (GonePast("team/qwen", 10, "broken", gateways=2),)
    assert desk.book.of(key).gateways == 2
    desk.later(SILENT_SECONDS - 1)
    assert told("instance-1", 20, qwen="slow") == set()
    desk.later(1)
    assert desk.book.of(key).gone_past == (GonePast("team/qwen", 20, "slow"),), "what a dead gateway said is over"
    assert told("instance-1", 0) == {key}
    assert desk.book.of(key).gone_past == ()
