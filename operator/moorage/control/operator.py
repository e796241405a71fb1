"""The operator as an object: everything it is made of, put together once, started and stopped as a whole."""

import asyncio
import contextlib
import logging
import random
import time
from pathlib import Path
from typing import Any, Self

from moorage.control import metrics
from moorage.control.agents import AgentReader, Listeners
from moorage.control.apply import RESOURCES, Applier
from moorage.control.beside import Beside
from moorage.control.children import Children
from moorage.control.credentials import CredentialPoller
from moorage.control.gate import DownloadGate
from moorage.control.ledger import Ledger
from moorage.control.neighbours import Neighbours
from moorage.control.observe import Observer
from moorage.control.prober import HttpProber, Prober
from moorage.control.progress import ProgressPoller
from moorage.control.queue import BACKOFF_LIMIT, KeyedQueue
from moorage.control.resolver import Resolver
from moorage.control.runner import Runner
from moorage.control.settings import Settings
from moorage.control.sidetasks import SideTasks
from moorage.control.store import Change, Key, Store
from moorage.control.usage import UsageBook
from moorage.errors import ApiError, Conflict
from moorage.hub import HubClient
from moorage.kube.client import KubeClient
from moorage.kube.events import EventRecorder
from moorage.sources import HostPolicy
from moorage.usage import Report

log = logging.getLogger(__name__)

SYNC_SECONDS = 120.0
USAGE_SECONDS = 5.0
AGENTS_SECONDS = 3.0
API_PAUSE_SECONDS = 30.0
PAGE = 50  # objects of our kinds, parsed at once: 50 KiB each until they are stored, which is memory kept for good
CROWD_PER_WORKER = 2
WARM_UP_FIRST_PAUSE = 0.1  # a Service takes a moment to know a pod that just became ready


