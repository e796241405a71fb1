"""Prometheus metrics of the operator."""

from prometheus_client import REGISTRY, Counter, Gauge, Histogram, generate_latest

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


def render() -> bytes:
    """All metrics in the text format."""
    return generate_latest(REGISTRY)
