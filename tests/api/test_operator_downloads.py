"""ModelDownloads on a real API server with the local hub: everything up to the kubelet's part, which the tests play."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from e2e.hub import HubServer
from e2e.tinymodels.gguf_file import write_gguf
from moorage.api.conditions import Reason
from moorage.control import credentials
from moorage.control.operator import Operator
from moorage.control.settings import Downloads, Settings, Sources
from moorage.kube.resources import CLAIMS, JOBS, MODEL_DOWNLOADS, MODELS, RESOURCE_QUOTAS
from moorage.sizing.gguf import read_gguf_header
from tests.conftest import TestCluster
from tests.process.download.proxy import Proxy
from tests.process.download.support import self_signed
from tests.support.bed import Bed, condition, running_operator
from tests.support.downloads import Scene, Truth
from tests.unit.projector_shapes import Encoder

pytestmark = pytest.mark.api

GATED = "hf_open_sesame"
EYES = Encoder("gemma3", width=32, inner=64, layers=1, image=28, patch=14, output=32, heads=2)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Repositories: one file; many quantizations, one of them split; a gated one."""
    made = tmp_path_factory.mktemp("hub")
    for repo in ("one", "choice"):
        (made / "org" / repo).mkdir(parents=True)
    [whole] = write_gguf(made / "org/one/m-F16.gguf")
    write_gguf(made / "org/choice/m-Q8_0.gguf", split=2)
    for copy in ("two/m-F16", "two/m-Q8_0", "gated/m-F16", "choice/m-Q4_K_M", "twice/base-Q4_K_M", "twice/chat-Q4_K_M"):
        put(made / f"org/{copy}.gguf", whole.read_bytes())
    put(made / "org/choice/mmproj-m-F16.gguf", EYES.header.ljust(read_gguf_header(EYES.header).end, b"\0"))
    for index in range(30):
        put(made / f"org/many/layer-{index:02}.bin", b"x")
    gate = {"tokens": {GATED: "ali"}, "repos": {"org/gated": {"gated": "manual", "granted": ["ali"]}}}
    (made / "hub.json").write_text(json.dumps(gate))
    return made


