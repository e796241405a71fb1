"""Everything that makes a connection wait: a host's pause, the bandwidth limit; and what makes it not wait: stalls."""

import threading
import time
from collections.abc import Callable

from moorage.sources import Reason, source_error

FLOOR_BYTES_PER_SECOND = 100_000
_LEAST_PORTION = 4 << 10


class StopError(Exception):
    """The download was told to stop; nobody needs to hear more."""


class HostPauses:
    """Hosts that asked for a pause (Retry-After): every connection to them waits."""

    def __init__(self, stop: threading.Event, clock: Callable[[], float] = time.monotonic) -> None:
        self._stop, self._clock = stop, clock
        self._until: dict[str, float] = {}

    def pause(self, host: str, seconds: float) -> None:
        """Let nobody ask `host` anything for `seconds`."""
        self._until[host] = max(self._until.get(host, 0.0), self._clock() + seconds)

    def wait(self, host: str) -> None:
        """Return when `host` may be asked; raises StopError."""
        while (left := self._until.get(host, 0.0) - self._clock()) > 0:
            if self._stop.wait(min(left, 1.0)):
                raise StopError
        if self._stop.is_set():
            raise StopError


class Bandwidth:
    """A token bucket over all connections: at most `rate` bytes per second, None for no limit."""

    def __init__(self, rate: int | None, stop: threading.Event) -> None:
        self.rate, self._stop = rate, stop
        self._lock = threading.Lock()
        self._free_at = 0.0

    def portion(self, most: int) -> int:
        """Bytes to take at once, at most `most`: an eighth of a second's, so that no connection sleeps for long."""
        return min(most, max(_LEAST_PORTION, self.rate // 8)) if self.rate else most

    def take(self, size: int) -> None:
        """Wait until `size` bytes fit; raises StopError."""
        if not self.rate:
            return
        with self._lock:
            now = time.monotonic()
            self._free_at = max(self._free_at, now) + size / self.rate
            wait = self._free_at - now
        if self._stop.wait(wait):
            raise StopError


class SpeedFloor:
    """Tells a stalled transfer: under 100 KB/s over the whole `window` (seconds) of waiting for the server.

    Only time spent waiting counts, so that a bandwidth limit or a slow disk is not the server's fault.
    """

    def __init__(self, window: float, floor: int = FLOOR_BYTES_PER_SECOND) -> None:
        self._window, self._floor = window, floor
        self._waited = 0.0
        self._bytes = 0

    @property
    def patience(self) -> float:
        """Seconds the next read may take."""
        return max(0.05, self._window - self._waited)

    def read(self, size: int, waited: float) -> None:
        """`size` bytes came after `waited` seconds; raises SourceError(Stalled)."""
        self._waited += waited
        self._bytes += size
        if self._waited < self._window:
            return
        if self._bytes < self._floor * self._waited:
            raise self.error()
        self._waited, self._bytes = 0.0, 0

    def error(self) -> Exception:
        """The stall as an exception."""
        kept = self._bytes / 1000 / max(self._waited, self._window)
        return source_error(
            Reason.STALLED, f"stalled: {kept:.1f} KB/s for {self._window:g} s, below {self._floor // 1000} KB/s"
        )
