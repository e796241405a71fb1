"""Totals that never go back and count nothing twice, whoever restarts and whatever is lost on the way."""

import random
from dataclasses import replace

import pytest

from moorage.api.scaling import UsageStatus
from moorage.planning.usage import Hearing, InstanceUse, Usage, totals


def test_nothing_is_said_of_what_was_never_used():
    assert totals(None, Usage()) is None


def test_two_gateways_are_added_and_the_mean_follows():
    a = InstanceUse("a" * 8, requests=2, errors=1, total_milliseconds=300, last_used=1_790_000_000)
    b = InstanceUse("b" * 8, requests=1, cancelled=1, completion_tokens=7, total_milliseconds=100)
    found = totals(None, Usage(counts=(a, b)))
    assert found is not None
    told = found.dump()
    assert (told["requests"], told["errors"], told["cancelled"], told["completionTokens"]) == (3, 1, 1, 7)
    assert told["meanLatencyMilliseconds"] == 133
    assert told["lastUsed"].startswith("2026-")


def test_the_same_report_again_changes_nothing():
    usage = Usage(counts=(InstanceUse("a" * 8, requests=5),))
    first = totals(None, usage)
    assert totals(first, usage) == first


def test_the_last_use_never_goes_back():
    late = totals(None, Usage(counts=(InstanceUse("a" * 8, requests=1, last_used=2000),)))
    assert late is not None
    early = totals(late, Usage(counts=(InstanceUse("b" * 8, requests=1, last_used=1000),)))
    assert early is not None
    assert early.last_used == late.last_used


def test_what_is_known_from_before_a_long_silence_is_not_counted_again():
    before = totals(None, Usage(counts=(InstanceUse("a" * 8, requests=5),)))
    forgotten = totals(before, Usage(complete=True))
    assert forgotten is not None
    assert forgotten.counted == []
    back = InstanceUse("a" * 8, requests=7, base=InstanceUse("a" * 8, requests=5))
    found = totals(forgotten, Usage(counts=(back,)))
    assert found is not None
    assert found.requests == 7


@pytest.mark.parametrize("seed", range(30))
def test_totals_are_exact_over_restarts_of_gateways_and_operator(seed: int):
    """Gateways serve, die and are replaced; the operator hears some of them, forgets all in between, and adds up."""
    chance = random.Random(seed)
    gateways = {f"gateway{i}": InstanceUse(f"gateway{i}") for i in range(3)}
    heard: dict[str, InstanceUse] = {}
    told: dict[str, int] = {}
    status: UsageStatus | None = None
    lost, served, shown, born = 0, 0, 0, 3
    for _ in range(200):
        name = chance.choice(sorted(gateways))
        step = chance.random()
        if step < 0.5:
            n = chance.randint(1, 5)
            served += n
            now = gateways[name]
            gateways[name] = replace(now, requests=now.requests + n, total_milliseconds=now.total_milliseconds + 10 * n)
        elif step < 0.75:
            heard[name] = gateways[name]
            told[name] = gateways[name].requests
        elif step < 0.85:  # a gateway ends without a word; what it had not told is lost
            gone = gateways.pop(name)
            lost += gone.requests - told.get(name, 0)
            born += 1
            gateways[f"gateway{born:03}"] = InstanceUse(f"gateway{born:03}")
            status = totals(status, Usage(counts=tuple(heard.values())))  # the status was written before the restart
        elif step < 0.9:
            status = totals(status, Usage(counts=tuple(heard.values())))
            heard = {}  # the operator restarts
        else:
            status = totals(status, Usage(hearing=Hearing.COMPLETE, counts=tuple(heard.values())))
        if status is not None:
            assert status.requests >= shown, "totals go back"
            shown = status.requests
            assert status.requests <= served
    status = totals(status, Usage(counts=tuple(heard.values())))
    status = totals(status, Usage(counts=tuple(gateways.values())))
    assert status is not None
    assert status.requests == served - lost
    assert status.total_milliseconds == 10 * (served - lost)