def put(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


@pytest.fixture
def hub(root: Path) -> Iterator[HubServer]:
    with HubServer(root) as server:
        yield server


@pytest.fixture(scope="module", autouse=True)
def manual_class(api_cluster: TestCluster) -> None:
    """The default StorageClass: its volumes never come by themselves."""
    default = {"name": "manual", "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}}
    body = {"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": default}
    body |= {"provisioner": "kubernetes.io/no-provisioner", "volumeBindingMode": "WaitForFirstConsumer"}
    api_cluster.kubectl("apply", "-f", "-", input=json.dumps(body))


@pytest.fixture
async def bed(api_cluster: TestCluster) -> AsyncIterator[Bed]:
    async with Bed.made(api_cluster.kubeconfig) as made:
        yield made


def settings(hub: HubServer, at_once: int = 100) -> Settings:
    sources = Sources(hugging_face_endpoint=hub.url, allow_private_hosts=True)
    return Settings(sources=sources, downloads=Downloads(max_running=at_once))


def running(cluster: TestCluster, hub: HubServer, at_once: int = 100) -> AbstractContextManager[Operator]:
    return running_operator(cluster.kubeconfig, settings(hub, at_once))


@pytest.fixture
def operator(api_cluster: TestCluster, hub: HubServer) -> Iterator[Operator]:
    with running(api_cluster, hub) as made:
        yield made


@pytest.fixture
def downloads(bed: Bed, api_cluster: TestCluster) -> Scene:
    return Scene(bed, api_cluster)


# -- selection --------------------------------------------------------------------------------------------------------


async def test_a_quantization_takes_every_part_and_the_projector(downloads: Scene, operator: Operator):
    await downloads.made("parts", "org/choice", hub={"quantization": "Q8_0"})
    found = await downloads.until("parts", lambda s: s.get("items"))
    paths = [item["path"] for item in found["status"]["items"]]
    assert paths == ["m-Q8_0-00001-of-00002.gguf", "m-Q8_0-00002-of-00002.gguf", "mmproj-m-F16.gguf"]
    job = await downloads.bed.until(JOBS, "parts", lambda _: True)
    args = job["spec"]["template"]["spec"]["containers"][0]["args"]
    assert [args[i + 1] for i, a in enumerate(args) if a == "--file"] == paths


async def test_nothing_matched_lists_what_there_is(downloads: Scene, operator: Operator):
    await downloads.made("nothing", "org/many", hub={"include": ["*.gguf"]})
    message = await downloads.told("nothing", "Resolved", "NoFilesMatched")
    assert "layer-00.bin" in message
    assert "layer-19.bin" in message
    assert "layer-20.bin" not in message
    await downloads.told("nothing", "Stalled", "NoFilesMatched")


async def test_two_models_of_one_quantization_are_an_answer_and_no_guess(downloads: Scene, operator: Operator):
    await downloads.made("twice", "org/twice", hub={"quantization": "Q4_K_M"})
    message = await downloads.told("twice", "Resolved", "AmbiguousSelection")
    assert "base-Q4_K_M.gguf" in message
    assert "chat-Q4_K_M.gguf" in message
    await downloads.bed.model("m", source={"huggingFace": {"repo": "org/twice", "quantization": "Q4_K_M"}})
    await downloads.bed.until_condition("m", "Accepted", "False", "AmbiguousSelection")


async def test_a_metadata_address_is_never_asked(downloads: Scene, operator: Operator):
    await downloads.made("meta", hub={"endpoint": "http://169.254.169.254"})
    assert "link-local" in (text := await downloads.told("meta", "Resolved", "HostNotAllowed")) or "metadata" in text


# -- tokens and headers -----------------------------------------------------------------------------------------------


async def test_a_secret_that_changes_is_tried_within_seconds(downloads: Scene, operator: Operator):
    ref = {"name": "token", "key": "token"}
    await downloads.made("gated", "org/gated", hub={"tokenSecretRef": ref})
    await downloads.told("gated", "Resolved", "SecretNotFound")
    await downloads.secret("token", token="hf_wrong")
    await downloads.told("gated", "Resolved", "Unauthorized", timeout=6 * credentials.PERIOD_SECONDS)
    await downloads.secret("token", token=GATED)
    await downloads.told("gated", "Resolved", "Resolved", timeout=6 * credentials.PERIOD_SECONDS)


async def test_a_refused_job_goes_on_when_its_secret_changes(downloads: Scene, operator: Operator):
    await downloads.secret("token", token=GATED)
    await downloads.made("late", "org/gated", hub={"tokenSecretRef": {"name": "token"}})
    await downloads.ends("late", 11, "GatedAccessDenied", "access denied: accept the terms")
    await downloads.until("late", lambda s: s["phase"] == "Failed")
    await downloads.secret("token", token=GATED, more="x")
    await downloads.pod("late")
    await downloads.until("late", lambda s: s["phase"] != "Failed")


async def test_a_plain_url_gets_its_headers_from_a_secret(downloads: Scene, operator: Operator, hub: HubServer):
    url = f"{hub.url}/org/gated/resolve/main/m-F16.gguf"
    http = {"url": url, "sha256": "a" * 64, "headersSecretRef": {"name": "headers"}}
    await downloads.secret("headers", headers=f"Authorization: Bearer {GATED}\nX-Team: blue\n")
    await downloads.made("plain", source={"http": http})
    await downloads.told("plain", "Resolved", "Resolved")
    job = await downloads.bed.until(JOBS, "plain", lambda _: True)
    pod = job["spec"]["template"]["spec"]
    assert GATED not in json.dumps(job)
    args = pod["containers"][0]["args"]
    path = args[args.index("--header-file") + 1]
    mount = next(m for m in pod["containers"][0]["volumeMounts"] if path.startswith(m["mountPath"]))
    volume = next(v for v in pod["volumes"] if v["name"] == mount["name"])
    assert volume["secret"]["secretName"] == "headers"
    assert path == f"{mount['mountPath']}/{volume['secret']['items'][0]['path']}"


async def test_headers_that_are_none_are_told_without_their_text(downloads: Scene, operator: Operator, hub: HubServer):
    http = {"url": f"{hub.url}/x/m.gguf", "sha256": "a" * 64, "headersSecretRef": {"name": "headers"}}
    await downloads.secret("headers", headers="s3cret without a colon")
    await downloads.made("wrong", source={"http": http})
    message = await downloads.told("wrong", "Resolved", Reason.INVALID_SPEC)
    assert "Name: value" in message
    assert "s3cret" not in message


async def test_header_reads_go_by_the_proxy(
    downloads: Scene, api_cluster: TestCluster, hub: HubServer, monkeypatch: pytest.MonkeyPatch
):
    with Proxy() as proxy:
        monkeypatch.setenv("HTTP_PROXY", f"http://{proxy.address}")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")  # where the API server is
        with running(api_cluster, hub):
            await downloads.made("proxied", hub={"endpoint": f"http://localhost:{hub.port}"})
            await downloads.told("proxied", "Resolved", "Resolved")
        assert f"GET localhost:{hub.port}" in proxy.seen


@pytest.fixture
def company(tmp_path: Path) -> tuple[str, str, str]:
    """Paths of a certificate and its key, and the certificate itself."""
    certificate, key = self_signed(tmp_path)
    return certificate, key, Path(certificate).read_text()


async def test_a_certificate_of_a_companys_own_is_trusted_as_soon_as_it_is_there(
    downloads: Scene, operator: Operator, root: Path, company: tuple[str, str, str]
):
    certificate, key, pem = company
    with HubServer(root, tls=(certificate, key)) as secure:
        spec = {"endpoint": secure.url, "caBundleRef": {"name": "company"}}
        await downloads.made("secure", hub=spec)
        await downloads.told("secure", "Resolved", "SecretNotFound")
        meta = {"name": "company", "namespace": downloads.bed.namespace}
        body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": {"ca.crt": pem}}
        await downloads.apply(body)
        await downloads.told("secure", "Resolved", "Resolved", timeout=6 * credentials.PERIOD_SECONDS)


# -- whose turn, and when ---------------------------------------------------------------------------------------------


async def test_places_go_by_priority(downloads: Scene, api_cluster: TestCluster, hub: HubServer):
    with running(api_cluster, hub, at_once=1):
        await downloads.made("first")
        await downloads.pod("first")
        await downloads.made("low")
        await downloads.told("low", "Downloaded", "Queued")
        await downloads.made("high", priority=10)
        message = await downloads.told("high", "Downloaded", "Queued")
        assert "1 download" in message
        await downloads.ends("first")
        await downloads.pod("high")
        await downloads.told("low", "Ready", "Queued")
        await downloads.ends("high")
        await downloads.pod("low")


async def test_a_backoff_outlives_the_operator(downloads: Scene, api_cluster: TestCluster, hub: HubServer):
    with running(api_cluster, hub):
        await downloads.made("later")
        await downloads.pod("later")
        # The Job is made before it is written that it was; an operator that finds nothing written begins anew.
        begun = await downloads.until("later", lambda s: s.get("inputsHash") and s.get("startedAt"))
    status = begun["status"]
    await downloads.bed.kube.delete(JOBS, downloads.bed.namespace, "later")
    await downloads.bed.gone(JOBS, "later")
    due = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 8))
    error = {"reason": "Network", "message": "connection broken"}
    status |= {"phase": "Retrying", "attempts": 3, "nextAttemptAt": due, "lastError": error}
    await downloads.bed.kube.apply_status(MODEL_DOWNLOADS, downloads.bed.namespace, "later", status)
    with running(api_cluster, hub):
        job = await downloads.bed.until(JOBS, "later", lambda _: True)
        assert job["metadata"]["creationTimestamp"] >= due
        present = await downloads.until("later", lambda s: s["phase"] != "Retrying")
        assert present["status"]["attempts"] == 3, "the next failure waits longer"


