"""The installed chart on a real API server: the operator's own process, as its ServiceAccount, watched by a proxy.

Its rights must be enough (nothing is refused) and minimal (nothing is granted that it never uses).
"""

import asyncio
import json
import os
import re
import sys
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from e2e.cluster.network import free_ports
from e2e.hub import HubServer
from e2e.tinymodels.gguf_file import write_gguf
from moorage import names, rbac
from moorage.gateway.cluster import ClusterRoutes
from moorage.gateway.routes import Hold, Snapshot
from moorage.kube.client import KubeClient
from moorage.kube.resources import (
    CLAIMS,
    DEPLOYMENTS,
    DISRUPTION_BUDGETS,
    EVENTS,
    JOBS,
    MODEL_ALIASES,
    MODEL_DOWNLOADS,
    MODELS,
    NODES,
    PODS,
    RESOURCE_CLAIM_TEMPLATES,
    SERVICES,
    STORAGE_CLASSES,
)
from tests.api.test_placement_scheduler import resource_slice
from tests.conftest import TestCluster
from tests.process.download.support import make_repo
from tests.support import helm
from tests.support.apiproxy import ApiProxy, Seen
from tests.support.bed import Bed
from tests.support.eventually import PATIENCE, eventually

pytestmark = pytest.mark.api

ROOT = Path(__file__).resolve().parents[2]
RESTRICTED = "pod-security.kubernetes.io/enforce=restricted"
TOKEN = "hf_rights"
PATH = re.compile(
    r"/(?:api|apis/(?P<group>[^/]+))/v[^/]+(?:/namespaces/[^/]+)?/(?P<plural>[^/]+)(?:/(?P<name>[^/]+)(?:/(?P<sub>[^/]+))?)?"
)

Use = tuple[str, str, str]  # API group, resource or resource/subresource, verb


def granted(rights: tuple[rbac.Right, ...]) -> set[Use]:
    return {(right.group, resource, verb) for right in rights for resource in right.resources for verb in right.verbs}


def used(seen: Seen) -> set[Use]:
    """What the API server's authorizer was asked for; an apply that makes the object asks for two verbs."""
    found = PATH.fullmatch(seen.path)
    if not found:
        return set()  # discovery, which everybody may read
    verbs = {"POST": "create", "PATCH": "patch", "PUT": "update", "DELETE": "delete"}
    read = "watch" if seen.is_watch else "get" if found["name"] else "list"
    resource = "/".join(part for part in (found["plural"], found["sub"]) if part)
    group = found["group"] or ""
    made = {(group, resource, "create")} if seen.method == "PATCH" and seen.status == 201 else set()
    return {(group, resource, verbs.get(seen.method, read))} | made


@dataclass
class Release:
    """An installed chart: its namespace, tokens of the two ServiceAccounts, and the operator's settings."""

    name: str
    token: str
    config: str
    gateway_token: str


@pytest.fixture(scope="module")
def release(api_cluster: TestCluster) -> Iterator[Release]:
    """The chart, installed by Helm into a namespace at Pod Security `restricted`."""
    name = f"chart-{uuid.uuid4().hex[:6]}"
    api_cluster.kubectl("create", "namespace", name)
    api_cluster.kubectl("label", "namespace", name, RESTRICTED)
    values = {
        "crds": {"enabled": False},
        "sources": {"allowPrivateHosts": True},
        "fullnameOverride": name,
        "gateway": {"requireKeys": True},
    }
    command = ("install", name, str(helm.CHART), "--namespace", name)
    helm.helm(*command, values=values, kubeconfig=api_cluster.kubeconfig)
    token = api_cluster.kubectl("-n", name, "create", "token", name).stdout.strip()
    gateway_token = api_cluster.kubectl("-n", name, "create", "token", f"{name}-gateway").stdout.strip()
    settings = api_cluster.kubectl("-n", name, "get", "configmap", f"{name}-operator", "-o", "yaml").stdout
    yield Release(name, token, yaml.safe_load(settings)["data"]["config.yaml"], gateway_token)
    helm.helm("uninstall", name, "--namespace", name, kubeconfig=api_cluster.kubeconfig)
    api_cluster.kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture
