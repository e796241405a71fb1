"""How much one API key has used of its limits, in this process. No I/O; the clock is an argument (monotonic seconds).

A minute's allowance may be used at once and comes back evenly. Tokens are known when an answer ends: they are owed
then, and the key waits until the debt is paid.
"""

import math

from moorage.gateway import refusals
from moorage.gateway.keys import Limits
from moorage.gateway.refusals import Refusal


class Bucket:
    """An allowance of `size` a minute."""

    __slots__ = ("_at", "left", "size")

    def __init__(self, size: int, now: float) -> None:
        self.size = size
        self.left = float(size)
        self._at = now

    def refill(self, now: float) -> None:
        """Add what has come back by `now`."""
        self.left = min(self.size, self.left + (now - self._at) * self.size / 60)
        self._at = now

    def wait(self, amount: float) -> int:
        """Whole seconds until `amount` is there; 0: now."""
        return max(0, math.ceil((amount - self.left) * 60 / self.size))


class Meter:
    """One key's use. `admit` before a request and `end` after it, once each."""

    __slots__ = ("_in_flight", "_limits", "_requests", "_tokens")

    def __init__(self, limits: Limits, now: float) -> None:
        self._in_flight = 0
        self.set(limits, now)

    def set(self, limits: Limits, now: float) -> None:
        """Other limits: their allowances begin anew."""
        self._limits = limits
        self._requests = Bucket(limits.requests_per_minute, now) if limits.requests_per_minute else None
        self._tokens = Bucket(limits.tokens_per_minute, now) if limits.tokens_per_minute else None

    @property
    def limits(self) -> Limits:
        """What is allowed."""
        return self._limits

    def admit(self, now: float) -> Refusal | None:
        """Let a request in and count it, or say why not."""
        limits, requests, tokens = self._limits, self._requests, self._tokens
        if limits.max_concurrency and self._in_flight >= limits.max_concurrency:
            return refusals.rate_limited(f"{limits.max_concurrency} requests at once", 1)
        if tokens is not None:
            tokens.refill(now)
            if wait := tokens.wait(1):
                return refusals.rate_limited(f"{tokens.size} tokens a minute", wait)
        if requests is not None:
            requests.refill(now)
            if wait := requests.wait(1):
                return refusals.rate_limited(f"{requests.size} requests a minute", wait)
            requests.left -= 1
        self._in_flight += 1
        return None

    def end(self, tokens: int, now: float) -> None:
        """A request that was let in has ended, after so many tokens."""
        self._in_flight -= 1
        if self._tokens is not None:
            self._tokens.refill(now)
            self._tokens.left -= tokens