# -- what changes meanwhile -------------------------------------------------------------------------------------------


async def test_other_files_replace_a_download_that_runs(downloads: Scene, operator: Operator):
    await downloads.made("change", "org/two", files=["m-F16.gguf"])
    await downloads.pod("change")
    await downloads.made("change", "org/two", files=["m-Q8_0.gguf"])
    job = await downloads.bed.until(JOBS, "change", lambda j: "m-Q8_0.gguf" in str(j["spec"]))
    assert "m-F16.gguf" not in str(job["spec"]["template"])
    found = await downloads.until("change", lambda s: [i["path"] for i in s["items"]] == ["m-Q8_0.gguf"])
    assert found["status"]["phase"] != "Failed"


async def test_a_job_that_somebody_deletes_comes_back(downloads: Scene, operator: Operator):
    await downloads.made("again")
    await downloads.pod("again")
    job = await downloads.bed.get(JOBS, "again")
    await downloads.bed.kube.delete(JOBS, downloads.bed.namespace, "again")
    await downloads.bed.until(JOBS, "again", lambda j: j["metadata"]["uid"] != job["metadata"]["uid"])


# -- volumes ----------------------------------------------------------------------------------------------------------


async def test_a_quota_on_claims_is_told_in_sizes_that_people_read(downloads: Scene, operator: Operator):
    meta = {"name": "small", "namespace": downloads.bed.namespace}
    hard = {"hard": {"requests.storage": "512Mi"}}
    await downloads.apply({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": meta, "spec": hard})
    await downloads.bed.until(RESOURCE_QUOTAS, "small", lambda q: q.get("status", {}).get("hard"))
    await downloads.made("over")
    message = await downloads.told("over", "Stalled", "QuotaExceeded")
    assert "requested: requests.storage=1Gi" in message
    assert "limited: requests.storage=512Mi" in message


@pytest.mark.parametrize(("expandable", "size"), [(True, "3Gi"), (False, "1Gi")])
async def test_a_claim_grows_where_the_server_lets_it(
    downloads: Scene, operator: Operator, hub: HubServer, expandable: bool, size: str
):
    made = class_and_volume(downloads.bed.namespace, expandable)
    for manifest in made:
        await downloads.apply(manifest)
    name = made[0]["metadata"]["name"]
    await downloads.made("grows", storage={"storageClassName": name})
    await downloads.bed.until(CLAIMS, "grows", lambda c: c["status"].get("phase") == "Bound")
    await downloads.ends("grows")
    await downloads.until("grows", lambda s: s["phase"] == "Ready")
    source = {"http": {"url": f"{hub.url}/org/one/resolve/main/m-F16.gguf?big", "sha256": "c" * 64}}
    hub.rule("long", "m-F16.gguf", bytes=2 << 30, count=1000)
    await downloads.made("grows", source=source, storage={"storageClassName": name})
    if expandable:
        await downloads.told("grows", "SpaceAvailable", "WaitingForVolume")
    else:
        obj = await downloads.bed.until(
            MODEL_DOWNLOADS, "grows", lambda d: "does not let it grow" in condition(d, "SpaceAvailable")["message"]
        )
        assert condition(obj, "Stalled")["status"] == "False", "whether the files fit is for the Job to say"
    claim = await downloads.bed.get(CLAIMS, "grows")
    assert claim["spec"]["resources"]["requests"]["storage"] == size


def class_and_volume(namespace: str, expandable: bool) -> list[dict[str, Any]]:
    """A StorageClass of this test alone, and one PersistentVolume of it, both cluster-wide."""
    name = f"{namespace}-{'grows' if expandable else 'fixed'}"
    storage_class = {
        "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": name},
        "provisioner": "kubernetes.io/no-provisioner", "allowVolumeExpansion": expandable,
    }  # fmt: skip
    spec = {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "hostPath": {"path": "/nowhere"}}
    spec |= {"storageClassName": name}
    return [storage_class, {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}, "spec": spec}]