async def bed(api_cluster: TestCluster) -> AsyncIterator[Bed]:
    async with Bed.made(api_cluster.kubeconfig) as made:
        api_cluster.kubectl("label", "namespace", made.namespace, RESTRICTED)
        yield made


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubServer]:
    model = tmp_path / "tiny.gguf"
    write_gguf(model)
    root = tmp_path / "hub"
    make_repo(root, "org/tiny", {"tiny.gguf": model.read_bytes()}, tokens={TOKEN: "me"}, private=True, allow=["me"])
    with HubServer(root) as server:
        yield server


@asynccontextmanager
async def operator_process(kubeconfig: Path, config: str, folder: Path) -> AsyncIterator[Path]:
    """`moorage operator` as a process, ready; yields its log."""
    settings, log = folder / "config.yaml", folder / "operator.log"
    settings.write_text(config)
    port = free_ports(["operator"])["operator"]
    options = ["--kubeconfig", str(kubeconfig), "--config", str(settings), "--listen", f"127.0.0.1:{port}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "operator")}
    with log.open("w") as output:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "moorage", "operator", *options), stderr=output, env=environment
        )
    try:
        await eventually(lambda: "ready:" in log.read_text() or process.returncode is not None, what="a ready operator")
        yield log
        assert process.returncode is None, log.read_text()
    finally:
        if process.returncode is None:
            process.terminate()
        await asyncio.wait_for(process.wait(), PATIENCE)


def source(hub: HubServer) -> dict[str, Any]:
    """A private repository, its token in a Secret, a CA bundle in a ConfigMap (the one each namespace has)."""
    return {
        "huggingFace": {
            "repo": "org/tiny",
            "endpoint": hub.url,
            "tokenSecretRef": {"name": "hub", "key": "token"},
            "caBundleRef": {"name": "kube-root-ca.crt", "key": "ca.crt"},
        }
    }


async def test_the_operators_rights_are_enough_and_not_one_too_many(
    api_cluster: TestCluster, release: Release, bed: Bed, hub: HubServer, tmp_path: Path
):
    storage = f"{bed.namespace}-class"
    provisioner = {"kind": "StorageClass", "apiVersion": "storage.k8s.io/v1", "provisioner": "example.com/none"}
    await bed.kube.create({**provisioner, "metadata": {"name": storage}})
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "hub", "namespace": bed.namespace}}
    await bed.kube.create({**secret, "stringData": {"token": TOKEN}})
    await bed.ready_download()
    async with ApiProxy(api_cluster.kubeconfig, tmp_path) as proxy:
        kubeconfig = proxy.kubeconfig_for(release.token, release.name)
        async with operator_process(kubeconfig, release.config, tmp_path) as log:
            try:
                await asyncio.gather(
                    a_download_is_paused_and_cancelled(bed, hub, storage),
                    a_model_goes_and_its_download_follows(bed, hub, storage),
                    a_model_is_scaled(bed, api_cluster),
                    a_model_asks_for_other_devices(bed, api_cluster),
                    a_node_goes_under_a_server(bed, api_cluster),
                )
            finally:
                refused = [(s.method, s.path) for s in proxy.requests if s.status == 403]
                assert refused == [], log.read_text()
        assert "forbidden" not in log.read_text().lower()
        assert "Traceback" not in log.read_text()
        uses = set().union(*map(used, proxy.requests))
    await bed.kube.delete(STORAGE_CLASSES, None, storage)
    assert uses <= granted(rbac.OPERATOR)
    assert granted(rbac.OPERATOR) - uses == set(), "granted and never used"
    events, _ = await bed.kube.list(EVENTS, bed.namespace)
    assert [e["message"] for e in events if e["reason"] == "FailedCreate"] == [], "pods that `restricted` refuses"


