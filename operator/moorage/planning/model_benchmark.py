"""The last step of a Model: a benchmark Job after first Ready and after every change of what is served."""

import json
from typing import Any

from moorage import names
from moorage.api.benchmark import BenchmarkWhen
from moorage.api.conditions import ModelCondition as C
from moorage.api.conditions import Reason
from moorage.api.model_status import BenchmarkRow, BenchmarkStatus, Percentiles, RequestCounts
from moorage.manifests import benchmark as manifests
from moorage.planning import model_capabilities
from moorage.planning.draft import FALSE, TRUE, UNKNOWN
from moorage.planning.model_pass import ModelPass
from moorage.planning.pods import first_trouble, last_words
from moorage.planning.types import Manifest, Ref
from moorage.planning.usage import Hearing, Usage

BUSY_SECONDS = 15.0
"""After that it is looked again whether anybody uses the Model."""

_FIGURES = {
    "ttft_microseconds": "ttftUs",
    "tpot_microseconds": "tpotUs",
    "e2e_microseconds": "e2eUs",
}
_NUMBERS = {
    "chunk_gap_p99_microseconds": "chunkGapP99Us",
    "output_tokens_per_second_milli": "outputTokensPerSecondMilli",
    "requests_per_second_milli": "requestsPerSecondMilli",
}


def run_of(step: ModelPass) -> str:
    """Identity of the run that is due: what is served, how it is measured, and a person's request.

    A request that was taken back asks for nothing: the run that it asked for then stays the one that is due.
    """
    asked = step.model.metadata.annotations.get(names.BENCHMARK_AT, "")
    known = step.status.benchmark.run if step.status.benchmark else None
    measured = {k: v for k, v in step.model.spec.benchmark.identity().items() if k != "when"}
    return names.inputs([step.status.template, measured], asked, known)


def benchmark(step: ModelPass) -> None:
    """See to the Job of the due run and keep its result; nothing here ever touches Ready."""
    spec = step.model.spec.benchmark
    if not spec.enabled:
        step.draft.set(C.BENCHMARKED, TRUE, Reason.DISABLED, "spec.benchmark.enabled is false")
        _sweep(step, keep=None)
        return
    if pooled := model_capabilities.pooling(step):
        text = f"there is nothing to measure: benchmarks time generated text, and this Model serves {pooled}"
        step.draft.set(C.BENCHMARKED, TRUE, Reason.DISABLED, text)
        _sweep(step, keep=None)
        return
    if not step.draft.true(C.SERVING) or not step.status.template:
        if step.draft.get(C.BENCHMARKED) is None:
            step.draft.set(C.BENCHMARKED, UNKNOWN, Reason.PENDING, "measured once the Model serves")
        return
    run = run_of(step)
    known = step.status.benchmark
    if known is not None and known.run == run:
        _tell(step, known)
        _sweep(step, keep=None)
        return
    if known is not None and known.run:
        step.status.benchmark = known.model_copy(update={"stale": True})
    name = names.benchmark_job(step.model.metadata.name, run)
    _sweep(step, keep=name)
    _follow(step, run, next((j for j in step.seen.jobs if j["name"] == name), None))


def _follow(step: ModelPass, run: str, job: Manifest | None) -> None:
    if job is not None:
        _see(step, run, job)
    elif _in_use(step.seen.usage) and step.model.spec.benchmark.when == BenchmarkWhen.IDLE:
        step.wake_in(BUSY_SECONDS)
        step.draft.set(C.BENCHMARKED, FALSE, Reason.BUSY, "waits until no request is under way")
    else:
        step.apply.append(_job(step, run))
        step.draft.set(C.BENCHMARKED, FALSE, Reason.RUNNING, "the benchmark is being started")


def _in_use(usage: Usage) -> bool:
    """Whether requests are under way, as far as the gateways have told by now."""
    return bool(usage.load) or usage.hearing is Hearing.LISTENING


def _see(step: ModelPass, run: str, job: Manifest) -> None:
    report = _report(step.seen.pods, job)
    running = any(p.get("owner") == job["uid"] and p["phase"] in ("Pending", "Running") for p in step.seen.pods)
    if report is not None:
        _keep(step, run, report)
    elif job["failed"] and not running:  # a pod that still seems to run is about to tell more
        _failed(step, run, job["message"] or "the benchmark Job failed")
    elif job["complete"] and not running:
        step.delete.append(_ref(step, job))  # its pod is gone and with it the result: measure again
    else:
        waiting = first_trouble(p for p in step.seen.pods if p.get("owner") == job["uid"])
        message = waiting.message if waiting else "the benchmark is running"
        step.draft.set(C.BENCHMARKED, FALSE, Reason.RUNNING, message)


