"""One pass over one key: observe, plan, apply, ask. The level-triggered heart of the operator."""

import logging

from moorage.control.apply import Applier, Refused
from moorage.control.beside import Beside
from moorage.control.children import Children
from moorage.control.observe import Observer, now
from moorage.control.store import DOWNLOAD, MODEL, Key, Store
from moorage.errors import ApiError
from moorage.planning import invalid, refused
from moorage.planning.alias import plan_alias
from moorage.planning.download import plan_download
from moorage.planning.model import plan_model
from moorage.planning.types import Credentials, FreeMemory, Manifest, Plan, Progress, Resolve, WarmUp

log = logging.getLogger(__name__)

REFUSED_AGAIN_SECONDS = 60.0


class Runner:
    """Handles keys from the queue; a pass that changes nothing makes no request."""

    def __init__(
        self,
        store: Store,
        children: Children,
        observer: Observer,
        applier: Applier,
        beside: Beside,
    ) -> None:
        self._store, self._children = store, children
        self._observer, self._applier = observer, applier
        self._resolving, self._warming, self._progress = beside.resolving, beside.warming, beside.progress
        self._credentials, self._gate, self._ledger = beside.credentials, beside.gate, beside.ledger
        self._usage, self._neighbours, self._agents = beside.usage, beside.neighbours, beside.agents

    async def handle(self, key: Key) -> float | None:
        """Bring `key` one step on; returns seconds until it should be looked at again, None to wait for a change."""
        obj = self._store.get(key)
        if obj is None:
            self._forget(key, Plan())
            self._gate.leave(key)
            self._ledger.forget(key)
            self._usage.forget(key)
            self._neighbours.forget(key)
            return None
        links = self._store.links(key)
        try:
            plan = self._plan(key, obj)
        except Exception as error:
            await self._defect(key, obj, error)
            raise
        self._note(key, plan)
        log.debug("%s: %s", key, plan.why)
        pause = self._ask(key, plan)
        try:
            rest = await self._applier.apply(key, obj, plan)
        except Refused as error:
            await self._refused(key, obj, plan, error)
            return REFUSED_AGAIN_SECONDS
        if rest is not None:
            return rest
        self._forget(key, plan)
        if self._store.links(key) != links:
            return 0.0  # what it names has changed: the next step can be taken at once
        waits = [w for w in (plan.requeue_after, pause) if w is not None]
        return min(waits, default=None)

    def _plan(self, key: Key, obj: Manifest) -> Plan:
        if key.kind == MODEL:
            seen = self._observer.model(key, obj)
            plan = plan_model(seen)
            return plan_model(self._observer.around(key, seen)) if plan.look_around else plan
        if key.kind == DOWNLOAD:
            return plan_download(self._observer.download(key, obj))
        return plan_alias(self._observer.alias(key, obj))

    def _note(self, key: Key, plan: Plan) -> None:
        """Before anything is awaited, so that no other pass is promised the same GPUs or the same place."""
        self._ledger.hold(key, plan.reserve)
        if key.kind == MODEL:
            made = [m["metadata"]["name"] for m in plan.apply if m["kind"] == "ModelDownload"]
            self._store.expect(key, [Key(DOWNLOAD, key.namespace, name) for name in made])
            self._ledger.load(key, plan.loaded)
            owners = (owner.partition("/") for owner in plan.evict)
            victims = [self._store.by_label(MODEL, namespace, label) for namespace, _, label in owners]
            self._ledger.order(key, [victim for victim in victims if victim])
            self._usage.follow(key, plan.follow_load)

    async def _defect(self, key: Key, obj: Manifest, error: Exception) -> None:
        """Planning itself failed: the person hears of it, whatever else goes wrong."""
        try:
            await self._applier.apply(key, obj, invalid.defect(obj, now(), error))
        except ApiError as failure:
            log.warning("%s: its status cannot be written either: %s", key, failure)

    def _ask(self, key: Key, plan: Plan) -> float | None:
        pauses = []
        for ask in plan.ask:
            if isinstance(ask, Resolve):
                pauses.append(self._resolving.ask(key, ask, ask.inputs))
            elif isinstance(ask, WarmUp):
                pauses.append(self._warming.ask(key, ask, ask.template))
            elif isinstance(ask, Progress):
                self._progress.follow(key, ask)
            elif isinstance(ask, FreeMemory):
                self._agents.wait(key, ask.nodes)
            elif isinstance(ask, Credentials):
                self._credentials.follow(key, ask)
        return min((p for p in pauses if p is not None), default=None)

    def _forget(self, key: Key, plan: Plan) -> None:
        """Let go of what `plan`, which has been carried out, does not ask any more; answers are in the status now."""
        asked = {type(ask) for ask in plan.ask}
        if Resolve not in asked:
            self._resolving.forget(key)
        if WarmUp not in asked:
            self._warming.forget(key)
        if Progress not in asked:
            self._progress.forget(key)
        if FreeMemory not in asked:
            self._agents.forget(key)
        if Credentials not in asked:
            self._credentials.forget(key)
        if not any(manifest["kind"] == "Job" for manifest in plan.apply):
            self._gate.unused(key)

    async def _refused(self, key: Key, obj: Manifest, plan: Plan, error: Refused) -> None:
        """The API server said no to a child: the owner's status says so, in its words."""
        told = refused.plan(key.kind, obj, plan, now(), error.reason, error.message, error.kind)
        await self._applier.apply(key, obj, told)
