import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moorage.bench.client import Answer
from moorage.bench.settings import Load, Slo
from moorage.bench.stats import best, percentile, summarize
from moorage.bench.stream import Usage

MS = 1_000_000


def answer(*, sent_ms=0.0, ttft_ms=100.0, tpot_ms=10.0, tokens=11, prompt=50, per_chunk=1, cached=None):
    first = sent_ms + ttft_ms
    chunks = range(0, tokens, per_chunk)
    return Answer(
        sent_ns=round(sent_ms * MS),
        text_ns=tuple(round((first + tpot_ms * n) * MS) for n in chunks),
        end_ns=round((first + tpot_ms * (tokens - 1)) * MS),
        usage=Usage(prompt, tokens, cached),
    )


@given(st.lists(st.integers(0, 10**12), min_size=1, max_size=200), st.sampled_from([0.5, 0.9, 0.99]))
def test_percentiles_are_numpys(values, quantile):
    assert percentile(sorted(values), quantile) == pytest.approx(float(numpy.percentile(values, quantile * 100)))


def test_each_number_follows_its_definition():
    row = summarize(Load(concurrency=1), [answer(), answer(sent_ms=200, ttft_ms=120)], 0, Slo(), cpu_seconds=0.021)
    assert row.ttft_us == {"p50": 110_000, "p90": 118_000, "p99": 119_800}
    assert row.tpot_us == {"p50": 10_000, "p90": 10_000, "p99": 10_000}
    assert row.e2e_us["p50"] == 210_000
    assert row.duration_ms == 420  # 0 -> 200 + 120 + 10 x 10
    assert row.output_tokens_per_second_milli == round(22 / 0.420 * 1000)
    assert row.requests_per_second_milli == round(2 / 0.420 * 1000)
    assert row.prompt_tokens_per_second_milli == round((50 / 0.100 + 50 / 0.120) / 2 * 1000)
    assert row.chunk_gap_p99_us == 10_000
    assert row.runner_cpu_permille == 50


def test_tokens_are_the_servers_count_whatever_the_number_of_chunks():
    single = summarize(Load(concurrency=2), [answer(per_chunk=1)], 0, Slo(), 0)
    several = summarize(Load(concurrency=2), [answer(per_chunk=5)], 0, Slo(), 0)
    assert several.tpot_us == single.tpot_us
    assert several.output_tokens_per_second_milli == single.output_tokens_per_second_milli
    assert several.chunk_gap_p99_us == 50_000


def test_one_chunk_has_no_gap_and_one_token_has_no_time_per_token():
    row = summarize(Load(concurrency=2), [answer(tokens=1)], 0, Slo(), 0)
    assert row.chunk_gap_p99_us is None
    assert row.tpot_us == {}


def test_prompt_speed_is_told_for_one_stream_only():
    assert summarize(Load(concurrency=2), [answer()], 0, Slo(), 0).prompt_tokens_per_second_milli is None
    assert summarize(Load(rate=2.0), [answer()], 0, Slo(), 0).prompt_tokens_per_second_milli is None


@pytest.mark.parametrize(
    ("slo", "good"),
    [
        (Slo(ttft_ms=100), 3),
        (Slo(ttft_ms=99), 1),
        (Slo(tpot_ms=10), 3),
        (Slo(tpot_ms=9), 1),
        (Slo(ttft_ms=99, tpot_ms=9), 0),
    ],
)
def test_goodput_counts_requests_that_keep_every_limit_out_of_all_sent(slo, good):
    answers = [answer(), answer(), answer(ttft_ms=50, tpot_ms=10) if slo.ttft_ms == 99 else answer(tpot_ms=5)]
    row = summarize(Load(concurrency=3), answers, 1, slo, 0)
    assert row.goodput is not None
    assert row.goodput.permille == good * 250
    assert row.goodput.requests_per_second_milli == round(good * 1e6 / row.duration_ms)
    assert (row.total, row.failed) == (4, 1)


def test_without_an_slo_there_is_no_goodput():
    assert summarize(Load(concurrency=1), [answer()], 0, Slo(), 0).goodput is None


def test_cached_tokens_are_told_only_where_the_server_tells_them():
    assert summarize(Load(concurrency=1), [answer()], 0, Slo(), 0).cached_tokens_mean is None
    assert summarize(Load(concurrency=1), [answer(cached=4), answer(cached=8)], 0, Slo(), 0).cached_tokens_mean == 6


def test_the_row_with_most_tokens_stands_for_the_run():
    slow = summarize(Load(concurrency=1), [answer()], 0, Slo(), 0)
    fast = summarize(Load(concurrency=8), [answer()] * 8, 0, Slo(), 0)
    assert best([slow, fast, slow]) is fast
