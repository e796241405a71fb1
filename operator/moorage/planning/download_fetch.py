"""The Job of a ModelDownload: when it may start, what it is doing, and how it ended."""

from dataclasses import replace
from datetime import timedelta

from moorage import names
from moorage.api.common import duration_seconds
from moorage.api.conditions import DownloadCondition as C
from moorage.api.conditions import DownloadPhase as Phase
from moorage.api.conditions import Reason
from moorage.manifests import download as manifests
from moorage.planning import download_job as jobs
from moorage.planning import download_status as texts
from moorage.planning.download_claim import cannot_grow, waiting
from moorage.planning.download_pass import DownloadPass
from moorage.planning.download_source import inputs_of
from moorage.planning.download_where import job_place, stranded
from moorage.planning.draft import FALSE, TRUE, UNKNOWN
from moorage.planning.pods import Trouble, first_trouble
from moorage.planning.startup import moment
from moorage.planning.types import Manifest, Progress, Resolve
from moorage.planning.volumes import in_use

FIRST_RETRY_SECONDS = 10
LAST_RETRY_SECONDS = 600
FIRST_ACCESS_SECONDS = 60
TURN_SECONDS = 30
NO_POD_SECONDS = 15
PERMANENT_EXIT = range(10, 30)
UNBOUND = "unbound immediate PersistentVolumeClaims"  # as kube-scheduler says it

# Refusals that a new token, a granted request or a Secret can mend without anyone touching the ModelDownload.
ACCESS = {
    Reason.UNAUTHORIZED,
    Reason.ACCESS_DENIED,
    Reason.GATED_ACCESS_DENIED,
    Reason.REPO_NOT_FOUND_OR_PRIVATE,
}


def fetch(step: DownloadPass) -> str | None:
    """Run the Job and keep its result."""
    if step.draft.true(C.DOWNLOADED) and step.status.manifest_digest and not _look_again(step):
        return None
    changed = step.download.status.observed_generation != step.download.metadata.generation
    if step.status.phase == Phase.FAILED and step.seen.job is None and not changed and not _verify_asked(step):
        return _still_failed(step)
    if closed := _outside_window(step) or _too_late(step):
        return closed
    commit = step.status.resolved_revision or ""
    claim = step.status.claim_name or step.name
    wanted = jobs.build(step.download, commit, claim, step.seen.defaults, texts.all_paths(step.status))
    job = step.seen.job
    if job is None:
        return _start(step, wanted)
    if job.get("owner") != step.download.metadata.uid:
        return _not_ours(step, job)
    if job["inputsHash"] != wanted.inputs and not job["complete"]:
        step.drop_job()
        return "the wanted files changed; the running download is stopped first"
    if stranded(step.seen, job):
        step.drop_job()
        return "no node takes the download where it was wanted; it is started where the servers will be now"
    report = jobs.result(step.seen.pods, job)
    told = report is not None and report["exitCode"] == 0 and "manifestDigest" in report  # a bare exit code is no proof
    if report and told and job["inputsHash"] == wanted.inputs:
        return _finish(step, report)  # without waiting for the Job controller to notice
    final = report is not None and report["exitCode"] in PERMANENT_EXIT
    if job["complete"] or job["failed"] or final:
        return _finished_badly(step, job, report)
    return _running(step, job, report)


def _not_ours(step: DownloadPass, job: Manifest) -> str:
    """A stranger's Job stays for a person to see to; what a deleted ModelDownload left is about to be collected."""
    step.status.phase = Phase.PENDING
    if job.get("owner") and names.DOWNLOAD_LABEL in job.get("labels", {}):
        return _not_yet(
            step, Reason.PENDING, f"waiting for the Job {step.name} of a former ModelDownload to be removed"
        )
    return _not_yet(step, Reason.NAME_TAKEN, f"a Job {step.name} exists that Moorage did not make; rename one")


