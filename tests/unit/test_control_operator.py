"""The operator as a whole: what it notices about itself."""

from collections.abc import AsyncIterator
from typing import Any

from moorage import names
from moorage.control.operator import Operator
from moorage.control.settings import Settings
from moorage.control.store import MODEL, Key


class Cluster:
    """Lists one Model, at a growing version; watches are the test's own business."""

    def __init__(self) -> None:
        self.version = 10

    def model(self) -> dict[str, Any]:
        meta = {"name": "m", "namespace": "n", "uid": "u", "resourceVersion": str(self.version)}
        return {"apiVersion": names.API_VERSION, "kind": MODEL, "metadata": meta, "spec": {}}

    async def pages(self, resource: Any, limit: int = 500) -> AsyncIterator[tuple[list[dict[str, Any]], str]]:
        yield ([self.model()] if resource.kind == MODEL else []), str(self.version)


async def test_a_watch_that_has_died_is_noticed_by_the_second_list():
    cluster: Any = Cluster()
    operator = Operator(cluster, Settings())
    operator.put(MODEL, cluster.model())
    await operator.relist()
    await operator.relist()
    assert operator.failed() is None
    cluster.version = 20  # and no watch tells
    await operator.relist()
    assert operator.failed() is None, "the watch may be about to tell"
    assert (operator.store.get(Key(MODEL, "n", "m")) or {})["metadata"]["resourceVersion"] == "20"
    await operator.relist()
    assert "watch of Model" in (operator.failed() or "")


async def test_a_watch_that_is_late_is_no_dead_one():
    cluster: Any = Cluster()
    operator = Operator(cluster, Settings())
    operator.put(MODEL, cluster.model())
    cluster.version = 20
    await operator.relist()
    operator.put(MODEL, cluster.model())
    await operator.relist()
    assert operator.failed() is None
