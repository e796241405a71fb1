"""Prometheus metrics of the operator."""

from datetime import datetime
from typing import Any

from prometheus_client import REGISTRY, Counter, Gauge, Histogram, generate_latest

Status = dict[str, Any]

PASS_SECONDS = Histogram(
    "moorage_pass_seconds",
    "Time of one reconcile pass.",
    ["kind"],
    buckets=(0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5),
)
PASS_FAILURES = Counter("moorage_pass_failures", "Passes that failed and are tried again.", ["kind", "error"])
QUEUE_DEPTH = Gauge("moorage_queue_depth", "Objects that wait for a worker or are being handled.")
OBJECTS = Gauge("moorage_objects", "Objects by kind and phase.", ["kind", "phase"])
API_REQUESTS = Gauge("moorage_api_requests", "Requests sent to the API server since start, by verb.", ["verb"])

USAGE_REPORTS = Counter(
    "moorage_usage_reports", "Usage reports of gateways, by the status they were answered.", ["code"]
)
GATEWAYS = Gauge("moorage_gateways", "Gateway processes that report.")
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


def render() -> bytes:
    """All metrics in the text format."""
    return generate_latest(REGISTRY)
