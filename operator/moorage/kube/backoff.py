"""How long to wait before the next try."""

import random
from dataclasses import dataclass, field


@dataclass
class Backoff:
    """Doubling delays in seconds with jitter, never shorter than what the server asked for.

    Jitter takes up to half away: many watches cut by one restart of the API server must not come back as one.
    """

    first: float = 0.5
    longest: float = 30.0
    chance: random.Random = field(default_factory=random.Random)
    failures: int = 0

    def reset(self) -> None:
        """Something worked."""
        self.failures = 0

    def next(self, retry_after: float | None = None) -> float:
        """Count one more failure and say how long to wait; `retry_after` is the server's own word, in seconds."""
        delay = min(self.longest, self.first * 2.0 ** min(self.failures, 32))
        self.failures += 1
        return max(delay * self.chance.uniform(0.5, 1.0), retry_after or 0.0)
