"""The whole operator behind an API server that fails: nothing is lost, made twice, or written for ever."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from moorage.control.operator import Operator
from moorage.kube.resources import DEPLOYMENTS, MODEL_DOWNLOADS, MODELS, SERVICES
from tests.conftest import TestCluster
from tests.support.apiproxy import FOREVER, ApiProxy
from tests.support.bed import Bed, running_operator

pytestmark = pytest.mark.api


@pytest.fixture
async def bed(kwok_cluster: TestCluster) -> AsyncIterator[Bed]:
    async with Bed.made(kwok_cluster.kubeconfig) as made:
        await made.ready_download()
        yield made


@pytest.fixture
async def proxy(kwok_cluster: TestCluster, tmp_path: Path) -> AsyncIterator[ApiProxy]:
    async with ApiProxy(kwok_cluster.kubeconfig, tmp_path) as made:
        yield made


@pytest.fixture
async def operator(proxy: ApiProxy) -> AsyncIterator[Operator]:
    """The operator behind the proxy; it starts in a thread, because the proxy answers in this loop."""

    def started() -> Iterator[Operator]:
        with running_operator(proxy.kubeconfig) as made:
            yield made

    life = started()
    yield await asyncio.to_thread(next, life)
    await asyncio.to_thread(lambda: next(life, None))


@pytest.mark.parametrize("status", [409, 429, 500, 503])
async def test_every_write_may_fail_twice(bed: Bed, proxy: ApiProxy, operator: Operator, status: int):
    for path in ("/services/", "/deployments/", "/status", "/events"):
        proxy.fail(status, method="PATCH|POST", path=path, times=2)
    await bed.model()
    await bed.until_condition("m", "Ready", "True")
    for resource in (DEPLOYMENTS, SERVICES):
        assert len([o for o in (await bed.kube.list(resource, bed.namespace))[0] if o["metadata"]["name"] == "m"]) == 1


async def test_an_answer_that_is_lost_makes_nothing_twice(bed: Bed, proxy: ApiProxy, operator: Operator):
    for path in ("/services/", "/deployments/", "/status"):
        proxy.cut(method="PATCH", path=path, after=True)
    await bed.model()
    model = await bed.until_condition("m", "Ready", "True")
    assert model["status"]["phase"] == "Ready"


async def test_what_changed_while_the_api_server_was_away_is_carried_out(bed: Bed, proxy: ApiProxy, operator: Operator):
    await bed.model()
    await bed.until_condition("m", "Ready", "True")
    await bed.model("gone")
    await bed.until_condition("gone", "Ready", "True")
    await proxy.go_down()
    await bed.kube.merge_patch(MODELS, bed.namespace, "m", {"spec": {"replicas": 0}})
    await bed.kube.delete(MODELS, bed.namespace, "gone")
    await bed.model("new")
    await asyncio.sleep(3)  # long enough for every watch and write to have failed a few times
    await proxy.come_up()
    await bed.until(MODELS, "m", lambda m: m["status"]["phase"] == "ScaledToZero", timeout=60)
    await bed.until_condition("new", "Ready", "True", timeout=60)
    await bed.gone(DEPLOYMENTS, "gone", timeout=60)
    assert operator.failed() is None


@pytest.mark.parametrize("how", ["drop", "expire", "mute"])
async def test_watches_that_end_or_fall_silent_lose_nothing(
    bed: Bed, proxy: ApiProxy, operator: Operator, how: str, monkeypatch: pytest.MonkeyPatch
):
    await bed.model()
    await bed.until_condition("m", "Ready", "True")
    if how == "mute":
        proxy.mute_watches("/deployments")  # of the children alone; kopf notices its own silence after 70 s
    elif how == "drop":
        proxy.drop_watches()
    else:
        proxy.expire_watches()
    await bed.kube.merge_patch(MODELS, bed.namespace, "m", {"spec": {"contextLength": 1024}})

    def rolled(deployment: dict) -> bool:
        args = deployment["spec"]["template"]["spec"]["containers"][0]["args"]
        return args[args.index("--ctx-size") + 1] == "4096"

    await bed.until(DEPLOYMENTS, "m", rolled, timeout=60)


async def test_a_refusal_that_never_ends_is_asked_about_rarely(bed: Bed, proxy: ApiProxy, operator: Operator):
    refused = proxy.fail(422, method="PATCH", path="/deployments/", times=FOREVER)
    await bed.model()
    await bed.until_condition("m", "Serving", "False", "InvalidSpec")
    await proxy.rest(path=bed.namespace)
    assert refused.hits <= 3, "what is written about it leads to no further try"


async def test_a_quiet_cluster_behind_failures_comes_to_rest(bed: Bed, proxy: ApiProxy, operator: Operator):
    failed = proxy.fail(500, method="PATCH", path="/status", times=5)
    for i in range(5):
        await bed.model(f"m{i}", replicas=0)
    for i in range(5):
        await bed.until(MODELS, f"m{i}", lambda m: m.get("status", {}).get("phase") == "ScaledToZero", timeout=60)
    # Whoever met all five failures is tried again only after 20 s: what it had to say comes first.
    await bed.until(MODEL_DOWNLOADS, "files", lambda d: len(d["status"].get("usedBy", ())) == 5)
    assert failed.hits == 5
    await proxy.rest(path=bed.namespace)
