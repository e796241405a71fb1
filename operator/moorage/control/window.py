"""Whether a download's hours have come. Time zones live in files, so this is asked outside of planning."""

from datetime import datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from moorage.planning.types import Window


def window_of(spec: dict[str, Any] | None, now: datetime) -> Window | None:
    """The state of `spec` ({start, end, timeZone}, times as HH:MM) at `now` (aware); None where there is none."""
    if not spec:
        return None
    zone = spec.get("timeZone") or "UTC"
    try:
        local = now.astimezone(ZoneInfo(zone))
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return Window(False, 0.0, f"spec.window.timeZone {zone!r} is not a time zone; write one such as Europe/Berlin")
    start, end = time.fromisoformat(spec["start"]), time.fromisoformat(spec["end"])
    moment = local.time().replace(tzinfo=None)
    inside = start <= moment < end if start < end else moment >= start or moment < end
    return Window(inside, _until(local, end if inside else start))


def _until(local: datetime, at: time) -> float:
    """Seconds from `local` to the next time that a clock there shows `at`."""
    then = local.replace(hour=at.hour, minute=at.minute, second=0, microsecond=0)
    if then <= local:
        then += timedelta(days=1)
    return (then - local).total_seconds()
