"""The runner against a mock that knows what it really did: every number within 2 %."""

from dataclasses import dataclass

import pytest

from moorage.bench.stats import QUANTILES, percentile
from tests.process.bench.support import OUTPUT_TOKENS, bench, measured
from tests.support.mockengine import Behaviour, Request, fetch_requests, mock_process

TOLERANCE = 0.02
REQUESTS = 20
# Another process that takes the core away between two clocks only ever makes things look worse, and not the same ones
# each time; a number that is counted wrongly is wrong in every attempt.
ATTEMPTS = 8


@dataclass(frozen=True)
class Case:
    behaviour: Behaviour
    options: tuple[object, ...] = ("--profile", "latency")


CASES = {
    "a token a chunk": Case(Behaviour(ttft=0.05, tpot=0.005)),
    "slow first, fast then, four tokens a chunk": Case(Behaviour(ttft=0.15, tpot=0.002, tokens_per_chunk=4)),
    "chunks without text": Case(Behaviour(ttft=0.06, tpot=0.004, empty_every=2, split=True, crlf=True)),
    "reasoning, no role chunk": Case(Behaviour(ttft=0.06, tpot=0.004, text_key="reasoning_content", role_chunk=False)),
    "usage in every chunk, no [DONE]": Case(Behaviour(ttft=0.08, tpot=0.003, usage="every", done=False)),
    "a body without length": Case(Behaviour(ttft=0.08, tpot=0.003, chunked=False)),
    "a body that lingers": Case(Behaviour(ttft=0.06, tpot=0.002, linger=0.05)),
    "four streams": Case(Behaviour(ttft=0.25, tpot=0.008), ("--profile", "throughput", "--concurrency", 4)),
    "two slots for four streams": Case(
        Behaviour(ttft=0.1, tpot=0.003, slots=2), ("--profile", "throughput", "--concurrency", 4)
    ),
    "arrivals": Case(Behaviour(ttft=0.1, tpot=0.004), ("--profile", "rate", "--rate", 8)),
}


def within(got: float, truth: float, tolerance: float = TOLERANCE) -> bool:
    return abs(got - truth) <= truth * tolerance


def percentiles(values_ns: list[float]) -> dict[str, float]:
    return {name: percentile(sorted(values_ns), q) / 1000 for name, q in QUANTILES.items()}


def deviations(facts: dict, truth: list[Request]) -> dict[str, str]:
    """Every number of `facts` that is not within 2 % of what the mock did, and what it is instead."""
    window_s = (max(r.end_ns for r in truth) - min(r.received_ns for r in truth)) / 1e9
    wanted = {
        **{f"ttftUs.{k}": v for k, v in percentiles([r.ttft_ns for r in truth]).items()},
        **{f"tpotUs.{k}": v for k, v in percentiles([r.tpot_ns for r in truth]).items()},
        **{f"e2eUs.{k}": v for k, v in percentiles([r.e2e_ns for r in truth]).items()},
        "outputTokensPerSecondMilli": sum(r.completion_tokens for r in truth) * 1000 / window_s,
        "requestsPerSecondMilli": len(truth) * 1000 / window_s,
    }
    got = {key: facts[key.split(".")[0]][key.split(".")[1]] if "." in key else facts[key] for key in wanted}
    return {key: f"{got[key]} instead of {wanted[key]:.0f}" for key in wanted if not within(got[key], wanted[key])}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_every_number_is_within_two_percent(case):
    always: dict[str, str] | None = None
    for _ in range(ATTEMPTS):
        with mock_process(case.behaviour) as url:
            ended = bench(
                "--url", url, "--requests", REQUESTS, "--input-tokens", 200, "--output-tokens", OUTPUT_TOKENS,
                "-o", "json", *case.options,
            )  # fmt: skip
            truth = measured(fetch_requests(url), REQUESTS)
        assert ended.code == 0, ended.stderr
        assert ended.facts["requests"] == {"total": REQUESTS, "failed": 0}
        wrong = deviations(ended.facts, truth)
        always = {key: told for key, told in wrong.items() if always is None or key in always}
        if not always:
            return
    pytest.fail(f"in each of {ATTEMPTS} attempts, here the last: {always}")


def test_the_comparison_itself_can_fail():
    """Truth that is 3 % away must not pass for the result."""
    truth = [Request(n, 0, {}, 1, 11, [100_000_000], 200_000_000) for n in range(3)]
    exact = {"p50": 100_000, "p90": 100_000, "p99": 100_000}
    facts = {
        "ttftUs": exact,
        "tpotUs": dict.fromkeys(exact, 10_000),
        "e2eUs": dict.fromkeys(exact, 200_000),
        "outputTokensPerSecondMilli": 165_000,
        "requestsPerSecondMilli": 15_000,
    }
    assert deviations(facts, truth) == {}
    off = deviations({**facts, "ttftUs": {**exact, "p90": 103_000}}, truth)
    assert off == {"ttftUs.p90": "103000 instead of 100000"}


def test_gaps_are_gaps_between_chunks_with_text():
    found = []
    for _ in range(ATTEMPTS):
        with mock_process(Behaviour(ttft=0.05, tpot=0.005, tokens_per_chunk=4, empty_every=1)) as url:
            ended = bench("--url", url, "--requests", REQUESTS, "--output-tokens", OUTPUT_TOKENS, "-o", "json")
            truth = measured(fetch_requests(url), REQUESTS)
        gaps = [b - a for r in truth for a, b in zip(r.text_ns, r.text_ns[1:], strict=False)]
        found.append((ended.facts["chunkGapP99Us"], percentiles(gaps)["p99"]))
        assert found[-1][0] > 15_000
        if found[-1][0] == pytest.approx(found[-1][1], rel=0.02, abs=10_000):
            return
    pytest.fail(f"measured and true: {found}")
