"""The client against a real API server, with a proxy between them that counts and breaks."""

import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from moorage.errors import Conflict, Forbidden, Gone, Invalid, NotFound, Throttled, Unavailable
from moorage.kube.client import KubeClient
from moorage.kube.errors import KIND_NOT_SERVED
from moorage.kube.resources import CONFIG_MAPS, JOBS, MODELS, NAMESPACES, PODS, SERVICES, Resource
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
async def namespace(client: KubeClient) -> AsyncIterator[str]:
    name = f"kube-{uuid.uuid4().hex[:8]}"
    await client.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    yield name
    await client.delete(NAMESPACES, None, name)


def config_map(namespace: str, name: str = "c", **data: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": namespace}, "data": data}


def deployment(namespace: str, replicas: int) -> dict[str, Any]:
    labels = {"app": "d"}
    containers = [{"name": "c", "image": "example.invalid/none"}]
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "d", "namespace": namespace},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {"containers": containers}},
        },
    }


def model(namespace: str) -> dict[str, Any]:
    return {
        "apiVersion": "moorage.dev/v1alpha1",
        "kind": "Model",
        "metadata": {"name": "m", "namespace": namespace},
        "spec": {"source": {"huggingFace": {"repo": "org/name"}}},
    }


def version(item: dict[str, Any]) -> str:
    text: str = item["metadata"]["resourceVersion"]
    return text


