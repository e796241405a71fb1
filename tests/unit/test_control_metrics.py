"""What the operator counts of downloads."""

from moorage.control import metrics
from moorage.control.metrics import download_changed


def value(metric, **labels: str) -> float:
    name = metric._name + ("_total" if metric._type == "counter" else "_sum")
    return metrics.REGISTRY.get_sample_value(name, labels) or 0.0


def test_bytes_retries_failures_and_seconds_are_counted_once():
    before = [
        value(metrics.DOWNLOAD_BYTES),
        value(metrics.DOWNLOAD_RETRIES, reason="Network"),
        value(metrics.DOWNLOAD_SECONDS),
    ]
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
    assert value(metrics.DOWNLOAD_RETRIES, reason="Network") - before[1] == 1
    assert value(metrics.DOWNLOAD_SECONDS) - before[2] == 60
    assert value(metrics.DOWNLOAD_FAILURES, reason="Network") - failed == 1


def test_faults_are_counted_by_kind_over_the_pods_of_a_download():
    def told():
        by_kind = [value(metrics.DOWNLOAD_VERIFICATION_FAILURES, kind=kind) for kind in ("network", "disk")]
        return [value(metrics.DOWNLOAD_STALLS), *by_kind]

    before = told()
    first = {"faults": {"stalls": 3, "wrongBytes": 1}}
    again = {"faults": {"stalls": 1, "changedOnDisk": 2}}  # another pod counts from zero
    for old, new in (({}, first), (first, first), (first, again), (again, {})):
        download_changed(old, new)
    assert [now - was for now, was in zip(told(), before, strict=True)] == [4, 1, 2]


def test_retries_count_again_with_another_pod():
    before = value(metrics.DOWNLOAD_RETRIES, reason="Stalled")
    states = [{"retries": n, "lastError": {"reason": "Stalled"}} for n in (2, 5, 0, 1)]
    for old, new in zip([{}, *states], states, strict=False):
        download_changed(old, new)
    assert value(metrics.DOWNLOAD_RETRIES, reason="Stalled") - before == 6
