"""How long a download goes on without progress."""

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moorage.download.pace import HostPauses, SpeedFloor, StopError
from moorage.download.retry import CdnRefusal, Patience, tries_for
from moorage.errors import SourceError
from moorage.sources import CATALOG, Reason, source_error

RETRYABLE = [r for r, facts in CATALOG.items() if facts.retryable and r is not Reason.INTERRUPTED]
PERMANENT = [r for r, facts in CATALOG.items() if 10 <= facts.exit_code < 30]


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


def endless(error, duration, retries=6):
    """Seconds and attempts until a fault that never ends is given up; each attempt takes `duration` seconds."""
    clock = Clock()
    patience, begun, attempts = Patience(retries, clock), clock.now, 0
    while True:
        started = clock.now
        clock.now += duration
        attempts += 1
        try:
            clock.now += patience.after(error, started)
        except SourceError as given_up:
            assert given_up is error
            return clock.now - begun, attempts


@given(st.sampled_from(RETRYABLE), st.floats(0, 30), st.floats(0, 4000) | st.none())
def test_every_endless_fault_ends_within_two_minutes(reason, duration, after):
    seconds, attempts = endless(source_error(reason, "x", after=after), duration)
    assert seconds <= 120
    assert 1 <= attempts <= 6


@given(st.sampled_from(PERMANENT), st.floats(0, 3))
def test_a_permanent_error_ends_within_fifteen_seconds(reason, duration):
    seconds, attempts = endless(source_error(reason, "x"), duration)
    assert seconds < 15
    assert attempts == (3 if reason is Reason.UNEXPECTED_CONTENT else 1)


def test_a_refused_link_is_asked_for_again_but_not_for_ever():
    seconds, attempts = endless(CdnRefusal(Reason.ACCESS_DENIED, "x", retryable=False), 0.1)
    assert attempts == 3
    assert seconds < 3


def test_a_wait_longer_than_our_patience_is_told_and_not_sat_out():
    error = source_error(Reason.RATE_LIMITED, "x", after=3600)
    seconds, attempts = endless(error, 0.1)
    assert (attempts, error.retry_after) == (1, 3600)
    assert seconds < 1


def test_only_failures_without_progress_count():
    clock = Clock()
    patience, error = Patience(2, clock), source_error(Reason.NETWORK, "x")
    for _ in range(1000):
        clock.now += patience.after(error, clock.now)
        clock.now += 5
        patience.progressed()
    patience.after(error, clock.now)
    with pytest.raises(SourceError):
        patience.after(error, clock.now)


def test_connections_that_break_together_are_one_failure():
    clock = Clock()
    patience, error = Patience(3, clock), source_error(Reason.NETWORK, "x")
    started = clock.now
    for _ in range(16):
        clock.now += 0.01
        patience.after(error, started)
    assert patience.failures == 1


def test_the_first_retry_after_progress_is_quick_and_a_server_s_wish_is_kept():
    patience = Patience(6, Clock())
    patience.progressed()
    assert patience.after(source_error(Reason.NETWORK, "x")) == pytest.approx(0.1)
    assert patience.after(source_error(Reason.RATE_LIMITED, "x", after=7)) == 7


def test_tries():
    assert tries_for(source_error(Reason.NETWORK, "x"), 6) == 6
    assert tries_for(source_error(Reason.SIZE_MISMATCH, "x"), 6) == 3
    assert tries_for(source_error(Reason.SIZE_MISMATCH, "x"), 1) == 1


def test_a_transfer_below_the_floor_is_stalled():
    floor = SpeedFloor(30)
    for _ in range(29):
        floor.read(99_000, 1.0)
    with pytest.raises(SourceError) as caught:
        floor.read(99_000, 1.0)
    assert caught.value.reason == "Stalled"


@given(st.lists(st.tuples(st.integers(1, 10**7), st.floats(0, 5)), max_size=60))
def test_the_floor_is_an_average_over_the_window(reads):
    floor, waited, size = SpeedFloor(10), 0.0, 0
    for got, seconds in reads:
        waited, size = waited + seconds, size + got
        stalled = waited >= 10 and size < 100_000 * waited
        try:
            floor.read(got, seconds)
        except SourceError:
            assert stalled
            return
        assert not stalled
        if waited >= 10:
            waited, size = 0.0, 0


def test_a_pause_of_one_host_leaves_others_alone():
    clock, stop = Clock(), threading.Event()
    pauses = HostPauses(stop, clock)
    pauses.pause("a", 1000)
    pauses.wait("b")
    stop.set()
    with pytest.raises(StopError):
        pauses.wait("a")