# -- progress ---------------------------------------------------------------------------------------------------------


async def test_progress_is_the_truth_of_three_seconds_ago_and_its_models_are_not_written_with_it(
    downloads: Scene, operator: Operator
):
    bed = downloads.bed
    for index in range(3):
        await bed.model(f"m{index}", source={"huggingFace": {"repo": "org/one"}})
    model = await bed.until(MODELS, "m0", lambda m: m.get("status", {}).get("source", {}).get("downloadName"))
    name = model["status"]["source"]["downloadName"]
    host = f"127.{time.time_ns() % 200 + 20}.{time.time_ns() // 1000 % 250}.1"
    truth = Truth(host)
    try:
        await downloads.kubelet_says(
            await downloads.pod(name), {"phase": "Running", "podIP": host, "podIPs": [{"ip": host}]}
        )
        await downloads.until(name, lambda s: s["phase"] == "Downloading")
        percents, versions = [], {f"m{i}": set[str]() for i in range(3)}
        slowest = 0.0  # seconds that four requests took: the operator's share of this machine is no larger
        while truth.done() < truth.total:
            began = time.monotonic()
            status = (await bed.get(MODEL_DOWNLOADS, name))["status"]
            most = truth.done()
            percents.append(status["percent"])
            for model_name, seen in versions.items():
                seen.add((await bed.get(MODELS, model_name))["metadata"]["resourceVersion"])
            slowest = max(slowest, time.monotonic() - began)
            late = 3 + 3 * slowest + time.monotonic() - began
            assert truth.done(ago=late) <= status["bytes"]["done"] <= most
            await asyncio.sleep(0.2)
    finally:
        truth.server.shutdown()
        truth.server.server_close()
    assert percents == sorted(percents)
    assert len(set(percents)) >= 4, "it moves"
    steps = {p // 5 for p in percents}
    for model_name, seen in versions.items():
        assert len(seen) <= len(steps) + 2, f"{model_name} was written {len(seen)} times in {len(set(percents))} steps"
