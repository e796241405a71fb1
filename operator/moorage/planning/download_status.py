"""Filling a ModelDownload's status from facts, progress and results, and the sentences that go with it."""

from datetime import datetime
from typing import Any

from moorage import names
from moorage.api.common import Count, StatusPart, StatusWord
from moorage.api.conditions import DownloadPhase as Phase
from moorage.api.download import (
    DownloadItem,
    DownloadStatus,
    DownloadSummary,
    Facts,
    Faults,
    LastError,
    ModelDownload,
    Progress,
)
from moorage.engines import choice
from moorage.planning import download_job as jobs
from moorage.planning import text

ITEMS_LIMIT = 64
FITS_UNKNOWN = "known when the download looks into the volume"
_PHASES = {"Verifying": Phase.VERIFYING, "Publishing": Phase.VERIFYING, "Downloading": Phase.DOWNLOADING}


class _Told(StatusPart):
    """What a download pod tells of its progress; whoever has the pod's address by now, odd values are left out."""

    phase: StatusWord | None = None
    bytes: Progress | None = None
    files: Progress | None = None
    bytes_per_second: Count | None = None
    remaining_seconds: Count | None = None
    retries: Count | None = None
    last_error: LastError | None = None


def all_paths(status: DownloadStatus) -> list[str]:
    """The resolved files, where the status holds all of them, else none."""
    complete = status.files is not None and status.files.total == len(status.items)
    return [item.path for item in status.items] if complete else []


def take_facts(status: DownloadStatus, facts: dict[str, Any]) -> None:
    """Copy what the source said: commit, files with sizes, header facts; the same as before has lost no progress."""
    files = facts.get("files") or []
    total = sum(f["sizeBytes"] for f in files)
    same = status.resolved_revision == facts["commit"] and status.bytes and status.bytes.total == total
    done = status.bytes.done if same and status.bytes else 0
    status.resolved_revision = facts["commit"]
    status.items = [
        DownloadItem(path=f["path"], size_bytes=f["sizeBytes"], sha256=f.get("sha256"), verified=False)
        for f in files[:ITEMS_LIMIT]
    ]
    status.files = Progress(total=len(files), done=0) if files else None
    status.bytes = Progress(total=total, done=done) if files else None
    status.percent = done * 100 // max(total, 1) if files else None
    status.bytes_per_second = status.remaining_seconds = None
    status.facts = facts_of(facts.get("facts"))


def facts_of(told: dict[str, Any] | None) -> Facts:
    """Header facts as they were told; a header that this version cannot compute with is left out."""
    facts = Facts.read(told or {})
    if not choice.understood(facts.format, facts.header, facts.projector):
        facts.header = facts.projector = None
    return facts


def understood(status: DownloadStatus) -> bool:
    """Whether the header that is kept is one that this version of Moorage can compute with."""
    return status.facts is None or choice.understood(status.facts.format, status.facts.header, status.facts.projector)


