"""What happened, counted: plain integers, because a client library's locks would cost more than the request.

`metrics` shows them to Prometheus; the report to the operator reads the same objects. All counts are cumulative since
the process started.
"""

import time
from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum

# Seconds. From a small model's first token to a cold start of minutes.
FIRST_BYTE_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
TOTAL_BOUNDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0)


class Outcome(StrEnum):
    """How a request ended. An engine's 4xx is `ok`: the Model did its part. A client that left is no failure."""

    OK = "ok"
    ERROR = "error"
    CANCELLED = "cancelled"


# Python 3.11 takes long to look a member up in an Enum.
OK, ERROR, CANCELLED = Outcome


class Histogram:
    """Counts per bucket, not cumulative; the last is for what is above every bound."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, seconds: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.total += seconds


class RouteStats:
    """One name's requests to one Model."""

    __slots__ = (
        "_ended_at", "cancelled", "completion_tokens", "error", "first_byte", "ok", "prompt_tokens", "total", "touched",
    )  # fmt: skip

    def __init__(self) -> None:
        self.ok = self.error = self.cancelled = 0
        self.prompt_tokens = self.completion_tokens = 0
        self.first_byte = Histogram(FIRST_BYTE_BOUNDS)
        self.total = Histogram(TOTAL_BOUNDS)
        self.touched = False  # counted something since somebody last set this to False
        self._ended_at: float | None = None

    @property
    def last_used(self) -> float:
        """When the last request ended, in Unix time; 0 if there was none."""
        return 0.0 if self._ended_at is None else time.time() - (time.monotonic() - self._ended_at)

    def ended(self, outcome: Outcome, began: float, now: float) -> None:
        """Count a request whose last byte came at `began` and whose answer ended `now` (monotonic seconds)."""
        if outcome is OK:
            self.ok += 1
        elif outcome is ERROR:
            self.error += 1
        else:
            self.cancelled += 1
        self.total.observe(now - began)
        self.touched = True
        self._ended_at = now


@dataclass
class Stats:
    """Everything the gateway counts. Routes are keyed by (alias, Model); the alias of a Model's own name is empty."""

    routes: dict[tuple[str, str], RouteStats] = field(default_factory=dict)
    by_model: dict[str, list[RouteStats]] = field(default_factory=dict)
    by_alias: dict[str, list[RouteStats]] = field(default_factory=dict)
    refused: Counter[str] = field(default_factory=Counter)  # by code
    retries: int = 0

    def route(self, alias: str, model: str) -> RouteStats:
        """The counts of one alias and Model."""
        found = self.routes.get((alias, model))
        if found is None:
            found = self.routes[alias, model] = RouteStats()
            self.by_model.setdefault(model, []).append(found)
            if alias:
                self.by_alias.setdefault(alias, []).append(found)
        return found
