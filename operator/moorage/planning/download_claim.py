"""The step of a ModelDownload that sees to the volume: its claim is made, grows where it can, and is waited for."""

from moorage import names
from moorage.api.common import quantity_bytes
from moorage.api.conditions import DownloadCondition as C
from moorage.api.conditions import DownloadPhase as Phase
from moorage.api.conditions import Reason
from moorage.api.download import Progress, VolumeStatus
from moorage.manifests import download as manifests
from moorage.planning import download_job as jobs
from moorage.planning import download_status as texts
from moorage.planning import text
from moorage.planning.download_pass import DownloadPass
from moorage.planning.draft import FALSE, UNKNOWN
from moorage.planning.types import Manifest

NO_PROVISIONER = "kubernetes.io/no-provisioner"


def claim(step: DownloadPass) -> str | None:
    """See to the claim: an existing one has to be there, one of our own is made and enlarged."""
    storage, source = step.download.spec.storage, step.download.spec.source.persistent_volume_claim
    existing = source.claim_name if source else storage.claim_name
    step.status.claim_name = existing or step.name
    live = step.seen.claim
    if live is None:
        _lost(step)
    grown = _volume(step)
    if existing:
        if live is None or live["deleting"]:
            state = "is no" if live is None else "will soon be no"
            return step.no_space(Reason.CLAIM_NOT_FOUND, f"there {state} PersistentVolumeClaim {existing}")
    elif refused := _own(step, live):
        return refused
    _there(step)
    if grown and step.status.phase == Phase.FAILED:
        _try_again(step)
    return None


def _own(step: DownloadPass, live: Manifest | None) -> str | None:
    """Make the claim that is named after the download, or say what keeps it from being made."""
    if live is not None and (live["deleting"] or _former(step, live)):
        message = f"an earlier claim {step.name} is being deleted; a new one is made when it is gone"
        return step.no_space(Reason.WAITING_FOR_VOLUME, message)
    if live is not None and not _mine(step, live):
        message = f"a PersistentVolumeClaim {step.name} exists that Moorage did not make for this download; rename one"
        return step.no_space(Reason.NAME_TAKEN, message)
    if step.seen.storage_class_missing is not None and (live is None or live["phase"] == "Pending"):
        return step.no_space(Reason.WAITING_FOR_VOLUME, step.seen.storage_class_missing)
    size = _request(step, live)
    if live is None or live.get("manifestHash"):
        step.apply.append(_claim_manifest(step, size))
    if live is not None and _grows(step, live, size):
        message = f"claim {step.name} is growing from {_size(live['capacity'])} to {_size(size)}"
        hint = f"`kubectl describe pvc {step.name}` has the latest words"
        return step.no_space(Reason.WAITING_FOR_VOLUME, f"{message}; {hint}")
    return None


def _grows(step: DownloadPass, live: Manifest, size: str) -> bool:
    """Whether the volume is still to grow to `size`, which some storage does only while no pod mounts it.

    FileSystemResizePending is the last step, and waits for a pod.
    """
    if not _expandable(step) or not live["capacity"] or live["growing"] == "FileSystemResizePending":
        return False
    return quantity_bytes(live["capacity"]) < quantity_bytes(size)


def waiting(step: DownloadPass) -> str | None:
    """What a pod waits for whose claim is not bound; None where it is."""
    live = step.seen.claim
    if live is None or live["phase"] == "Bound":
        return None
    if live["phase"] == "Lost":
        return f"claim {live['name']} has lost its volume: the PersistentVolume {live['volume']} is gone"
    found = step.seen.storage_class
    if found is None:
        missing = step.seen.storage_class_missing
        return missing or f"claim {live['name']} waits for a PersistentVolume that somebody makes by hand"
    if found["provisioner"] == NO_PROVISIONER:
        who = f"a free PersistentVolume of StorageClass {found['name']}, which makes none by itself"
    else:
        who = f"a volume from StorageClass {found['name']} (provisioner {found['provisioner']})"
    return f"claim {live['name']} waits for {who}; `kubectl describe pvc {live['name']}` has the latest words"


def cannot_grow(step: DownloadPass) -> str | None:
    """Why a claim that is too small stays as it is, and what a person can do about that."""
    live = step.seen.claim
    if live is None:
        return None
    size = f"claim {live['name']} has {_size(live['capacity'] or live['request'])}"
    if _expandable(step):
        more = f"enlarge it (`kubectl edit pvc {live['name']}`, spec.resources.requests.storage)"
        return f"{size}; {more} and the download goes on by itself"
    if step.download.spec.storage.claim_name:
        return f"{size} and its StorageClass does not let it grow; make room in it, or use a larger one"
    class_name = live["storageClass"] or "of the volume"
    return (
        f"{size} and StorageClass {class_name} does not let it grow; "
        "delete this ModelDownload and apply it again with a larger storage.size"
    )