def _start(step: DownloadPass, wanted: manifests.DownloadJob) -> str:
    due = step.status.next_attempt_at
    if due is not None and due > step.seen.now:
        step.wake_in((due - step.seen.now).total_seconds() + 0.05)
        step.status.phase = Phase.RETRYING
        error = step.status.last_error
        return f"{error.message if error else 'failed'}; tries again at {due:%H:%M:%S} UTC"
    if step.seen.ahead:
        step.status.phase = Phase.PENDING
        step.wake_in(TURN_SECONDS)  # a place that another was given and did not take comes free without a word
        return _not_yet(step, Reason.QUEUED, f"waits for its turn, {step.seen.ahead} downloads go first")
    space = step.draft.get(C.SPACE_AVAILABLE)
    if space and space.status == FALSE:
        step.draft.set(C.SPACE_AVAILABLE, UNKNOWN, Reason.PROGRESSING, texts.FITS_UNKNOWN)
    place = job_place(step.seen)
    wanted = replace(wanted, node_selector=place.node_selector, tolerations=place.tolerations, affinity=place.affinity)
    step.apply.append(manifests.job(step.seen.download, step.name, wanted))
    step.status.phase = Phase.VERIFYING if step.draft.true(C.DOWNLOADED) else Phase.CHECKING
    step.status.started_at = step.status.started_at or step.seen.now
    _under_way(step)
    return "the download Job is being started"


def _under_way(step: DownloadPass) -> None:
    """Downloaded=False while bytes are fetched; files that only are verified again stay downloaded."""
    if step.draft.true(C.DOWNLOADED):
        step.draft.set(C.VERIFIED, UNKNOWN, Reason.VERIFYING, "the files are being verified again")
    else:
        step.draft.set(C.DOWNLOADED, FALSE, Reason.DOWNLOADING, texts.starting(step.status))


def _not_yet(step: DownloadPass, reason: Reason, text: str) -> str:
    if not step.draft.true(C.DOWNLOADED):
        step.draft.set(C.DOWNLOADED, FALSE, reason, text)
    return text


def _verify_asked(step: DownloadPass) -> bool:
    asked = step.download.metadata.annotations.get(names.VERIFY_AT)
    return asked is not None and asked != step.status.verify_request


def _look_again(step: DownloadPass) -> bool:
    """Whether files that are there are to be read once more: a person asked, or another version kept their header."""
    in_claim = step.download.spec.source.persistent_volume_claim is not None
    return _verify_asked(step) or (in_claim and not texts.understood(step.status))


def _outside_window(step: DownloadPass) -> str | None:
    """Stop what runs and wait, where the spec has hours and it is not the hour."""
    window, spec = step.seen.window, step.download.spec.window
    if window is None or spec is None or window.open:
        if window is not None:
            step.wake_in(window.changes_in + 1.0)
        return None
    if window.problem:
        step.status.phase = Phase.PENDING
        return _not_yet(step, Reason.INVALID_SPEC, window.problem)
    step.drop_job()
    step.wake_in(window.changes_in + 1.0)
    step.status.phase = Phase.PAUSED
    hours = f"{spec.start} to {spec.end} {spec.time_zone}"
    return _not_yet(step, Reason.OUTSIDE_WINDOW, f"waits for its hours, {hours}")


def _too_late(step: DownloadPass) -> str | None:
    """Give up, where the spec has a deadline and the files are not there by then."""
    deadline, began = step.download.spec.retry.deadline, step.status.started_at
    if deadline is None or began is None or step.draft.true(C.DOWNLOADED):
        return None
    left = duration_seconds(deadline) - (step.seen.now - began).total_seconds()
    if left > 0:
        step.wake_in(left + 1.0)
        return None
    step.drop_job()
    before = step.status.last_error
    text = (
        f"not done within {deadline}, as spec.retry.deadline asks; what was fetched is kept, and a longer one goes on"
    )
    if before and before.message and before.reason != Reason.DEADLINE_EXCEEDED:
        text += f". The last trouble was: {before.message}"
    step.status.last_error = texts.last_error(Reason.DEADLINE_EXCEEDED, text, None)
    step.status.next_attempt_at = None
    return step.fail(Reason.DEADLINE_EXCEEDED, text)


