"""A Model that fits nowhere, in a cluster of simulated GPU nodes and with a hub: what its status says would help."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any

import pytest
from click.testing import CliRunner

from e2e.hub import HubServer
from moorage.cli import main
from moorage.control.settings import Settings, Sources
from moorage.kube.resources import MODELS
from moorage.placement.memory import usable_mib
from moorage.sizing.gguf import read_gguf_header
from moorage.sizing.gguf_model import model_of
from moorage.sizing.llamacpp import LlamaSettings, llama_need
from tests.api.test_placement import gpu_nodes
from tests.conftest import TestCluster
from tests.support.bed import Bed, condition, running_operator
from tests.unit.model_shapes import MODELS as SHAPES

pytestmark = pytest.mark.api

QWEN = SHAPES["qwen25-0.5b Q8_0"]
SMALL, LARGE = "sim-remedy-small", "sim-remedy-large"


def needed(quantization: str) -> int:
    """MiB of Qwen 2.5 0.5B with one request of 512 tokens."""
    header = replace(QWEN, quantization=quantization).header
    return llama_need(model_of(read_gguf_header(header)), LlamaSettings(512)).total_mib


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    """A repository of three quantizations: real headers, and holes for weights."""
    root = tmp_path_factory.mktemp("hub")
    for quantization in ("F16", "Q8_0", "Q4_K_M"):
        header = replace(QWEN, quantization=quantization).header
        whole = model_of(read_gguf_header(header))
        path = root / "org/qwen" / f"qwen2.5-0.5b-{quantization}.gguf"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            file.write(header)
            weights = whole.file_bytes - whole.output_bytes  # the output is the embeddings again
            file.truncate(len(header) + weights + (1 << 16))  # and what aligns the tensors
    with HubServer(root, lfs_threshold=1 << 40) as server:
        yield server


@pytest.fixture(scope="module")
def fleet(kwok_cluster: TestCluster) -> Iterator[TestCluster]:
    """One GPU that is too small for F16 and not for Q8_0, and one that is large enough for all."""
    enough = next(mib for mib in range(1024, 8192, 16) if usable_mib(mib) >= needed("Q8_0") + 100)
    assert usable_mib(enough) < needed("F16")
    with gpu_nodes(kwok_cluster, {SMALL: (enough, 1), LARGE: (24564, 1)}):
        yield kwok_cluster


@pytest.fixture
async def bed(fleet: TestCluster, hub: HubServer) -> AsyncIterator[Bed]:
    sources = Sources(hugging_face_endpoint=hub.url, allow_private_hosts=True)
    async with Bed.made(fleet.kubeconfig) as made:
        await made.ready_download()
        with running_operator(fleet.kubeconfig, Settings(sources=sources)):
            yield made


def on(*nodes: str) -> dict[str, Any]:
    term = {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [*nodes]}]}
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}}


async def waiting(bed: Bed) -> dict[str, str]:
    """A Model at F16 that finds the large GPU taken and the small one too small; its remedies by change."""
    stays = {"policy": "WhenIdle", "minResidency": "1h"}
    gpu = {"vendor": "Auto", "memoryPerGPUOverride": "2Gi"}
    await bed.model("resident", accelerator=gpu, preemption=stays, affinity=on(LARGE))
    await bed.until_condition("resident", "Ready", "True")
    source = {"huggingFace": {"repo": "org/qwen", "quantization": "F16"}}
    spec = {"source": source, "contextLength": 512, "maxSequences": 1, "accelerator": {"vendor": "Auto"}}
    await bed.model("asks", affinity=on(SMALL, LARGE), **spec)
    await bed.until_condition("asks", "Placed", "False", "NoGPUFree")
    obj = await bed.until(MODELS, "asks", lambda m: len(m["status"].get("remedies", [])) == 2)
    return {r["change"]: r["effect"] for r in obj["status"]["remedies"]}


async def test_a_smaller_quantization_and_anothers_sleep_are_told_and_help(bed: Bed, fleet: TestCluster):
    found = await waiting(bed)
    quantization, sleep = "source.huggingFace.quantization: Q8_0", f"replicas: 0 of {bed.namespace}/resident"
    assert list(found) == [quantization, sleep]
    assert f"(1 free on {SMALL}); the need is Bounded, by the size of the file" in found[quantization]
    assert f"(1 free on {LARGE})" in found[sleep]
    described = (await asyncio.to_thread(fleet.kubectl, "-n", bed.namespace, "describe", "model", "asks")).stdout
    args = ["explain", "asks", "-n", bed.namespace, "--kubeconfig", str(fleet.kubeconfig)]
    explained = (await asyncio.to_thread(CliRunner().invoke, main, args)).stdout
    for text in (described, explained):
        assert quantization in text
        assert sleep in text
    kept = (await bed.get(MODELS, "asks"))["status"]["source"]["quantizations"]
    assert [q["name"] for q in kept] == ["F16", "Q8_0", "Q4_K_M"]
    await bed.kube.merge_patch(MODELS, bed.namespace, "resident", {"spec": {"replicas": 0}})
    placed = await bed.until_condition("asks", "Placed", "True", "Placed")
    assert LARGE in condition(placed, "Placed")["message"]
    assert "remedies" not in placed["status"]


async def test_the_smaller_quantization_fits_as_was_promised(bed: Bed):
    await waiting(bed)
    change = {"spec": {"source": {"huggingFace": {"quantization": "Q8_0"}}}}
    await bed.kube.merge_patch(MODELS, bed.namespace, "asks", change)
    placed = await bed.until_condition("asks", "Placed", "True", "Placed")
    assert SMALL in condition(placed, "Placed")["message"]
