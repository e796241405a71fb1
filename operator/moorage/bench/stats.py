"""From answered requests to the numbers of one row. Pure; times in are nanoseconds, numbers out are integers."""

from collections.abc import Sequence
from dataclasses import dataclass

from moorage.bench.client import Answer
from moorage.bench.settings import Load, Slo

QUANTILES = {"p50": 0.50, "p90": 0.90, "p99": 0.99}


@dataclass(frozen=True)
class Goodput:
    """Requests that kept every limit of the SLO: per second, and per mille of all that were sent."""

    requests_per_second_milli: int
    permille: int


@dataclass(frozen=True)
class Row:
    """The numbers of one load. `*_us` are percentiles in microseconds, `*_milli` thousandths of one per second."""

    load: Load
    ttft_us: dict[str, int]
    tpot_us: dict[str, int]
    e2e_us: dict[str, int]
    chunk_gap_p99_us: int | None
    output_tokens_per_second_milli: int
    prompt_tokens_per_second_milli: int | None
    requests_per_second_milli: int
    total: int
    failed: int
    goodput: Goodput | None
    input_tokens_mean: int
    cached_tokens_mean: int | None
    output_tokens_mean: int
    duration_ms: int
    runner_cpu_permille: int


def percentile(ordered: Sequence[float], quantile: float) -> float:
    """The `quantile` (0..1) of ascending values, linear between the two nearest (numpy's default, as vLLM's bench)."""
    position = (len(ordered) - 1) * quantile
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def ttft_ns(answer: Answer) -> int:
    """Time to first token: send to the first non-empty content or reasoning delta."""
    return answer.text_ns[0] - answer.sent_ns


def e2e_ns(answer: Answer) -> int:
    """Send to the end of the stream."""
    return answer.end_ns - answer.sent_ns


def tpot_ns(answer: Answer) -> float | None:
    """Time per output token after the first, (e2e - TTFT) / (n - 1); None where n < 2."""
    n = answer.usage.completion
    return (e2e_ns(answer) - ttft_ns(answer)) / (n - 1) if n >= 2 else None


def summarize(load: Load, answers: Sequence[Answer], failed: int, slo: Slo, cpu_seconds: float) -> Row:
    """The row of one load; `answers` must not be empty, `cpu_seconds` is what the runner itself used meanwhile."""
    window_ns = max(a.end_ns for a in answers) - min(a.sent_ns for a in answers)
    total = len(answers) + failed
    cached = [a.usage.cached for a in answers if a.usage.cached is not None]
    gaps = [b - a for answer in answers for a, b in zip(answer.text_ns, answer.text_ns[1:], strict=False)]
    return Row(
        load=load,
        ttft_us=_percentiles([ttft_ns(a) for a in answers]),
        tpot_us=_percentiles([t for a in answers if (t := tpot_ns(a)) is not None]),
        e2e_us=_percentiles([e2e_ns(a) for a in answers]),
        chunk_gap_p99_us=_percentiles(gaps)["p99"] if gaps else None,
        output_tokens_per_second_milli=_per_second_milli(sum(a.usage.completion for a in answers), window_ns),
        prompt_tokens_per_second_milli=_prompt_speed(answers) if load.concurrency == 1 else None,
        requests_per_second_milli=_per_second_milli(len(answers), window_ns),
        total=total,
        failed=failed,
        goodput=_goodput(answers, total, window_ns, slo) if slo else None,
        input_tokens_mean=_mean([a.usage.prompt for a in answers]),
        cached_tokens_mean=_mean(cached) if cached else None,
        output_tokens_mean=_mean([a.usage.completion for a in answers]),
        duration_ms=round(window_ns / 1e6),
        runner_cpu_permille=round(cpu_seconds * 1e12 / window_ns),
    )


def best(rows: Sequence[Row]) -> Row:
    """The row that stands for the run: the one with the most output tokens per second."""
    return max(rows, key=lambda row: row.output_tokens_per_second_milli)


def _percentiles(values_ns: Sequence[float]) -> dict[str, int]:
    ordered = sorted(values_ns)
    return {name: round(percentile(ordered, q) / 1000) for name, q in QUANTILES.items()} if ordered else {}


def _per_second_milli(count: int, window_ns: int) -> int:
    return round(count * 1e12 / window_ns)


def _mean(values: Sequence[int]) -> int:
    return round(sum(values) / len(values))


def _prompt_speed(answers: Sequence[Answer]) -> int:
    """Median of prompt tokens / TTFT: with one stream nothing but the prompt is being worked on until then."""
    speeds = sorted(a.usage.prompt * 1e12 / ttft_ns(a) for a in answers)
    return round(percentile(speeds, 0.5))


def _goodput(answers: Sequence[Answer], total: int, window_ns: int, slo: Slo) -> Goodput:
    good = sum(_keeps(answer, slo) for answer in answers)
    return Goodput(_per_second_milli(good, window_ns), round(good * 1000 / total))


def _keeps(answer: Answer, slo: Slo) -> bool:
    tpot = tpot_ns(answer)
    if slo.ttft_ms is not None and ttft_ns(answer) > slo.ttft_ms * 1e6:
        return False
    return slo.tpot_ms is None or tpot is None or tpot <= slo.tpot_ms * 1e6
