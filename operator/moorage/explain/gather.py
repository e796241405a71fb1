"""Sees the cluster once as the operator sees it all the time: the same mirrors, the same snapshot, nothing written."""

import asyncio
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from moorage.control.agents import AgentReader, Listeners
from moorage.control.beside import Beside
from moorage.control.children import Children
from moorage.control.credentials import CredentialPoller
from moorage.control.gate import DownloadGate
from moorage.control.ledger import Ledger
from moorage.control.neighbours import Neighbours
from moorage.control.observe import Observer
from moorage.control.progress import ProgressPoller
from moorage.control.settings import Settings, load
from moorage.control.sidetasks import SideTasks
from moorage.control.store import DOWNLOAD, MODEL, Key, Store
from moorage.control.usage import UsageBook
from moorage.errors import ApiError, Forbidden
from moorage.kube.client import KubeClient
from moorage.kube.resources import CONFIG_MAPS, MODEL_DOWNLOADS, MODELS, NODES, PODS, Resource
from moorage.planning.model import plan_model
from moorage.planning.types import ObservedModel

KINDS = {MODEL: MODELS, DOWNLOAD: MODEL_DOWNLOADS}
NEEDED = (NODES, PODS)
INSTALLATION = "app.kubernetes.io/part-of=moorage"
PROMISED = ("Ready", "ScaledToZero", "Preempted")


class View:
    """What one person may see of a cluster; `unseen` are the resources that they may not list."""

    def __init__(self, kube: KubeClient, settings: Settings) -> None:
        self._kube, self._settings = kube, settings
        self.unseen: list[str] = []
        self._store = Store()
        self._children = Children(kube, self._store, lambda _key: None, lambda: None, settings.gpus)
        self._ledger, usage = Ledger(), UsageBook()
        beside = Beside(
            resolving=SideTasks(_nothing, _nobody),
            warming=SideTasks(_nothing, _nobody),
            progress=ProgressPoller(_nobody),
            credentials=CredentialPoller(kube, _nobody),
            gate=DownloadGate(1, lambda: (), _nobody),
            ledger=self._ledger,
            usage=usage,
            neighbours=Neighbours(self._store, usage),
            agents=AgentReader(lambda: (), Listeners(totals=lambda: None, used=lambda _pod: None, wake=_nobody)),
        )
        self._observer = Observer(self._store, self._children, settings.defaults(), beside)

    @property
    def sees_nodes(self) -> bool:
        """Whether enough is seen to decide as the operator does."""
        return not {resource.plural for resource in NEEDED} & set(self.unseen)

    async def look(self, namespace: str) -> None:
        """List everything; Models that the person may not list in the whole cluster are listed in `namespace`."""
        await asyncio.gather(
            *(self._mirror(resource) for resource in self._children.mirrors),
            *(self._objects(kind, resource, namespace) for kind, resource in KINDS.items()),
        )
        for key in self._store.all_keys(MODEL):  # GPUs that the operator holds for pods to come
            obj = self._store.get(key) or {}
            if (obj.get("status") or {}).get("phase") not in PROMISED:
                self._ledger.hold(key, plan_model(self._observer.model(key, obj)).reserve)

    def model(self, namespace: str, name: str) -> ObservedModel | None:
        """The operator's snapshot of a Model; None where there is no such one."""
        key = Key(MODEL, namespace, name)
        obj = self._store.get(key)
        return None if obj is None else self._observer.around(key, self._observer.model(key, obj))

    async def _mirror(self, resource: Resource) -> None:
        try:
            await self._children.mirrors[resource].list_once()
        except Forbidden:
            self.unseen.append(resource.plural)

    async def _objects(self, kind: str, resource: Resource, namespace: str) -> None:
        try:
            items, _ = await self._kube.list(resource)
        except Forbidden:
            self.unseen.append(f"{resource.plural} of other namespaces")
            items, _ = await self._kube.list(resource, namespace)
        for item in items:
            meta = item["metadata"]
            self._store.put(Key(kind, meta["namespace"], meta["name"]), item)


async def settings_of(kube: KubeClient, file: Path | None) -> tuple[Settings, str]:
    """The installation's settings: from `file`, else from its ConfigMap; with a note where neither can be read.

    They matter for node pools and product sizes. Raises InvalidSpec for a file that is none.
    """
    if file is not None:
        return load(file), ""
    try:
        found, _ = await kube.list(CONFIG_MAPS, label_selector=INSTALLATION)
        texts = [text for item in found if (text := (item.get("data") or {}).get("config.yaml"))]
        if texts:
            return Settings.model_validate(yaml.safe_load(texts[0])), ""
        return Settings(), ""
    except Forbidden:
        return Settings(), "the chart's node pools and product sizes (its ConfigMap); --config FILE names them"
    except (ValidationError, yaml.YAMLError):
        return Settings(), "the chart's node pools and product sizes: its ConfigMap is of another version"


def _nobody(_key: Key) -> None:
    """Nobody waits for a change: the cluster is looked at once."""


async def _nothing(_key: Key, _ask: Any) -> dict[str, Any]:
    raise ApiError("nothing is asked here")
