"""Follows a cluster: what Models, ModelAliases, EndpointSlices, API keys and namespaces say becomes the table.

Read-only. While the API server is away the last table stays in force: engines and clients need nobody else.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from moorage import names
from moorage.errors import InvalidSpec, Unavailable
from moorage.gateway import cluster_facts
from moorage.gateway.cluster_facts import AliasFacts, ModelFacts, SliceFacts
from moorage.gateway.cluster_table import Table
from moorage.gateway.keys import Key, key_of
from moorage.gateway.routes import Hold, Snapshot
from moorage.kube.client import KubeClient
from moorage.kube.reflector import Reflector
from moorage.kube.resources import ENDPOINT_SLICES, MODEL_ALIASES, MODELS, NAMESPACES, SECRETS, Resource

log = logging.getLogger(__name__)

# EndpointSlices copy their Service's labels, so that other people's thousands never cross the wire.
SERVERS = f"{names.MANAGED_BY}=moorage,{names.COMPONENT}=server"
KEYS = f"{names.KEY_LABEL}=true"


class ClusterRoutes:
    """Mirrors and the table made of them, given to `apply` at most once in `interval` seconds.

    With `keys_namespace` clients need an API key, and that is where the keys are.

    The first change after a pause is in force at once; those that come on its heels share the next table.
    """

    def __init__(
        self,
        client: KubeClient,
        default_namespace: str,
        own_hold: Hold,
        apply: Callable[[Snapshot], None],
        keys_namespace: str | None = None,
        interval: float = 0.02,
    ) -> None:
        self._apply = apply
        self._interval = interval
        self._changed = asyncio.Event()
        self._changed.set()  # an empty cluster is a table too
        mirror = partial(self._mirror, client)
        self.models: Reflector[ModelFacts] = mirror(MODELS, cluster_facts.model_facts, Table.note_model)
        self.aliases: Reflector[AliasFacts] = mirror(MODEL_ALIASES, cluster_facts.alias_facts, Table.note_alias)
        self.slices: Reflector[SliceFacts] = mirror(
            ENDPOINT_SLICES, cluster_facts.slice_facts, Table.note_slice, label_selector=SERVERS
        )
        self.namespaces: Reflector[dict[str, str]] = mirror(NAMESPACES, cluster_facts.namespace_labels, Table.note_all)
        self._table = Table(
            self.models.items,
            self.aliases.items,
            self.slices.items,
            self.namespaces.items,
            default_namespace=default_namespace,
            own_hold=own_hold,
        )
        self._mirrors: list[Reflector[Any]] = [self.models, self.aliases, self.slices, self.namespaces]
        self.keys: Reflector[Key] | None = None
        if keys_namespace:
            self.keys = mirror(SECRETS, _key, None, namespace=keys_namespace, label_selector=KEYS)
            self._mirrors.append(self.keys)

    async def follow(self) -> None:
        """Mirror and make tables, for ever; the first one when all lists are complete."""
        async with asyncio.TaskGroup() as tasks:
            for mirror in self._mirrors:
                tasks.create_task(mirror.run())
            tasks.create_task(self._build())

    async def _build(self) -> None:
        for mirror in self._mirrors:
            await _listed(mirror)
        log.info("the cluster has %d Models and %d aliases", len(self.models.items), len(self.aliases.items))
        while True:
            await self._changed.wait()
            self._changed.clear()
            began = time.monotonic()
            try:
                keys = self.keys.items.values() if self.keys else ()
                self._apply(self._table.snapshot(keys, closed=self.keys is not None))
            except Exception:  # the table in force is better than none
                self._table.note_all()
                log.exception("a defect: no routing table could be made; the last one stays in force")
            spent = time.monotonic() - began
            # A large table takes a while to make: never more than a fifth of the time.
            await asyncio.sleep(max(self._interval, 4 * spent))

    def _mirror(
        self,
        client: KubeClient,
        resource: Resource,
        project: Callable[[dict[str, Any]], Any],
        tell: Callable[..., None] | None,
        **selection: Any,
    ) -> Reflector[Any]:
        """A mirror of `resource`, each change of which is told to the table by `tell`."""

        def changed(*change: Any) -> None:
            if tell is not None:
                tell(self._table, *change)
            self._changed.set()

        return Reflector(client, resource, project=project, on_change=changed, **selection)


def _key(secret: dict[str, Any]) -> Key | None:
    try:
        return key_of(secret)
    except InvalidSpec as error:
        log.error("Secret %s is no API key and lets nobody in: %s", secret["metadata"]["name"], error)
        return None


async def _listed(mirror: Reflector[Any]) -> None:
    while not mirror.synced:
        try:
            await mirror.wait_synced(30)
        except Unavailable as error:
            log.warning("not ready: %s", error)
