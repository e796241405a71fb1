"""Carries a plan out: the only place of the operator that writes to the cluster."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from moorage import names
from moorage.control import metrics
from moorage.control.children import Children
from moorage.control.store import ALIAS, DOWNLOAD, MODEL, Key, Store
from moorage.errors import Conflict, Forbidden, Invalid, MoorageError, NotFound
from moorage.kube.client import KubeClient
from moorage.kube.events import EventRecorder
from moorage.kube.resources import DISRUPTION_BUDGETS, MODEL_ALIASES, MODEL_DOWNLOADS, MODELS, Resource, resource_of
from moorage.planning.types import Manifest, Patch, Plan, Ref

log = logging.getLogger(__name__)

RESOURCES: dict[str, Resource] = {MODEL: MODELS, DOWNLOAD: MODEL_DOWNLOADS, ALIAS: MODEL_ALIASES}


class Refused(MoorageError):
    """The API server refused a child of kind `kind` for good: quota, admission policy, invalid object, name in use."""

    def __init__(self, reason: str, message: str, kind: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.kind = kind


LAST = "Service"
"""What is made when all else is: a server takes longest to load, and the API server makes one Service at a time.

Its ClusterIP allocator holds a lock while it writes the address (pkg/registry/core/service/ipallocator), so that in a
crowd all workers would wait in that line and start nobody's pod.
"""

MIRRORED_SECONDS = 2.0
"""By then the mirror has shown what was made, and its owner was planned again; if not, the status tells without it."""


class Applier:
    """Applies manifests, patches, deletions, status and Events of plans; what needs no request makes none."""

    def __init__(
        self,
        kube: KubeClient,
        store: Store,
        children: Children,
        events: EventRecorder,
        crowded: Callable[[], bool] = lambda: False,
    ) -> None:
        self._kube, self._store, self._children, self._events = kube, store, children, events
        self._crowded = crowded

    async def apply(self, key: Key, owner: Manifest, plan: Plan) -> float | None:
        """Write what `plan` asks for: deletions, children and patches, Services, then the status and its Events.

        Returns None when all is done, else the seconds after which another pass is to see to the rest. While many
        others wait (`crowded`), pods go before Services and children before words; by the time that the words' turn
        comes there is more to say at once. A plan may let its words wait for the mirror anyway, for the same reason.
        Where a child could not be written neither is the status, and nothing is told: raises Refused or the ApiError.
        """
        for ref in plan.delete:
            await self._delete(ref)
        made = await self._together(
            *(self._child(m) for m in plan.apply if m["kind"] != LAST),
            *(self._patch(p) for p in plan.patch),
        )
        if made and self._crowded():
            return 0.0
        made |= await self._together(*(self._child(m) for m in plan.apply if m["kind"] == LAST))
        if made and self._crowded():
            return 0.0
        if made and plan.words_wait:
            return MIRRORED_SECONDS
        if plan.status is not None:
            await self.status(key, owner, plan.status)
        for event in plan.events:
            self._events.record(owner, "Warning" if event.type == "Warning" else "Normal", event.reason, event.message)
        return None

    async def _together(self, *writes: Awaitable[bool]) -> bool:
        """All `writes` at once; whether any took a request. Raises what time may mend first, if anything failed."""
        outcomes = await asyncio.gather(*writes, return_exceptions=True)
        if failures := [o for o in outcomes if isinstance(o, BaseException)]:
            raise min(failures, key=_passing_first)
        return any(outcomes)

    async def status(self, key: Key, owner: Manifest, status: Manifest) -> None:
        """Write `status` unless it already stands there; the store learns it at once, before the watch tells.

        Conflict where the object is not the one any more that was planned for, or has changed since.
        """
        if owner.get("status") == status:
            return
        meta = owner["metadata"]
        try:
            new = await self._kube.apply_status(
                RESOURCES[key.kind], meta["namespace"], meta["name"], status, resource_version=meta["resourceVersion"]
            )
        except NotFound:
            return  # deleted meanwhile; the watch will say so
        if key.kind == DOWNLOAD:
            metrics.download_changed(owner.get("status") or {}, status)
        elif key.kind == MODEL:
            metrics.model_changed(owner.get("status") or {}, status)
        self._store.put(key, new)

    async def _child(self, manifest: Manifest) -> bool:
        """Apply one child; whether that took a request. A budget that is refused keeps no Model from anything."""
        try:
            return await self._applied(manifest)
        except Refused as error:
            if error.kind != DISRUPTION_BUDGETS.kind:
                raise
            log.warning("%s goes without a PodDisruptionBudget: %s", manifest["metadata"]["name"], error.message)
            return False

    async def _applied(self, manifest: Manifest) -> bool:
        if manifest["kind"] == DOWNLOAD:
            return await self._shared_download(manifest)
        if self._stands(manifest):
            return False
        resource, meta = resource_of(manifest), manifest["metadata"]
        where = (meta["namespace"], meta["name"])
        live = self._children.get(resource, where)
        try:
            made = await self._kube.apply(manifest, force=live is not None and "stranger" not in live)
        except Conflict as error:
            text = f"{manifest['kind']} {meta['name']} exists and is not Moorage's: {error.message}"
            raise Refused("NameTaken", text, manifest["kind"]) from error
        except Forbidden as error:
            reason = "QuotaExceeded" if "exceeded quota" in error.message else "Forbidden"
            raise Refused(reason, error.message, manifest["kind"]) from error
        except Invalid as error:
            raise Refused("InvalidSpec", error.message, manifest["kind"]) from error
        self._children.remember(resource, where, meta["annotations"][names.MANIFEST_HASH], made["metadata"]["uid"])
        return True

    def _stands(self, manifest: Manifest) -> bool:
        """Whether a child already is as `manifest` says."""
        resource, meta = resource_of(manifest), manifest["metadata"]
        where, wanted = (meta["namespace"], meta["name"]), meta["annotations"][names.MANIFEST_HASH]
        live = self._children.get(resource, where)
        return self._children.applied(resource, where) == wanted or bool(live and live.get("manifestHash") == wanted)

    async def _shared_download(self, manifest: Manifest) -> bool:
        """Make the ModelDownload where there is none; one that is there is another Model's too, or a person's."""
        key = Key(DOWNLOAD, manifest["metadata"]["namespace"], manifest["metadata"]["name"])
        if self._store.get(key) is not None:
            return False
        try:
            self._store.put(key, await self._kube.apply(manifest, force=False))
        except Conflict:
            log.info("%s was made by someone else meanwhile", key)  # the watch brings it
        return True

    async def _patch(self, patch: Patch) -> bool:
        ref = patch.ref
        resource = resource_of({"apiVersion": ref.api_version, "kind": ref.kind})
        body = {**patch.body, "metadata": {**patch.body.get("metadata", {}), "uid": ref.uid}}
        try:
            await self._kube.merge_patch(resource, ref.namespace, ref.name, body, patch.subresource)
        except NotFound:
            log.info("%s %s/%s was deleted before it could be patched", ref.kind, ref.namespace, ref.name)
        return False  # nobody waits for what it makes

    async def _delete(self, ref: Ref) -> None:
        resource = resource_of({"apiVersion": ref.api_version, "kind": ref.kind})
        try:
            await self._kube.delete(resource, ref.namespace, ref.name, uid=ref.uid)
        except Conflict:
            log.info("%s %s/%s was replaced before it could be deleted", ref.kind, ref.namespace, ref.name)
        self._children.forget(resource, (ref.namespace, ref.name))


def _passing_first(error: BaseException) -> int:
    """What time may mend first, so that it is tried again soon; last a Job, which may be a mere benchmark."""
    return 0 if not isinstance(error, Refused) else 2 if error.kind == "Job" else 1
