"""Prometheus metrics of the operator: what happened is counted as it happens, what is so now when somebody asks."""

import collections
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from moorage.control.store import Key

Status = dict[str, Any]

PASS_SECONDS = Histogram(
    "moorage_pass_seconds",
    "Time of one reconcile pass.",
    ["kind"],
    buckets=(0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5),
)
PASS_FAILURES = Counter("moorage_pass_failures", "Passes that failed and are tried again.", ["kind", "error"])

USAGE_REPORTS = Counter(
    "moorage_usage_reports", "Usage reports of gateways, by the status they were answered.", ["code"]
)
SLEEPS = Counter("moorage_sleeps", "Models that were put to sleep, by cause.", ["cause"])
WAKES = Counter("moorage_wakes", "Models that were woken.")

DOWNLOAD_BYTES = Counter("moorage_download_bytes", "Bytes that download pods have put on disk.")
DOWNLOAD_RETRIES = Counter(
    "moorage_download_retries", "Requests that download pods repeated, by the reason told last.", ["reason"]
)
DOWNLOAD_STALLS = Counter("moorage_download_stalls", "Transfers that download pods gave up because they had stalled.")
DOWNLOAD_VERIFICATION_FAILURES = Counter(
    "moorage_download_verification_failures",
    "Verifications that failed, by where bytes went wrong: network or disk.",
    ["kind"],
)
for _where in ("network", "disk"):  # an alert sees the first one only where there was a 0 before
    DOWNLOAD_VERIFICATION_FAILURES.labels(_where)
DOWNLOAD_FAILURES = Counter("moorage_download_failures", "Download attempts that failed, by reason.", ["reason"])
DOWNLOAD_SECONDS = Histogram(
    "moorage_download_seconds",
    "From the first attempt to verified files.",
    buckets=(1, 5, 15, 60, 300, 900, 3600, 4 * 3600, 24 * 3600),
)


def download_changed(old: Status, new: Status) -> None:
    """Count what a ModelDownload's new status tells that its old one did not."""
    done, before = (new.get("bytes") or {}).get("done", 0), (old.get("bytes") or {}).get("done", 0)
    same = old.get("inputsHash") == new.get("inputsHash")
    DOWNLOAD_BYTES.inc(max(done - (before if same else 0), 0))
    reason = (new.get("lastError") or {}).get("reason") or "Unknown"
    if retries := _more(old, new, "retries"):
        DOWNLOAD_RETRIES.labels(reason).inc(retries)
    faults = old.get("faults") or {}, new.get("faults") or {}
    DOWNLOAD_STALLS.inc(_more(*faults, "stalls"))
    DOWNLOAD_VERIFICATION_FAILURES.labels("network").inc(_more(*faults, "wrongBytes"))
    DOWNLOAD_VERIFICATION_FAILURES.labels("disk").inc(_more(*faults, "changedOnDisk"))
    if (new.get("attempts") or 0) > (old.get("attempts") or 0):
        DOWNLOAD_FAILURES.labels(reason).inc()
    started, ended = new.get("startedAt"), new.get("completedAt")
    if started and ended and ended != old.get("completedAt"):
        DOWNLOAD_SECONDS.observe((datetime.fromisoformat(ended) - datetime.fromisoformat(started)).total_seconds())


def model_changed(old: Status, new: Status) -> None:
    """Count a Model's falling asleep and waking, which its new status tells."""
    before, after = ((status.get("scaling") or {}) for status in (old, new))
    if after.get("asleepSince") and not before.get("asleepSince"):
        SLEEPS.labels(after.get("cause") or "Unknown").inc()
    elif before.get("asleepSince") and not after.get("asleepSince"):
        WAKES.inc()


def _more(old: Status, new: Status, name: str) -> int:
    """By how much a count grew; one that fell began anew with another pod."""
    was, now = old.get(name) or 0, new.get(name) or 0
    return now - was if now >= was else now


@dataclass(frozen=True)
class Now:
    """What the operator holds: keys that wait or run, gateways that report, requests by verb, each object's phase."""

    queue_depth: int
    gateways: int
    api_requests: Mapping[str, int]
    phases: Iterable[tuple[Key, str]]


class NowCollector(Collector):
    """`Now` for Prometheus; Models and ModelDownloads are told one by one, so that an alert can name them."""

    def __init__(self, now: Callable[[], Now]) -> None:
        self._now = now

    def collect(self) -> Iterator[Metric]:
        """One family per number."""
        now = self._now()
        depth = "Objects that wait for a worker or are being handled."
        yield GaugeMetricFamily("moorage_queue_depth", depth, value=now.queue_depth)
        yield GaugeMetricFamily("moorage_gateways", "Gateway processes that report.", value=now.gateways)
        requests = CounterMetricFamily("moorage_api_requests", "Requests sent to the API server.", labels=["verb"])
        for verb, count in now.api_requests.items():
            requests.add_metric([verb], count)
        yield requests
        yield from _phases(now.phases)


def _phases(phases: Iterable[tuple[Key, str]]) -> Iterator[Metric]:
    counts: collections.Counter[tuple[str, str]] = collections.Counter()
    each = {
        kind: GaugeMetricFamily(
            f"moorage_{label}_phase", f"1: the phase of a {kind}.", labels=["namespace", label, "phase"]
        )
        for kind, label in (("Model", "model"), ("ModelDownload", "download"))
    }
    for key, phase in phases:
        counts[key.kind, phase] += 1
        if key.kind in each:
            each[key.kind].add_metric([key.namespace, key.name, phase], 1)
    objects = GaugeMetricFamily("moorage_objects", "Objects by kind and phase.", labels=["kind", "phase"])
    for labels, count in counts.items():
        objects.add_metric(labels, count)
    yield objects
    yield from each.values()


def render(now: Callable[[], Now]) -> bytes:
    """All metrics in the text format."""
    held = CollectorRegistry()
    held.register(NowCollector(now))
    return generate_latest(REGISTRY) + generate_latest(held)
