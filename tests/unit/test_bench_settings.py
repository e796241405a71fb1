import pytest

from moorage.bench.settings import Load, Profile, parse_target, plan_loads
from moorage.bench.verdict import (
    EXIT_CODES,
    BenchError,
    Reason,
    require_enough,
    require_few_failures,
    require_output_length,
    too_many_failed,
)


@pytest.mark.parametrize(
    ("url", "again"),
    [
        ("http://qwen3-8b:8080", "http://qwen3-8b:8080"),
        ("http://qwen3-8b:8080/", "http://qwen3-8b:8080"),
        ("http://qwen3-8b:8080/v1", "http://qwen3-8b:8080"),
        ("https://host/openai/v1/", "https://host:443/openai"),
        ("http://[::1]:8080", "http://[::1]:8080"),
    ],
)
def test_urls_with_and_without_their_v1(url, again):
    assert str(parse_target(url)) == again


@pytest.mark.parametrize(
    "url",
    [
        "qwen3:8080",
        "ftp://host",
        "http://",
        "http://u@host",
        "http://host/?a",
        "http://host/\r\nX: y",
        "http://h:x",
        "h",
    ],
)
def test_what_is_no_url_is_refused(url):
    with pytest.raises(BenchError) as refused:
        parse_target(url)
    assert refused.value.reason is Reason.INVALID_ARGUMENTS


def test_profiles_plan_their_rows():
    assert plan_loads(Profile.LATENCY, (), None) == (Load(concurrency=1),)
    assert plan_loads(Profile.THROUGHPUT, (), None) == (Load(concurrency=8),)
    assert plan_loads(Profile.THROUGHPUT, (1, 8, 1), None) == (Load(concurrency=1), Load(concurrency=8))
    assert plan_loads(Profile.RATE, (), 2.5) == (Load(rate=2.5),)


@pytest.mark.parametrize(
    ("profile", "concurrency", "rate"),
    [
        (Profile.LATENCY, (2,), None),
        (Profile.LATENCY, (), 1.0),
        (Profile.RATE, (), None),
        (Profile.RATE, (4,), 1.0),
        (Profile.THROUGHPUT, (1, 2, 3, 4, 5, 6), None),
    ],
)
def test_contradictions_are_refused(profile, concurrency, rate):
    with pytest.raises(BenchError) as refused:
        plan_loads(profile, concurrency, rate)
    assert refused.value.reason is Reason.INVALID_ARGUMENTS


def test_every_reason_has_an_exit_code():
    assert set(EXIT_CODES) == set(Reason)


def test_twenty_samples_are_enough_and_nineteen_are_not():
    require_enough(20)
    with pytest.raises(BenchError, match="19 requests"):
        require_enough(19)


@pytest.mark.parametrize(
    ("failed", "planned", "refused"), [(0, 20, False), (1, 20, True), (1, 100, False), (2, 199, True)]
)
def test_one_percent_may_fail(failed, planned, refused):
    assert too_many_failed(failed, planned) is refused
    if refused:
        with pytest.raises(BenchError, match=f"{failed} of {planned} requests failed") as raised:
            require_few_failures(failed, planned, planned, "concurrency 1", "HTTP 500")
        assert raised.value.reason is Reason.TOO_MANY_FAILURES


@pytest.mark.parametrize(("mean", "refused"), [(100, False), (95, False), (105, False), (94, True), (106, True)])
def test_five_percent_off_the_length_asked_for(mean, refused):
    tokens = [mean - 1, mean + 1] * 10
    if not refused:
        return require_output_length(tokens, 100, "concurrency 1")
    with pytest.raises(BenchError, match=rf"{mean}\.0 tokens on average") as raised:
        require_output_length(tokens, 100, "concurrency 1")
    assert raised.value.reason is Reason.OUTPUT_LENGTH_OFF
    return None
