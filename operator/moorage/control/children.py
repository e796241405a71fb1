"""The children and surroundings of the three kinds: one mirror per resource, and whose child each object is."""

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from moorage import names
from moorage.control import dra, projections
from moorage.control.fleet import GPUs
from moorage.control.store import CLAIM, DOWNLOAD, MODEL, Key, Store
from moorage.control.volumes import Volumes
from moorage.kube.client import KubeClient
from moorage.kube.reflector import Reflector
from moorage.kube.resources import (
    CLAIMS,
    DEPLOYMENTS,
    DISRUPTION_BUDGETS,
    JOBS,
    LIMIT_RANGES,
    NAMESPACES,
    NODES,
    PODS,
    RESOURCE_CLAIM_TEMPLATES,
    RESOURCE_CLAIMS,
    RESOURCE_QUOTAS,
    RESOURCE_SLICES,
    SERVICES,
    STORAGE_CLASSES,
    VOLUMES,
    Resource,
)
from moorage.placement.inventory import Inventory, build

Manifest = dict[str, Any]
Where = tuple[str, str]
K = TypeVar("K")

_KINDS: dict[Resource, Callable[[Manifest], Manifest | None]] = {
    DEPLOYMENTS: projections.deployment,
    SERVICES: projections.service,
    DISRUPTION_BUDGETS: projections.disruption_budget,
    JOBS: projections.job,
    CLAIMS: projections.claim,
    PODS: projections.pod,
    NODES: projections.node,
    NAMESPACES: projections.namespace,
    STORAGE_CLASSES: projections.storage_class,
    VOLUMES: projections.volume,
    RESOURCE_QUOTAS: projections.quota,
    LIMIT_RANGES: projections.limit_range,
    RESOURCE_SLICES: dra.resource_slice,
    RESOURCE_CLAIMS: dra.resource_claim,
    RESOURCE_CLAIM_TEMPLATES: dra.claim_template,
}

# Since Kubernetes 1.34; without them a cluster's GPUs are those that device plugins offer.
_OPTIONAL = {RESOURCE_SLICES, RESOURCE_CLAIMS, RESOURCE_CLAIM_TEMPLATES}

# Whose name a child of each resource bears: a stranger that has it stands in the way of the owner's.
_NAMED_AFTER = {DEPLOYMENTS: MODEL, SERVICES: MODEL, DISRUPTION_BUDGETS: MODEL, JOBS: DOWNLOAD, CLAIMS: DOWNLOAD}

REMEMBER_SECONDS = 30.0


class Tag(NamedTuple):
    """Whose child an object says it is: by label, because the mirrors fill before the owners' names are known."""

    kind: str
    namespace: str
    label: str