def _still_failed(step: DownloadPass) -> str:
    """For good, until the inputs change; but what a token or a grant can mend is asked about now and then."""
    error = step.status.last_error
    text = (error.message if error else None) or "failed"
    if error is None or error.reason not in ACCESS:
        return text
    step.ask_credentials()
    due = step.status.next_attempt_at or step.seen.now
    if due > step.seen.now and not step.seen.credentials_changed:
        step.wake_in((due - step.seen.now).total_seconds() + 0.05)
        return text
    probe = f"{inputs_of(step.download)}-access-{step.status.attempts or 0}"
    answer = step.seen.resolved
    if answer is None or answer.inputs != probe or answer.value is None:
        step.ask.append(Resolve(probe, step.download.spec.source.dump(), tuple(step.download.spec.files)))
        return text
    step.status.phase = Phase.RETRYING
    step.status.next_attempt_at = None
    step.wake_in(0.0)
    return f"{text}; the source answers again, trying once more"


def _finish(step: DownloadPass, report: Manifest) -> str | None:
    texts.take_report(step.status, report, step.download, step.seen.now)
    step.draft.set(C.SPACE_AVAILABLE, TRUE, Reason.SPACE_AVAILABLE, "the volume has room for all files")
    step.draft.set(C.DOWNLOADED, TRUE, Reason.DOWNLOADED, texts.downloaded(step.status))
    if not step.draft.true(C.RESOLVED):
        step.draft.set(C.RESOLVED, TRUE, Reason.RESOLVED, texts.resolved(step.status))
    _verified(step, report)
    return None


def _verified(step: DownloadPass, report: Manifest) -> None:
    how = "sha256" if step.download.spec.verify == "Full" else "size"
    prefilled = step.download.spec.source.persistent_volume_claim is not None
    if step.download.spec.verify == "None":
        step.draft.set(C.VERIFIED, UNKNOWN, Reason.NOT_VERIFIED, "spec.verify is None, so nothing was compared")
    elif prefilled and not report["manifestDigest"]:
        text = "the folder has no manifest.json that says what its files should be, so nothing was compared"
        step.draft.set(C.VERIFIED, UNKNOWN, Reason.NOT_VERIFIED, text)
    else:
        whose = "of the folder's manifest" if prefilled else "that the source names"
        step.draft.set(C.VERIFIED, TRUE, Reason.VERIFIED, f"every file has the {how} {whose}")


def _finished_badly(step: DownloadPass, job: Manifest, report: Manifest | None) -> str:
    """The Job ended without a result we can use: permanent errors end here, the rest is tried again later."""
    step.drop_job()
    if job["complete"]:
        return "the Job's result was lost with its pod; it runs again and finds what is there"
    counted = step.status.phase == Phase.FAILED or (step.status.next_attempt_at or step.seen.now) > step.seen.now
    if counted and step.status.last_error:  # the mirror still shows the Job that was removed
        return step.status.last_error.message or "failed"
    reason = report["reason"] if report else job["reason"] or "Failed"
    text = report["message"] if report else job["message"] or "the download Job failed"
    if reason == Reason.INSUFFICIENT_STORAGE and (advice := cannot_grow(step)):
        text = f"{text.partition(';')[0]}; {advice}"  # the process knows the numbers, not the claim
    step.status.last_error = texts.last_error(reason, text, report)
    texts.take_faults(step.status, report)
    step.status.attempts = (step.status.attempts or 0) + 1
    if report and report["exitCode"] in PERMANENT_EXIT:
        pause = min(FIRST_ACCESS_SECONDS * 2 ** (step.status.attempts - 1), LAST_RETRY_SECONDS)
        step.status.next_attempt_at = step.seen.now + timedelta(seconds=pause) if reason in ACCESS else None
        step.status.verify_request = step.download.metadata.annotations.get(names.VERIFY_AT)
        return step.fail(reason, text)
    wait = min(FIRST_RETRY_SECONDS * 2 ** (step.status.attempts - 1), LAST_RETRY_SECONDS)
    step.status.next_attempt_at = step.seen.now + timedelta(seconds=wait)
    step.status.phase = Phase.RETRYING
    step.draft.set(C.DOWNLOADED, FALSE, reason, text)
    step.wake_in(wait)
    return f"{text}; tries again in {wait} s"


