"""What to do about a ModelDownload: resolve the source, make the claim, run the Job, keep its result.

The steps are Resolved -> SpaceAvailable -> Downloaded -> Verified -> Ready. What was found is kept in status with the
hash of the spec it belongs to, so nothing is asked or run twice and a Ready download needs nobody.
"""

from datetime import timedelta

from moorage import names
from moorage.api.common import duration_seconds, quantity_bytes
from moorage.api.conditions import DownloadCondition as C
from moorage.api.conditions import DownloadPhase as Phase
from moorage.api.conditions import Reason
from moorage.api.download import DownloadStatus, ModelDownload
from moorage.errors import InvalidSpec
from moorage.manifests import download as manifests
from moorage.planning import download_job as jobs
from moorage.planning import download_status as texts
from moorage.planning import invalid
from moorage.planning.draft import FALSE, TRUE, UNKNOWN, Draft
from moorage.planning.pods import first_trouble
from moorage.planning.types import Answer, Manifest, ObservedDownload, Plan, Progress, Ref, Resolve

FIRST_RETRY_SECONDS = 10
LAST_RETRY_SECONDS = 600
PERMANENT_EXIT = range(10, 30)

EVENTS = {
    (C.RESOLVED, FALSE, "*"): "*",
    (C.DOWNLOADED, FALSE, Reason.DOWNLOADING): "Downloading",
    (C.DOWNLOADED, FALSE, "*"): "*",
    (C.SPACE_AVAILABLE, FALSE, "*"): "*",
    (C.READY, TRUE, "*"): "Downloaded",
}


def plan_download(seen: ObservedDownload) -> Plan:
    """The next step of one ModelDownload."""
    if seen.download["metadata"].get("deletionTimestamp"):
        return Plan(why="being deleted; its claim and Job go with it")
    try:
        download = ModelDownload.read(seen.download)
    except InvalidSpec as error:
        return invalid.plan(seen.download, seen.now, error)
    return _Pass(seen, download).plan()


def inputs_of(download: ModelDownload) -> str:
    """Hash of what decides which bytes are wanted, and of a person's request to look again."""
    asked = download.metadata.annotations.get(names.REFRESH_AT, "")
    return names.digest([download.spec.source.dump(), download.spec.files, asked])


