"""Follows a cluster: what Models, ModelAliases, EndpointSlices, API keys and namespaces say becomes the table.

Read-only. While the API server is away the last table stays in force: engines and clients need nobody else.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

from moorage import names
from moorage.errors import InvalidSpec, Unavailable
from moorage.gateway import cluster_table
from moorage.gateway.cluster_table import AliasFacts, ModelFacts, SliceFacts
from moorage.gateway.keys import Key, key_of
from moorage.gateway.routes import Hold, Snapshot
from moorage.kube.client import KubeClient
from moorage.kube.reflector import Reflector
from moorage.kube.resources import ENDPOINT_SLICES, MODEL_ALIASES, MODELS, NAMESPACES, SECRETS

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
        self._default_namespace = default_namespace
        self._own_hold = own_hold
        self._apply = apply
        self._interval = interval
        self._changed = asyncio.Event()
        self._changed.set()  # an empty cluster is a table too
        self.models: Reflector[ModelFacts] = Reflector(
            client, MODELS, project=cluster_table.model_facts, on_change=self._note
        )
        self.aliases: Reflector[AliasFacts] = Reflector(
            client, MODEL_ALIASES, project=cluster_table.alias_facts, on_change=self._note
        )
        self.slices: Reflector[SliceFacts] = Reflector(
            client, ENDPOINT_SLICES, project=cluster_table.slice_facts, on_change=self._note, label_selector=SERVERS
        )
        self.namespaces: Reflector[dict[str, str]] = Reflector(
            client, NAMESPACES, project=cluster_table.namespace_labels, on_change=self._note
        )
        self._mirrors: list[Reflector[Any]] = [self.models, self.aliases, self.slices, self.namespaces]
        self.keys: Reflector[Key] | None = None
        if keys_namespace:
            self.keys = Reflector(
                client, SECRETS, project=_key, on_change=self._note, namespace=keys_namespace, label_selector=KEYS
            )
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
                self._apply(self._table())
            except Exception:  # the table in force is better than none
                log.exception("a defect: no routing table could be made; the last one stays in force")
            spent = time.monotonic() - began
            # A large table takes a while to make: never more than a fifth of the time.
            await asyncio.sleep(max(self._interval, 4 * spent))

    def _table(self) -> Snapshot:
        return cluster_table.build(
            self.models.items,
            self.aliases.items,
            self.slices.items,
            self.namespaces.items,
            default_namespace=self._default_namespace,
            own_hold=self._own_hold,
            keys=self.keys.items.values() if self.keys else (),
            closed=self.keys is not None,
        )

    def _note(self, *_: Any) -> None:
        self._changed.set()


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