class Children:
    """Mirrors of what Moorage makes and of what it looks at, with the reverse way from a child to its owner's key.

    `wake(key)` is called for the owner of every child that changes; `surroundings()` when nodes or storage classes do.
    `totals` tells the GPUs that agents report, MiB of each by node.
    """

    def __init__(
        self, kube: KubeClient, store: Store, wake: Callable[[Key], None], surroundings: Callable[[], None], gpus: GPUs
    ) -> None:
        self._store, self._wake, self._surroundings, self._gpus = store, wake, surroundings, gpus
        self.totals: Callable[[], Mapping[str, Sequence[int]]] = dict
        self._agents: dict[Where, Manifest] = {}
        self._mine: dict[tuple[Resource, Tag], set[Where]] = defaultdict(set)
        self._mounts: dict[Where, set[Where]] = defaultdict(set)  # claim -> the Deployments that serve from it
        self._budgets: dict[str, dict[str, Manifest]] = defaultdict(dict)  # by namespace, those that people made
        self._applied: dict[tuple[Resource, Where], tuple[str, str, float]] = {}
        self._nodes: Inventory | None = None
        self._inventory: Inventory | None = None
        self.mirrors: dict[Resource, Reflector[Manifest]] = {
            resource: Reflector(
                kube, resource, project=project, on_change=self._listener(resource), optional=resource in _OPTIONAL
            )
            for resource, project in _KINDS.items()
        }
        self._volumes = Volumes(self.mirrors)

    async def run(self) -> None:
        """Keep all mirrors going until cancelled."""
        async with asyncio.TaskGroup() as group:
            for mirror in self.mirrors.values():
                group.create_task(mirror.run())

    async def wait_synced(self, timeout: float) -> None:
        """Return once every mirror has listed; Unavailable if that takes more than `timeout` seconds."""
        await asyncio.gather(*(m.wait_synced(timeout) for m in self.mirrors.values()))

    def get(self, resource: Resource, where: Where) -> Manifest | None:
        """The projection of one object (namespace, name)."""
        return self.mirrors[resource].items.get(where)

    def of(self, resource: Resource, key: Key) -> Iterator[Manifest]:
        """Projections of `key`'s children of one resource."""
        items = self.mirrors[resource].items
        tag = Tag(key.kind, key.namespace, names.dns_label(key.name))
        for where in self._mine.get((resource, tag), ()):
            if (item := items.get(where)) is not None:
                yield item

    # -- what was just written, until the mirror shows it ---------------------------------------------------------

    def applied(self, resource: Resource, where: Where) -> str | None:
        """Manifest hash of what was applied a moment ago and is not in the mirror yet."""
        known = self._applied.get((resource, where))
        if known is None or time.monotonic() - known[2] > REMEMBER_SECONDS:
            return None
        return known[0]

    def remember(self, resource: Resource, where: Where, manifest_hash: str, uid: str) -> None:
        """Note that `manifest_hash` was applied as the object `uid`."""
        self._applied[(resource, where)] = (manifest_hash, uid, time.monotonic())

    def forget(self, resource: Resource, where: Where) -> None:
        """Drop the note: the object was deleted or changed."""
        self._applied.pop((resource, where), None)

    def running_downloads(self) -> Iterator[Key]:
        """Downloads whose Job is there and not over."""
        for where, job in self.mirrors[JOBS].items.items():
            label = (job.get("labels") or {}).get(names.DOWNLOAD_LABEL)
            if label and not job["complete"] and not job["failed"]:
                yield self._store.by_label(DOWNLOAD, where[0], label) or Key(DOWNLOAD, where[0], label)

    # -- surroundings ----------------------------------------------------------------------------------------------

    def inventory(self) -> Inventory:
        """Nodes, their GPUs and who holds them; kept until nodes or GPU pods change."""
        if self._nodes is None:
            nodes, slices = (self.mirrors[kind].items.values() for kind in (NODES, RESOURCE_SLICES))
            told, totals = self._gpus, self.totals()
            self._nodes = build(nodes, (), slices, products=told.products, node_pools=told.shapes(), reports=totals)
            self._inventory = None
        if self._inventory is None:
            pods, claims = (self.mirrors[kind].items.values() for kind in (PODS, RESOURCE_CLAIMS))
            self._inventory = self._nodes.with_pods((p for p in pods if p["gpus"]), claims)
        return self._inventory

    def volume(self, claim: Where) -> Manifest | None:
        """Where the volume of `claim` (namespace, name) can be mounted and is; None where there is no such claim."""
        return self._volumes.facts(claim, self.inventory())

    def bounds(self, namespace: str) -> tuple[tuple[Manifest, ...], tuple[Manifest, ...]]:
        """The ResourceQuotas and the LimitRanges of a namespace."""
        quotas, ranges = (
            tuple(item for where, item in self.mirrors[kind].items.items() if where[0] == namespace)
            for kind in (RESOURCE_QUOTAS, LIMIT_RANGES)
        )
        return quotas, ranges

    def budgets(self, namespace: str) -> tuple[Manifest, ...]:
        """The PodDisruptionBudgets that people made in a namespace."""
        return tuple(self._budgets[namespace].values()) if namespace in self._budgets else ()

    def namespace_labels(self, namespace: str) -> dict[str, str] | None:
        """Labels of a namespace; None where there is none of that name."""
        found = self.mirrors[NAMESPACES].items.get(("", namespace))
        return found["labels"] if found else None

    def has_namespace(self, name: str) -> bool:
        """Whether there is a namespace of that name."""
        return ("", name) in self.mirrors[NAMESPACES].items

    def loaded_limit(self, namespace: str, default: int | None) -> int | None:
        """How many Models of `namespace` may be loaded at once; None: any number."""
        said = self.get(NAMESPACES, ("", namespace))
        return default if said is None or said["maxLoaded"] is None else int(said["maxLoaded"])

    def storage_class(self, wanted: str | None) -> Manifest | None:
        """The class `wanted` (None: the default), as far as planning cares."""
        classes = self.mirrors[STORAGE_CLASSES].items.values()
        return next((c for c in classes if (c["default"] if wanted is None else c["name"] == wanted)), None)

    def storage_class_trouble(self, wanted: str | None) -> str | None:
        """Why a claim with class `wanted` (None: the default) could never bind; None where it could."""
        classes = self.mirrors[STORAGE_CLASSES].items.values()
        if wanted is not None:
            if any(c["name"] == wanted for c in classes):
                return None
            names_ = ", ".join(sorted(c["name"] for c in classes)) or "none"
            return f"there is no StorageClass {wanted}; the cluster has: {names_}"
        if any(c["default"] for c in classes):
            return None
        return "the cluster has no default StorageClass; name one in spec.storage.storageClassName"

    # -- whose child -------------------------------------------------------------------------------------------------

    def _listener(self, resource: Resource) -> Callable[[Where, Manifest | None, Manifest | None], None]:
        if resource == NODES:
            return self._node_changed
        if resource in (STORAGE_CLASSES, RESOURCE_SLICES):
            return lambda _where, _old, _new: self.gpus_changed()
        if resource == PODS:
            return self._pod_changed
        if resource == RESOURCE_CLAIMS:
            return lambda _where, _old, _new: self._holders_changed()
        if resource in (RESOURCE_QUOTAS, LIMIT_RANGES):
            return lambda where, _old, _new: self._bounds_changed(where[0])
        if resource == DISRUPTION_BUDGETS:
            return self._budget_changed
        if resource == NAMESPACES:
            return lambda where, old, new: self._namespace_changed(where[1], old, new)
        if resource == VOLUMES:
            return lambda _where, old, new: self._volume_changed((new or old or {})["claim"])
        return lambda where, old, new: self._changed(resource, where, old, new)

    def gpus_changed(self) -> None:
        """Nodes or storage are other ones now, or what agents tell of GPUs: whoever waits for a place looks again."""
        self._nodes = None
        self._surroundings()

    def agents(self, namespace: str) -> Iterator[Manifest]:
        """The agents' pods in `namespace` that run and have an address."""
        for where, pod in self._agents.items():
            if where[0] == namespace and pod["ip"] and pod["phase"] == "Running":
                yield pod

    def wake_owner(self, pod: Where) -> None:
        """Have the owner of a pod (namespace, name) looked at again, if it is one of ours."""
        if tag := _tag(pod, self.mirrors[PODS].items.get(pod)):
            self._wake(self._key(tag))

    def _node_changed(self, where: Where, old: Manifest | None, new: Manifest | None) -> None:
        """Nodes that come and go concern those that wait; one that is about to go, those whose servers it has."""
        self.gpus_changed()
        if old and new and any(old[part] != new[part] for part in ("unschedulable", "taints")):
            for place, pod in self.mirrors[PODS].items.items():
                if pod["node"] == where[1]:
                    self.wake_owner(place)

    def _pod_changed(self, where: Where, old: Manifest | None, new: Manifest | None) -> None:
        """GPUs that are taken or given back concern every Model that waits for some."""
        self._agents.pop(where, None)
        if new and new.get("agent"):
            self._agents[where] = new
        if _held(old) != _held(new):
            self._holders_changed()
        for claim in self._volumes.pod_changed(where, old, new):
            self._volume_changed(claim)
        self._changed(PODS, where, old, new)

    def _holders_changed(self) -> None:
        self._inventory = None
        self._surroundings()

    def _bounds_changed(self, namespace: str) -> None:
        """What a namespace may have concerns those in it that wait."""
        for key in self._store.unready():
            if key.namespace == namespace:
                self._wake(key)

    def _budget_changed(self, where: Where, old: Manifest | None, new: Manifest | None) -> None:
        """A budget of a person may be about the servers of any Model of its namespace."""
        theirs = self._budgets[where[0]]
        theirs.pop(where[1], None)
        if new and "stranger" in new:
            theirs[where[1]] = new
        if not theirs:
            del self._budgets[where[0]]
        if "stranger" in (old or {}) or "stranger" in (new or {}):
            for key in self._store.all_keys(MODEL):
                if key.namespace == where[0]:
                    self._wake(key)
        self._changed(DISRUPTION_BUDGETS, where, old, new)

    def _namespace_changed(self, namespace: str, old: Manifest | None, new: Manifest | None) -> None:
        """Other labels may permit other aliases: those of the namespace look again, and the Models they point at.

        Another limit may let a Model be loaded that waits for a place. A namespace that comes takes the names that
        read like its own from whoever has claimed them.
        """
        if old is None or new is None:
            for key in self._store.pretenders(namespace):
                self._wake(key)
        if (old or {}).get("maxLoaded") != (new or {}).get("maxLoaded"):
            self._surroundings()
            for key in self._store.all_keys(MODEL):  # a lower one concerns those that are settled, too
                if key.namespace == namespace:
                    self._wake(key)
        for alias in self._store.guests(namespace):
            self._wake(alias)
            for model in self._store.links(alias):
                if model.kind == MODEL:
                    self._wake(model)

    def _volume_changed(self, claim: Where) -> None:
        """A volume came, or a pod took it or let it go: that concerns the downloads of its claim, and their Models."""
        downloads = {*self._concerned(CLAIMS, claim)}
        for key in downloads | {user for download in downloads for user in self._store.dependents(download)}:
            self._wake(key)

    def _changed(self, resource: Resource, where: Where, old: Manifest | None, new: Manifest | None) -> None:
        known = self._applied.get((resource, where))
        if known and (new is None or new.get("manifestHash") == known[0] or new.get("uid") != known[1]):
            self.forget(resource, where)  # the mirror has caught up, or the object is gone
        before, after = _tag(where, old), _tag(where, new)
        _move(self._mine, (resource, before) if before else None, (resource, after) if after else None, where)
        keys = {self._key(tag) for tag in (before, after) if tag}
        if resource is DEPLOYMENTS:
            keys |= self._remounted(where, old, new)
        for key in keys | set(self._concerned(resource, where)):
            self._wake(key)

    def _key(self, tag: Tag) -> Key:
        return self._store.by_label(*tag) or Key(*tag)

    def _remounted(self, where: Where, old: Manifest | None, new: Manifest | None) -> set[Key]:
        """Note which claim a Deployment serves from; the downloads whose files it took up or let go."""
        before, after = ((where[0], item["claim"]) if item and item.get("claim") else None for item in (old, new))
        if before == after:
            return set()
        _move(self._mounts, before, after, where)
        return {key for claim in (before, after) if claim and (key := self._store.by_label(DOWNLOAD, *claim))}

    def serving(self, claim: Where) -> Iterator[str]:
        """Names of the Models whose Deployments serve from `claim` (namespace, name)."""
        for where in self._mounts.get(claim, ()):
            if tag := _tag(where, self.mirrors[DEPLOYMENTS].items.get(where)):
                yield self._key(tag).name

    def _concerned(self, resource: Resource, where: Where) -> Iterator[Key]:
        """Who looks at an object for its name: the one whose child would be called so, downloads into that claim."""
        if resource in _NAMED_AFTER and (key := self._store.by_label(_NAMED_AFTER[resource], *where)):
            yield key
        if resource is CLAIMS:
            yield from self._store.dependents(Key(CLAIM, *where))


def _tag(where: Where, item: Manifest | None) -> Tag | None:
    labels = (item or {}).get("labels") or {}
    for label, kind in ((names.MODEL_LABEL, MODEL), (names.DOWNLOAD_LABEL, DOWNLOAD)):
        if label in labels:
            return Tag(kind, where[0], labels[label])
    return None


def _move(index: dict[K, set[Where]], before: K | None, after: K | None, where: Where) -> None:
    """Have `index` list `where` under `after` and no longer under `before`; empty sets go."""
    if before is not None and before != after:
        index[before].discard(where)
        if not index[before]:
            del index[before]
    if after is not None:
        index[after].add(where)


def _held(pod: Manifest | None) -> tuple[object, ...]:
    """What a change of matters to the inventory."""
    if not pod or not pod["gpus"]:
        return ()
    return (pod["node"], pod["phase"], pod.get("deleting"), tuple(pod["gpus"].items()))