async def test_the_gateways_rights_are_enough_and_not_one_too_many(
    api_cluster: TestCluster, release: Release, tmp_path: Path
):
    tables: list[Snapshot] = []
    async with ApiProxy(api_cluster.kubeconfig, tmp_path) as proxy:
        kubeconfig = proxy.kubeconfig_for(release.gateway_token, f"{release.name}-gateway")
        async with await KubeClient.connect(kubeconfig, user_agent="gateway") as client:
            routes = ClusterRoutes(client, "default", Hold(), tables.append, release.name)
            following = asyncio.create_task(routes.follow())
            try:
                await eventually(lambda: tables, PATIENCE, "a routing table")
                await eventually(lambda: sum(s.is_watch for s in proxy.requests) >= 4, PATIENCE, "four watches")
            finally:
                following.cancel()
                await asyncio.gather(following, return_exceptions=True)
        assert [(s.method, s.path) for s in proxy.requests if s.status == 403] == []
        assert set().union(*map(used, proxy.requests)) == granted(rbac.GATEWAY) | granted(rbac.GATEWAY_OWN)
        secrets = {s.path.partition("?")[0] for s in proxy.requests if "/secrets" in s.path}
        assert secrets == {f"/api/v1/namespaces/{release.name}/secrets"}, "those of its own namespace, and no others"


async def a_download_is_paused_and_cancelled(bed: Bed, hub: HubServer, storage: str) -> None:
    async def become(state: str) -> None:
        await bed.kube.merge_patch(MODEL_DOWNLOADS, bed.namespace, "d", {"spec": {"state": state}})

    await bed.create("ModelDownload", "d", {"source": source(hub), "storage": {"storageClassName": storage}})
    for _ in range(2):
        await bed.until(JOBS, "d", bool)
        await become("Paused")
        await bed.gone(JOBS, "d")
        await become("Active")
    await bed.until(JOBS, "d", bool)
    await become("Cancelled")
    await bed.gone(CLAIMS, "d")


async def a_model_goes_and_its_download_follows(bed: Bed, hub: HubServer, storage: str) -> None:
    kept = {"storageClassName": storage, "deleteAfterUnused": "1s"}
    let_go = {f"{names.GROUP}/allow-delete": "true"}  # although an alias points at it
    await bed.model("m", source=source(hub), storage=kept, annotations=let_go)
    await bed.create("ModelAlias", "a", {"targets": [{"modelRef": {"name": "m"}}]})
    await bed.until(MODEL_ALIASES, "a", lambda alias: alias["status"]["conditions"])
    model = await bed.until(MODELS, "m", lambda model: model["status"]["source"]["downloadName"])
    download = model["status"]["source"]["downloadName"]
    await bed.until(MODEL_DOWNLOADS, download, lambda made: made["status"]["usedBy"] == ["m"])
    await bed.kube.delete(MODELS, bed.namespace, "m")
    await bed.gone(MODEL_DOWNLOADS, download)


async def a_model_is_scaled(bed: Bed, cluster: TestCluster) -> None:
    await bed.model("n", replicas=0)
    await bed.until(SERVICES, "n", bool)
    await bed.until(DEPLOYMENTS, "n", lambda made: made["spec"]["replicas"] == 0)
    await asyncio.to_thread(cluster.kubectl, "-n", bed.namespace, "scale", "model", "n", "--replicas=1")
    await bed.until(DEPLOYMENTS, "n", lambda made: made["spec"]["replicas"] == 1)


