"""The first steps of a ModelDownload: what a person wants of it, and what the source is."""

from moorage import names
from moorage.api.conditions import DownloadCondition as C
from moorage.api.conditions import DownloadPhase as Phase
from moorage.api.conditions import Reason
from moorage.api.download import ModelDownload, Progress
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
    if _only_named_otherwise(step):
        step.status.inputs_hash = inputs
    if step.status.inputs_hash == inputs:
        _facts_again(step, inputs)
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


def _only_named_otherwise(step: DownloadPass) -> bool:
    """Whether this very spec was resolved, and nobody asks anew: then only another version named its inputs."""
    asked = step.download.metadata.annotations.get(names.REFRESH_AT, "")
    seen = step.status.observed_generation == step.download.metadata.generation
    resolved = step.draft.was_true(C.RESOLVED) or step.download.spec.source.persistent_volume_claim
    return bool(seen and resolved and names.acted_upon(step.status.inputs_hash, asked))


def _facts_again(step: DownloadPass, inputs: str) -> None:
    """Have the source asked for a header again that another version of Moorage kept; nothing waits for that.

    By the commit that was downloaded, whatever `revision: main` is by now. Files in a claim are not at a source: there
    the Job reads them again.
    """
    source, answer, commit = step.download.spec.source, step.seen.resolved, step.status.resolved_revision
    if texts.understood(step.status) or source.persistent_volume_claim:
        return
    again = f"{inputs}@{(commit or '')[:12]}"
    if answer is not None and answer.inputs == again and answer.value is not None:
        step.status.facts = texts.facts_of(answer.value.get("facts"))
        return
    step.ask.append(Resolve(again, pinned(source.dump(), commit), tuple(step.download.spec.files)))
    if answer is not None:
        step.ask_credentials()


def pinned(source: Manifest, commit: str | None) -> Manifest:
    """`source` as it was when it was resolved to `commit`; a plain URL's file is known by its sum anyway."""
    if "huggingFace" not in source or not commit:
        return source
    return {**source, "huggingFace": {**source["huggingFace"], "revision": commit}}


def _unresolved(step: DownloadPass, answer: Answer | None) -> str:
    if answer is None:
        text = "asking the source for its files"
        step.draft.set(C.RESOLVED, UNKNOWN, Reason.PROGRESSING, text)
        return text
    step.ask_credentials()
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
    step.draft.set(C.SPACE_AVAILABLE, UNKNOWN, Reason.PROGRESSING, texts.FITS_UNKNOWN)