class TestApply:
    async def test_makes_changes_and_removes_fields(self, client: KubeClient, namespace: str):
        made = await client.apply(config_map(namespace, a="1", b="2"))
        assert made["data"] == {"a": "1", "b": "2"}
        await client.apply(config_map(namespace, a="3"))
        assert (await client.get(CONFIG_MAPS, namespace, "c"))["data"] == {"a": "3"}

    async def test_applying_the_same_again_writes_nothing(self, client: KubeClient, namespace: str):
        first = await client.apply(config_map(namespace, a="1"))
        again = await client.apply(config_map(namespace, a="1"))
        assert again["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]

    async def test_a_field_of_another_manager_is_a_conflict_that_names_it(self, client: KubeClient, namespace: str):
        await client.apply(config_map(namespace, a="1"), field_manager="gitops-tool")
        with pytest.raises(Conflict) as caught:
            await client.apply(config_map(namespace, a="2"))
        assert 'conflict with "gitops-tool"' in str(caught.value)
        assert ".data.a" in str(caught.value)
        assert f"/namespaces/{namespace}/configmaps/c" in str(caught.value)
        taken = await client.apply(config_map(namespace, a="2"), force=True)
        assert taken["data"] == {"a": "2"}

    async def test_two_managers_are_both_named(self, client: KubeClient, namespace: str):
        await client.apply(config_map(namespace, a="1"), field_manager="one")
        await client.apply(config_map(namespace, b="1"), field_manager="two")
        with pytest.raises(Conflict) as caught:
            await client.apply(config_map(namespace, a="2", b="2"))
        assert '"one"' in str(caught.value)
        assert '"two"' in str(caught.value)

    async def test_dry_run_makes_nothing(self, client: KubeClient, namespace: str):
        assert (await client.apply(config_map(namespace, a="1"), dry_run=True))["data"] == {"a": "1"}
        with pytest.raises(NotFound):
            await client.get(CONFIG_MAPS, namespace, "c")

    async def test_an_object_that_cannot_be_is_invalid(self, client: KubeClient, namespace: str):
        with pytest.raises(Invalid, match=r"spec\.selector"):
            await client.apply({**deployment(namespace, 1), "spec": {"replicas": 1}})

    @pytest.mark.parametrize("spec", [{"replicas": "many"}, {"nonsense": 1}])
    async def test_a_field_that_does_not_fit_the_schema_is_invalid(
        self, client: KubeClient, namespace: str, spec: dict[str, Any]
    ):
        with pytest.raises(Invalid, match=r"\.spec\.(replicas|nonsense)"):
            await client.apply({**deployment(namespace, 1), "spec": spec})

    async def test_a_namespace_that_is_not_there_is_named(self, client: KubeClient):
        with pytest.raises(NotFound, match='namespaces "nowhere" not found') as caught:
            await client.apply(config_map("nowhere", a="1"))
        assert caught.value.reason == "NotFound"


class TestStatus:
    """On our own kinds: the API server treats the status of custom resources in its own ways."""

    async def test_leaves_the_spec_alone_and_removes_what_is_left_out(self, client: KubeClient, namespace: str):
        made = await client.apply(model(namespace), field_manager="a-person")
        await client.apply_status(MODELS, namespace, "m", {"phase": "Ready", "replicas": 1})
        after = await client.apply_status(MODELS, namespace, "m", {"phase": "Ready"})
        assert after["status"] == {"phase": "Ready"}
        assert after["spec"] == made["spec"]
        assert after["metadata"]["generation"] == made["metadata"]["generation"]
        ours = [entry for entry in after["metadata"]["managedFields"] if entry["manager"] == "moorage"]
        assert [entry.get("subresource") for entry in ours] == ["status"]
        assert set(ours[0]["fieldsV1"]) == {"f:status"}

    async def test_takes_a_field_over_from_another_writer(self, client: KubeClient, namespace: str):
        await client.apply(model(namespace))
        await client.merge_patch(MODELS, namespace, "m", {"status": {"phase": "Failed"}}, subresource="status")
        after = await client.apply_status(MODELS, namespace, "m", {"phase": "Ready"})
        assert after["status"] == {"phase": "Ready"}

    async def test_the_same_status_again_writes_nothing(self, client: KubeClient, namespace: str):
        await client.apply(model(namespace))
        first = await client.apply_status(MODELS, namespace, "m", {"phase": "Ready"})
        again = await client.apply_status(MODELS, namespace, "m", {"phase": "Ready"})
        assert version(again) == version(first)

    async def test_does_not_make_an_object_that_is_gone(self, client: KubeClient, namespace: str):
        with pytest.raises(NotFound):
            await client.apply_status(MODELS, namespace, "gone", {"phase": "Ready"})
        assert (await client.list(MODELS, namespace))[0] == []

    async def test_a_field_the_schema_does_not_know_is_invalid_not_lost(self, client: KubeClient, namespace: str):
        await client.apply(model(namespace))
        with pytest.raises(Invalid, match=r"\.status\.nonsense: field not declared in schema"):
            await client.apply_status(MODELS, namespace, "m", {"nonsense": 1})

    async def test_decided_about_an_older_version_is_a_conflict(self, client: KubeClient, namespace: str):
        old = version(await client.apply(model(namespace)))
        new = version(await client.apply_status(MODELS, namespace, "m", {"phase": "Ready"}, resource_version=old))
        with pytest.raises(Conflict):
            await client.apply_status(MODELS, namespace, "m", {"phase": "Failed"}, resource_version=old)
        await client.apply_status(MODELS, namespace, "m", {"phase": "Failed"}, resource_version=new)

    async def test_decided_about_another_object_of_the_same_name_is_a_conflict(
        self, client: KubeClient, namespace: str
    ):
        old = version(await client.apply(model(namespace)))
        await client.delete(MODELS, namespace, "m")
        await client.apply(model(namespace))
        with pytest.raises(Conflict):
            await client.apply_status(MODELS, namespace, "m", {"phase": "Ready"}, resource_version=old)


class TestDelete:
    async def test_says_whether_there_was_anything(self, client: KubeClient, namespace: str):
        await client.create(config_map(namespace))
        assert await client.delete(CONFIG_MAPS, namespace, "c")
        assert not await client.delete(CONFIG_MAPS, namespace, "c")

    async def test_of_another_object_of_the_same_name_is_a_conflict(self, client: KubeClient, namespace: str):
        made = await client.create(config_map(namespace))
        with pytest.raises(Conflict):
            await client.delete(CONFIG_MAPS, namespace, "c", uid=str(uuid.uuid4()))
        assert await client.delete(CONFIG_MAPS, namespace, "c", uid=made["metadata"]["uid"])

    async def test_a_kind_that_is_not_served_is_gone_too(self, client: KubeClient, namespace: str):
        absent = Resource("example.org", "v1", "things", "Thing")
        assert not await client.delete(absent, namespace, "c")


class TestReading:
    async def test_list_in_pages_by_label(self, client: KubeClient, namespace: str):
        for number in range(7):
            manifest = config_map(namespace, f"c-{number}")
            manifest["metadata"]["labels"] = {"even": str(number % 2 == 0).lower()}
            await client.create(manifest)
        before = client.requests["list"]
        items, version = await client.list(CONFIG_MAPS, namespace, label_selector="even=true", limit=3)
        assert sorted(item["metadata"]["name"] for item in items) == ["c-0", "c-2", "c-4", "c-6"]
        assert items[0]["kind"] == "ConfigMap"
        assert int(version) > 0
        assert client.requests["list"] - before == 2

    async def test_list_by_field_and_in_all_namespaces(self, client: KubeClient, namespace: str):
        await client.create(config_map(namespace, "here"))
        items, _ = await client.list(CONFIG_MAPS, field_selector=f"metadata.namespace={namespace},metadata.name=here")
        assert [item["metadata"]["namespace"] for item in items] == [namespace]

    @pytest.mark.parametrize("group", ["example.org", "apps", ""])
    async def test_a_kind_that_is_not_served_says_so(self, client: KubeClient, namespace: str, group: str):
        absent = Resource(group, "v1", "things", "Thing")
        with pytest.raises(NotFound) as caught:
            await client.list(absent, namespace)
        assert caught.value.reason == KIND_NOT_SERVED

    async def test_an_object_that_is_not_there(self, client: KubeClient, namespace: str):
        with pytest.raises(NotFound, match='services "s" not found') as caught:
            await client.get(SERVICES, namespace, "s")
        assert caught.value.reason == "NotFound"

    async def test_create_meets_a_taken_name(self, client: KubeClient, namespace: str):
        await client.create(config_map(namespace))
        with pytest.raises(Conflict) as caught:
            await client.create(config_map(namespace))
        assert caught.value.reason == "AlreadyExists"

    async def test_logs_of_a_pod_that_never_started(self, client: KubeClient, namespace: str, api_cluster: Any):
        api_cluster.kubectl("wait", "--for=create", "--timeout=110s", "-n", namespace, "serviceaccount/default")
        await client.create(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": "p", "namespace": namespace},
                "spec": {"containers": [{"name": "c", "image": "example.invalid/none"}]},
            }
        )
        with pytest.raises(NotFound):
            await client.pod_logs(namespace, "absent")
        # Not scheduled: the API server answers an empty log, or that there is no host to ask.
        try:
            assert await client.pod_logs(namespace, "p") == ""
        except Invalid as error:
            assert "does not have a host assigned" in str(error)
        await client.delete(PODS, namespace, "p")

    async def test_rights_that_are_missing_are_named(
        self, client: KubeClient, proxy: ApiProxy, namespace: str, api_cluster: Any
    ):
        api_cluster.kubectl("create", "serviceaccount", "nobody", "-n", namespace)
        token = api_cluster.kubectl("create", "token", "nobody", "-n", namespace).stdout.strip()
        async with await KubeClient.connect(proxy.kubeconfig_for(token)) as nobody:
            with pytest.raises(Forbidden, match='cannot list resource "jobs"') as caught:
                await nobody.list(JOBS, namespace)
        assert token not in str(caught.value)

    async def test_a_warning_of_the_server_is_logged(
        self, client: KubeClient, namespace: str, caplog: pytest.LogCaptureFixture
    ):
        await client.create({**config_map(namespace), "nonsense": {"b": "2"}})
        assert "unknown field" in caplog.text
        assert "nonsense" in caplog.text