async def a_model_asks_for_other_devices(bed: Bed, cluster: TestCluster) -> None:
    """On a node that exists in name only, with so many CPUs asked for that no pod is ever bound to it."""
    name = f"{bed.namespace}-dra"
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}}
    cluster.kubectl("apply", "-f", "-", input=json.dumps(node))
    cluster.kubectl("apply", "-f", "-", input=json.dumps(resource_slice(name, 81_559, 1)))

    async def beats() -> None:
        while True:  # a node that is not heard of for 40 s is ready no more
            heard = {"lastHeartbeatTime": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
            told = {"status": {"conditions": [{"type": "Ready", "status": "True", **heard}]}}
            await bed.kube.merge_patch(NODES, None, name, told, "status")
            await asyncio.sleep(5)

    async def templates(count: int, *without: str) -> set[str]:
        found = {t["metadata"]["name"] for t in (await bed.kube.list(RESOURCE_CLAIM_TEMPLATES, bed.namespace))[0]}
        return found if len(found) == count and not found & set(without) else set()

    beating = asyncio.create_task(beats())
    try:
        crowded = {"requests": {"cpu": "1000"}}
        await bed.model("g", accelerator={"vendor": "Auto", "memoryPerGPUOverride": "10Gi"}, resources=crowded)
        before = await bed.eventually(lambda: templates(1))
        await bed.model("g", accelerator={"vendor": "Auto", "memoryPerGPUOverride": "40Gi"}, resources=crowded)
        await bed.eventually(lambda: templates(1, *before))
    finally:
        beating.cancel()
        cluster.kubectl("delete", f"node/{name}", f"resourceslice/{name}", "--ignore-not-found")


async def a_node_goes_under_a_server(bed: Bed, cluster: TestCluster) -> None:
    """Bound by hand to a cordoned node that exists in name only; no scheduler would have a pod with so many CPUs."""
    name = f"{bed.namespace}-goes"
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}, "spec": {"unschedulable": True}}
    cluster.kubectl("apply", "-f", "-", input=json.dumps(node))

    async def servers() -> list[dict[str, Any]]:
        pods = (await bed.kube.list(PODS, bed.namespace))[0]
        return [p for p in pods if p["metadata"]["labels"].get(names.MODEL_LABEL) == "leaving"]

    async def marked() -> bool:
        return any(names.DELETION_COST in (p["metadata"].get("annotations") or {}) for p in await servers())

    try:
        await bed.model("leaving", resources={"requests": {"cpu": "1000"}})
        (pod,) = await bed.eventually(servers)
        binding = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": pod["metadata"]["name"]}}
        path = f"/api/v1/namespaces/{bed.namespace}/pods/{pod['metadata']['name']}/binding"
        body = json.dumps({**binding, "target": {"kind": "Node", "name": name}})
        cluster.kubectl("create", "--raw", path, "-f", "-", input=body)
        await bed.eventually(marked)
        ready = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
        await bed.kube.merge_patch(PODS, bed.namespace, pod["metadata"]["name"], {"status": ready}, "status")
        budget = await bed.until(DISRUPTION_BUDGETS, "leaving", bool)
        own = {"name": "own", "namespace": bed.namespace}
        await bed.kube.create({**budget, "metadata": own, "spec": {**budget["spec"], "maxUnavailable": 0}})
        await bed.gone(DISRUPTION_BUDGETS, "leaving")
    finally:
        cluster.kubectl("delete", f"node/{name}", "--ignore-not-found")


@pytest.mark.parametrize(
    ("role_", "may", "may_not"),
    [
        ("view", ["get models", "list modeldownloads", "watch modelaliases", "get models/scale"], ["create models"]),
        (
            "edit",
            [
                "create models",
                "patch modelaliases",
                "delete modeldownloads",
                "update models/scale",
                "get models/status",
            ],
            ["patch models/status", "update models/finalizers"],
        ),
    ],
)
async def test_people_get_their_rights_from_kubernetes_own_roles(
    api_cluster: TestCluster, release: Release, bed: Bed, role_: str, may: list[str], may_not: list[str]
):
    user = f"{role_}-{bed.namespace}"
    api_cluster.kubectl("-n", bed.namespace, "create", "rolebinding", user, f"--clusterrole={role_}", f"--user={user}")

    def can(what: str) -> bool:
        verb, resource = what.split()
        plural, _, sub = resource.partition("/")
        options = [f"--subresource={sub}"] if sub else []
        asked = (verb, f"{plural}.{names.GROUP}", *options, "--as", user, "-n", bed.namespace)
        return api_cluster.kubectl("auth", "can-i", *asked, check=False).stdout.strip() == "yes"

    for what in may:  # the controller manager adds the chart's roles to Kubernetes' own in a moment
        await eventually(lambda what=what: can(what), PATIENCE, f"{role_} may {what}", every=0.2)
    assert [what for what in may_not if can(what)] == []