class _Pass:
    """One pass over one download: the draft of its status and the actions collected on the way."""

    def __init__(self, seen: ObservedDownload, download: ModelDownload) -> None:
        self.seen, self.download = seen, download
        self.status: DownloadStatus = download.status.model_copy(deep=True)
        self.draft = Draft(download.status.conditions, download.metadata.generation, seen.now)
        self.name = names.download_child(download.metadata.name)
        self.apply: list[Manifest] = []
        self.delete: list[Ref] = []
        self.ask: list[Resolve | Progress] = []
        self.requeue: float | None = None

    def plan(self) -> Plan:
        self._users()
        if self._expired():
            return self._remove_self()
        steps = (self._state, self._resolve, self._claim, self._fetch)
        message = next((text for step in steps if (text := step())), "") or self._ready()
        self._roll_up(message)
        texts.summarise(self.status, message)
        self.status.conditions = self.draft.conditions
        self.status.observed_generation = self.download.metadata.generation
        return Plan(
            apply=tuple(self.apply),
            delete=tuple(self.delete),
            status=self.status.dump(),
            events=self.draft.events(EVENTS),
            ask=tuple(self.ask),
            requeue_after=self.requeue,
            why=message,
        )

    # -- who uses it, and when it goes -------------------------------------------------------------------------

    def _users(self) -> None:
        self.status.used_by = sorted(self.seen.users)[:64]
        if self.seen.users:
            self.status.unused_since = None
        elif self.status.unused_since is None:
            self.status.unused_since = self.seen.now

    def _expired(self) -> bool:
        made_for_models = self.download.metadata.labels.get(names.MANAGED_BY) == "moorage"
        storage = self.download.spec.storage
        if not made_for_models or self.status.unused_since is None or storage.reclaim_policy == "Retain":
            return False
        keep = duration_seconds(storage.delete_after_unused)
        left = keep - (self.seen.now - self.status.unused_since).total_seconds()
        self._wake_in(max(left, 1.0))
        return left <= 0

    def _remove_self(self) -> Plan:
        meta = self.download.metadata
        ref = Ref(names.API_VERSION, "ModelDownload", meta.namespace, meta.name, meta.uid)
        return Plan(delete=(ref,), why=f"no Model has used it since {self.status.unused_since}")

    def _wake_in(self, seconds: float) -> None:
        self.requeue = seconds if self.requeue is None else min(self.requeue, seconds)

    # -- the steps: each returns a message where the pass ends with it, None to go on ---------------------------

    def _state(self) -> str | None:
        state = self.download.spec.state
        if state == "Active" or self.status.phase == Phase.READY:
            return None
        self._drop_job()
        paused = state == "Paused"
        if not paused and self.seen.claim and self.seen.claim.get("owner") == self.download.metadata.uid:
            self._delete("v1", "PersistentVolumeClaim", self.seen.claim)
            self.status.bytes = None
            self.status.percent = None
        self.status.phase = Phase.PAUSED if paused else Phase.CANCELLED
        text = "paused; set spec.state: Active to go on" if paused else "cancelled; the partial files are discarded"
        self.draft.set(C.DOWNLOADED, FALSE, Reason.PAUSED if paused else Reason.CANCELLED, text)
        return text

    def _resolve(self) -> str | None:
        inputs = inputs_of(self.download)
        if self.status.inputs_hash == inputs:
            return None
        if self.download.spec.source.persistent_volume_claim:
            self._take_facts(inputs, {"commit": "prefilled"})
            return None
        answer = self.seen.resolved
        if answer is not None and answer.inputs == inputs and answer.value is not None:
            self._take_facts(inputs, answer.value)
            self.draft.set(C.RESOLVED, TRUE, Reason.RESOLVED, texts.resolved(self.status))
            return None
        source = self.download.spec.source.dump()
        self.ask.append(Resolve(inputs, source, tuple(self.download.spec.files)))
        self.status.phase = Phase.RESOLVING
        return self._unresolved(answer if answer and answer.inputs == inputs else None)

    def _unresolved(self, answer: Answer | None) -> str:
        if answer is None:
            text = "asking the source for its files"
            self.draft.set(C.RESOLVED, UNKNOWN, Reason.PROGRESSING, text)
            return text
        self.draft.set(C.RESOLVED, FALSE, answer.reason, answer.message)
        self.status.phase = Phase.RETRYING if answer.retryable else Phase.FAILED
        return answer.message

    def _take_facts(self, inputs: str, facts: Manifest) -> None:
        """Keep what the source is; progress of an earlier content does not count for this one."""
        texts.take_facts(self.status, facts)
        self.status.inputs_hash = inputs
        self.status.attempts = None
        self.status.next_attempt_at = None
        self.status.last_error = None
        self.status.started_at = self.status.completed_at = None
        self.status.manifest_digest = None
        self.status.phase = Phase.CHECKING
        for kind in (C.DOWNLOADED, C.VERIFIED):
            self.draft.set(kind, FALSE, Reason.PENDING, "the source's files are not fetched yet")

    def _claim(self) -> str | None:
        storage, source = self.download.spec.storage, self.download.spec.source.persistent_volume_claim
        existing = source.claim_name if source else storage.claim_name
        self.status.claim_name = existing or self.name
        claim = self.seen.claim
        if existing:
            if claim is None:
                return self._no_space(Reason.CLAIM_NOT_FOUND, f"there is no PersistentVolumeClaim {existing}")
            return None
        if claim is not None and not self._mine(claim):
            text = f"a PersistentVolumeClaim {self.name} exists that Moorage did not make for this download; rename one"
            return self._no_space(Reason.NAME_TAKEN, text)
        if self.seen.storage_class_missing is not None and claim is None:
            return self._no_space(Reason.WAITING_FOR_VOLUME, self.seen.storage_class_missing)
        if claim is None or claim.get("manifestHash"):
            self.apply.append(self._claim_manifest())
        return None

    def _mine(self, claim: Manifest) -> bool:
        label = claim.get("labels", {}).get(names.DOWNLOAD_LABEL)
        owner = claim.get("owner")
        return label == names.dns_label(self.download.metadata.name) and owner in (None, self.download.metadata.uid)

    def _claim_manifest(self) -> Manifest:
        storage = self.download.spec.storage
        total = self.status.bytes.total if self.status.bytes else 0
        return manifests.claim(
            self.seen.download,
            self.name,
            size_bytes=quantity_bytes(storage.size) if storage.size else jobs.claim_bytes(total),
            storage_class=storage.storage_class_name,
            access_modes=[str(mode) for mode in storage.access_modes],
            owned=storage.reclaim_policy != "Retain",
        )

    def _no_space(self, reason: Reason, text: str) -> str:
        self.draft.set(C.SPACE_AVAILABLE, FALSE, reason, text)
        self.status.phase = Phase.PENDING
        return text

    def _fetch(self) -> str | None:
        if self.draft.true(C.DOWNLOADED) and self.status.manifest_digest:
            return None
        if self.status.phase == Phase.FAILED and self.seen.job is None:
            error = self.status.last_error  # for good, until the spec or a person's request changes the inputs
            return error.message if error else "failed"
        commit = self.status.resolved_revision or ""
        wanted = jobs.build(self.download, commit, self.status.claim_name or self.name, self.seen.defaults)
        job = self.seen.job
        if job is None:
            return self._start(wanted)
        if job.get("stranger") or job.get("owner") != self.download.metadata.uid:
            return self._fail(Reason.NAME_TAKEN, f"a Job {self.name} exists that Moorage did not make; rename one")
        if job["inputsHash"] != wanted.inputs and not job["complete"]:
            self._drop_job()
            return "the wanted files changed; the running download is stopped first"
        report = jobs.result(self.seen.pods, job)
        told = (
            report is not None and report["exitCode"] == 0 and "manifestDigest" in report
        )  # a bare exit code is no proof
        if report and told and job["inputsHash"] == wanted.inputs:
            return self._finish(report)  # without waiting for the Job controller to notice
        final = report is not None and report["exitCode"] in PERMANENT_EXIT
        if job["complete"] or job["failed"] or final:
            return self._finished_badly(job, report)
        return self._running(report)

    def _start(self, wanted: manifests.DownloadJob) -> str:
        due = self.status.next_attempt_at
        if due is not None and due > self.seen.now:
            self._wake_in((due - self.seen.now).total_seconds() + 0.05)
            self.status.phase = Phase.RETRYING
            error = self.status.last_error
            return f"{error.message if error else 'failed'}; tries again at {due:%H:%M:%S} UTC"
        self.apply.append(manifests.job(self.seen.download, self.name, wanted))
        self.status.phase = Phase.CHECKING
        self.status.started_at = self.status.started_at or self.seen.now
        text = "the download Job is being started"
        self.draft.set(C.DOWNLOADED, FALSE, Reason.DOWNLOADING, texts.starting(self.status))
        return text

    def _finish(self, report: Manifest) -> str | None:
        texts.take_report(self.status, report, self.download, self.seen.now)
        self.draft.set(C.SPACE_AVAILABLE, TRUE, Reason.SPACE_AVAILABLE, "the volume has room for all files")
        self.draft.set(C.DOWNLOADED, TRUE, Reason.DOWNLOADED, texts.downloaded(self.status))
        if not self.draft.true(C.RESOLVED):
            self.draft.set(C.RESOLVED, TRUE, Reason.RESOLVED, texts.resolved(self.status))
        if self.download.spec.verify == "None":
            self.draft.set(C.VERIFIED, UNKNOWN, Reason.NOT_VERIFIED, "spec.verify is None, so nothing was compared")
        else:
            how = "sha256" if self.download.spec.verify == "Full" else "size"
            self.draft.set(C.VERIFIED, TRUE, Reason.VERIFIED, f"every file has the expected {how}")
        return None

    def _finished_badly(self, job: Manifest, report: Manifest | None) -> str:
        """The Job ended without a result we can use: permanent errors end here, the rest is tried again later."""
        self._drop_job()
        if job["complete"]:
            return "the Job's result was lost with its pod; it runs again and finds what is there"
        reason = report["reason"] if report else job["reason"] or "Failed"
        text = report["message"] if report else job["message"] or "the download Job failed"
        self.status.last_error = texts.last_error(reason, text, report)
        if report and report["exitCode"] in PERMANENT_EXIT:
            return self._fail(reason, text)
        self.status.attempts = (self.status.attempts or 0) + 1
        wait = min(FIRST_RETRY_SECONDS * 2 ** (self.status.attempts - 1), LAST_RETRY_SECONDS)
        self.status.next_attempt_at = self.seen.now + timedelta(seconds=wait)
        self.status.phase = Phase.RETRYING
        self.draft.set(C.DOWNLOADED, FALSE, reason, text)
        self._wake_in(wait)
        return f"{text}; tries again in {wait} s"

    def _running(self, report: Manifest | None) -> str:
        pod = next((p for p in self.seen.pods if not p.get("deleting") and p["phase"] in ("Pending", "Running")), None)
        if pod is None:
            if report is None:
                return "waiting for the download pod"
            self.status.last_error = texts.last_error(report["reason"], report["message"], report)
            self.status.phase = Phase.RETRYING
            self.draft.set(C.DOWNLOADED, FALSE, report["reason"], report["message"])
            return f"{report['message']}; the Job tries again"
        self.status.node = pod["node"] or None
        problem = first_trouble([pod])
        if problem and pod["phase"] == "Pending":
            self.status.phase = Phase.PENDING
            self.draft.set(C.DOWNLOADED, FALSE, problem.reason, problem.message)
            return problem.message
        if pod["phase"] == "Running" and pod["ip"]:
            self.ask.append(Progress(pod["uid"], f"http://{pod['ip']}:{names.PROGRESS_PORT}/progress"))
            texts.take_progress(self.status, self.seen.progress)
        elif self.status.phase not in (Phase.DOWNLOADING, Phase.VERIFYING):
            self.status.phase = Phase.CHECKING
        text = texts.progressing(self.status)
        self.draft.set(C.DOWNLOADED, FALSE, Reason.DOWNLOADING, texts.starting(self.status))
        return text

    def _ready(self) -> str:
        self.status.phase = Phase.READY
        job = self.seen.job
        if job is not None and not job.get("stranger") and job.get("complete"):
            self._drop_job()  # its result is kept; a finished pod only holds on to the volume
        return texts.downloaded(self.status)

    # -- the end of the pass --------------------------------------------------------------------------------

    def _fail(self, reason: str, text: str) -> str:
        self.status.phase = Phase.FAILED
        kind = C.SPACE_AVAILABLE if reason == Reason.INSUFFICIENT_STORAGE else C.DOWNLOADED
        self.draft.set(kind, FALSE, reason, text)
        if kind != C.DOWNLOADED:
            self.draft.set(C.DOWNLOADED, FALSE, reason, text)
        return text

    def _drop_job(self) -> None:
        job = self.seen.job
        if job is not None and job.get("owner") == self.download.metadata.uid and not job["deleting"]:
            self._delete("batch/v1", "Job", job)

    def _delete(self, api_version: str, kind: str, child: Manifest) -> None:
        self.delete.append(Ref(api_version, kind, self.download.metadata.namespace, child["name"], child["uid"]))

    def _roll_up(self, message: str) -> None:
        phase = self.status.phase
        ready = phase == Phase.READY
        stuck = phase == Phase.FAILED
        first_false = next(
            (
                c
                for k in (C.RESOLVED, C.SPACE_AVAILABLE, C.DOWNLOADED)
                if (c := self.draft.get(k)) and c.status == FALSE
            ),
            None,
        )
        reason = Reason.READY if ready else first_false.reason if first_false else Reason.PROGRESSING
        idle = phase in (Phase.PAUSED, Phase.CANCELLED) or ready or stuck
        self.draft.set(C.RECONCILING, FALSE if idle else TRUE, Reason.SETTLED if idle else Reason.PROGRESSING, message)
        self.draft.set(C.STALLED, TRUE if stuck else FALSE, reason if stuck else Reason.SETTLED, message)
        self.draft.set(C.READY, TRUE if ready else FALSE, reason, message)
