"""Events as a person reads them from a real API server."""

import json
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from moorage.kube.client import KubeClient
from moorage.kube.events import EventRecorder
from moorage.kube.resources import CONFIG_MAPS, EVENTS, NAMESPACES
from tests.support.apiproxy import ApiProxy

pytestmark = pytest.mark.api


@pytest.fixture
async def proxy(api_cluster: Any, tmp_path: Path) -> AsyncIterator[ApiProxy]:
    async with ApiProxy(api_cluster.kubeconfig, tmp_path) as proxy:
        yield proxy


@pytest.fixture
async def client(proxy: ApiProxy) -> AsyncIterator[KubeClient]:
    async with await KubeClient.connect(proxy.kubeconfig) as client:
        yield client


@pytest.fixture
async def subject(client: KubeClient) -> AsyncIterator[dict[str, Any]]:
    name = f"kube-{uuid.uuid4().hex[:8]}"
    await client.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    meta = {"name": "subject", "namespace": name}
    yield await client.create({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta})
    await client.delete(NAMESPACES, None, name)


def told(api_cluster: Any, namespace: str) -> list[dict[str, Any]]:
    answer = api_cluster.kubectl("get", "events", "-n", namespace, "-o", "json").stdout
    items: list[dict[str, Any]] = json.loads(answer)["items"]
    return items


async def test_kubectl_describe_shows_the_count(api_cluster: Any, client: KubeClient, subject: dict[str, Any]):
    namespace = subject["metadata"]["namespace"]
    async with EventRecorder(client) as recorder:
        for _ in range(3):
            recorder.record(subject, "Warning", "LoadFailed", "out of memory")
    described = api_cluster.kubectl("events", "-n", namespace, "--for=configmap/subject").stdout
    assert "(x3 over" in described
    assert "LoadFailed" in described
    assert "out of memory" in described


async def test_counting_goes_on_over_a_lost_answer(
    api_cluster: Any, client: KubeClient, proxy: ApiProxy, subject: dict[str, Any]
):
    proxy.cut(method="POST", path="/events", after=True)
    async with EventRecorder(client) as recorder:
        recorder.record(subject, "Normal", "Loading", "wait")
    (event,) = told(api_cluster, subject["metadata"]["namespace"])
    assert event["count"] == 1
    assert proxy.count(method="POST", path="/events") == 2
    assert recorder.dropped == 0


async def test_a_throttled_event_is_told_later(
    api_cluster: Any, client: KubeClient, proxy: ApiProxy, subject: dict[str, Any]
):
    proxy.fail(429, method="POST", path="/events", retry_after=1)
    async with EventRecorder(client) as recorder:
        recorder.record(subject, "Normal", "Loading", "wait")
    assert [event["reason"] for event in told(api_cluster, subject["metadata"]["namespace"])] == ["Loading"]


async def test_an_object_that_is_gone_can_still_be_told_about(
    api_cluster: Any, client: KubeClient, subject: dict[str, Any]
):
    namespace = subject["metadata"]["namespace"]
    await client.delete(CONFIG_MAPS, namespace, "subject")
    async with EventRecorder(client) as recorder:
        recorder.record(subject, "Normal", "Unloaded", "bye")
    items, _ = await client.list(EVENTS, namespace, field_selector="involvedObject.name=subject")
    assert [event["reason"] for event in items] == ["Unloaded"]
