"""`kubectl get modelaliases` in each state: one look says where requests go, and what is wrong."""

import re
from collections.abc import AsyncIterator, Iterator

import pytest

from moorage import names
from moorage.control.operator import Operator
from moorage.kube.resources import MODEL_ALIASES, MODELS
from tests.conftest import TestCluster
from tests.support.bed import Bed, running_operator

pytestmark = pytest.mark.api


@pytest.fixture
async def bed(kwok_cluster: TestCluster) -> AsyncIterator[Bed]:
    async with Bed.made(kwok_cluster.kubeconfig) as made:
        await made.ready_download()
        yield made
        for alias in (await made.kube.list(MODEL_ALIASES, made.namespace))[0]:
            await made.kube.delete(MODEL_ALIASES, made.namespace, alias["metadata"]["name"])


@pytest.fixture
def operator(kwok_cluster: TestCluster) -> Iterator[Operator]:
    with running_operator(kwok_cluster.kubeconfig) as made:
        yield made


def rows(cluster: TestCluster, namespace: str) -> dict[str, tuple[str, ...]]:
    """What a person sees, by alias: TARGETS, READY, REVISION and MESSAGE."""
    table = cluster.kubectl("-n", namespace, "get", "modelaliases").stdout.splitlines()
    starts = [found.start() for found in re.finditer(r"\S+", table[0])]
    ends = [*starts[1:], None]
    cells = [[line[a:b].strip() for a, b in zip(starts, ends, strict=True)] for line in table]
    assert cells[0] == ["NAME", "TARGETS", "READY", "REVISION", "AGE", "MESSAGE"]
    return {name: (targets, ready, revision, message) for name, targets, ready, revision, _age, message in cells[1:]}


async def test_one_look_says_where_requests_go_and_what_is_wrong(
    bed: Bed, operator: Operator, kwok_cluster: TestCluster
):
    async with Bed.made(kwok_cluster.kubeconfig) as other:
        await other.model("theirs")
        await bed.model("up")
        await bed.model("off", replicas=0)
        await bed.model("nap", annotations={names.SLEEP_AT: "2026-01-01T00:00:00Z"})
        await bed.until_condition("up", "Ready", "True")
        for name in ("off", "nap"):
            await bed.until(MODELS, name, lambda m: m["status"]["phase"] == "ScaledToZero")
        legs = {name: {"modelRef": {"name": name}} for name in ("up", "off", "nap", "gone")}
        legs["theirs"] = {"modelRef": {"name": "theirs", "namespace": other.namespace}}
        for name, leg in legs.items():
            await bed.create("ModelAlias", f"to-{name}", {"targets": [leg]})
        await bed.create("ModelAlias", "covered", {"targets": [legs["nap"]], "fallbacks": [legs["up"]]})
        await bed.create("ModelAlias", "stand-in", {"targets": [legs["off"]], "fallbacks": [legs["up"]]})
        await bed.create(
            "ModelAlias", "split", {"targets": [{**legs["up"], "weight": 90}, {**legs["gone"], "weight": 10}]}
        )
        lost, theirs = f"there is no Model gone in namespace {bed.namespace}", f"{other.namespace}/theirs"
        forbidden = f"Model {theirs} does not permit aliases of namespace {bed.namespace} (its spec.allowedNamespaces)"
        expected = {
            "to-up": ("up", "1/1", "1", "up answers"),
            "to-nap": ("nap", "1/1", "1", "nap sleeps until asked for"),
            "to-off": ("off", "0/1", "1", "off is unloaded (replicas 0)"),
            "to-gone": ("gone", "0/1", "1", lost),
            "to-theirs": (theirs, "0/1", "1", forbidden),
            "covered": ("nap", "1/1", "1", "up stands in as a fallback; nap sleeps until asked for"),
            "stand-in": ("off", "0/1", "1", "up stands in as a fallback; off is unloaded (replicas 0)"),
            "split": ("up 90%, gone 10%", "1/2", "1", f"{lost}; up answers"),
        }

        async def seen() -> bool:
            return rows(kwok_cluster, bed.namespace) == expected

        try:
            await bed.eventually(seen)
        finally:
            found = rows(kwok_cluster, bed.namespace)
            print({name: (row, expected.get(name)) for name, row in found.items() if row != expected.get(name)})

        await bed.kube.merge_patch(MODEL_ALIASES, bed.namespace, "to-gone", {"spec": {"targets": [legs["up"]]}})
        awake = {"metadata": {"annotations": {names.WAKE_AT: "2026-02-01T00:00:00Z"}}}
        await bed.kube.merge_patch(MODELS, bed.namespace, "nap", awake)
        expected |= {
            "to-gone": ("up", "1/1", "2", "up answers"),
            "to-nap": ("nap", "1/1", "1", "nap answers"),
            "covered": ("nap", "1/1", "1", "nap, up answer"),
        }
        await bed.eventually(seen)
