"""What the runner sends: how much, when, and that no cache can help."""

import itertools

import pytest

from moorage.bench.load import arrivals
from moorage.bench.settings import Load, Profile, Slo
from moorage.bench.verdict import Reason
from tests.process.bench.support import OUTPUT_TOKENS, answers_of, fast, measured, run
from tests.support.mockengine import MockEngine, Request


def most_at_once(requests: list[Request]) -> int:
    edges = sorted([(r.received_ns, 1) for r in requests] + [(r.end_ns, -1) for r in requests])
    return max(itertools.accumulate(step for _, step in edges))


async def test_a_row_per_concurrency_with_as_many_requests_as_asked_for():
    async with fast(ttft=0.02) as engine:
        report = await run(engine, loads=(Load(concurrency=1), Load(concurrency=6)), requests=24, warmup=3)
    assert [(row.load.concurrency, row.total) for row in report.rows] == [(1, 24), (6, 24)]
    sent = answers_of(engine.requests)
    assert len(sent) == 2 * (3 + 24)
    assert most_at_once(sent[3:27]) == 1
    assert most_at_once(sent[30:]) == 6


async def test_the_warm_up_is_excluded():
    async with fast(fault="503", fault_from=1, fault_every=1) as engine:
        with pytest.raises(Exception, match="503"):
            await run(engine, requests=20)
    async with fast() as engine:
        report = await run(engine, requests=20, warmup=10, loads=(Load(concurrency=2),))
        assert report.rows[0].total == 20
        assert len(answers_of(engine.requests)) == 30


async def test_arrivals_come_by_the_seeded_schedule_though_the_server_is_slow():
    due, late = arrivals(30, 40.0, seed=7), []
    for _ in range(8):  # a machine that is held up sends late, one by one
        async with fast(ttft=0.4) as engine:
            report = await run(engine, profile=Profile.RATE, loads=(Load(rate=40.0),), requests=30, seed=7)
        sent = measured(engine.requests, 30)
        came = [(r.received_ns - sent[0].received_ns) / 1e9 for r in sent]
        late.append(sorted(abs(a - b) for a, b in zip(came, due, strict=True))[len(due) // 2])
        assert most_at_once(sent) > 8
        assert report.rows[0].failed == 0
        if late[-1] < 0.02:
            return
    pytest.fail(f"half of the requests came later than {late} s after they were due")


@pytest.mark.parametrize(
    ("bytes_per_token", "template", "wanted"),
    [(1.0, 0, 64), (1.0, 30, 64), (4.3, 0, 512), (4.3, 40, 512), (6.1, 9, 4096)],
)
async def test_prompts_get_the_length_asked_for_in_the_servers_own_tokens(bytes_per_token, template, wanted):
    async with fast(bytes_per_token=bytes_per_token, template_tokens=template) as engine:
        report = await run(engine, input_tokens=wanted)
    assert report.rows[0].input_tokens_mean == pytest.approx(wanted, rel=0.02, abs=2)
    assert max(r.prompt_tokens for r in engine.requests) <= wanted * 1.03 + 2


async def test_a_length_below_the_templates_own_is_told_as_it_is():
    async with fast(template_tokens=100) as engine:
        report = await run(engine, input_tokens=50)
    assert report.rows[0].input_tokens_mean == 101


async def test_no_prompt_is_sent_twice_not_even_by_the_next_run():
    async with fast() as engine:
        await run(engine)
        await run(engine)
    heads = [r.body["messages"][0]["content"][:24] for r in engine.requests]
    assert len(set(heads)) == len(heads)


async def test_the_request_says_what_both_engines_understand():
    async with fast() as engine:
        await run(engine, api_key="")
    body = engine.requests[-1].body
    assert body == {
        "model": "mock",
        "messages": [{"role": "user", "content": body["messages"][0]["content"]}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": OUTPUT_TOKENS,
        "min_tokens": OUTPUT_TOKENS,
        "ignore_eos": True,
    }


async def test_goodput_counts_those_that_kept_the_limits():
    """Two slots for four streams: the first two answers wait for nobody, all later ones for one answer's time."""
    async with fast(ttft=0.1, tpot=0.0005, slots=2) as engine:
        strict = await run(engine, requests=20, slo=Slo(ttft_ms=160), warmup=0)
        loose = await run(engine, requests=20, slo=Slo(ttft_ms=2000, tpot_ms=500), warmup=0)
    assert strict.rows[0].goodput.permille < 300
    assert loose.rows[0].goodput.permille == 1000
    assert loose.rows[0].goodput.requests_per_second_milli == loose.rows[0].requests_per_second_milli


@pytest.mark.parametrize(
    ("flavour", "name", "version"),
    [("llama.cpp", "llama.cpp", "b1-mock"), ("vllm", "vllm", "0.0.1-mock"), ("none", "mock", "")],
)
async def test_the_engine_says_who_it_is(flavour, name, version):
    async with fast(flavour=flavour) as engine:
        report = await run(engine)
    assert (report.engine.name, report.engine.version) == (name, version)


async def test_connections_are_kept_where_the_server_keeps_them():
    async with fast() as engine:
        await run(engine, loads=(Load(concurrency=3),), requests=60)
        assert engine.connections == 3


@pytest.mark.parametrize("behaviour", [{"closes": True}, {"chunked": False}])
async def test_a_server_that_closes_after_each_answer_is_no_failure(behaviour):
    async with fast(**behaviour) as engine:
        report = await run(engine, loads=(Load(concurrency=3),), requests=60)
        assert engine.connections >= len(engine.requests)
    assert report.rows[0].failed == 0


async def test_connections_are_given_up_before_an_idle_server_does(monkeypatch):
    """At 4 requests a second pauses are longer than we trust an idle connection here."""
    monkeypatch.setattr("moorage.bench.connection.IDLE_LIMIT", 0.1)
    async with fast() as engine:
        await run(engine, profile=Profile.RATE, loads=(Load(rate=4.0),), requests=20)
        assert 8 < engine.connections < len(engine.requests)


async def test_a_name_with_several_addresses_is_asked_at_each(monkeypatch):
    """`localhost` is often ::1 first, where an IPv4 server does not listen."""
    lookups = []

    async def two_addresses(self, host, port, **_):
        lookups.append(host)
        return [(0, 0, 0, "", ("::1", port)), (0, 0, 0, "", ("127.0.0.1", port))]

    monkeypatch.setattr("asyncio.base_events.BaseEventLoop.getaddrinfo", two_addresses)
    async with fast() as engine:
        report = await run(engine.url.replace("127.0.0.1", "several.example"))
    assert report.rows[0].failed == 0
    assert [host for host in lookups if host == "several.example"] == ["several.example"]


async def test_a_server_that_is_still_loading_is_given_a_moment(monkeypatch):
    monkeypatch.setattr("moorage.bench.run.FIRST_CONTACT_PAUSE", 0.01)
    async with fast() as engine:
        assert isinstance(engine, MockEngine)
        first, engine.respond = engine.respond, None

        async def loading_twice(wire, method, path, body, seen=[]):  # noqa: B006
            seen.append(path)
            if len(seen) <= 2:
                return wire.whole(503, {"error": {"message": "Loading model"}})
            return await first(wire, method, path, body)

        engine.respond = loading_twice
        report = await run(engine)
    assert report.rows[0].failed == 0
    assert Reason.UNREACHABLE not in str(report)
