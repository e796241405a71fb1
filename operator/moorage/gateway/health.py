"""How an alias' targets do, and which of them its requests go past for a while. No I/O; monotonic seconds come in.

    well --too many failures, or too slow--> away --recoverAfter--> on trial --as many good ones--> well
                                               ^                        |
                                               +--------- bad ----------+

Each gateway process judges by what it sees itself, so that it needs nobody for it. Judged are only requests that were
sent to an engine; what clients broke off is no failure, and a cold start is not slow. An engine's 4xx is an answer.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from moorage.gateway.routes import Failover, Snapshot
from moorage.gateway.stats import CANCELLED, ERROR, Outcome
from moorage.usage import FailedOver

log = logging.getLogger(__name__)

_PARTS = 10  # of a window; the oldest is forgotten when a new one begins


@dataclass(slots=True)
class Tally:
    """Requests that ended: all, those that failed, those whose first token was timed, and those where it was late."""

    ended: int = 0
    failed: int = 0
    timed: int = 0
    late: int = 0

    def add(self, other: "Tally") -> None:
        """Count what `other` counted."""
        self.ended += other.ended
        self.failed += other.failed
        self.timed += other.timed
        self.late += other.late


class TargetHealth:
    """One target of one alias. `away` says since when requests go past it (Unix seconds) and why; None: they do not."""

    __slots__ = ("_at", "_changed", "_ends", "_parts", "_seats", "_trial", "away", "policy")

    def __init__(self, policy: Failover, changed: Callable[["TargetHealth", str], None]) -> None:
        self.policy = policy
        self.away: FailedOver | None = None
        self._changed = changed
        self._parts: dict[int, Tally] = {}
        self._at = 0  # the part that is counted in
        self._ends = 0.0  # when a trial may begin
        self._trial: Tally | None = None
        self._seats = 0  # requests that a trial still takes

    def admit(self, now: float) -> bool:
        """Whether a request may go there; then say `note` or `give_back` when it has ended."""
        if self.away is None:
            return True
        if self._trial is None:
            if now < self._ends:
                return False
            self._trial, self._seats = Tally(), self.policy.min_requests
        if not self._seats:
            return False
        self._seats -= 1
        return True

    def give_back(self) -> None:
        """A request that was admitted proves nothing: it was broken off, or never sent."""
        if self._trial is not None:
            self._seats += 1

    def ended(self, outcome: Outcome | None, first_token: float | None, waited: float | None, now: float) -> None:
        """A request that was admitted has ended; `outcome` None: it was never sent. `first_token` is as in `note`.

        `waited`: seconds in which a stream had no token when it ended. Who gives one up that is late says that it is.
        """
        if outcome is CANCELLED and waited is not None and waited > self.policy.max_first_token > 0:
            self.note(False, waited, now)
        elif outcome is None or outcome is CANCELLED:
            self.give_back()
        else:
            self.note(outcome is ERROR, first_token, now)

    def note(self, failed: bool, first_token: float | None, now: float) -> None:
        """A request ended. `first_token` is the seconds until the first of its stream; None: not to be judged."""
        policy = self.policy
        late = first_token is not None and 0 < policy.max_first_token < first_token
        tally = Tally(1, int(failed), int(first_token is not None), int(late))
        if self.away is None:
            self._part(now).add(tally)
            if (failed or late) and (why := self._verdict(self._window(now))):
                self._leave(f"{why} within {policy.window:g} s", now)
        elif self._trial is not None:
            self._trial.add(tally)
            self._judge_trial(self._trial, now)

    def _judge_trial(self, trial: Tally, now: float) -> None:
        if why := self._verdict(trial):
            self._leave(f"{why} on trial", now)
        elif trial.ended >= self.policy.min_requests:
            self.away, self._trial = None, None
            self._parts.clear()
            self._changed(self, "")

    def _leave(self, why: str, now: float) -> None:
        self.away = FailedOver(since=self.away.since if self.away else int(time.time()), why=why)
        self._ends, self._trial = now + self.policy.recover_after, None
        self._changed(self, why)

    def _verdict(self, tally: Tally) -> str:
        """What is wrong, if there were enough requests to say."""
        policy = self.policy
        if tally.ended < policy.min_requests:
            return ""
        if 100 * (tally.ended - tally.failed) < policy.min_success_percent * tally.ended:
            return f"{tally.failed} of {tally.ended} requests failed"
        if 2 * tally.late > tally.timed:
            limit = int(policy.max_first_token * 1000)
            return f"{tally.late} of {tally.timed} streams began later than {limit} ms"
        return ""

    def _part(self, now: float) -> Tally:
        at = int(now * _PARTS / self.policy.window)
        if at != self._at:
            self._at = at
            self._parts = {n: part for n, part in self._parts.items() if n > at - _PARTS}
        return self._parts.setdefault(at, Tally())

    def _window(self, now: float) -> Tally:
        total = Tally()
        self._part(now)
        for part in self._parts.values():
            total.add(part)
        return total


class Health:
    """The targets of all aliases that have a `failover`. `on_change` is called when one is left or comes back."""

    def __init__(self) -> None:
        self.on_change: Callable[[], None] = _nobody
        self._targets: dict[tuple[str, str], TargetHealth] = {}

    def target(self, alias: str, model: str, policy: Failover) -> TargetHealth:
        """How `model` does as a target of `alias`."""
        found = self._targets.get((alias, model))
        if found is None:

            def changed(health: TargetHealth, why: str) -> None:
                if why:
                    log.warning("alias %s goes past %s for %g s: %s", alias, model, policy.recover_after, why)
                else:
                    log.info("alias %s uses %s again", alias, model)
                self.on_change()

            found = self._targets[alias, model] = TargetHealth(policy, changed)
        return found

    def apply(self, snapshot: Snapshot) -> None:
        """Forget targets that are none any more, and what other rules said."""
        for (alias, model), health in list(self._targets.items()):
            route = snapshot.routes.get(alias)
            known = route is not None and any(t.model.name == model for t in (*route.targets, *route.fallbacks))
            if route is None or not known or route.failover != health.policy:
                del self._targets[alias, model]

    def failed_over(self) -> dict[str, dict[str, FailedOver]]:
        """By alias, the targets that its requests go past."""
        found: dict[str, dict[str, FailedOver]] = {}
        for (alias, model), health in self._targets.items():
            if health.away is not None:
                found.setdefault(alias, {})[model] = health.away
        return found


def _nobody() -> None:
    """Nobody is told."""
