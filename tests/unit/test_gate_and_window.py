"""Whose turn it is to download, and at which hours."""

from datetime import UTC, datetime

import pytest

from moorage.control.gate import DownloadGate
from moorage.control.store import Key
from moorage.control.window import window_of


def key(name: str) -> Key:
    return Key("ModelDownload", "ns", name)


def test_places_go_by_priority_then_age():
    running: list[Key] = [key("busy")]
    woken: list[Key] = []
    gate = DownloadGate(1, lambda: running, woken.append)
    assert gate.ahead(key("old"), 0, "2026-01-01") == 1
    assert gate.ahead(key("urgent"), 10, "2026-01-02") == 1
    assert gate.ahead(key("old"), 0, "2026-01-01") == 2
    running.clear()
    gate.leave(key("busy"))
    assert woken == [key("urgent")]
    assert gate.ahead(key("urgent"), 10, "2026-01-02") == 0
    assert gate.ahead(key("old"), 0, "2026-01-01") == 1, "a place that was given is taken before its Job is seen"


def test_who_runs_keeps_the_place():
    gate = DownloadGate(1, lambda: [key("a")], lambda _key: None)
    assert gate.ahead(key("a"), 0, "") == 0


@pytest.mark.parametrize(
    ("spec", "now", "is_open", "changes_in"),
    [
        (("22:00", "06:00", "UTC"), "2026-01-01T23:00:00", True, 7 * 3600),
        (("22:00", "06:00", "UTC"), "2026-01-01T05:59:00", True, 60),
        (("22:00", "06:00", "UTC"), "2026-01-01T06:00:00", False, 16 * 3600),
        (("09:00", "17:00", "UTC"), "2026-01-01T08:00:00", False, 3600),
        (("09:00", "17:00", "UTC"), "2026-01-01T16:00:00", True, 3600),
        (("09:00", "17:00", "Europe/Berlin"), "2026-01-01T08:30:00", True, 7.5 * 3600),
    ],
)
def test_hours(spec: tuple[str, str, str], now: str, is_open: bool, changes_in: float):
    start, end, zone = spec
    moment = datetime.fromisoformat(now).replace(tzinfo=UTC)
    window = window_of({"start": start, "end": end, "timeZone": zone}, moment)
    assert window is not None
    assert (window.open, window.changes_in, window.problem) == (is_open, changes_in, "")


def test_no_window_is_always_open_and_an_unknown_zone_is_a_problem():
    now = datetime(2026, 1, 1, tzinfo=UTC)
    assert window_of(None, now) is None
    found = window_of({"start": "01:00", "end": "02:00", "timeZone": "Mars/Olympus"}, now)
    assert found is not None
    assert "Mars/Olympus" in found.problem
