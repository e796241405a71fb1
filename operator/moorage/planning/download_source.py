"""The first steps of a ModelDownload: what a person wants of it, what the source is, and the volume."""

from moorage import names
from moorage.api.common import quantity_bytes
from moorage.api.conditions import DownloadCondition as C
from moorage.api.conditions import DownloadPhase as Phase
from moorage.api.conditions import Reason
from moorage.api.download import ModelDownload, Progress
from moorage.manifests import download as manifests
from moorage.planning import download_job as jobs
from moorage.planning import download_status as texts
from moorage.planning.download_pass import DownloadPass
from moorage.planning.draft import FALSE, TRUE, UNKNOWN
from moorage.planning.types import Answer, Manifest, Resolve


def inputs_of(download: ModelDownload) -> str:
    """Hash of what decides which bytes are wanted, and of a person's request to look again."""
    asked = download.metadata.annotations.get(names.REFRESH_AT, "")
    return names.inputs([download.spec.source.identity(), download.spec.files], asked, download.status.inputs_hash)


def state(step: DownloadPass) -> str | None:
    """Pause or cancel, where the spec asks for it."""
    state = step.download.spec.state
    if state == "Active" or step.status.phase == Phase.READY:
        return None
    step.drop_job()
    paused = state == "Paused"
    if not paused:
        _discard(step)
    step.status.phase = Phase.PAUSED if paused else Phase.CANCELLED
    text = "paused; set spec.state: Active to go on" if paused else "cancelled; partial files in a claim of its own go"
    step.draft.set(C.DOWNLOADED, FALSE, Reason.PAUSED if paused else Reason.CANCELLED, text)
    return text


def _discard(step: DownloadPass) -> None:
    """Remove the claim that was made for these files alone; what they are stays known."""
    claim, bytes_ = step.seen.claim, step.status.bytes
    if claim and claim.get("owner") == step.download.metadata.uid and not claim["deleting"]:
        step.remove("v1", "PersistentVolumeClaim", claim)
    if bytes_:
        step.status.bytes, step.status.percent = Progress(total=bytes_.total, done=0), 0


def resolve(step: DownloadPass) -> str | None:
    """Find out what the source is, once per inputs."""
    inputs = inputs_of(step.download)
    if step.status.inputs_hash == inputs:
        return None
    if step.download.spec.source.persistent_volume_claim:
        _take_facts(step, inputs, {"commit": "prefilled"})
        return None
    answer = step.seen.resolved
    if answer is not None and answer.inputs == inputs and answer.value is not None:
        _take_facts(step, inputs, answer.value)
        step.draft.set(C.RESOLVED, TRUE, Reason.RESOLVED, texts.resolved(step.status))
        return None
    source = step.download.spec.source.dump()
    step.ask.append(Resolve(inputs, source, tuple(step.download.spec.files)))
    step.status.phase = Phase.RESOLVING
    return _unresolved(step, answer if answer and answer.inputs == inputs else None)


def _unresolved(step: DownloadPass, answer: Answer | None) -> str:
    if answer is None:
        text = "asking the source for its files"
        step.draft.set(C.RESOLVED, UNKNOWN, Reason.PROGRESSING, text)
        return text
    step.draft.set(C.RESOLVED, FALSE, answer.reason, answer.message)
    step.status.phase = Phase.RETRYING if answer.retryable else Phase.FAILED
    return answer.message


def _take_facts(step: DownloadPass, inputs: str, facts: Manifest) -> None:
    """Keep what the source is; progress of an earlier content does not count for this one."""
    texts.take_facts(step.status, facts)
    step.status.inputs_hash = inputs
    step.status.attempts = None
    step.status.next_attempt_at = None
    step.status.last_error = None
    step.status.started_at = step.status.completed_at = None
    step.status.manifest_digest = None
    step.status.phase = Phase.CHECKING
    for kind in (C.DOWNLOADED, C.VERIFIED):
        step.draft.set(kind, FALSE, Reason.PENDING, "the source's files are not fetched yet")


def claim(step: DownloadPass) -> str | None:
    """See to the volume."""
    storage, source = step.download.spec.storage, step.download.spec.source.persistent_volume_claim
    existing = source.claim_name if source else storage.claim_name
    step.status.claim_name = existing or step.name
    claim = step.seen.claim
    if claim is None:
        _lost(step)
    if existing:
        if claim is None or claim["deleting"]:
            state = "is no" if claim is None else "will soon be no"
            return step.no_space(Reason.CLAIM_NOT_FOUND, f"there {state} PersistentVolumeClaim {existing}")
        _there(step)
        return None
    if claim is not None and (claim["deleting"] or _former(step, claim)):
        text = f"an earlier claim {step.name} is being deleted; a new one is made when it is gone"
        return step.no_space(Reason.WAITING_FOR_VOLUME, text)
    if claim is not None and not _mine(step, claim):
        text = f"a PersistentVolumeClaim {step.name} exists that Moorage did not make for this download; rename one"
        return step.no_space(Reason.NAME_TAKEN, text)
    if step.seen.storage_class_missing is not None and claim is None:
        return step.no_space(Reason.WAITING_FOR_VOLUME, step.seen.storage_class_missing)
    if claim is None or claim.get("manifestHash"):
        step.apply.append(_claim_manifest(step))
    _there(step)
    return None


def _lost(step: DownloadPass) -> None:
    """There is no claim, so nothing lies in it, whatever was there before."""
    if step.draft.true(C.DOWNLOADED):
        step.status.manifest_digest = None
        step.status.phase = Phase.CHECKING
        for kind in (C.DOWNLOADED, C.VERIFIED):
            step.draft.set(kind, FALSE, Reason.PENDING, "the claim with the files is gone")


def _there(step: DownloadPass) -> None:
    """The claim is there: what kept it away is over, and whether it is large enough is for the Job to say."""
    space = step.draft.get(C.SPACE_AVAILABLE)
    if space and space.status == FALSE and space.reason != Reason.INSUFFICIENT_STORAGE:
        step.draft.set(C.SPACE_AVAILABLE, UNKNOWN, Reason.PROGRESSING, "known once the files are fetched")


def _former(step: DownloadPass, claim: Manifest) -> bool:
    """Whether a ModelDownload of the same name left the claim, and the garbage collector has yet to come by."""
    label, owner = claim.get("labels", {}).get(names.DOWNLOAD_LABEL), claim.get("owner")
    return label is not None and owner not in (None, step.download.metadata.uid)


def _mine(step: DownloadPass, claim: Manifest) -> bool:
    label = claim.get("labels", {}).get(names.DOWNLOAD_LABEL)
    owner = claim.get("owner")
    return label == names.dns_label(step.download.metadata.name) and owner in (None, step.download.metadata.uid)


def _claim_manifest(step: DownloadPass) -> Manifest:
    storage = step.download.spec.storage
    total = step.status.bytes.total if step.status.bytes else 0
    wanted = quantity_bytes(storage.size) if storage.size else jobs.claim_bytes(total)
    live = quantity_bytes((step.seen.claim or {}).get("request") or "0")
    return manifests.claim(
        step.seen.download,
        step.name,
        size_bytes=max(wanted, live),  # a claim can grow where its class allows that, and never shrink
        storage_class=storage.storage_class_name,
        access_modes=[str(mode) for mode in storage.access_modes],
        owned=storage.reclaim_policy != "Retain",
    )
