"""What the operator counts of downloads."""

from moorage.control import metrics
from moorage.control.metrics import download_changed


def value(metric, **labels: str) -> float:
    name = metric._name + ("_total" if metric._type == "counter" else "_sum")
    return metrics.REGISTRY.get_sample_value(name, labels) or 0.0


def test_bytes_retries_failures_and_seconds_are_counted_once():
    before = [value(metrics.DOWNLOAD_BYTES), value(metrics.DOWNLOAD_RETRIES), value(metrics.DOWNLOAD_SECONDS)]
    failed = value(metrics.DOWNLOAD_FAILURES, reason="Network")
    first = {"inputsHash": "a", "bytes": {"done": 100}, "retries": 1, "attempts": 1, "lastError": {"reason": "Network"}}
    download_changed({}, first)
    download_changed(first, first)
    done = {**first, "bytes": {"done": 300}, "attempts": None}
    done |= {"startedAt": "2026-01-01T00:00:00Z", "completedAt": "2026-01-01T00:01:00Z"}
    download_changed(first, done)
    download_changed(done, done)
    other = {"inputsHash": "b", "bytes": {"done": 50}}
    download_changed(done, other)
    assert value(metrics.DOWNLOAD_BYTES) - before[0] == 350
    assert value(metrics.DOWNLOAD_RETRIES) - before[1] == 1
    assert value(metrics.DOWNLOAD_SECONDS) - before[2] == 60
    assert value(metrics.DOWNLOAD_FAILURES, reason="Network") - failed == 1
