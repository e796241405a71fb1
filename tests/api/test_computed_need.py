"""Models that say nothing of GPUs, from a hub with real-shaped headers: the need is computed, and the class follows."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from e2e.hub import HubServer
from moorage.cli import main
from moorage.control.settings import Settings, Sources
from moorage.kube.resources import CLAIMS, JOBS, MODEL_DOWNLOADS, PODS, RESOURCE_QUOTAS
from moorage.sizing.gguf import read_gguf_header
from moorage.sizing.gguf_model import model_of
from moorage.sizing.llamacpp import LlamaSettings, llama_need
from tests.api.test_placement import FLEET, gpu_nodes
from tests.conftest import TestCluster
from tests.support.bed import Bed, condition, running_operator
from tests.unit.model_shapes import MODELS as SHAPES

pytestmark = pytest.mark.api

WHERE = {"llama32-1b Q8_0": "sim-8", "qwen3-8b Q4_K_M": "sim-24", "llama33-70b Q4_K_M": "sim-80"}
"""By the shape of a published model the node of the smallest class that fits it, with 8192 tokens for each of 4."""


def named(shape: str) -> str:
    return shape.split(maxsplit=1)[0].replace(".", "-")


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    """A repository for each: the header of a real file, then a hole as large as its weights."""
    root, repos = tmp_path_factory.mktemp("hub"), {}
    for shape in WHERE:
        header, file = SHAPES[shape].header, f"{named(shape)}.gguf"
        path = root / "org" / named(shape) / file
        path.parent.mkdir(parents=True)
        with path.open("wb") as made:
            made.write(header)
            made.truncate(len(header) + model_of(read_gguf_header(header)).file_bytes + (1 << 16))
        repos[f"org/{named(shape)}"] = {"lies": {file: {"sha256": "a" * 64}}}  # hashing 45 GB of nothing takes minutes
    (root / "hub.json").write_text(json.dumps({"repos": repos}))
    with HubServer(root) as server:
        yield server


@pytest.fixture(scope="module")
def fleet(kwok_cluster: TestCluster) -> Iterator[TestCluster]:
    with gpu_nodes(kwok_cluster, FLEET):
        yield kwok_cluster


@pytest.fixture
async def bed(fleet: TestCluster, hub: HubServer) -> AsyncIterator[Bed]:
    sources = Sources(hugging_face_endpoint=hub.url, allow_private_hosts=True)
    async with Bed.made(fleet.kubeconfig) as made:
        with running_operator(fleet.kubeconfig, Settings(sources=sources)):
            yield made


def spec_of(shape: str) -> dict[str, Any]:
    return {"source": {"huggingFace": {"repo": f"org/{named(shape)}"}}}


async def ran(*words: str) -> Any:
    done = await asyncio.to_thread(CliRunner().invoke, main, list(words))
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


async def test_the_class_follows_from_the_header_and_every_command_says_the_same(
    bed: Bed, fleet: TestCluster, tmp_path: Path
):
    cluster = tmp_path / "cluster.yaml"
    cluster.write_text((await asyncio.to_thread(fleet.kubectl, "get", "nodes,pods", "-A", "-o", "yaml")).stdout)
    for shape in WHERE:
        await bed.create("Model", named(shape), spec_of(shape))
    for shape, node in WHERE.items():
        name, header = named(shape), SHAPES[shape].header
        model = await bed.until_condition(name, "Placed", "True", "Placed")
        memory, placement = model["status"]["memory"], model["status"]["placement"]
        said = condition(model, "Placed")["message"]
        needed = llama_need(model_of(read_gguf_header(header)), LlamaSettings(4 * 8192, parallel=4))
        assert (memory["plannedMiB"], memory["confidence"]) == (needed.total_mib, "Exact")
        assert f"free on {node})" in said
        assert condition(model, "Downloaded").get("status") != "True", "decided before the download"
        assert model["status"]["source"]["architecture"] == SHAPES[shape].arch

        explained = await ran("explain", name, "-n", bed.namespace, "--kubeconfig", str(fleet.kubeconfig), "-o", "json")
        assert explained["decision"]["message"] == said
        file, manifest = tmp_path / f"{name}.gguf", tmp_path / f"{name}.yaml"
        file.write_bytes(header)
        meta = {"name": name, "namespace": bed.namespace}
        kind = {"apiVersion": "moorage.dev/v1alpha1", "kind": "Model", "metadata": meta, "spec": spec_of(shape)}
        manifest.write_text(yaml.safe_dump(kind))
        rendered = await ran(
            "render", "-f", str(manifest), "--header", str(file), "--cluster", str(cluster), "-o", "json"
        )
        images = {"learned"}  # what is learned holds for one image, and render has others
        assert {k: v for k, v in rendered["memory"].items() if k not in images} == {
            k: v for k, v in memory.items() if k not in images
        }
        same = ("gpuClass", "gpuMemoryMiB", "count", "reason")
        assert {k: rendered["placement"][k] for k in same} == {k: placement[k] for k in same}


async def test_a_quota_is_asked_before_anything_is_downloaded(bed: Bed):
    meta = {"name": "no-gpus", "namespace": bed.namespace}
    none = {"hard": {"requests.nvidia.com/gpu": "0"}}
    await bed.kube.create({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": meta, "spec": none})
    await bed.until(RESOURCE_QUOTAS, "no-gpus", lambda q: (q.get("status") or {}).get("hard"))
    await bed.create("Model", "m", spec_of("llama32-1b Q8_0"))
    model = await bed.until_condition("m", "Placed", "False", "QuotaExceeded")
    assert "0 of 0 nvidia.com/gpu" in condition(model, "Placed")["message"]
    for resource in (MODEL_DOWNLOADS, JOBS, CLAIMS, PODS):
        assert (await bed.kube.list(resource, bed.namespace))[0] == [], resource.plural
    await bed.kube.delete(RESOURCE_QUOTAS, bed.namespace, "no-gpus")
    await bed.until_condition("m", "Placed", "True", "Placed")
    await bed.eventually(lambda: _some(bed))


async def _some(bed: Bed) -> bool:
    return bool((await bed.kube.list(MODEL_DOWNLOADS, bed.namespace))[0])
