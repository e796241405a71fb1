"""What the steps of a ModelDownload's plan share: the observation, the status being drafted, the actions collected."""

from moorage import names
from moorage.api.conditions import DownloadCondition as C
from moorage.api.conditions import DownloadPhase as Phase
from moorage.api.conditions import Reason
from moorage.api.download import DownloadStatus, ModelDownload
from moorage.planning.draft import FALSE, Draft
from moorage.planning.types import Ask, Credentials, Manifest, ObservedDownload, Ref


class DownloadPass:
    """One pass over one download: the draft of its status and the actions collected on the way."""

    def __init__(self, seen: ObservedDownload, download: ModelDownload) -> None:
        self.seen, self.download = seen, download
        self.status: DownloadStatus = download.status  # parsed for this pass alone
        self.draft = Draft(download.status.conditions, download.metadata.generation, seen.now)
        self.name = names.download_child(download.metadata.name)
        self.apply: list[Manifest] = []
        self.delete: list[Ref] = []
        self.ask: list[Ask] = []
        self.requeue: float | None = None

    def wake_in(self, seconds: float) -> None:
        """Have the download looked at again in `seconds`, or sooner where something else asked for that."""
        self.requeue = seconds if self.requeue is None else min(self.requeue, seconds)

    def ask_credentials(self) -> None:
        """Have a change of what the source's Secrets or ConfigMaps hold noticed, where it names any."""
        source = self.download.spec.source
        if source.secrets or source.config_maps:
            self.ask.append(Credentials(source.secrets, source.config_maps))

    def no_space(self, reason: Reason, text: str) -> str:
        """Say that the volume is what is missing."""
        self.draft.set(C.SPACE_AVAILABLE, FALSE, reason, text)
        self.status.phase = Phase.PENDING
        return text

    def fail(self, reason: str, text: str) -> str:
        """Say that it failed for good."""
        self.status.phase = Phase.FAILED
        kind = C.SPACE_AVAILABLE if reason == Reason.INSUFFICIENT_STORAGE else C.DOWNLOADED
        self.draft.set(kind, FALSE, reason, text)
        if kind != C.DOWNLOADED:
            self.draft.set(C.DOWNLOADED, FALSE, reason, text)
        return text

    def drop_job(self) -> None:
        """Stop the Job, where it is ours and there."""
        job = self.seen.job
        if job is not None and job.get("owner") == self.download.metadata.uid and not job["deleting"]:
            self.remove("batch/v1", "Job", job)

    def remove(self, api_version: str, kind: str, child: Manifest) -> None:
        """Have `child` deleted, and no namesake of it."""
        self.delete.append(Ref(api_version, kind, self.download.metadata.namespace, child["name"], child["uid"]))
