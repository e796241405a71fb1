import json
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from moorage.bench.client import Engine
from moorage.bench.report import TERMINATION_LIMIT, Report, document, refusal, table, termination_message
from moorage.bench.settings import MAX_ROWS, Load, Profile, Settings, Slo, parse_target
from moorage.bench.stats import Goodput, Row
from moorage.bench.verdict import BenchError, Reason

TRIPLE = {"p50": 1_000, "p90": 2_000, "p99": 3_000}
ROW = Row(
    load=Load(concurrency=1),
    ttft_us=TRIPLE,
    tpot_us=TRIPLE,
    e2e_us=TRIPLE,
    chunk_gap_p99_us=4_000,
    output_tokens_per_second_milli=87_500,
    prompt_tokens_per_second_milli=900_000,
    requests_per_second_milli=2_000,
    total=50,
    failed=0,
    goodput=Goodput(1_500, 750),
    input_tokens_mean=511,
    cached_tokens_mean=3,
    output_tokens_mean=128,
    duration_ms=25_000,
    runner_cpu_permille=12,
)
SETTINGS = Settings(
    target=parse_target("http://m:8080"),
    model="m",
    profile=Profile.THROUGHPUT,
    loads=(Load(concurrency=1),),
    slo=Slo(ttft_ms=500),
)


ENGINE = Engine("llama.cpp", "b1")


def report(rows=(ROW,), settings=SETTINGS, engine=ENGINE):
    return Report(settings, rows, engine, datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC))


def leaves(value):
    if isinstance(value, dict):
        return [leaf for item in value.values() for leaf in leaves(item)]
    if isinstance(value, list):
        return [leaf for item in value for leaf in leaves(item)]
    return [value]


def test_the_document_is_the_contract():
    fast = replace(ROW, load=Load(concurrency=8), output_tokens_per_second_milli=300_000)
    facts = document(report(rows=(ROW, fast)))
    assert facts["outputTokensPerSecondMilli"] == 300_000
    assert facts["conditions"] == {
        "model": "m",
        "url": "http://m:8080",
        "profile": "throughput",
        "concurrency": 8,
        "inputTokens": {"requested": 512, "mean": 511, "cachedMean": 3},
        "outputTokens": {"requested": 128, "mean": 128},
        "durationMilliseconds": 25_000,
        "seed": 0,
        "engine": {"name": "llama.cpp", "version": "b1"},
        "tool": {"name": "moorage bench", "version": "0.1.0"},
        "startedAt": "2026-01-02T03:04:05Z",
        "slo": {"ttftMilliseconds": 500},
    }
    assert facts["rows"][0] == {
        "concurrency": 1,
        "ttftUs": TRIPLE,
        "tpotUs": TRIPLE,
        "e2eUs": TRIPLE,
        "outputTokensPerSecondMilli": 87_500,
        "requestsPerSecondMilli": 2_000,
        "requests": {"total": 50, "failed": 0},
        "chunkGapP99Us": 4_000,
        "promptTokensPerSecondMilli": 900_000,
        "goodput": {"requestsPerSecondMilli": 1_500, "permille": 750},
        "inputTokensMean": 511,
        "outputTokensMean": 128,
        "durationMilliseconds": 25_000,
        "runnerCpuPermille": 12,
    }


def test_numbers_are_integers_and_what_is_unknown_is_absent():
    bare = replace(
        ROW,
        load=Load(rate=2.5),
        chunk_gap_p99_us=None,
        prompt_tokens_per_second_milli=None,
        goodput=None,
        cached_tokens_mean=None,
    )
    facts = document(report(rows=(bare,), settings=replace(SETTINGS, slo=Slo())))
    assert all(isinstance(leaf, int | str) for leaf in leaves(facts))
    assert facts["conditions"]["ratePerSecondMilli"] == 2_500
    assert not {"chunkGapP99Us", "promptTokensPerSecondMilli", "goodput"} & set(facts)


def test_the_largest_result_fits_the_termination_message():
    triple = dict.fromkeys(TRIPLE, 3_600_000_000)
    row = replace(
        ROW,
        load=Load(concurrency=1024),
        ttft_us=triple,
        tpot_us=triple,
        e2e_us=triple,
        chunk_gap_p99_us=3_600_000_000,
        output_tokens_per_second_milli=10**9,
        prompt_tokens_per_second_milli=10**9,
        requests_per_second_milli=10**7,
        total=100_000,
        failed=1_000,
        goodput=Goodput(10**7, 1000),
        input_tokens_mean=1 << 20,
        cached_tokens_mean=1 << 20,
        output_tokens_mean=1 << 20,
        duration_ms=86_400_000,
        runner_cpu_permille=1000,
    )
    long = replace(
        SETTINGS,
        model="m\u00e9" * 500,
        target=parse_target("http://" + "h" * 500),
        input_tokens=1 << 20,
        output_tokens=1 << 20,
        slo=Slo(10**6, 10**6),
        seed=2**31,
    )
    facts = document(report(rows=[row] * MAX_ROWS, settings=long, engine=Engine("e" * 640, "\x00" * 640)))
    message = termination_message(facts)
    assert len(message) <= TERMINATION_LIMIT
    assert json.loads(message) == facts


@pytest.mark.parametrize("text", ["x" * 10_000, "\u00e9" * 10_000, '"' * 10_000, "\x00" * 10_000])
def test_the_longest_refusal_fits_too(text):
    message = termination_message(refusal(BenchError(Reason.TOO_MANY_FAILURES, text)))
    assert len(message) <= TERMINATION_LIMIT
    assert json.loads(message)["reason"] == "TooManyFailures"


def test_the_table_is_for_people():
    text = table(report())
    assert "m at http://m:8080 (llama.cpp b1)" in text
    head, line = text.splitlines()[-2:]
    assert head.split("   ")[0].strip() == "LOAD"
    assert "concurrency 1" in line
    assert "1.0 / 2.0 / 3.0" in line
    assert "87.5" in line
    assert "75.0 %" in line
    assert head.index("TOK/S") == line.index("87.5")
