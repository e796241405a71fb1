"""The gateway's routing table on a real API server: from `kubectl patch` to the table in force."""

import asyncio
import signal
import statistics
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from moorage.control.operator import Operator
from moorage.gateway.app import Gateway
from moorage.gateway.cluster import SERVERS, ClusterRoutes
from moorage.gateway.keys import Key, digest, manifest
from moorage.gateway.routes import Hold, Route, Snapshot
from moorage.kube.client import KubeClient
from moorage.kube.resources import ENDPOINT_SLICES, MODEL_ALIASES, MODELS, SECRETS
from moorage.names import KEY_REQUESTS
from tests.conftest import TestCluster
from tests.process.gateway.support import QUICK, Client, Reply, get, post
from tests.process.gateway.test_gateway_command import command
from tests.process.gateway.test_gateway_report import TOKEN, MockOperator
from tests.support.apiproxy import FOREVER, ApiProxy
from tests.support.bed import Bed, running_operator
from tests.support.eventually import PATIENCE, eventually

pytestmark = pytest.mark.api


class Followed:
    """A gateway that follows a cluster: `table` is the one in force, `times` is when each came (monotonic)."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.times: list[float] = []

    def apply(self, snapshot: Snapshot) -> None:
        self.gateway.apply(snapshot)
        self.times.append(time.monotonic())

    @property
    def table(self) -> Snapshot:
        return self.gateway.proxy.snapshot

    def endpoints(self, name: str) -> tuple[str, ...]:
        return self.table.models[name].endpoints if name in self.table.models else ()

    def reached(self, name: str) -> list[str]:
        route = self.table.routes.get(name)
        return [target.model.name for target in route.targets] if route else []

    async def ask(self, request: bytes, admin: bool = False) -> Reply:
        async with Client.connected(self.gateway.admin_address if admin else self.gateway.address) as client:
            await client.send(request)
            return await client.reply()


@asynccontextmanager
async def followed(kubeconfig: Path, namespace: str, keys: str | None = None) -> AsyncIterator[Followed]:
    gateway = Gateway(QUICK)
    made = Followed(gateway)
    await gateway.start(("127.0.0.1", 0), ("127.0.0.1", 0))
    async with await KubeClient.connect(kubeconfig, user_agent="gateway-test") as client:
        following = asyncio.create_task(ClusterRoutes(client, namespace, Hold(), made.apply, keys).follow())
        try:
            yield made
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
            await gateway.stop()


@pytest.fixture
async def bed(kwok_cluster: TestCluster) -> AsyncIterator[Bed]:
    async with Bed.made(kwok_cluster.kubeconfig) as made:
        await made.ready_download()
        yield made


@pytest.fixture
def operator(kwok_cluster: TestCluster) -> Iterator[Operator]:
    with running_operator(kwok_cluster.kubeconfig) as made:
        yield made


def pointing_at(*models: str, **more: Any) -> dict[str, Any]:
    return {"targets": [{"modelRef": {"name": model}} for model in models], **more}


async def test_ready_pods_of_a_model_are_its_endpoints(bed: Bed, operator: Operator, kwok_cluster: TestCluster):
    async with followed(kwok_cluster.kubeconfig, bed.namespace) as gateway:
        await bed.model("m", replicas=2, maxSequences=3)
        await eventually(lambda: len(gateway.endpoints("m")) == 2, PATIENCE, "two endpoints")
        slices, _ = await bed.kube.list(ENDPOINT_SLICES, bed.namespace, label_selector=SERVERS)
        assert {s["metadata"]["labels"]["moorage.dev/model"] for s in slices} == {"m"}, "labels copied from the Service"
        assert all(address.endswith(":8080") for address in gateway.endpoints("m"))
        assert gateway.table.models["m"].max_in_flight == 3
        kwok_cluster.kubectl("-n", bed.namespace, "scale", "model", "m", "--replicas=0")
        await eventually(lambda: gateway.endpoints("m") == (), PATIENCE, "an endpoint less")
        assert "m" in gateway.table.routes, "asleep, and still a name"
        await bed.kube.delete(MODELS, bed.namespace, "m")
        await eventually(lambda: "m" not in gateway.table.routes, PATIENCE, "the name gone")


def of_weight(weight: int) -> tuple[dict[str, Any], Callable[[Route], bool]]:
    """Half and half, or all to one: a spec, and how the table shows it."""
    targets = [{"modelRef": {"name": "a"}, "weight": 50}, {"modelRef": {"name": "b"}, "weight": weight}]
    return {"targets": targets}, lambda route: route.bounds == ((50, 50 + weight) if weight else (50,))


CHANGES = {
    "retarget": [(pointing_at(name), lambda r, n=name: [t.model.name for t in r.targets] == [n]) for name in "ba"],
    "weights": [of_weight(50), of_weight(0)],
    "parameters": [
        ({"request": {"defaults": {"max_tokens": n}}}, lambda r, n=n: r.targets[0].rewrite.length == ("max_tokens", n))
        for n in (16, 32)
    ],
}


@pytest.mark.parametrize("what", CHANGES)
async def test_a_change_of_an_alias_is_in_force_in_milliseconds(bed: Bed, kwok_cluster: TestCluster, what: str):
    await bed.model("a", replicas=0)
    await bed.model("b", replicas=0)
    await bed.create("ModelAlias", "chat", pointing_at("a"))
    took = []
    async with followed(kwok_cluster.kubeconfig, bed.namespace) as gateway:
        await eventually(lambda: gateway.reached("chat") == ["a"], PATIENCE, "the alias")
        for turn in range(40):
            spec, there = CHANGES[what][turn % 2]
            await asyncio.sleep(0.03)  # changes by a person, not a storm, which shares tables
            before = time.monotonic()
            await bed.kube.merge_patch(MODEL_ALIASES, bed.namespace, "chat", {"spec": spec})
            await eventually(lambda there=there: there(gateway.table.routes["chat"]), PATIENCE, what, every=0.001)
            took.append(max(gateway.times[-1], before) - before)
    p50, p95 = statistics.median(took), sorted(took)[int(len(took) * 0.95)]
    print(f"\n{what}, from the patch sent to the table in force: p50 {p50 * 1e3:.1f} ms, p95 {p95 * 1e3:.1f} ms")
    assert sorted(took)[len(took) // 4] < 0.1, "a quarter of them, however busy the machine is with other things"


async def test_parameters_and_holding_follow_the_spec(bed: Bed, kwok_cluster: TestCluster):
    await bed.model("m", replicas=0, request={"defaults": {"top_p": 0.5}})
    await bed.create("ModelAlias", "chat", pointing_at("m", request={"defaults": {"max_tokens": 16}}))
    async with followed(kwok_cluster.kubeconfig, bed.namespace) as gateway:
        await eventually(lambda: "chat" in gateway.table.routes, PATIENCE, "the alias")
        assert gateway.table.routes["chat"].targets[0].rewrite.length == ("max_tokens", 16)
        change = {"spec": {"hold": {"maxPending": 0}, "request": {"systemPrompt": "Be brief."}}}
        await bed.kube.merge_patch(MODEL_ALIASES, bed.namespace, "chat", change)
        await eventually(lambda: gateway.table.routes["chat"].hold == Hold(0, 300.0), PATIENCE, "the other limit")
        assert gateway.table.routes["chat"].targets[0].rewrite.system_prompt == "Be brief."
        await bed.kube.merge_patch(MODELS, bed.namespace, "m", {"spec": {"request": {"defaults": {"top_p": 0.9}}}})
        mine = lambda: dict(gateway.table.routes["m"].targets[0].rewrite.defaults)  # noqa: E731
        await eventually(lambda: mine() == {"top_p": 0.9}, PATIENCE, "the other default")


async def test_it_is_not_ready_before_it_knows_the_cluster_and_goes_on_without_it(
    bed: Bed, kwok_cluster: TestCluster, tmp_path: Path
):
    await bed.model("a", replicas=0)
    await bed.model("b", replicas=0)
    await bed.create("ModelAlias", "chat", pointing_at("a"))
    async with ApiProxy(kwok_cluster.kubeconfig, tmp_path) as proxy:
        slices = proxy.fail(503, path="/endpointslices", times=FOREVER)
        async with followed(proxy.kubeconfig, bed.namespace) as gateway:
            await eventually(lambda: proxy.count(path="/modelaliases.*watch=") == 1, PATIENCE, "the aliases, read")
            assert (await gateway.ask(get("/readyz"), admin=True)).status == 503
            assert (await gateway.ask(get("/healthz"), admin=True)).status == 200
            assert gateway.times == [], "no table of half a cluster"
            early = await gateway.ask(post({"model": "chat", "messages": []}))
            assert (early.status, early.error["code"]) == (503, "starting"), "who hears 404 does not try again"
            proxy.remove(slices)
            await eventually(lambda: gateway.reached("chat") == ["a"], PATIENCE, "the alias")
            assert (await gateway.ask(get("/readyz"), admin=True)).status == 200

            await proxy.go_down()
            await bed.kube.merge_patch(MODEL_ALIASES, bed.namespace, "chat", {"spec": pointing_at("b")})
            unknown = await gateway.ask(post({"model": "nope", "messages": []}))
            assert (unknown.status, unknown.error["code"]) == (404, "model_not_found")
            assert gateway.reached("chat") == ["a"]
            assert (await gateway.ask(get("/readyz"), admin=True)).status == 200
            await proxy.come_up()
            await eventually(lambda: gateway.reached("chat") == ["b"], PATIENCE, "what was missed meanwhile")


async def test_names_of_other_namespaces_and_what_is_listed(bed: Bed, kwok_cluster: TestCluster):
    await bed.model("m", replicas=0)
    await bed.create("ModelAlias", "chat", pointing_at("m"))
    await bed.create("ModelAlias", "lost", pointing_at("nowhere"))
    async with followed(kwok_cluster.kubeconfig, "elsewhere") as gateway:
        await eventually(lambda: f"{bed.namespace}/chat" in gateway.table.routes, PATIENCE, "the alias")
        listed = [entry["id"] for entry in (await gateway.ask(get("/v1/models"))).json["data"]]
        assert [name for name in listed if name.startswith(bed.namespace)] == [
            f"{bed.namespace}/chat",
            f"{bed.namespace}/m",
        ]
        for name in ("chat", f"{bed.namespace}/lost"):
            assert (await gateway.ask(post({"model": name, "messages": []}))).error["code"] == "model_not_found"
    async with followed(kwok_cluster.kubeconfig, bed.namespace) as gateway:
        await eventually(lambda: "chat" in gateway.table.routes, PATIENCE, "the alias")
        listed = [entry["id"] for entry in (await gateway.ask(get("/v1/models"))).json["data"]]
        assert [name for name in listed if "/" not in name] == ["chat", "m"]
        assert gateway.reached(f"{bed.namespace}/chat") == ["m"]


async def test_secrets_are_keys_as_soon_as_they_are_made_and_until_they_are_deleted(
    bed: Bed, kwok_cluster: TestCluster, caplog: pytest.LogCaptureFixture
):
    def asked(secret: str) -> bytes:
        return get("/v1/models", Authorization=f"Bearer {secret}")

    await bed.model("m", replicas=0)
    async with followed(kwok_cluster.kubeconfig, bed.namespace, bed.namespace) as gateway:
        await eventually(lambda: gateway.times, PATIENCE, "a table")
        refused = await gateway.ask(asked("sk-one"))
        assert refused.status == 401
        assert "no API key has been made" in refused.error["message"]

        key = Key("one", (digest("sk-one"),), namespaces=(bed.namespace,))
        await bed.kube.create({**manifest(key, bed.namespace), "type": "Opaque"})
        await eventually(lambda: gateway.table.keys == (key,), PATIENCE, "the key")
        assert [entry["id"] for entry in (await gateway.ask(asked("sk-one"))).json["data"]] == ["m"]
        assert (await gateway.ask(asked("sk-two"))).status == 401

        slip = {"metadata": {"annotations": {KEY_REQUESTS: "sixty"}}}
        await bed.kube.merge_patch(SECRETS, bed.namespace, "one", slip)
        await eventually(lambda: gateway.table.keys == (), PATIENCE, "a key with a slip, closed")
        assert "requests-per-minute is a whole number" in caplog.text
        await bed.kube.merge_patch(SECRETS, bed.namespace, "one", {"metadata": {"annotations": {KEY_REQUESTS: "60"}}})
        await eventually(lambda: gateway.table.keys, PATIENCE, "the key again")
        await bed.kube.delete(SECRETS, bed.namespace, "one")
        await eventually(lambda: gateway.table.keys == (), PATIENCE, "no key")
        assert (await gateway.ask(asked("sk-one"))).status == 401
    assert "sk-one" not in caplog.text


async def test_the_command_tells_the_operator_and_says_its_last_words(
    bed: Bed, kwok_cluster: TestCluster, tmp_path: Path
):
    await bed.model("m", replicas=0)
    (tmp_path / "token").write_text(TOKEN)
    options = ["--kubeconfig", str(kwok_cluster.kubeconfig), "--default-namespace", bed.namespace, "--drain-delay", "0"]
    async with MockOperator() as operator:
        options += ["--operator", operator.url, "--operator-token-file", str(tmp_path / "token")]
        async with command(None, *options) as gateway:
            await eventually(lambda: operator.reports, PATIENCE, "the first report")
            limit = time.monotonic() + PATIENCE
            while await gateway.ready() != 200:
                assert time.monotonic() < limit, "it never knew the cluster"
                await asyncio.sleep(0.1)
            async with Client.connected(gateway.public) as client:
                await client.send(post({"model": "m", "messages": []}))
                wanted = f"{bed.namespace}/m"
                await eventually(lambda: operator.total(wanted, "wanted") == 1, PATIENCE, "demand")
                assert operator.total(wanted, "pending") == 1
            gateway.process.send_signal(signal.SIGTERM)
            assert await gateway.ended() == 0
            assert "Traceback" not in gateway.log
        assert operator.total(wanted, "cancelled") == 1, "the client left, and that was told before the end"
        assert operator.total(wanted, "pending") == 0
