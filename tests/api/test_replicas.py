"""Who says how many servers there are: a person, a real HorizontalPodAutoscaler, or load as a real gateway tells it."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from moorage.control.operator import Operator
from moorage.control.settings import Scaling
from moorage.control.store import MODEL, Key
from moorage.kube.resources import DEPLOYMENTS, MODELS
from tests.conftest import TestCluster
from tests.process.gateway.support import OK, EngineSide, RawEngine, always, chat
from tests.support.bed import SETTINGS, Bed, condition, running_operator
from tests.support.eventually import eventually
from tests.support.reports import Reports

pytestmark = [pytest.mark.api, pytest.mark.timeout(900)]

METRIC = "requestsperserver"  # as the autoscaler asks for it
METRIC_CRD = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {
        "name": f"{METRIC}.external.metrics.k8s.io",
        "annotations": {"api-approved.kubernetes.io": "unapproved, a metric of the tests"},
    },
    "spec": {
        "group": "external.metrics.k8s.io",
        "scope": "Namespaced",
        "names": {"kind": "ExternalMetricValue", "listKind": "ExternalMetricValueList", "plural": METRIC},
        "versions": [
            {
                "name": "v1beta1", "served": True, "storage": True,
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
            }
        ],
    },
}  # fmt: skip
"""A metrics adapter without a server: the list of these objects is what an adapter would answer."""


@pytest.fixture
async def bed(kwok_cluster: TestCluster) -> AsyncIterator[Bed]:
    async with Bed.made(kwok_cluster.kubeconfig) as made:
        await made.ready_download()
        yield made


@pytest.fixture
def reports(kwok_cluster: TestCluster, tmp_path: Path, bed: Bed) -> Reports:
    return Reports(kwok_cluster.kubeconfig, tmp_path, bed.namespace)


@pytest.fixture
def operator(kwok_cluster: TestCluster) -> Iterator[Operator]:
    with running_operator(kwok_cluster.kubeconfig) as made:
        yield made


async def servers(bed: Bed, count: int, timeout: float = 60.0) -> dict[str, Any]:
    """The Model as soon as it has so many servers, wanted and ready."""

    def good(model: dict[str, Any]) -> bool:
        status = model.get("status") or {}
        found = (status.get("desiredReplicas"), status.get("replicas", 0), status.get("readyReplicas", 0))
        return found == (count, count, count)

    return await bed.until(MODELS, "m", good, timeout=timeout)


def writers_of_spec(model: dict[str, Any]) -> set[str]:
    return {entry["manager"] for entry in model["metadata"]["managedFields"] if "f:spec" in entry["fieldsV1"]}


async def test_kubectl_scale_is_followed_and_never_fought(bed: Bed, kwok_cluster: TestCluster):
    def scale(replicas: int) -> None:
        kwok_cluster.kubectl("-n", bed.namespace, "scale", "model/m", f"--replicas={replicas}")

    await bed.model()
    with running_operator(kwok_cluster.kubeconfig):
        await servers(bed, 1)
        scale(3)
        model = await servers(bed, 3)
        assert model["status"]["summary"]["ready"] == "3/3"
        shown = kwok_cluster.kubectl(
            "-n", bed.namespace, "get", "model", "m", "--subresource=scale", "-o", "json"
        ).stdout
        scale_object = json.loads(shown)
        assert (scale_object["spec"]["replicas"], scale_object["status"]["replicas"]) == (3, 3)
        pods = kwok_cluster.kubectl(
            "-n", bed.namespace, "get", "pods", "-l", scale_object["status"]["selector"], "-o", "name"
        ).stdout
        assert len(pods.split()) == 3, "the selector of the scale is that of the servers"
        scale(2)
        await servers(bed, 2)
    with running_operator(kwok_cluster.kubeconfig):  # a new one has no other opinion
        await bed.kube.merge_patch(
            MODELS, bed.namespace, "m", {"spec": {"description": "looked at again"}}, field_manager="person"
        )
        model = await bed.until(
            MODELS, "m", lambda m: m["status"]["observedGeneration"] == m["metadata"]["generation"], timeout=60
        )
        assert model["spec"]["replicas"] == 2
        await servers(bed, 2)
        assert "moorage" not in writers_of_spec(model), "the spec is the person's"


def autoscaler(bed: Bed, cluster: TestCluster, metric: dict[str, Any], **bounds: int) -> None:
    """An HPA that watches `m`, and scales it down as soon as it may."""
    spec = {
        "scaleTargetRef": {"apiVersion": "moorage.dev/v1alpha1", "kind": "Model", "name": "m"},
        "metrics": [{"type": "External", "external": metric}],
        "behavior": {"scaleDown": {"stabilizationWindowSeconds": 0}},
        **bounds,
    }
    meta = {"name": "m", "namespace": bed.namespace}
    body = {"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": meta, "spec": spec}
    cluster.kubectl("apply", "-f", "-", input=json.dumps(body))


async def test_an_autoscaler_without_metrics_keeps_its_bounds(bed: Bed, operator: Operator, kwok_cluster: TestCluster):
    await bed.model()
    await servers(bed, 1)
    kwok_cluster.kubectl("-n", bed.namespace, "autoscale", "model/m", "--min=2", "--max=4", "--cpu-percent=80")
    await servers(bed, 2, timeout=180)  # the controller-manager hears of new kinds every half minute
    kwok_cluster.kubectl("-n", bed.namespace, "scale", "model/m", "--replicas=5")
    await servers(bed, 4)
    await eventually(lambda: states(bed, kwok_cluster).get("AbleToScale") == "True", every=0.5)


@pytest.fixture
def adapter(kwok_cluster: TestCluster) -> Iterator[None]:
    kwok_cluster.kubectl("apply", "-f", "-", input=json.dumps(METRIC_CRD))
    kwok_cluster.kubectl(
        "wait", "--for=condition=Established", "--timeout=110s", f"crd/{METRIC_CRD['metadata']['name']}"
    )
    yield
    kwok_cluster.kubectl("delete", "crd", METRIC_CRD["metadata"]["name"])


async def test_a_horizontal_pod_autoscaler_scales_a_model_by_a_metric(
    bed: Bed, operator: Operator, kwok_cluster: TestCluster, adapter: None
):
    def load_is(requests: int) -> None:
        value = {
            "apiVersion": "external.metrics.k8s.io/v1beta1", "kind": "ExternalMetricValue",
            "metadata": {"name": "now", "namespace": bed.namespace},
            "metricName": METRIC, "value": str(requests), "timestamp": "2026-01-01T00:00:00Z",
        }  # fmt: skip
        kwok_cluster.kubectl("apply", "-f", "-", input=json.dumps(value))

    load_is(29)
    await bed.model()
    await servers(bed, 1)
    metric = {"metric": {"name": METRIC}, "target": {"type": "AverageValue", "averageValue": "10"}}
    autoscaler(bed, kwok_cluster, metric, minReplicas=1, maxReplicas=4)
    model = await servers(bed, 3, timeout=180)
    assert model["spec"]["replicas"] == 3
    load_is(8)
    await servers(bed, 1)
    load_is(900)
    await servers(bed, 4)
    limited = {"AbleToScale": "True", "ScalingActive": "True", "ScalingLimited": "True"}
    await eventually(lambda: states(bed, kwok_cluster) == limited, every=0.5)  # written after what it scaled

    kwok_cluster.kubectl("-n", bed.namespace, "scale", "model/m", "--replicas=0")  # a person unloads: the HPA keeps off
    model = await bed.until(MODELS, "m", lambda m: (m.get("status") or {}).get("phase") == "ScaledToZero")
    await bed.eventually(lambda: _disabled(bed, kwok_cluster))
    assert (await bed.get(MODELS, "m"))["spec"]["replicas"] == 0


def states(bed: Bed, cluster: TestCluster) -> dict[str, str]:
    shown = cluster.kubectl("-n", bed.namespace, "get", "hpa", "m", "-o", "json").stdout
    return {c["type"]: c["status"] for c in json.loads(shown)["status"]["conditions"]}


async def _disabled(bed: Bed, cluster: TestCluster) -> bool:
    found = json.loads(cluster.kubectl("-n", bed.namespace, "get", "hpa", "m", "-o", "json").stdout)
    return condition(found, "ScalingActive").get("reason") == "ScalingDisabled"


class Busy(RawEngine):
    """An engine that answers when `free` is set."""

    def __init__(self) -> None:
        super().__init__(self._serve_all)
        self.free = asyncio.Event()

    async def _serve_all(self, side: EngineSide) -> None:
        while True:
            await side.request()
            await self.free.wait()
            await side.json(OK)


async def test_load_brings_servers_and_its_end_takes_them_away(bed: Bed, reports: Reports):
    await bed.model(scaling={"targetRequests": 4, "minReplicas": 1, "maxReplicas": 3})
    impatient = SETTINGS.model_copy(update={"scaling": Scaling(scale_down_after_seconds=10)})
    async with Busy() as engine, reports.gateway({"m": engine}) as gate, AsyncExitStack() as stack:
        with reports.operator(impatient):
            await servers(bed, 1)
            await eventually(lambda: gate.gateway.proxy.snapshot.models["m"].endpoints, 60)
            clients = [await stack.enter_async_context(gate.client()) for _ in range(9)]
            for client in clients:
                await client.post(chat())
            model = await servers(bed, 3)
            assert (
                condition(model, "Active")["message"]
                == "3 wanted; by load, between 1 and 3: 4 requests for each server"
            )
            await bed.kube.merge_patch(MODELS, bed.namespace, "m", {"spec": {"replicas": 2}})
            patched = await bed.until(
                MODELS, "m", lambda m: m["status"]["observedGeneration"] == m["metadata"]["generation"]
            )
            assert patched["status"]["desiredReplicas"] == 3, "with targetRequests replicas says loaded or not, no more"
            engine.free.set()
            assert [(await client.reply()).status for client in clients] == [200] * 9
            await servers(bed, 1)
            deployment = await bed.get(DEPLOYMENTS, "m")
            assert deployment["spec"]["replicas"] == 1
            assert (await bed.get(MODELS, "m"))["spec"]["replicas"] == 2, "and the spec is nobody's but the person's"


async def test_what_a_person_unloaded_no_request_loads(bed: Bed, reports: Reports, kwok_cluster: TestCluster):
    await bed.model(scaling={"scaleToZeroAfter": "10m"})
    await bed.create("ModelAlias", "chat", {"targets": [{"modelRef": {"name": "m"}}], "hold": {"timeout": "2s"}})
    async with RawEngine(always(OK)) as engine, reports.gateway({"m": engine}) as gate:
        with reports.operator() as operator:
            await servers(bed, 1)
            kwok_cluster.kubectl("-n", bed.namespace, "scale", "model/m", "--replicas=0")
            await bed.until(DEPLOYMENTS, "m", lambda d: d["spec"]["replicas"] == 0 and not d["status"].get("replicas"))
            await eventually(lambda: gate.gateway.proxy.snapshot.models["m"].endpoints == (), 60)
            reply = await gate.ask(chat("chat"))
            assert (reply.status, reply.error["code"]) == (504, "hold_timeout")
            assert "waits for a person to load it again" in reply.error["message"]
            key = Key(MODEL, bed.namespace, "m")
            await eventually(lambda: operator.usage.of(key).wanted_at, 60, "the demand, told to the operator")
            await bed.kube.merge_patch(
                MODELS, bed.namespace, "m", {"spec": {"description": "looked at again"}}, field_manager="person"
            )
            model = await bed.until(
                MODELS, "m", lambda m: m["status"]["observedGeneration"] == m["metadata"]["generation"]
            )
            assert (model["status"]["phase"], model["status"]["desiredReplicas"]) == ("ScaledToZero", 0)
            assert model["status"]["summary"]["message"] == "replicas is 0; scale it up to load the model"
            async with gate.client() as client:
                await client.post(chat("m"))
                await eventually(lambda: gate.gateway.proxy.fleet.held == 1)
                kwok_cluster.kubectl("-n", bed.namespace, "scale", "model/m", "--replicas=1")
                await servers(bed, 1)
                assert (await client.reply()).status == 200, "who waits is served once somebody loads it"
