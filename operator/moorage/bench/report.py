"""The same facts three ways: JSON, a table for people, and the termination message that the operator reads."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from moorage import __version__
from moorage.bench.client import Engine
from moorage.bench.settings import Settings
from moorage.bench.stats import Row, best
from moorage.bench.verdict import BenchError

# Kubernetes cuts a termination message at 4096 bytes; strings are cut at so many bytes of JSON that five rows fit.
TERMINATION_LIMIT = 4096
_MAX_MODEL = 120
_MAX_URL = 150
_MAX_ENGINE = 48
_MAX_MESSAGE = 2000


@dataclass(frozen=True)
class Report:
    """A run that passed every check."""

    settings: Settings
    rows: Sequence[Row]
    engine: Engine
    started_at: datetime


def document(report: Report) -> dict[str, Any]:
    """The result as JSON: the best row's numbers, the conditions they hold under, and every row. Integers only."""
    chosen = best(report.rows)
    return {
        **_numbers(chosen),
        "conditions": _conditions(report, chosen),
        "rows": [{**_load(row), **_numbers(row), **_circumstances(row)} for row in report.rows],
    }


def refusal(error: BenchError) -> dict[str, str]:
    """Why there is no result, as JSON."""
    return {"reason": error.reason.value, "message": _cut(error.message, _MAX_MESSAGE)}


def termination_message(facts: dict[str, Any]) -> bytes:
    """`facts` as compact JSON of at most TERMINATION_LIMIT bytes."""
    text = json.dumps(facts, separators=(",", ":"), ensure_ascii=True).encode()
    if len(text) > TERMINATION_LIMIT:
        raise ValueError(f"a termination message of {len(text)} bytes would be cut")
    return text


def table(report: Report) -> str:
    """The result for a person: one line per row, times in milliseconds."""
    header = (
        "LOAD",
        "TTFT p50/p90/p99 ms",
        "TPOT p50/p90/p99 ms",
        "E2E p50/p90/p99 ms",
        "GAP p99 ms",
        "TOK/S",
        "REQ/S",
    )
    lines = [header + (("GOODPUT",) if report.settings.slo else ())]
    lines += [_cells(row) for row in report.rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    body = ["   ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([*_preamble(report), "", *body])


def _numbers(row: Row) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "ttftUs": row.ttft_us,
        "tpotUs": row.tpot_us,
        "e2eUs": row.e2e_us,
        "outputTokensPerSecondMilli": row.output_tokens_per_second_milli,
        "requestsPerSecondMilli": row.requests_per_second_milli,
        "requests": {"total": row.total, "failed": row.failed},
    }
    if row.chunk_gap_p99_us is not None:
        facts["chunkGapP99Us"] = row.chunk_gap_p99_us
    if row.prompt_tokens_per_second_milli is not None:
        facts["promptTokensPerSecondMilli"] = row.prompt_tokens_per_second_milli
    if row.goodput is not None:
        facts["goodput"] = {
            "requestsPerSecondMilli": row.goodput.requests_per_second_milli,
            "permille": row.goodput.permille,
        }
    return facts


def _load(row: Row) -> dict[str, int]:
    if row.load.rate is not None:
        return {"ratePerSecondMilli": round(row.load.rate * 1000)}
    return {"concurrency": row.load.concurrency or 1}


def _circumstances(row: Row) -> dict[str, Any]:
    return {
        "inputTokensMean": row.input_tokens_mean,
        "outputTokensMean": row.output_tokens_mean,
        "durationMilliseconds": row.duration_ms,
        "runnerCpuPermille": row.runner_cpu_permille,
    }


def _conditions(report: Report, chosen: Row) -> dict[str, Any]:
    asked = report.settings
    facts: dict[str, Any] = {
        "model": _cut(asked.model, _MAX_MODEL),
        "url": _cut(str(asked.target), _MAX_URL),
        "profile": asked.profile.value,
        **_load(chosen),
        "inputTokens": {"requested": asked.input_tokens, "mean": chosen.input_tokens_mean},
        "outputTokens": {"requested": asked.output_tokens, "mean": chosen.output_tokens_mean},
        "durationMilliseconds": chosen.duration_ms,
        "seed": asked.seed,
        "engine": {
            "name": _cut(report.engine.name, _MAX_ENGINE),
            "version": _cut(report.engine.version, _MAX_ENGINE),
        },
        "tool": {"name": "moorage bench", "version": __version__},
        "startedAt": report.started_at.strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
    if chosen.cached_tokens_mean is not None:
        facts["inputTokens"]["cachedMean"] = chosen.cached_tokens_mean
    slo = {"ttftMilliseconds": asked.slo.ttft_ms, "tpotMilliseconds": asked.slo.tpot_ms}
    if asked.slo:
        facts["slo"] = {key: limit for key, limit in slo.items() if limit is not None}
    return facts


def _preamble(report: Report) -> list[str]:
    asked, chosen = report.settings, best(report.rows)
    engine = f"{report.engine.name} {report.engine.version}".strip() or "unknown engine"
    return [
        f"{asked.model} at {asked.target} ({engine})",
        f"{chosen.total} requests a row, {chosen.failed} failed in the best one; prompts of {chosen.input_tokens_mean} "
        f"tokens ({asked.input_tokens} asked for), answers of {chosen.output_tokens_mean} ({asked.output_tokens})",
    ]


def _cut(text: str, limit: int) -> str:
    """`text` shortened until its JSON string takes at most `limit` bytes: one character may take six."""
    text = text[:limit]
    while len(json.dumps(text)) - 2 > limit:
        text = text[:-1]
    return text


def _cells(row: Row) -> tuple[str, ...]:
    cells = (
        str(row.load),
        _triple(row.ttft_us),
        _triple(row.tpot_us),
        _triple(row.e2e_us),
        "-" if row.chunk_gap_p99_us is None else _milliseconds(row.chunk_gap_p99_us),
        f"{row.output_tokens_per_second_milli / 1000:.1f}",
        f"{row.requests_per_second_milli / 1000:.2f}",
    )
    return cells if row.goodput is None else (*cells, f"{row.goodput.permille / 10:.1f} %")


def _triple(values_us: dict[str, int]) -> str:
    return " / ".join(_milliseconds(value) for value in values_us.values())


def _milliseconds(us: int) -> str:
    return f"{us / 1000:.1f}" if us < 10_000_000 else f"{us / 1000:.0f}"
