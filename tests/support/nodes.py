"""Simulated nodes that come and go: by a test's hand, or by a small cluster autoscaler."""

import asyncio
import json
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, ClassVar, Self

from moorage.kube.resources import NODES, PODS
from moorage.placement.matching import affinity_matches
from tests.conftest import TestCluster
from tests.support.bed import Bed, condition
from tests.support.eventually import PATIENCE

POOL_LABEL = "example.com/pool"
_NOT_YET = "node.kubernetes.io/not-ready"


@contextmanager
def nodes(cluster: TestCluster, *manifests: dict[str, Any]) -> Iterator[None]:
    """These nodes, until the block ends."""
    names = [node["metadata"]["name"] for node in manifests]
    apply(cluster, *manifests)
    until_ready(cluster, *names)
    try:
        yield
    finally:
        cluster.kubectl("delete", "node", "--ignore-not-found", *names)


def apply(cluster: TestCluster, *manifests: dict[str, Any]) -> None:
    cluster.kubectl("apply", "-f", "-", input=json.dumps({"apiVersion": "v1", "kind": "List", "items": [*manifests]}))


def until_ready(cluster: TestCluster, *names: str) -> None:
    """Until the nodes are Ready, and not tainted any more as those are that are not: no scheduler uses these yet."""
    deadline = time.monotonic() + PATIENCE
    while waiting := [node["metadata"]["name"] for node in _found(cluster, *names) if not _is_up(node)]:
        assert time.monotonic() < deadline, f"nodes {waiting} are not ready within {PATIENCE:g} s"
        time.sleep(0.1)


def _found(cluster: TestCluster, *names: str) -> list[dict[str, Any]]:
    found = json.loads(cluster.kubectl("get", *(f"node/{name}" for name in names), "-o", "json").stdout)
    return [found] if found["kind"] == "Node" else [*found["items"]]


def _is_up(node: dict[str, Any]) -> bool:
    tainted = any(taint["key"] == _NOT_YET for taint in node["spec"].get("taints", ()))
    return condition(node, "Ready").get("status") == "True" and not tainted


class Autoscaler(ABC):
    """Adds a node of a pool in stock when an unschedulable pod would run there; it knows no label but the pool's.

    `made` are the pools that grew. While `drivers` is not set, nodes join whose drivers do not start.
    """

    pools: ClassVar[tuple[str, ...]]

    def __init__(self, bed: Bed, cluster: TestCluster, stock: tuple[str, ...]) -> None:
        self.cluster, self.made, self.drivers = cluster, list[str](), asyncio.Event()
        self._bed, self._stock = bed, set(stock)
        self.drivers.set()

    @classmethod
    @asynccontextmanager
    async def working(cls, bed: Bed, cluster: TestCluster, *stock: str) -> AsyncIterator[Self]:
        """One with these pools in stock; when the block ends, its nodes go."""
        made = cls(bed, cluster, stock)
        task = asyncio.create_task(made._run())
        try:
            yield made
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            for kind in ("node", "resourceslice"):
                cluster.kubectl("delete", kind, "--ignore-not-found", *map(made.node, cls.pools))

    def node(self, pool: str) -> str:
        """The node of a pool: one name in each test, as nothing may remember what was on another's node."""
        return f"{pool}-{self._bed.namespace}"

    async def joined(self, pool: str) -> bool:
        """Whether the pool's node is there."""
        found = (await self._bed.kube.list(NODES, None))[0]
        return self.node(pool) in {node["metadata"]["name"] for node in found}

    @abstractmethod
    async def join(self, pool: str, node: str) -> None:
        """Make the node, and what its drivers do when they start."""

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as joining:
            while True:
                for pod in (await self._bed.kube.list(PODS, self._bed.namespace))[0]:
                    for pool in [p for p in sorted(self._stock) if _would_run(pod, p)]:
                        self._stock.discard(pool)
                        self.made.append(pool)
                        joining.create_task(self.join(pool, self.node(pool)))
                await asyncio.sleep(0.2)


def _would_run(pod: dict[str, Any], pool: str) -> bool:
    spec = pod["spec"]
    asks = "nvidia.com/gpu" in json.dumps(spec) or bool(spec.get("resourceClaims"))
    refused = condition(pod, "PodScheduled").get("reason") == "Unschedulable"
    affinity = (spec.get("affinity") or {}).get("nodeAffinity")
    return asks and refused and affinity_matches(affinity, pool, {POOL_LABEL: pool})
