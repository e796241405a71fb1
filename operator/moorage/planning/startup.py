"""How long a start took, split into its steps, from the timestamps that the objects carry."""

from collections.abc import Iterable
from datetime import datetime

from moorage.api.model_status import StartupStatus
from moorage.planning.types import Manifest


def moment(value: str | None) -> datetime | None:
    """A timestamp as the API server writes it; None where there is none."""
    return datetime.fromisoformat(value.replace("Z", "+00:00")) if value else None


PART_OF_THE_START = 60_000
"""Milliseconds. A pod made later than this after the download did not wait for it: it woke, was scaled or restarted."""


def _between(start: str | None, end: str | None) -> int | None:
    a, b = moment(start), moment(end)
    return max(int((b - a).total_seconds() * 1000), 0) if a and b else None


def startup_of(servers: Iterable[Manifest], download: Manifest | None, warm: Manifest) -> StartupStatus:
    """The split for the newest ready server. Kubernetes' timestamps have whole seconds, so parts below one are 0.

    The download is a part of it only where the server was started for it.
    """
    pods = [p for p in servers if p["ready"]]
    if not pods:
        return StartupStatus(first_token_milliseconds=warm.get("firstTokenMilliseconds"))
    pod = max(pods, key=lambda p: p.get("created") or "")
    began = next((c["startedAt"] for c in pod["containers"] if c.get("startedAt")), None)
    fetched = (download or {}).get("status") or {}
    waited = _between(fetched.get("completedAt"), pod.get("created"))
    if waited is None or waited > PART_OF_THE_START:
        fetched = {}
    return StartupStatus(
        schedule_milliseconds=_between(pod.get("created"), pod.get("scheduledAt")),
        pull_milliseconds=_between(pod.get("scheduledAt"), began),
        download_milliseconds=_between(fetched.get("startedAt"), fetched.get("completedAt")),
        load_milliseconds=_between(began, pod.get("readyAt")),
        first_token_milliseconds=warm.get("firstTokenMilliseconds"),
    )
