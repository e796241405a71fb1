"""Who asked for a Model that sleeps: what the operator has to be told so that it wakes.

Cumulative and level-triggered: a report that gets lost is made good by the next one, and a reader that restarts sees
the same numbers again.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(slots=True)
class Wanted:
    """Demand for one Model since this process started. `last` is Unix time; `pending` waits now."""

    requests: int = 0
    last: float = 0.0
    pending: int = 0


class Demand:
    """Demand by Model name. `on_ask` is called with each request that finds its Model without an endpoint."""

    def __init__(self) -> None:
        self.on_ask: Callable[[], None] = _nobody
        self._models: dict[str, Wanted] = {}
        self._touched: set[str] = set()

    def ask(self, model: str) -> None:
        """A request wants `model`, which has no endpoint; whether a fallback serves it makes no difference."""
        wanted = self._touch(model)
        wanted.requests += 1
        wanted.last = time.time()
        self.on_ask()

    def wait(self, model: str, change: int) -> None:
        """`change` more requests (or fewer) wait for `model`."""
        self._touch(model).pending += change

    def wanted(self, model: str) -> Wanted:
        """Demand for `model`; that of one nobody ever asked for is zero."""
        return self._models.get(model) or Wanted()

    def take_touched(self) -> set[str]:
        """The Models whose demand changed since this was last called."""
        touched, self._touched = self._touched, set()
        return touched

    def _touch(self, model: str) -> Wanted:
        self._touched.add(model)
        found = self._models.get(model)
        if found is None:
            found = self._models[model] = Wanted()
        return found


def _nobody() -> None:
    """Nobody is told."""