def take_progress(status: DownloadStatus, progress: dict[str, Any] | None) -> None:
    """Copy what the download pod last told; bytes and percent never go back."""
    told = _Told.read(progress)
    if not told.phase or told.bytes is None:
        if status.phase not in (Phase.DOWNLOADING, Phase.VERIFYING):
            status.phase = Phase.CHECKING
        return
    status.phase = _PHASES.get(told.phase, Phase.CHECKING)
    total = max(told.bytes.total, status.bytes.total if status.bytes else 0)
    done = min(max(told.bytes.done, status.bytes.done if status.bytes else 0), total)
    status.bytes = Progress(total=total, done=done)
    if told.files and told.files.total:
        status.files = told.files
    status.percent = max(status.percent or 0, done * 100 // total if total else 0)
    status.bytes_per_second, status.remaining_seconds = told.bytes_per_second, told.remaining_seconds
    status.retries = told.retries
    take_faults(status, progress)
    status.last_error = told.last_error or status.last_error


def take_faults(status: DownloadStatus, told: dict[str, Any] | None) -> None:
    """Copy the counts of what went wrong from progress or a report; those that are zero are left out."""
    raw = (told or {}).get("faults")
    found = Faults.read({kind: count or None for kind, count in raw.items()} if isinstance(raw, dict) else {})
    status.faults = found if found.dump() else status.faults


def take_report(status: DownloadStatus, report: dict[str, Any], download: ModelDownload, now: datetime) -> None:
    """Copy the result of a Job that ended well."""
    commit = report.get("commit") or report.get("revision") or status.resolved_revision or ""
    status.resolved_revision = commit
    status.manifest_digest = report.get("manifestDigest") or "none"
    status.path = "/".join(part for part in (jobs.content_path(download, commit), report.get("folder")) if part)
    known = status.facts.dump() if status.facts else None
    if report.get("facts") or known:
        status.facts = facts_of(report.get("facts") or known)
    if status.bytes is None:
        status.bytes = Progress(total=max(report.get("bytes", 0), 0), done=0)
    status.bytes = Progress(total=status.bytes.total, done=status.bytes.total)
    counted = status.files.total if status.files else 0
    count = counted or len(status.items) or max(report.get("fileCount", 0), 0)
    status.files = Progress(total=count, done=count)
    status.percent = 100
    status.bytes_per_second = status.remaining_seconds = None
    take_faults(status, report)
    status.last_error = None
    status.attempts = None
    status.next_attempt_at = None
    status.completed_at = now
    status.verify_request = download.metadata.annotations.get(names.VERIFY_AT)
    verified = download.spec.verify != "None"
    status.items = [item.model_copy(update={"verified": verified}) for item in status.items or []]


def last_error(reason: str, message: str, report: dict[str, Any] | None) -> LastError:
    """The error as status keeps it."""
    return LastError(reason=reason, message=message, file=(report or {}).get("file"))


def resolved(status: DownloadStatus) -> str:
    """What the source turned out to be."""
    count, total = status.files, status.bytes
    if count is None or total is None:
        return "the files lie in the named claim"
    files = "1 file" if count.total == 1 else f"{count.total} files"
    return f"{files}, {text.size(total.total)}, at revision {(status.resolved_revision or '')[:12]}"


def starting(status: DownloadStatus) -> str:
    """What is being fetched, without numbers that move."""
    return f"fetching {resolved(status)}" if status.files else "reading the files of the claim"


def progressing(status: DownloadStatus) -> str:
    """The progress line: 41% of 39.1Gi, 212 MiB/s, 1m50s left."""
    total = status.bytes
    if total is None or status.phase == Phase.CHECKING:
        return "the download is being prepared"
    parts = [f"{status.percent or 0}% of {text.size(total.total)}"]
    if status.phase == Phase.VERIFYING:
        return f"verifying {text.size(total.total)}"
    if status.bytes_per_second:
        parts.append(text.speed(status.bytes_per_second))
    if status.remaining_seconds is not None:
        parts.append(f"{text.duration(status.remaining_seconds)} left")
    return ", ".join(parts)


def downloaded(status: DownloadStatus) -> str:
    """What lies in the volume."""
    total, count = status.bytes, status.files
    if total is None or count is None:
        return f"ready in claim {status.claim_name}"
    files = "1 file" if count.total == 1 else f"{count.total} files"
    return f"{files}, {text.size(total.total)}, in claim {status.claim_name}"


def summarise(status: DownloadStatus, message: str, *, verified: bool) -> None:
    """The column texts."""
    total = status.bytes
    moving = status.phase == Phase.DOWNLOADING
    status.summary = DownloadSummary(
        progress=f"{status.percent}%" if status.percent is not None else None,
        done=text.done_of(total.done, total.total) if total else None,
        speed=text.speed(status.bytes_per_second) if moving and status.bytes_per_second else None,
        eta=text.duration(status.remaining_seconds) if moving and status.remaining_seconds is not None else None,
        verified="yes" if verified else "no",
        message=text.line(message),
        revision=(status.resolved_revision or "")[:12] or None,
        files=f"{status.files.done}/{status.files.total}" if status.files else None,
    )
