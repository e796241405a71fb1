"""Notices that a Secret or ConfigMap of a refused source has changed, so that a mended token is tried at once.

Watching them would take the right to list every Secret of the cluster, and with it to read them all. So each is asked
for by name every `PERIOD_SECONDS`, its metadata alone, and only while somebody waits for it.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from moorage.control.store import Key
from moorage.errors import ApiError
from moorage.kube.client import KubeClient
from moorage.kube.resources import CONFIG_MAPS, SECRETS, Resource
from moorage.planning.types import Credentials

log = logging.getLogger(__name__)

PERIOD_SECONDS = 10.0

Reference = tuple[Resource, str, str]


@dataclass
class _Waiting:
    references: frozenset[Reference]
    known: dict[Reference, str] = field(default_factory=dict)
    changed: bool = False


class CredentialPoller:
    """Asks for what those who wait name; `changed(key)` hears of a change, and `has_changed(key)` remembers it."""

    def __init__(self, kube: KubeClient, changed: Callable[[Key], None], period: float = PERIOD_SECONDS) -> None:
        self._kube, self._changed, self._period = kube, changed, period
        self._waiting: dict[Key, _Waiting] = {}
        self._task: asyncio.Task[None] | None = None

    def has_changed(self, key: Key) -> bool:
        """Whether what `key` waits for has changed since it was first followed."""
        waiting = self._waiting.get(key)
        return waiting is not None and waiting.changed

    def follow(self, key: Key, ask: Credentials) -> None:
        """Look after what `ask` names until `forget`."""
        references = frozenset(_references(key.namespace, ask))
        waiting = self._waiting.get(key)
        if not references or (waiting and waiting.references == references):
            return
        self._waiting[key] = _Waiting(references)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._poll())

    def forget(self, key: Key) -> None:
        """`key` no longer waits."""
        self._waiting.pop(key, None)

    async def close(self) -> None:
        """Stop polling."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _poll(self) -> None:
        while self._waiting:
            for reference in sorted(
                {r for w in self._waiting.values() for r in w.references}, key=lambda r: (r[0].plural, *r[1:])
            ):
                await self._look(reference)
            await asyncio.sleep(self._period)

    async def _look(self, reference: Reference) -> None:
        resource, namespace, name = reference
        try:
            version = await self._kube.version(resource, namespace, name)
        except ApiError as error:
            log.warning("%s %s/%s cannot be looked at: %s", resource.kind, namespace, name, error)
            return
        for key, waiting in list(self._waiting.items()):
            if reference in waiting.references and waiting.known.setdefault(reference, version) != version:
                waiting.known[reference], waiting.changed = version, True
                self._changed(key)


def _references(namespace: str, ask: Credentials) -> Iterator[Reference]:
    yield from ((SECRETS, namespace, name) for name in ask.secrets)
    yield from ((CONFIG_MAPS, namespace, name) for name in ask.config_maps)
