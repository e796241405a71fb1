"""Who asked for a Model that sleeps: what the operator has to be told, in one object.

Cumulative and level-triggered: a report that gets lost is made good by the next one, and a reader that restarts sees
the same numbers again.
"""

import time
from dataclasses import dataclass


@dataclass(slots=True)
class Wanted:
    """Demand for one Model since this process started. `last` is Unix time; `pending` waits now."""

    requests: int = 0
    last: float = 0.0
    pending: int = 0


class Demand:
    """Demand by Model name."""

    def __init__(self) -> None:
        self._models: dict[str, Wanted] = {}

    def ask(self, model: str) -> None:
        """A request wants `model`, which has no endpoint; whether a fallback serves it makes no difference."""
        wanted = self._wanted(model)
        wanted.requests += 1
        wanted.last = time.time()

    def wait(self, model: str, change: int) -> None:
        """`change` more requests (or fewer) wait for `model`."""
        self._wanted(model).pending += change

    def report(self) -> dict[str, dict[str, float]]:
        """Every Model that was ever wanted, as plain data."""
        return {
            model: {"requests": wanted.requests, "last": wanted.last, "pending": wanted.pending}
            for model, wanted in self._models.items()
        }

    def _wanted(self, model: str) -> Wanted:
        found = self._models.get(model)
        if found is None:
            found = self._models[model] = Wanted()
        return found