class Operator:
    """Watches, queues, plans and applies until stopped. `put` and `drop` are fed by kopf's watches."""

    def __init__(
        self, kube: KubeClient, settings: Settings, *, prober: Prober | None = None, usage: UsageBook | None = None
    ) -> None:
        self.kube, self.settings = kube, settings
        self.ready = False
        self._prober = prober or HttpProber()
        sources = settings.sources
        self._hub = HubClient(
            policy=HostPolicy(sources.allowed_hosts, sources.denied_networks, sources.allow_private_hosts)
        )
        self._events = EventRecorder(kube, instance="moorage")
        self.store = Store(self._object_changed, self._wake)
        self.children = Children(kube, self.store, self._wake, self._surroundings_changed, settings.gpus)
        self._resolver = Resolver(kube, self._hub, settings.defaults())
        self._resolving = SideTasks(self._resolve, self._wake)
        self._warming = SideTasks(self._warm_up, self._wake, first_pause=WARM_UP_FIRST_PAUSE)
        self._progress = ProgressPoller(self._wake)
        self.usage = usage or UsageBook(window=settings.scaling.scale_down_after_seconds)
        self._ledger = Ledger(self._wake, self._surroundings_changed)
        self._agents = self._agent_reader(settings.agents.namespace)
        self.children.totals = self._agents.totals
        self._credentials = CredentialPoller(kube, self._credentials_changed)
        beside = Beside(
            resolving=self._resolving,
            warming=self._warming,
            progress=self._progress,
            credentials=self._credentials,
            gate=DownloadGate(settings.downloads.max_running, self.children.running_downloads, self._wake),
            ledger=self._ledger,
            usage=self.usage,
            neighbours=Neighbours(self.store, self.usage),
            agents=self._agents,
        )
        observer = Observer(self.store, self.children, settings.defaults(), beside)
        applier = Applier(kube, self.store, self.children, self._events, self._crowded)
        self.runner = Runner(self.store, self.children, observer, applier, beside)
        self.queue: KeyedQueue[Key] = KeyedQueue(
            self._handle, workers=settings.workers, on_error=self._pass_failed, longest=_longest_pause
        )
        self._tasks: list[asyncio.Task[None]] = []
        self._watched: dict[str, int] = {}  # newest version of each kind that a watch brought
        self._listed: dict[str, int] = {}  # newest version of each kind in the last list
        self._deaf = ""

    @classmethod
    async def connect(cls, kubeconfig: Path | None, settings: Settings, **parts: Any) -> Self:
        """An operator for the cluster of `kubeconfig` (None: the cluster it runs in)."""
        return cls(await KubeClient.connect(kubeconfig, user_agent="moorage-operator"), settings, **parts)

    async def start(self) -> None:
        """Mirror the cluster, list our kinds, then start working; raises Unavailable where that takes too long."""
        self._events.start()
        self._tasks.append(asyncio.create_task(self.children.run(), name="mirrors"))
        await self.children.wait_synced(SYNC_SECONDS)
        await self._list_all()
        for key in self.store.loaded():  # they have their places, whoever is looked at first
            self._ledger.load(key, True)
        if self.settings.agents.namespace:
            await self._agents.settle(AGENTS_SECONDS)  # so that the first plans know what the GPUs hold
            self._tasks.append(asyncio.create_task(self._agents.run(), name="agents"))
        self._tasks.append(asyncio.create_task(self.queue.run(), name="queue"))
        self._tasks.append(asyncio.create_task(self._resync(), name="resync"))
        self._tasks.append(asyncio.create_task(self._show_usage(), name="usage"))
        self.ready = True
        log.info("ready: %d objects", len(self.store.all_keys()))

    async def stop(self) -> None:
        """Stop working; what was begun is either written or will be planned again by the next operator."""
        self.ready = False
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        side = (self._resolving, self._warming, self._progress, self._credentials, self._agents)
        for part in (*side, self._prober, self._hub, self._events, self.kube):
            with contextlib.suppress(ApiError):
                await part.close()

    def _agent_reader(self, namespace: str) -> AgentReader:
        children = self.children
        listeners = Listeners(totals=children.gpus_changed, used=children.wake_owner, wake=self._wake)
        return AgentReader(lambda: children.agents(namespace), listeners)

    def failed(self) -> str | None:
        """Why the operator cannot go on, None while all of its tasks run and its watches tell what lists show."""
        if self._deaf:
            return self._deaf
        for task in self._tasks:
            if task.done() and not task.cancelled():
                return f"{task.get_name()} ended: {task.exception()!r}"
        return None

    # -- what gateways tell ------------------------------------------------------------------------------------

    def heard(self, report: Report) -> str | None:
        """Take a gateway's report; the epoch to answer, None while there is nobody to tell of it."""
        if not self.ready:
            return None
        for key in self.usage.take(report):
            self._wake(key)
        return self.usage.epoch

    async def _show_usage(self) -> None:
        """Wake whose totals have changed and may be written again."""
        while True:
            await asyncio.sleep(USAGE_SECONDS)
            for key in self.usage.due():
                self._wake(key)

    # -- what wakes a key ---------------------------------------------------------------------------------------

    def put(self, kind: str, obj: dict[str, Any]) -> None:
        """An object of one of the three kinds as a watch saw it."""
        self._heard(kind, obj)
        self.store.put(_key(kind, obj), obj)

    def drop(self, kind: str, obj: dict[str, Any]) -> None:
        """An object of one of the three kinds was deleted."""
        self.store.drop(_key(kind, obj), self._heard(kind, obj))

    def _heard(self, kind: str, obj: dict[str, Any]) -> int:
        version = int(obj["metadata"]["resourceVersion"])
        self._watched[kind] = max(self._watched.get(kind, 0), version)
        return version

    def _object_changed(self, key: Key, change: Change) -> None:
        if change.wanted:
            self._wake(key)
            for claimant in self.store.claimants(key.namespace, key.name):
                self._wake(claimant)
        for dependent in self.store.dependents(key):
            self._wake(dependent)

    def _wake(self, key: Key) -> None:
        """Have `key` looked at; while the cluster is being listed, behind whatever changes from then on."""
        self.queue.add(key, background=not self.ready)

    def _credentials_changed(self, key: Key) -> None:
        self._resolving.retry(key)
        self._wake(key)

    def _crowded(self) -> bool:
        return self.queue.depth > CROWD_PER_WORKER * self.settings.workers

    def _surroundings_changed(self) -> None:
        """Nodes or storage classes changed: whoever waits looks again; who is settled is not disturbed."""
        if not self.ready:
            return
        for key in self.store.unready():
            self._wake(key)

    # -- passes ---------------------------------------------------------------------------------------------------

    async def _handle(self, key: Key) -> float | None:
        started = time.perf_counter()
        again = await self.runner.handle(key)
        metrics.PASS_SECONDS.labels(key.kind).observe(time.perf_counter() - started)
        return again

    def _pass_failed(self, key: Key, error: Exception, failures: int) -> None:
        metrics.PASS_FAILURES.labels(key.kind, type(error).__name__).inc()
        if isinstance(error, Conflict):
            log.info("%s: changed meanwhile, planned again: %s", key, error)
        elif isinstance(error, ApiError):
            log.warning("%s: the API server said: %s (failure %d)", key, error, failures)
        else:
            log.error("%s: a defect of Moorage (failure %d)", key, failures, exc_info=error)

    async def _resolve(self, key: Key, ask: Any) -> dict[str, Any]:
        return await self._resolver.resolve(key.namespace, ask.source, ask.files)

    async def _warm_up(self, _key: Key, ask: Any) -> dict[str, Any]:
        return await self._prober.warm_up(ask)

    # -- the safety net -----------------------------------------------------------------------------------------

    async def relist(self) -> None:
        """List again what is watched, and notice a watch that has died: kopf may lose one (nolar/kopf#1276).

        What one list showed the watch must have told by the next one.
        """
        for kind, version in self._listed.items():
            if self._watched.get(kind, 0) < version:
                self._deaf = f"the watch of {kind} tells nothing any more"
        await self._list_all()

    async def _list_all(self) -> None:
        """List the three kinds: put what is there, drop what is gone (a watch can miss a deletion, a list cannot)."""
        for kind, resource in RESOURCES.items():
            seen, taken_at, newest = set[Key](), 0, 0
            async for items, version in self.kube.pages(resource, limit=PAGE):
                taken_at = int(version)
                for item in items:
                    self.store.put(_key(kind, item), item)
                    seen.add(_key(kind, item))
                    newest = max(newest, int(item["metadata"]["resourceVersion"]))
            self.store.keep_only(kind, seen, taken_at)
            self._listed[kind] = newest

    async def _resync(self) -> None:
        while True:
            await asyncio.sleep(self.settings.resync_seconds * random.uniform(0.9, 1.1))
            try:
                await self.relist()
            except ApiError as error:
                log.warning("resync: %s", error)
            for key in self.store.all_keys():
                self.queue.add(key, background=True)


def _longest_pause(error: Exception) -> float:
    """Seconds between two tries at most: an API server that was away is back for everybody at once."""
    return API_PAUSE_SECONDS if isinstance(error, ApiError) else BACKOFF_LIMIT


def _key(kind: str, obj: dict[str, Any]) -> Key:
    return Key(kind, obj["metadata"].get("namespace", ""), obj["metadata"]["name"])
