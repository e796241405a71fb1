"""The chart's admission policies on a real API server: what is refused, in which words, and what must never be."""

import json
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from moorage import names
from moorage.control.operator import Operator
from moorage.kube.resources import MODEL_ALIASES, MODELS, NAMESPACES
from tests.conftest import TestCluster
from tests.support import helm
from tests.support.bed import Bed, running_operator

pytestmark = pytest.mark.api

POLICIES = ("ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding")


@pytest.fixture(scope="module")
def cluster(kwok_cluster: TestCluster) -> Iterator[TestCluster]:
    """The cluster with the policies as the chart renders them."""
    release = f"r{uuid.uuid4().hex[:6]}"
    found = [o for o in helm.objects(release=release) if o["kind"] in POLICIES]
    assert len(found) == 4
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": found})
    kwok_cluster.kubectl("apply", "-f", "-", input=text)
    yield kwok_cluster
    kwok_cluster.kubectl("delete", "-f", "-", input=text)


@pytest.fixture
async def bed(cluster: TestCluster) -> AsyncIterator[Bed]:
    async with Bed.made(cluster.kubeconfig) as made:
        await made.ready_download()
        yield made
        cluster.kubectl(
            "delete", "namespace", made.namespace, check=False
        )  # Models with aliases go with it, and only with it


@pytest.fixture
def operator(cluster: TestCluster) -> Iterator[Operator]:
    with running_operator(cluster.kubeconfig) as made:
        yield made


Delete = Callable[..., tuple[int, str]]


@pytest.fixture
def delete(cluster: TestCluster, bed: Bed) -> Delete:
    """`kubectl delete`, with its exit code and complaint."""

    def run(*what: str) -> tuple[int, str]:
        done = cluster.kubectl("-n", bed.namespace, "delete", "--wait=false", *what, check=False)
        return done.returncode, done.stderr

    return run


async def refused(bed: Bed, delete: Delete, model: str) -> str:
    """Until the policy is in force: API servers read policies and parameters a moment after they were written."""
    await bed.model("probe")
    await bed.create("ModelAlias", "probing", pointing_at("probe"))

    async def probed() -> bool:
        return "probing" in delete("model", "probe", "--dry-run=server")[1]

    await bed.eventually(probed)
    code, complaint = delete("model", model)
    assert code != 0, "it was deleted"
    return complaint


def pointing_at(*models: str, **more: Any) -> dict[str, Any]:
    return {"targets": [{"modelRef": {"name": model}} for model in models], **more}


async def test_a_model_that_an_alias_points_at_stays(bed: Bed, delete: Delete):
    for name in ("target", "fallback", "free"):
        await bed.model(name, replicas=0)
    await bed.create("ModelAlias", "chat", pointing_at("target", fallbacks=[{"modelRef": {"name": "fallback"}}]))
    complaint = await refused(bed, delete, "target")
    assert (
        "ModelAlias chat points at Model target. Point it elsewhere first (moorage switch), or delete the Model all "
        "the same after: kubectl annotate model target moorage.dev/allow-delete=true"
    ) in complaint
    assert "ModelAlias chat points at Model fallback" in await refused(bed, delete, "fallback")
    assert delete("model", "free")[0] == 0

    await bed.kube.merge_patch(MODEL_ALIASES, bed.namespace, "chat", {"spec": pointing_at("fallback")})

    async def gone() -> bool:
        return delete("model", "target")[0] == 0

    await bed.eventually(gone)


async def test_the_annotation_overrides(bed: Bed, delete: Delete):
    await bed.model("m", replicas=0)
    await bed.create("ModelAlias", "chat", pointing_at("m"))
    await refused(bed, delete, "m")
    for value, code in (("false", 1), ("true", 0)):
        change = {"metadata": {"annotations": {f"{names.GROUP}/allow-delete": value}}}
        await bed.kube.merge_patch(MODELS, bed.namespace, "m", change)
        assert delete("model", "m")[0] == code


async def test_a_namesake_in_another_namespace_may_go(bed: Bed, delete: Delete):
    await bed.model("m", replicas=0)
    elsewhere = {"targets": [{"modelRef": {"name": "m", "namespace": "elsewhere"}}]}
    await bed.create("ModelAlias", "chat", elsewhere)
    await bed.model("probe", replicas=0)
    await bed.create("ModelAlias", "probing", pointing_at("probe"))
    await refused(bed, delete, "probe")
    assert delete("model", "m")[0] == 0


async def test_an_alias_of_another_namespace_counts_where_it_is_permitted(
    bed: Bed, operator: Operator, cluster: TestCluster, delete: Delete
):
    await bed.model("open", replicas=0, allowedNamespaces={"from": "All"})
    await bed.model("closed", replicas=0)
    async with Bed.made(cluster.kubeconfig) as other:
        for name in ("open", "closed"):
            ref = {"name": name, "namespace": bed.namespace}
            await other.create("ModelAlias", f"to-{name}", {"targets": [{"modelRef": ref}]})
        await other.until_condition("to-closed", "Ready", "False", "TargetNotPermitted", resource=MODEL_ALIASES)
        await bed.until(MODELS, "open", lambda m: (m.get("status") or {}).get("usedBy"))
        assert f"ModelAlias {other.namespace}/to-open points at Model open" in await refused(bed, delete, "open")
        assert delete("model", "closed")[0] == 0, "nobody holds a Model of others against their will"


async def test_a_namespace_goes_with_everything_in_it(bed: Bed, delete: Delete, cluster: TestCluster):
    await bed.model("m", replicas=0)
    await bed.create("ModelAlias", "chat", pointing_at("m"))
    await refused(bed, delete, "m")
    await bed.kube.delete(NAMESPACES, None, bed.namespace)
    cluster.kubectl("wait", "--for=delete", f"namespace/{bed.namespace}", "--timeout=110s")


async def test_an_owner_that_goes_takes_its_model_along(bed: Bed, delete: Delete):
    config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "app", "namespace": bed.namespace}}
    owner = await bed.kube.create(config)
    ref = {"apiVersion": "v1", "kind": "ConfigMap", "name": "app", "uid": owner["metadata"]["uid"]}
    source = {"source": {"downloadRef": {"name": "files"}}, "replicas": 0}
    await bed.create("Model", "m", source, ownerReferences=[ref])
    await bed.create("ModelAlias", "chat", pointing_at("m"))
    await refused(bed, delete, "m")
    assert delete("configmap", "app")[0] == 0
    await bed.gone(MODELS, "m")  # the garbage collector learns of new kinds every 30 s
