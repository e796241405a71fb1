"""What to do about a ModelDownload: resolve the source, make the claim, run the Job, keep its result.

The steps are Resolved -> SpaceAvailable -> Downloaded -> Verified -> Ready. What was found is kept in status with the
hash of the spec it belongs to, so nothing is asked or run twice and a Ready download needs nobody.
"""

from moorage import names
from moorage.api.common import duration_seconds
from moorage.api.conditions import DownloadCondition as C
from moorage.api.conditions import DownloadPhase as Phase
from moorage.api.conditions import Reason
from moorage.api.download import ModelDownload
from moorage.errors import InvalidSpec
from moorage.planning import download_status as texts
from moorage.planning import invalid
from moorage.planning.download_claim import claim
from moorage.planning.download_fetch import fetch, ready
from moorage.planning.download_pass import DownloadPass
from moorage.planning.download_source import inputs_of, resolve, state
from moorage.planning.draft import FALSE, TRUE
from moorage.planning.types import ObservedDownload, Plan, Ref

EVENTS = {
    (C.RESOLVED, FALSE, "*"): "*",
    (C.DOWNLOADED, FALSE, Reason.DOWNLOADING): "Downloading",
    (C.DOWNLOADED, FALSE, Reason.PENDING): "",
    (C.DOWNLOADED, FALSE, Reason.INSUFFICIENT_STORAGE): "",  # SpaceAvailable tells of it
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
    return _plan(DownloadPass(seen, download))


def _plan(step: DownloadPass) -> Plan:
    _users(step)
    if _expired(step):
        return _remove_self(step)
    steps = (state, resolve, claim, fetch)
    message = next((text for take in steps if (text := take(step))), "") or ready(step)
    _roll_up(step, message)
    texts.summarise(step.status, message, verified=step.draft.true(C.VERIFIED))
    order = {kind.value: place for place, kind in enumerate(C)}  # what a later version added stays, at the end
    step.status.conditions = sorted(step.draft.conditions, key=lambda c: order.get(c.type, len(order)))
    step.status.observed_generation = step.download.metadata.generation
    return Plan(
        apply=tuple(step.apply),
        delete=tuple(step.delete),
        status=step.status.dump(),
        events=step.draft.events(EVENTS),
        ask=tuple(step.ask),
        requeue_after=step.requeue,
        why=message,
    )


def _users(step: DownloadPass) -> None:
    step.status.used_by = sorted(step.seen.users)[:64]
    if step.seen.users:
        step.status.unused_since = None
    elif step.status.unused_since is None:
        step.status.unused_since = step.seen.now


def _expired(step: DownloadPass) -> bool:
    made_for_models = step.download.metadata.labels.get(names.MANAGED_BY) == "moorage"
    storage = step.download.spec.storage
    if not made_for_models or step.status.unused_since is None or storage.reclaim_policy == "Retain":
        return False
    keep = duration_seconds(storage.delete_after_unused)
    left = keep - (step.seen.now - step.status.unused_since).total_seconds()
    step.wake_in(max(left, 1.0))
    return left <= 0


def _remove_self(step: DownloadPass) -> Plan:
    meta = step.download.metadata
    ref = Ref(names.API_VERSION, "ModelDownload", meta.namespace, meta.name, meta.uid)
    return Plan(delete=(ref,), why=f"no Model has used it since {step.status.unused_since}")


def _roll_up(step: DownloadPass, message: str) -> None:
    phase = step.status.phase
    verified_again = phase == Phase.VERIFYING and step.draft.true(C.DOWNLOADED)
    ready = phase == Phase.READY or verified_again
    stuck = phase == Phase.FAILED
    first_false = next(
        (c for k in (C.RESOLVED, C.SPACE_AVAILABLE, C.DOWNLOADED) if (c := step.draft.get(k)) and c.status == FALSE),
        None,
    )
    reason = Reason.READY if ready else first_false.reason if first_false else Reason.PROGRESSING
    idle = phase in (Phase.PAUSED, Phase.CANCELLED, Phase.READY) or stuck
    step.draft.set(C.RECONCILING, FALSE if idle else TRUE, Reason.SETTLED if idle else Reason.PROGRESSING, message)
    step.draft.set(C.STALLED, TRUE if stuck else FALSE, reason if stuck else Reason.SETTLED, message)
    step.draft.set(C.READY, TRUE if ready else FALSE, reason, message)


__all__ = ["inputs_of", "plan_download"]
