"""Runs that must not end in a number, and runs that must end at all."""

import asyncio
import time

import pytest

from moorage.bench.settings import Load, Profile
from moorage.bench.verdict import BenchError, Reason
from tests.process.bench.support import OUTPUT_TOKENS, answers_of, fast, run
from tests.support.eventually import PATIENCE, SLACK, eventually

# Requests 1 to 3 or so find the prompt's length; a fault this late hits the measurement alone.
LATE = 15


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr("moorage.bench.run.FIRST_CONTACT_PAUSE", 0.01)


async def refusal(engine, **changes):
    with pytest.raises(BenchError) as refused:
        async with asyncio.timeout(PATIENCE):
            await run(engine, **changes)
    return refused.value


async def test_too_few_samples_are_refused_before_anything_is_sent():
    async with fast() as engine:
        error = await refusal(engine, requests=19)
    assert error.reason is Reason.TOO_FEW_SAMPLES
    assert engine.requests == []


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("500", "HTTP 500: asked to fail"),
        ("429", "HTTP 429"),
        ("404", "HTTP 404"),
        ("reset", "the connection broke|closed the connection"),
        ("cut", "the connection broke|closed the connection"),
        ("error", "the server broke off: the engine broke"),
        ("garbage", "not JSON"),
        ("textless", "no chunk bore any text"),
        ("json", "not a stream"),
        ("stall", "no complete answer within 2 s"),
        ("silent", "no complete answer within 2 s"),
    ],
)
async def test_a_failure_in_fifty_is_too_many(fault, says):
    async with fast(fault=fault, fault_from=LATE, fault_every=1000, fault_chunks=5) as engine:
        error = await refusal(engine, requests=50, request_timeout=2.0)
    assert error.reason is Reason.TOO_MANY_FAILURES
    assert "at concurrency 4 1 of " in error.message
    with pytest.raises(AssertionError, match=says):
        raise AssertionError(error.message)


async def test_a_failure_in_a_hundred_is_published_as_such():
    async with fast(fault="500", fault_from=LATE, fault_every=1000) as engine:
        report = await run(engine, requests=100)
    assert (report.rows[0].total, report.rows[0].failed) == (100, 1)


async def test_a_hopeless_run_stops_at_once():
    async with fast(fault="500", fault_from=LATE) as engine:
        await refusal(engine, requests=1000)
    # 11 failures of 1000 are too many; 4 streams are under way.
    assert len(engine.requests) < LATE + 11 + 4


@pytest.mark.parametrize(
    ("actual", "refused"), [(40, False), (42, False), (38, False), (43, True), (37, True), (400, True)]
)
async def test_servers_that_ignore_max_tokens_are_refused(actual, refused):
    async with fast(output_tokens=actual) as engine:
        if not refused:
            report = await run(engine)
            assert report.rows[0].output_tokens_mean == actual
            return
        error = await refusal(engine)
    assert error.reason is Reason.OUTPUT_LENGTH_OFF
    assert f"{actual}.0 tokens on average" in error.message
    assert f"{OUTPUT_TOKENS} were asked for" in error.message


async def test_a_server_without_usage_is_refused_after_one_request():
    async with fast(usage="none") as engine:
        error = await refusal(engine)
    assert error.reason is Reason.NO_USAGE
    assert len(engine.requests) == 1


@pytest.mark.parametrize(
    ("behaviour", "says"),
    [
        ({"fault": "404"}, "HTTP 404: asked to fail"),
        ({"fault": "401"}, "HTTP 401"),
        ({"fault": "json"}, "not a stream"),
        ({"context": 32}, "exceeds the context size"),
    ],
)
async def test_a_rejected_request_is_told_in_the_servers_words(behaviour, says):
    async with fast(**behaviour) as engine:
        error = await refusal(engine)
    assert error.reason is Reason.REQUEST_REJECTED
    assert says in error.message


async def test_nobody_at_the_address():
    async with fast() as engine:
        url = engine.url
    error = await refusal(url)
    assert error.reason is Reason.UNREACHABLE
    assert "refused" in error.message.lower()


async def test_a_name_that_does_not_resolve():
    error = await refusal("http://no-such-host.invalid:8080")
    assert error.reason is Reason.UNREACHABLE
    assert "no-such-host.invalid" in error.message


@pytest.mark.parametrize("fault", ["503", "reset", "cut"])
async def test_a_server_that_never_answers_well_is_unreachable(fault):
    async with fast(fault=fault) as engine:
        error = await refusal(engine)
    assert error.reason is Reason.UNREACHABLE
    assert len(engine.requests) == 5


async def test_a_server_that_accepts_and_says_nothing_is_given_one_time_out():
    async with fast(fault="silent") as engine:
        error = await refusal(engine, request_timeout=0.3)
    assert error.reason is Reason.UNREACHABLE
    assert "0.3 s" in error.message
    assert len(engine.requests) == 1


@pytest.mark.parametrize(
    "changes",
    [{"loads": (Load(concurrency=4),)}, {"loads": (Load(rate=50.0),), "profile": Profile.RATE}],
    ids=["closed", "rate"],
)
async def test_the_time_limit_holds_and_says_how_far_the_run_was(changes):
    async with fast(ttft=0.2) as engine:
        start = time.monotonic()
        error = await refusal(engine, timeout=2.0, requests=5000, **changes)
        took = time.monotonic() - start
    assert error.reason is Reason.TIMED_OUT
    assert "of 5000 requests done" in error.message
    assert took < SLACK
    assert answers_of(engine.requests)


async def test_streams_under_way_are_dropped_when_the_time_is_up():
    async with fast(fault="stall", fault_from=LATE, fault_chunks=3) as engine:
        await refusal(engine, timeout=1.5, request_timeout=60, requests=50)
        await eventually(lambda: all(r.disconnected for r in engine.requests if not r.end_ns))


async def test_an_endless_answer_ends_with_the_requests_time():
    async with fast(output_tokens=10_000_000, ttft=0.01, tpot=0.001) as engine:
        error = await refusal(engine, request_timeout=0.5)
    assert error.reason is Reason.UNREACHABLE
    assert "within 0.5 s" in error.message
