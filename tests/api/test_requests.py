"""How many requests the operator makes for what happens every day: each costs the API server more than it costs us."""

import asyncio
from collections import Counter

import pytest

from moorage.control.operator import Operator
from moorage.kube.resources import DEPLOYMENTS, EVENTS, MODELS
from moorage.names import FIELD_MANAGER
from tests.api.test_operator_faults import bed, operator, proxy
from tests.support.apiproxy import ApiProxy, Seen
from tests.support.bed import Bed

pytestmark = pytest.mark.api
__all__ = ["bed", "operator", "proxy"]  # the fixtures

AGENT = "moorage-operator"
QUIET_SECONDS = 4.0
"""Longer than a pass that comes back by itself to see whether something was left to say."""


def asked(bed: Bed, proxy: ApiProxy) -> Counter[str]:
    """The operator's requests about the bed's namespace, by what they are about; its watches are about the cluster."""
    ours = [s for s in proxy.requests if s.matches(None, f"/namespaces/{bed.namespace}/", AGENT)]
    return Counter(map(about, ours))


def about(seen: Seen) -> str:
    """`PATCH models/status`, `POST events`."""
    kind, *name_and_part = seen.path.partition("/namespaces/")[2].split("/")[1:]
    return f"{seen.method} {'/'.join([kind, *name_and_part[1:]])}"


async def counted(bed: Bed, proxy: ApiProxy) -> Counter[str]:
    """What was asked, once nothing more is."""
    before: Counter[str] | None = None
    for _ in range(30):
        if before == (before := asked(bed, proxy)):
            return before
        await asyncio.sleep(QUIET_SECONDS)
    raise AssertionError(f"it never comes to rest: {before}")


async def events(bed: Bed) -> list[str]:
    found = (await bed.kube.list(EVENTS, bed.namespace))[0]
    return sorted(e["reason"] for e in found if e["source"].get("component") == FIELD_MANAGER)


def at_most(found: Counter[str], **most: int) -> None:
    """No more of each, and nothing else: `status=5, deployments=1, events=2`; a shared download tells who uses it."""
    names = {"status": "models/status", "downloads": "modeldownloads/status"}
    allowed = {names.get(kind, kind): count for kind, count in most.items()}
    kinds: Counter[str] = Counter()
    for what, count in found.items():
        method, _, kind = what.partition(" ")
        assert method in ("PATCH", "POST"), f"{what}: everything that is read comes from watches"
        kinds[kind] += count
    assert {kind: count for kind, count in kinds.items() if count > allowed.get(kind, 0)} == {}


async def test_a_model_is_served_unloaded_loaded_described_and_deleted(bed: Bed, proxy: ApiProxy, operator: Operator):
    await counted(bed, proxy)  # the download's own words
    proxy.clear()
    await bed.model()
    await bed.until_condition("m", "Ready", "True")
    at_most(
        await counted(bed, proxy),
        deployments=1, services=1, poddisruptionbudgets=1, status=6, events=2, downloads=1,
    )  # fmt: skip
    assert await events(bed) == ["Loaded", "Loading"]

    proxy.clear()
    await bed.kube.merge_patch(MODELS, bed.namespace, "m", {"spec": {"replicas": 0}})
    await bed.until(MODELS, "m", lambda m: m["status"]["phase"] == "ScaledToZero")
    at_most(await counted(bed, proxy), deployments=1, status=4, events=1)

    proxy.clear()
    await bed.kube.merge_patch(MODELS, bed.namespace, "m", {"spec": {"replicas": 1}})
    await bed.until_condition("m", "Ready", "True")
    at_most(await counted(bed, proxy), deployments=1, status=6, events=2)

    proxy.clear()
    await bed.kube.merge_patch(MODELS, bed.namespace, "m", {"spec": {"description": "x"}})
    await bed.until(MODELS, "m", lambda m: m["status"]["observedGeneration"] == m["metadata"]["generation"])
    at_most(await counted(bed, proxy), status=1)

    proxy.clear()
    await bed.kube.delete(MODELS, bed.namespace, "m")
    await bed.gone(DEPLOYMENTS, "m")
    at_most(await counted(bed, proxy), downloads=1)


async def test_a_model_that_is_made_asleep_costs_its_children_and_a_status(
    bed: Bed, proxy: ApiProxy, operator: Operator
):
    await counted(bed, proxy)
    proxy.clear()
    await bed.model(replicas=0)
    await bed.until(MODELS, "m", lambda m: m.get("status", {}).get("phase") == "ScaledToZero")
    at_most(await counted(bed, proxy), deployments=1, services=1, status=2, downloads=1)
    assert await events(bed) == [], "nothing was downloaded, and nothing was loaded before"