def _volume(step: DownloadPass) -> bool:
    """Note what the volume is like; whether it is larger than it was when that was noted last."""
    live, before = step.seen.claim, step.status.volume
    if live is None:
        step.status.volume = None
        return False
    capacity = quantity_bytes(live["capacity"]) if live["capacity"] else None
    nodes = (step.seen.volume or {}).get("nodes") or []
    only = nodes[0] if len(nodes) == 1 and live["phase"] == "Bound" else None
    step.status.volume = VolumeStatus(access_modes=live["accessModes"], capacity_bytes=capacity, node=only)
    return bool(before and before.capacity_bytes and capacity and capacity > before.capacity_bytes)


def _try_again(step: DownloadPass) -> None:
    error = step.status.last_error
    if error and error.reason == Reason.INSUFFICIENT_STORAGE:
        step.status.phase = Phase.CHECKING
        step.status.attempts = None
        step.draft.set(C.SPACE_AVAILABLE, UNKNOWN, Reason.PROGRESSING, "the volume is larger now; looking again")


def _lost(step: DownloadPass) -> None:
    """There is no claim, so nothing lies in it, whatever was there before."""
    if step.draft.true(C.DOWNLOADED):
        step.status.manifest_digest = None
        step.status.phase = Phase.CHECKING
        step.status.percent = 0
        if total := step.status.bytes:
            step.status.bytes = Progress(total=total.total, done=0)
        for kind in (C.DOWNLOADED, C.VERIFIED):
            step.draft.set(kind, FALSE, Reason.PENDING, "the claim with the files is gone")


def _there(step: DownloadPass) -> None:
    """The claim is there: what kept it away is over, and whether it is large enough is for the Job to say."""
    space = step.draft.get(C.SPACE_AVAILABLE)
    if space and space.status == FALSE and space.reason != Reason.INSUFFICIENT_STORAGE:
        step.draft.set(C.SPACE_AVAILABLE, UNKNOWN, Reason.PROGRESSING, texts.FITS_UNKNOWN)
    live = step.seen.claim
    if space is None or space.status != UNKNOWN or live is None or not _short(step, live):
        return
    if not _expandable(step):
        what = f"claim {live['name']} has {_size(live['request'])} and {_size(str(_wanted(step)))} would be comfortable"
        why = f"StorageClass {live['storageClass'] or 'of the volume'} does not let it grow"
        step.draft.set(C.SPACE_AVAILABLE, UNKNOWN, Reason.PROGRESSING, f"{what}, but {why}; {texts.FITS_UNKNOWN}")


def _former(step: DownloadPass, live: Manifest) -> bool:
    """Whether a ModelDownload of the same name left the claim, and the garbage collector has yet to come by."""
    label, owner = live.get("labels", {}).get(names.DOWNLOAD_LABEL), live.get("owner")
    return label is not None and owner not in (None, step.download.metadata.uid)


def _mine(step: DownloadPass, live: Manifest) -> bool:
    label = live.get("labels", {}).get(names.DOWNLOAD_LABEL)
    return label == names.dns_label(step.download.metadata.name) and live.get("owner") in (
        None,
        step.download.metadata.uid,
    )


def _short(step: DownloadPass, live: Manifest) -> bool:
    """Whether the claim asks for less than these files want."""
    own = step.download.spec.storage.claim_name is None and not step.download.spec.source.persistent_volume_claim
    return own and _wanted(step) > quantity_bytes(live["request"] or "0")


def _expandable(step: DownloadPass) -> bool:
    """Whether the claim can be enlarged: bound, and its class says so."""
    live, found = step.seen.claim, step.seen.storage_class
    return bool(live and live["phase"] == "Bound" and found and found["expandable"])


def _wanted(step: DownloadPass) -> int:
    """Bytes that the claim should have."""
    size = step.download.spec.storage.size
    return quantity_bytes(size) if size else jobs.claim_bytes(step.status.bytes.total if step.status.bytes else 0)


def _request(step: DownloadPass, live: Manifest | None) -> str:
    """What the claim asks for: never less than it does; more only where it can grow, else the server refuses it.

    Files that are there need no more room than they have, whatever this version of Moorage would give them.
    """
    fits = step.draft.true(C.DOWNLOADED) and not step.download.spec.storage.size
    if live and live["request"] and (fits or quantity_bytes(live["request"]) >= _wanted(step) or not _expandable(step)):
        return str(live["request"])
    return step.download.spec.storage.size or jobs.quantity(_wanted(step))


def _claim_manifest(step: DownloadPass, size: str) -> Manifest:
    storage = step.download.spec.storage
    return manifests.claim(
        step.seen.download,
        step.name,
        size=size,
        storage_class=storage.storage_class_name,
        access_modes=[str(mode) for mode in storage.access_modes],
        owned=storage.reclaim_policy != "Retain",
    )


def _size(quantity: str | None) -> str:
    return text.size(quantity_bytes(quantity or "0"))
