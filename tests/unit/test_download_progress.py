"""The numbers of `GET /progress`."""

import json
import urllib.error
import urllib.request

import pytest

from e2e.cluster.network import free_ports
from moorage.download.content import Content, Identity
from moorage.download.progress import Phase, Progress, serve
from moorage.download.retry import Patience
from moorage.sources import Reason, source_error


def content(size, *paths):
    return Content(Identity(size, f"{size:064x}", None), paths, "http://x", Patience(1))


def test_bytes_never_go_back():
    progress, big = Progress(), content(1000, "a")
    progress.plan([big, content(50, "b", "c")])
    assert progress.snapshot()["bytes"] == {"total": 1100, "done": 0}
    big.safe = 600
    assert progress.snapshot()["bytes"]["done"] == 600
    big.safe = 400  # a piece was wrong and is fetched again
    assert progress.snapshot()["bytes"]["done"] == 600
    big.safe = 700
    assert progress.snapshot()["bytes"]["done"] == 700


def test_speed_is_that_of_the_last_seconds(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("moorage.download.progress.time.monotonic", lambda: clock[0])
    progress, big = Progress(), content(10_000, "a")
    progress.plan([big])
    progress.phase = Phase.DOWNLOADING
    assert progress.snapshot()["remainingSeconds"] is None
    for second in range(20):
        clock[0] = float(second)
        big.safe = min(second, 10) * 100 + max(0, second - 10) * 500
        progress.sample()
    told = progress.snapshot()
    assert told["bytesPerSecond"] == 500
    assert told["remainingSeconds"] == -(-(10_000 - 5500) // 500)


def test_a_stall_brings_the_speed_to_nought(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("moorage.download.progress.time.monotonic", lambda: clock[0])
    progress, big = Progress(), content(10_000, "a")
    progress.plan([big])
    progress.phase = Phase.DOWNLOADING
    for second in range(20):
        clock[0], big.safe = float(second), min(second, 5) * 100
        progress.sample()
    told = progress.snapshot()
    assert (told["bytesPerSecond"], told["remainingSeconds"]) == (0, None)


def test_failures_are_told():
    progress = Progress()
    progress.failed(source_error(Reason.NETWORK, "broken"), "a")
    progress.ended(source_error(Reason.STALLED, "stalled"), "b")
    told = progress.snapshot()
    assert told["retries"] == 1
    assert told["phase"] == "Failed"
    assert told["lastError"] == {"reason": "Stalled", "message": "stalled", "file": "b"}


def test_served_over_http():
    port = free_ports(["progress"])["progress"]
    progress = Progress()
    progress.plan([content(7, "a")])
    serve(progress, port)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/progress", timeout=60) as answer:
        assert json.load(answer) == {
            "phase": "Resolving",
            "files": {"total": 1, "done": 0},
            "bytes": {"total": 7, "done": 0},
            "bytesPerSecond": 0,
            "remainingSeconds": None,
            "retries": 0,
            "faults": {"stalls": 0, "wrongBytes": 0, "changedOnDisk": 0},
            "lastError": None,
        }
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/other", timeout=60)
