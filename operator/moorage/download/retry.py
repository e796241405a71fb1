"""How long to go on without progress."""

import random
import time
from collections.abc import Callable

from moorage.errors import SourceError
from moorage.sources import Reason

DELAY_AFTER_PROGRESS = 0.1
FIRST_DELAY = 0.5
LONGEST_DELAY = 8.0
NO_PROGRESS_SECONDS = 90.0
_SHORT_TRIES = 3


class CdnRefusal(SourceError):
    """A link that the hub has just made was refused by the server it leads to: not a verdict on our rights yet."""


def tries_for(error: SourceError, attempts: int) -> int:
    """How many attempts in a row `error` is worth: all, a few (another edge may behave), or this one only."""
    if isinstance(error, CdnRefusal) or error.reason in (Reason.UNEXPECTED_CONTENT, Reason.SIZE_MISMATCH):
        return min(_SHORT_TRIES, attempts)
    return attempts if error.retryable else 1


class Patience:
    """Counts failures in a row; progress makes it new.

    Ends after `attempts` failures or when the next attempt would begin more than 90 s after the last progress, so that
    with the default time-outs every endless fault ends within 120 s.
    """

    def __init__(self, attempts: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._attempts = attempts
        self._clock = clock
        self.failures = 0
        self.total = 0
        self._since = clock()
        self._last_failure = -1.0
        self._moving = False

    def begin(self) -> None:
        """The first attempt begins now, however long ago this was made."""
        if not self.total:
            self._since = self._clock()

    def progressed(self) -> None:
        """Bytes came: the count begins anew."""
        self.failures = 0
        self._since = self._clock()
        self._moving = True

    def after(self, error: SourceError, started: float | None = None) -> float:
        """Seconds to wait before the next attempt; raises `error` when there is to be none.

        `started` is when the failed attempt began: several connections that break together are one failure.
        """
        now = self._clock()
        self.total += 1
        if started is None or started >= self._last_failure:
            self.failures += 1
            self._last_failure = now
        delay = min(LONGEST_DELAY, FIRST_DELAY * 2.0 ** max(0, self.failures - 1)) * random.uniform(0.8, 1.2)
        delay = max(DELAY_AFTER_PROGRESS if self._moving else delay, error.retry_after or 0.0)
        self._moving = False
        if self.failures >= tries_for(error, self._attempts) or now + delay - self._since > NO_PROGRESS_SECONDS:
            raise error
        return delay