def _sweep(step: ModelPass, keep: str | None) -> None:
    """Remove Jobs of runs that are over or no longer wanted."""
    step.delete.extend(_ref(step, j) for j in step.seen.jobs if j["name"] != keep and not j["deleting"])


def _ref(step: ModelPass, job: Manifest) -> Ref:
    return Ref("batch/v1", "Job", step.model.metadata.namespace, job["name"], job["uid"])


def _tell(step: ModelPass, known: BenchmarkStatus) -> None:
    """The condition that goes with the figures of what is served."""
    if known.message:
        step.draft.set(C.BENCHMARKED, FALSE, Reason.BENCHMARK_FAILED, known.message)
        return
    step.status.benchmark = known.model_copy(update={"stale": False})
    speed = (known.output_tokens_per_second_milli or 0) / 1000
    ttft = ((known.ttft_microseconds.p50 if known.ttft_microseconds else None) or 0) / 1000
    step.draft.set(C.BENCHMARKED, TRUE, Reason.COMPLETED, f"{speed:.0f} tokens/s, first token after {ttft:.0f} ms")


def _job(step: ModelPass, run: str) -> Manifest:
    spec, service = step.model.spec.benchmark, names.model_child(step.model.metadata.name)
    args = [
        *("--url", f"http://{service}.{step.model.metadata.namespace}.svc"),
        *("--model", step.model.metadata.name),
        *("--profile", spec.profile.lower()),
        *("--requests", str(spec.requests)),
        *("--input-tokens", str(spec.input_tokens)),
        *("--output-tokens", str(spec.output_tokens)),
        *("-o", "json"),
    ]
    for level in spec.concurrency:
        args += ["--concurrency", str(level)]
    if spec.slo and spec.slo.ttft_milliseconds:
        args += ["--slo-ttft-ms", str(spec.slo.ttft_milliseconds)]
    if spec.slo and spec.slo.tpot_milliseconds:
        args += ["--slo-tpot-ms", str(spec.slo.tpot_milliseconds)]
    defaults = step.seen.defaults
    return manifests.job(
        step.seen.model,
        run,
        image=defaults.moorage_image,
        args=tuple(args),
        pull_secrets=defaults.image_pull_secrets,
    )


def _report(pods: tuple[Manifest, ...], job: Manifest) -> Manifest | None:
    """The JSON that the run left as its termination message; an ending without one becomes a refusal in its words."""
    for pod in pods:
        if pod.get("owner") != job["uid"]:
            continue
        for container in pod["containers"]:
            ended = container.get("terminated")
            if ended is None:
                continue
            message = (ended.get("message") or "").strip()
            try:
                report = json.loads(message)
            except ValueError:
                report = None
            if isinstance(report, dict):
                return report
            return {"reason": "Failed", "message": last_words(message) or f"exit code {ended.get('exitCode')}"}
    return None


def _keep(step: ModelPass, run: str, report: Manifest) -> None:
    if "ttftUs" not in report:
        _failed(step, run, f"{report.get('reason', 'Failed')}: {report.get('message', 'no figures')}")
        return
    rows = report.get("rows", [])
    try:
        known = BenchmarkStatus(
            **_figures(report),
            profile=step.model.spec.benchmark.profile,
            rows=[BenchmarkRow(concurrency=row.get("concurrency", 1), **_figures(row)) for row in rows],
            run=run,
            completed_at=step.seen.now,
            stale=False,
        )
    except (ValueError, TypeError, KeyError, AttributeError):
        known = BenchmarkStatus()
    if known.ttft_microseconds is None or known.ttft_microseconds.p50 is None:
        _failed(step, run, "the benchmark's report cannot be read")
        return
    step.status.benchmark = known
    _tell(step, known)


def _failed(step: ModelPass, run: str, message: str) -> None:
    """No valid figures: earlier ones stay, marked stale, and the run is not repeated until something changes."""
    known = step.status.benchmark or BenchmarkStatus()
    step.status.benchmark = known.model_copy(update={"run": run, "stale": True, "message": message[:1000]})
    step.draft.set(C.BENCHMARKED, FALSE, Reason.BENCHMARK_FAILED, message)


def _figures(report: Manifest) -> dict[str, Any]:
    figures: dict[str, Any] = {
        ours: Percentiles(**{p: report[theirs].get(p) for p in ("p50", "p90", "p99")})
        for ours, theirs in _FIGURES.items()
        if report.get(theirs)
    }
    figures |= {ours: report[theirs] for ours, theirs in _NUMBERS.items() if report.get(theirs) is not None}
    goodput = report.get("goodput")
    if isinstance(goodput, dict) and "requestsPerSecondMilli" in goodput:
        figures["goodput_requests_per_second_milli"] = goodput["requestsPerSecondMilli"]
    if report.get("requests"):
        figures["requests"] = RequestCounts(total=report["requests"]["total"], failed=report["requests"]["failed"])
    return figures