class TestFaults:
    """What the proxy makes of the server's answers; also the proof that the proxy works."""

    async def test_each_refusal_has_its_exception(self, client: KubeClient, proxy: ApiProxy, namespace: str):
        faults = [(409, Conflict), (410, Gone), (429, Throttled), (500, Unavailable), (503, Unavailable)]
        for status, kind in faults:
            proxy.fail(status, method="PATCH", path="/configmaps/c", retry_after=7 if status in {429, 503} else None)
            with pytest.raises(kind) as caught:
                await client.apply(config_map(namespace, a="1"))
            assert caught.value.status == status
            assert caught.value.retry_after == (7.0 if status in {429, 503} else None)
        await client.apply(config_map(namespace, a="1"))
        assert proxy.count(method="PATCH", path=f"/namespaces/{namespace}/configmaps/c", agent="moorage/") == 6

    async def test_a_cut_request_is_not_done(self, client: KubeClient, proxy: ApiProxy, namespace: str):
        proxy.cut(method="POST", path="/configmaps")
        with pytest.raises(Unavailable):
            await client.create(config_map(namespace))
        with pytest.raises(NotFound):
            await client.get(CONFIG_MAPS, namespace, "c")

    async def test_a_lost_answer_was_done_all_the_same(self, client: KubeClient, proxy: ApiProxy, namespace: str):
        proxy.cut(method="POST", path="/configmaps", after=True)
        with pytest.raises(Unavailable):
            await client.create(config_map(namespace, a="1"))
        assert (await client.get(CONFIG_MAPS, namespace, "c"))["data"] == {"a": "1"}

    async def test_a_late_answer_is_unavailable(self, proxy: ApiProxy, namespace: str):
        proxy.delay(5.0, path="/configmaps")
        async with await KubeClient.connect(proxy.kubeconfig, timeout=0.2) as hasty:
            with pytest.raises(Unavailable, match="no answer in time"):
                await hasty.list(SERVICES, namespace)  # not delayed: the rule is for ConfigMaps
                await hasty.get(CONFIG_MAPS, namespace, "c")

    async def test_a_server_that_is_down_and_comes_back(self, client: KubeClient, proxy: ApiProxy, namespace: str):
        await proxy.go_down()
        with pytest.raises(Unavailable):
            await client.get(CONFIG_MAPS, namespace, "c")
        await proxy.come_up()
        await client.apply(config_map(namespace, a="1"))
        assert proxy.writes(path=f"/namespaces/{namespace}/") == 1


async def test_without_the_proxy_over_tls(api_cluster: Any):
    async with await KubeClient.connect(api_cluster.kubeconfig) as client:
        assert (await client.get(NAMESPACES, None, "default"))["metadata"]["name"] == "default"
