"""When an alias goes past a target, and when it comes back."""

import pytest

from moorage.gateway.health import Health, TargetHealth
from moorage.gateway.routes import Alias, Failover, Model, Snapshot

POLICY = Failover(min_success_percent=90, max_first_token=1.0, window=10.0, min_requests=20, recover_after=100.0)


class Watched(TargetHealth):
    """A target's health that remembers what it said."""

    def __init__(self, policy: Failover = POLICY) -> None:
        self.said: list[str] = []
        super().__init__(policy, lambda _, why: self.said.append(why))


def feed(
    health: TargetHealth, count: int, now: float = 0.0, *, failed: bool = False, token: float | None = None
) -> int:
    """`count` requests, as far as they are admitted; how many were."""
    admitted = [health.admit(now) for _ in range(count)]
    for _ in range(sum(admitted)):
        health.note(failed, token, now)
    return sum(admitted)


def test_too_many_failures_of_enough_requests():
    health = Watched()
    feed(health, 17)
    feed(health, 2, failed=True)
    assert health.away is None, "19 requests are not enough to say"
    feed(health, 1, failed=True)
    assert health.away is not None
    assert health.said == ["3 of 20 requests failed within 10 s"]
    assert not health.admit(99.9)


def test_as_many_failures_as_allowed_are_allowed():
    health = Watched()
    feed(health, 90)
    feed(health, 10, failed=True)
    assert health.away is None


def test_what_is_older_than_the_window_does_not_count():
    health = Watched()
    feed(health, 19, now=0, failed=True)
    feed(health, 19, now=11, failed=True)
    assert health.away is None
    feed(health, 1, now=12, failed=True)
    assert health.said == ["20 of 20 requests failed within 10 s"]


def test_a_rising_time_to_the_first_token_is_judged_by_the_median():
    health = Watched()
    feed(health, 12, token=0.5)
    feed(health, 12, token=2.0)
    feed(health, 50), "requests without a stream say nothing about it"
    assert health.away is None
    feed(health, 1, token=2.0)
    assert health.said == ["13 of 25 streams began later than 1000 ms within 10 s"]


@pytest.mark.parametrize(
    "policy", [Failover(min_success_percent=90, min_requests=5), Failover(max_first_token=1, min_requests=5)]
)
def test_a_limit_that_is_not_set_is_none(policy):
    health = Watched(policy)
    if policy.min_success_percent:
        feed(health, 100, token=1000.0)
    else:
        feed(health, 100, failed=True)
    assert health.away is None


def test_a_trial_takes_as_many_as_it_needs_and_then_all_come_back():
    health = Watched()
    feed(health, 20, failed=True)
    since = health.away.since
    assert feed(health, 5, now=50) == 0
    seats = [health.admit(100) for _ in range(30)]
    assert sum(seats) == 20, "the rest goes elsewhere until these have ended"
    for _ in range(19):
        health.note(False, None, 101)
    assert health.away is not None
    assert health.away.since == since
    health.note(False, None, 101)
    assert health.away is None
    assert health.said[-1] == ""
    assert feed(health, 50, now=102) == 50
    feed(health, 1, now=102, failed=True)
    assert health.away is None, "what was before is forgotten"


def test_a_bad_trial_means_waiting_again():
    health = Watched()
    feed(health, 20, failed=True)
    assert feed(health, 20, now=100, failed=True) == 20
    assert health.said[-1] == "20 of 20 requests failed on trial"
    assert feed(health, 20, now=199) == 0
    assert feed(health, 20, now=200) == 20
    assert health.away is None


def test_who_proves_nothing_gives_the_seat_back():
    health = Watched()
    feed(health, 20, failed=True)
    for _ in range(50):
        assert health.admit(100)
        health.give_back()
    assert feed(health, 30, now=100) == 20
    assert health.away is None
    health.give_back()  # of a request from before


def test_other_rules_begin_anew_and_old_targets_are_forgotten():
    def table(policy: Failover | None, target: str = "a") -> Snapshot:
        return Snapshot.build([Model("a"), Model("b")], [Alias("chat", ((target, 1),), failover=policy)])

    health = Health()
    told = []
    health.on_change = lambda: told.append(1)
    feed(health.target("chat", "a", POLICY), 20, failed=True)
    assert [*health.failed_over()] == ["chat"]
    assert health.failed_over()["chat"]["a"].why == "20 of 20 requests failed within 10 s"
    assert told == [1]
    health.apply(table(POLICY))
    assert health.failed_over() != {}
    for other in (table(None), table(Failover(50)), table(POLICY, "b"), Snapshot.build([])):
        feed(health.target("chat", "a", POLICY), 20, failed=True)
        health.apply(other)
        assert health.failed_over() == {}
