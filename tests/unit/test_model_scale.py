"""How many servers a Model should have: every rule, and what holds whatever happens."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moorage.api.conditions import Reason
from moorage.api.scaling import Scaling, ScalingStatus, SleepCause
from moorage.planning.model_scale import Moment, Verdict, decide
from moorage.planning.usage import Hearing, Usage

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
UNIX = int(NOW.timestamp())


def moment(**change: Any) -> Moment:
    """A Model that has served for an hour, was last used half an hour ago, and sleeps after ten minutes."""
    scaling = Scaling.model_validate({"scaleToZeroAfter": "10m"} | change.pop("scaling", {}))
    usage = Usage(hearing=Hearing.COMPLETE, last_used=UNIX - 1800)
    return replace(
        Moment(
            now=NOW,
            replicas=1,
            scaling=scaling,
            remembered=ScalingStatus(),
            usage=replace(usage, **change.pop("usage", {})),
            current=1,
            serving_since=NOW - timedelta(hours=1),
        ),
        **change,
    )


def sleeping(cause: SleepCause = SleepCause.IDLE, **change: Any) -> Moment:
    """The same, put to sleep five minutes ago."""
    slept = ScalingStatus(asleep_since=NOW - timedelta(minutes=5), cause=cause, preempted_for="ns/other")
    return moment(**{"remembered": slept, "current": 0, "serving_since": None} | change)


def test_an_idle_model_goes_to_sleep_and_says_how_it_wakes():
    found = decide(moment())
    assert (found.replicas, found.remembered.asleep_since, found.remembered.cause) == (0, NOW, SleepCause.IDLE)
    assert found.sleep is not None
    assert found.sleep.reason is Reason.SCALED_TO_ZERO
    assert found.sleep.message == "asleep after 10m without a request; a request wakes it"


@pytest.mark.parametrize(
    "change",
    [
        {"usage": {"in_flight": 1}},
        {"usage": {"pending": 1}},
        {"usage": {"last_used": UNIX - 599}},
        {"usage": {"wanted_at": UNIX - 599}},
        {"serving_since": NOW - timedelta(seconds=599)},
        {"serving_since": None},
        {"measured": True},
        {"usage": {"hearing": Hearing.LISTENING}},
        {"usage": {"hearing": Hearing.SILENT}},
        {"scaling": {"scaleToZeroAfter": None}},
    ],
)
def test_what_keeps_a_model_awake(change: dict[str, Any]):
    found = decide(moment(**change))
    assert (found.replicas, found.sleep, found.remembered.asleep_since) == (1, None, None)


def test_it_is_looked_at_again_at_the_very_second():
    found = decide(moment(usage={"last_used": UNIX - 500}))
    assert found.again == 100
    later = replace(moment(usage={"last_used": UNIX - 500}), now=NOW + timedelta(seconds=100))
    assert decide(later).replicas == 0


def test_without_a_gateway_it_says_why_it_does_not_sleep():
    found = decide(moment(usage={"hearing": Hearing.SILENT}))
    assert found.note_reason is Reason.NO_USAGE_REPORTS
    assert "no gateway" in found.note


def asked(seconds_ago: float = 20, **change: Any) -> Moment:
    """A Model that never sleeps by itself, asked to sleep by a person."""
    at = (NOW - timedelta(seconds=seconds_ago)).isoformat()
    return moment(**{"sleep_at": at, "scaling": {"scaleToZeroAfter": None}} | change)


@pytest.mark.parametrize(
    "change",
    [{}, {"usage": {"hearing": Hearing.SILENT}}, {"sleep_at": "now"}, {"asked_at": "2026-01-01T11:59:00Z"}],
)
def test_a_model_that_a_person_asks_to_sleep(change: dict[str, Any]):
    found = decide(asked(**change))
    assert (found.replicas, found.remembered.cause) == (0, SleepCause.ASKED)
    assert found.sleep is not None
    assert found.sleep.message == "asleep because a person asked for it; a request wakes it"


@pytest.mark.parametrize(
    ("change", "again"),
    [
        ({"usage": {"in_flight": 1}}, 5),
        ({"usage": {"hearing": Hearing.LISTENING}}, 5),
        ({"seconds_ago": 3}, 7),
        ({"seconds_ago": -3600}, 10),
        ({"asked_at": "2026-01-01T12:00:00Z"}, None),
    ],
)
def test_it_first_ends_what_it_has(change: dict[str, Any], again: float | None):
    found = decide(asked(**change))
    assert (found.replicas, found.sleep, found.again) == (1, None, again)
    assert found.remembered.sleep_at is None, "not carried out yet"


def test_a_request_to_sleep_counts_once():
    once = asked()
    slept = decide(once).remembered
    woken = decide(replace(once, remembered=slept, current=0, usage=Usage(hearing=Hearing.COMPLETE, pending=1)))
    assert woken.replicas == 1
    assert decide(replace(once, remembered=woken.remembered)).replicas == 1


def test_an_old_request_to_sleep_does_not_meet_a_model_that_was_unloaded_or_asleep_meanwhile():
    once = asked()
    unloaded = decide(replace(once, replicas=0)).remembered
    assert decide(replace(once, remembered=unloaded)).replicas == 1
    dozing = ScalingStatus(asleep_since=NOW - timedelta(minutes=5), cause=SleepCause.IDLE)
    woken = decide(replace(once, remembered=dozing, current=0, usage=Usage(hearing=Hearing.COMPLETE, pending=1)))
    assert decide(replace(once, remembered=woken.remembered)).replicas == 1


WAKES = [
    ({"usage": {"pending": 2}}, "2 requests wait for it"),
    ({"usage": {"pending": 1, "hearing": Hearing.LISTENING}}, "1 request waits for it"),
    ({"usage": {"wanted_at": UNIX - 10}}, "a request came for it"),
    ({"usage": {"wanted_at": UNIX - 303}}, "a request came for it"),  # the gateway's clock may be a little behind
    ({"asked_at": "2026-01-01T12:00:00Z"}, "a person asked for it"),
]


@pytest.mark.parametrize(("change", "why"), WAKES)
@pytest.mark.parametrize("cause", SleepCause)
def test_what_wakes_a_sleeping_model(change: dict[str, Any], why: str, cause: SleepCause):
    found = decide(sleeping(cause, **change))
    assert (found.replicas, found.woken, found.remembered.asleep_since) == (1, why, None)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"usage": {"wanted_at": UNIX - 400}},
        {"usage": {"in_flight": 1, "last_used": UNIX}},  # ends what it has while it goes to sleep
        {"usage": {"hearing": Hearing.SILENT}},
    ],
)
def test_what_does_not_wake_it(change: dict[str, Any]):
    assert decide(sleeping(**change)).replicas == 0


def test_a_request_to_wake_counts_once():
    woken = decide(sleeping(asked_at="a"))
    assert woken.remembered.wake_at == "a"
    again = sleeping(asked_at="a")
    again.remembered.wake_at = "a"
    assert decide(again).replicas == 0
    assert decide(replace(again, asked_at="b")).replicas == 1


def test_a_request_to_wake_from_before_the_sleep_is_over():
    slept = decide(moment(asked_at="a"))
    assert slept.replicas == 0
    assert decide(sleeping(asked_at="a", remembered=slept.remembered)).replicas == 0


def test_a_persons_zero_is_undone_by_nobody_and_ends_the_sleep():
    found = decide(sleeping(replicas=0, usage={"pending": 3}, asked_at="now"))
    assert (found.replicas, found.woken, found.remembered.asleep_since) == (0, "", None)
    assert found.sleep is not None
    assert found.sleep.message == "replicas is 0; scale it up to load the model"


def test_it_makes_room_for_another_only_while_idle():
    found = decide(moment(evicted_for="ns/b", usage={"last_used": UNIX - 60}))
    assert (found.replicas, found.remembered.cause, found.remembered.preempted_for) == (0, "Preempted", "ns/b")
    assert found.sleep is not None
    assert found.sleep.reason is Reason.PREEMPTED
    assert "ns/b" in found.sleep.message
    assert decide(moment(evicted_for="ns/b", usage={"in_flight": 1})).replicas == 1


def test_whom_it_made_room_for_is_remembered_after_it_woke():
    found = decide(sleeping(SleepCause.PREEMPTED, usage={"pending": 1}))
    assert found.remembered.preempted_for == "ns/other"


LOAD = {"targetRequests": 4, "minReplicas": 1, "maxReplicas": 3, "scaleToZeroAfter": None}


@pytest.mark.parametrize(
    ("load", "peak", "current", "wanted"),
    [
        (0, 0, 1, 1),
        (4, 4, 1, 1),
        (5, 5, 1, 2),
        (100, 100, 1, 3),
        (0, 9, 3, 3),  # a peak of the last minutes
        (0, 5, 3, 2),
        (0, None, 3, 3),  # not known for long enough
        (9, 9, 2, 3),
        (0, 0, 9, 1),  # maxReplicas was lowered
    ],
)
def test_load_brings_servers_at_once_and_takes_them_when_no_peak_is_left(
    load: int, peak: int | None, current: int, wanted: int
):
    usage = {"in_flight": load, "peak": peak}
    assert decide(moment(scaling=LOAD, usage=usage, current=current)).replicas == wanted


def test_unknown_load_changes_nothing():
    for hearing in (Hearing.SILENT, Hearing.LISTENING):
        assert decide(moment(scaling=LOAD, usage={"hearing": hearing}, current=2)).replicas == 2


# -- whatever happens -------------------------------------------------------------------------------------------------

USAGES = st.builds(
    Usage,
    hearing=st.sampled_from(Hearing),
    in_flight=st.integers(0, 50),
    pending=st.integers(0, 5),
    peak=st.none() | st.integers(0, 99),
    wanted_at=st.integers(UNIX - 4000, UNIX),
    last_used=st.integers(UNIX - 4000, UNIX),
)
SCALINGS = st.builds(
    lambda after, least, more, target: Scaling(
        scale_to_zero_after=after,
        target_requests=target,
        min_replicas=least if target else 1,
        max_replicas=least + more if target else None,
    ),
    st.none() | st.sampled_from(["10s", "10m"]),
    st.integers(1, 3),
    st.integers(0, 4),
    st.none() | st.integers(1, 8),
)
MOMENTS = st.builds(
    Moment,
    now=st.just(NOW),
    replicas=st.integers(0, 3),
    scaling=SCALINGS,
    remembered=st.builds(
        ScalingStatus,
        asleep_since=st.none() | st.integers(0, 4000).map(lambda s: NOW - timedelta(seconds=s)),
        cause=st.none() | st.sampled_from(SleepCause),
        wake_at=st.none() | st.just("a"),
    ),
    usage=USAGES,
    current=st.none() | st.integers(0, 9),
    serving_since=st.none() | st.integers(0, 4000).map(lambda s: NOW - timedelta(seconds=s)),
    asked_at=st.sampled_from(["", "a", "b"]),
    evicted_for=st.sampled_from(["", "ns/b"]),
    measured=st.booleans(),
).map(lambda at: replace(at, serving_since=None) if at.remembered.asleep_since else at)  # who sleeps does not serve


def after(before: Moment, found: Verdict) -> Moment:
    """The next pass, when nothing has changed but what the verdict wrote."""
    return replace(before, remembered=found.remembered, current=found.replicas, evicted_for="")


@given(MOMENTS)
@settings(max_examples=500, deadline=None)
def test_the_number_is_within_bounds_and_sleep_is_explained(at: Moment):
    found = decide(at)
    if at.replicas == 0:
        assert found.replicas == 0
    elif at.scaling.target_requests and found.replicas:
        assert at.scaling.min_replicas <= found.replicas <= (at.scaling.max_replicas or 0)
    elif found.replicas:
        assert found.replicas == at.replicas
    assert (found.replicas == 0) == (found.sleep is not None)
    assert (found.remembered.asleep_since is None) or found.replicas == 0


@given(MOMENTS)
@settings(max_examples=500, deadline=None)
def test_a_second_look_at_the_same_things_decides_the_same(at: Moment):
    """Level-triggered: what was decided stays decided. One nap may be left out, never two begun."""
    first = decide(at)
    second = decide(after(at, first))
    third = decide(after(after(at, first), second))
    assert second.replicas == third.replicas
    assert not (first.woken and second.remembered.asleep_since), "woken and put to sleep by the same facts"


@given(MOMENTS, st.integers(1, 20))
@settings(max_examples=300, deadline=None)
def test_more_load_never_means_fewer_servers(at: Moment, more: int):
    heavier = replace(at, usage=replace(at.usage, in_flight=at.usage.in_flight + more))
    assert decide(heavier).replicas >= decide(at).replicas


@given(MOMENTS)
@settings(max_examples=300, deadline=None)
def test_who_has_requests_never_goes_to_sleep(at: Moment):
    if at.busy and at.replicas and at.remembered.asleep_since is None:
        assert decide(at).replicas > 0