def _running(step: DownloadPass, job: Manifest, report: Manifest | None) -> str:
    pod = next((p for p in step.seen.pods if not p.get("deleting") and p["phase"] in ("Pending", "Running")), None)
    if pod is None:
        if report is None:
            return _no_pod(step, job)
        step.status.last_error = texts.last_error(report["reason"], report["message"], report)
        texts.take_faults(step.status, report)
        step.status.phase = Phase.RETRYING
        step.draft.set(C.DOWNLOADED, FALSE, report["reason"], report["message"])
        return f"{report['message']}; the Job tries again"
    step.status.node = pod["node"] or None
    problem = _trouble(step, pod)
    if problem and pod["phase"] == "Pending":
        step.status.phase = Phase.PENDING
        step.draft.set(C.DOWNLOADED, FALSE, problem.reason, problem.message)
        return problem.message
    if pod["phase"] == "Running" and pod["ip"]:
        host = f"[{pod['ip']}]" if ":" in pod["ip"] else pod["ip"]
        step.ask.append(Progress(pod["uid"], f"http://{host}:{names.PROGRESS_PORT}/progress"))
        texts.take_progress(step.status, step.seen.progress)
    elif step.status.phase not in (Phase.DOWNLOADING, Phase.VERIFYING):
        step.status.phase = Phase.CHECKING
    _under_way(step)
    return texts.progressing(step.status)


def _trouble(step: DownloadPass, pod: Manifest) -> Trouble | None:
    """What keeps the pod from running; the scheduler's words, unless they are about a claim that is not bound."""
    words = pod["unschedulable"]
    if not pod["node"] and (not words or UNBOUND in words) and (text := waiting(step)):
        began = moment(pod["created"])
        if began and (step.seen.now - began).total_seconds() < NO_POD_SECONDS:
            step.wake_in(NO_POD_SECONDS)  # every volume takes a moment
            return None
        return Trouble(Reason.WAITING_FOR_VOLUME, text)
    return first_trouble([pod]) or in_use(pod, step.seen.volume)


def _no_pod(step: DownloadPass, job: Manifest) -> str:
    """Why a Job gets no pod stands only in its Events (a quota, an admission policy), unless it is suspended."""
    if job["suspended"]:
        step.status.phase = Phase.PENDING
        text = f"the Job {step.name} is suspended, by a person or a queue; it goes on when its spec.suspend is false"
        return _not_yet(step, Reason.PENDING, text)
    began = moment(job.get("started"))
    if began is None or (step.seen.now - began).total_seconds() < NO_POD_SECONDS:
        step.wake_in(NO_POD_SECONDS)
        return "waiting for the download pod"
    text = f"the download Job has no pod; `kubectl describe job {step.name}` says why, a quota or a policy as a rule"
    return _not_yet(step, Reason.PENDING, text)


def ready(step: DownloadPass) -> str:
    """Everything is there and verified."""
    step.status.phase = Phase.READY
    for kind in (C.RESOLVED, C.SPACE_AVAILABLE, C.DOWNLOADED, C.VERIFIED):
        step.draft.confirm(kind)
    job = step.seen.job
    if job is not None and not job.get("stranger") and job.get("complete"):
        step.drop_job()  # its result is kept; a finished pod only holds on to the volume
    return texts.downloaded(step.status)
