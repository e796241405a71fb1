"""What a Model's GPUs really hold decides, through the real operator: agents at sockets, kubelets by hand.

The nodes are simulated. What a kubelet would say of a container that died, and an agent of a GPU, the test says.
"""

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from moorage.control import agents
from moorage.control.operator import Operator
from moorage.control.settings import Agents
from moorage.kube.resources import DEPLOYMENTS, MODEL_DOWNLOADS, MODELS, PODS
from moorage.sizing.facts import header_facts
from moorage.sizing.gguf import read_gguf_header
from tests.api.test_placement import gpu_node
from tests.conftest import TestCluster
from tests.support.agents import FakeAgent, agent, gpu, set_status
from tests.support.bed import SETTINGS, Bed, condition, ready_status, running_operator
from tests.support.nodes import nodes
from tests.unit.model_shapes import MODELS as SHAPES
from tests.unit.test_engine_failures import WEIGHTS

pytestmark = pytest.mark.api

FLEET = {"memory-8": 8188, "memory-24": 24_564, "memory-80": 81_559}
UNTOLD = "memory-untold"
HEADER = read_gguf_header(SHAPES["llama31-8b Q4_K_M"].header)
SMALL = {"contextLength": 2048, "maxSequences": 1}
"""With these Llama 3.1 8B needs 5.8 GiB: an 8 GiB GPU will do."""


@pytest.fixture(scope="module")
def fleet(kwok_cluster: TestCluster) -> Iterator[TestCluster]:
    untold = gpu_node(UNTOLD, 0, 1)
    del untold["metadata"]["labels"]["nvidia.com/gpu.memory"]
    made = [*(gpu_node(name, mib, 1) for name, mib in FLEET.items()), untold]
    for node in made:
        node["metadata"]["labels"]["test"] = "memory"
    with nodes(kwok_cluster, *made):
        yield kwok_cluster


@pytest.fixture
async def bed(fleet: TestCluster) -> AsyncIterator[Bed]:
    """A download whose header is known, as an operator before us left it."""
    async with Bed.made(fleet.kubeconfig) as made:
        await made.bound_claim()
        source = {"http": {"url": "https://example.com/llama.gguf", "sha256": "a" * 64}}
        found = await made.create("ModelDownload", "files", {"source": source, "storage": {"claimName": "files"}})
        status = ready_status(found, "files")
        status["facts"] = {"format": "GGUF", "mainFile": "llama.gguf", **header_facts(HEADER)}
        await made.kube.apply_status(MODEL_DOWNLOADS, made.namespace, "files", status)
        yield made


@pytest.fixture
def operator(fleet: TestCluster, bed: Bed, monkeypatch: pytest.MonkeyPatch) -> Iterator[Operator]:
    """It believes agents in the bed's namespace, and reads them every half second."""
    monkeypatch.setattr(agents, "PERIOD_SECONDS", 0.5)
    settings = SETTINGS.model_copy(update={"agents": Agents(namespace=bed.namespace)})
    with running_operator(fleet.kubeconfig, settings) as made:
        yield made


async def llama(bed: Bed, *, loads: bool = True, **spec: Any) -> None:
    """Llama 3.1 8B on the test's nodes; with `loads` False its servers are never ready by themselves."""
    selector = spec.pop("nodeSelector", {"test": "memory"})
    if not loads:
        spec["podMetadata"] = {"annotations": {"sim/ready-after": "1h"}}
    await bed.model("llama", accelerator={"vendor": "Nvidia"}, nodeSelector=selector, **spec)


async def server(bed: Bed, node: str) -> str:
    """The name of the Model's pod, once it is bound to `node`."""

    async def found() -> str:
        pods, _ = await bed.kube.list(PODS, bed.namespace, label_selector="moorage.dev/model=llama")
        there = [p for p in pods if p["spec"].get("nodeName") == node and "deletionTimestamp" not in p["metadata"]]
        return str(there[0]["metadata"]["name"]) if there else ""

    return str(await bed.eventually(found))


def died(cluster: TestCluster, bed: Bed, pod: str, words: str) -> None:
    """The kubelet's account of an engine that ended with `words` and is started again."""
    times = {"startedAt": "2026-01-01T00:00:00Z", "finishedAt": "2026-01-01T00:00:09Z"}
    engine = {
        "name": "engine", "image": "llamacpp:test", "imageID": "", "ready": False, "restartCount": 1, "started": False,
        "state": {"waiting": {"reason": "CrashLoopBackOff"}},
        "lastState": {"terminated": {"exitCode": 1, "reason": "Error", "message": words, **times}},
    }  # fmt: skip
    conditions = [{"type": "Ready", "status": "False", "reason": "ContainersNotReady"}]
    set_status(cluster, bed, pod, {"phase": "Running", "conditions": conditions, "containerStatuses": [engine]})


async def heard(bed: Bed, told: FakeAgent) -> None:
    """Until the operator has read what the agent tells now."""
    before = told.asked

    async def read() -> bool:
        return told.asked > before + 1

    await bed.eventually(read)


def placed_on(size: str) -> Any:
    return lambda model: model.get("status", {}).get("placement", {}).get("gpuClass") == size


async def test_a_start_that_ran_out_gets_a_larger_gpu_once_and_no_crash_loop(
    fleet: TestCluster, bed: Bed, operator: Operator
):
    await llama(bed, loads=False, **SMALL)
    first = await bed.until(MODELS, "llama", placed_on("8Gi"))
    died(fleet, bed, await server(bed, "memory-8"), WEIGHTS)

    again = await bed.until(MODELS, "llama", placed_on("24Gi"))
    memory = again["status"]["memory"]
    assert memory["learned"]["outOfMemory"] == 1
    assert memory["estimatedMiB"] == first["status"]["memory"]["plannedMiB"]
    assert memory["plannedMiB"] == 8188 * 99 // 100 - 512 + 1, "more than all that may be planned of the first one"
    died(fleet, bed, await server(bed, "memory-24"), WEIGHTS)

    model = await bed.until_condition("llama", "Placed", "False", "InsufficientMemory")
    message = condition(model, "Placed")["message"]
    assert "ran out of GPU memory on a 24Gi GPU" in message
    assert "planned" in message
    assert "allocating 144817.04 MiB on device 0: cudaMalloc failed: out of memory" in message
    assert model["status"]["phase"] == "Blocked"
    deployment = await bed.until(DEPLOYMENTS, "llama", lambda d: d["spec"]["replicas"] == 0)
    await bed.until(DEPLOYMENTS, "llama", lambda d: not d["status"].get("replicas"))
    later = await bed.get(MODELS, "llama")
    assert later["status"]["phase"] == "Blocked", "the 80 GiB GPU is not tried: two starts are enough"
    assert (await bed.get(DEPLOYMENTS, "llama"))["metadata"]["generation"] == deployment["metadata"]["generation"]


async def test_what_a_server_held_decides_where_it_wakes(fleet: TestCluster, bed: Bed, operator: Operator):
    await llama(bed, **SMALL)
    await bed.until_condition("llama", "Ready", "True")
    pod = await server(bed, "memory-8")
    async with agent(fleet, bed, "memory-8", "127.45.8.1") as told:
        told.gpus = (gpu(total=8188, used=7500, pod=(bed.namespace, pod)),)
        held = await bed.until(MODELS, "llama", lambda m: m["status"]["memory"].get("observedMiB") == 7500)
        assert held["status"]["phase"] == "Ready", "what runs stays where it is"
        assert held["status"]["memory"]["plannedMiB"] < 7500

        annotate = ("-n", bed.namespace, "annotate", "model", "llama")
        fleet.kubectl(*annotate, "moorage.dev/sleep-at=2026-01-01T00:00:00Z")
        await bed.until(MODELS, "llama", lambda m: m["status"]["phase"] == "ScaledToZero")
        asleep = await bed.until(MODELS, "llama", lambda m: m["status"]["memory"]["plannedMiB"] >= 7500)
        assert asleep["status"]["memory"]["plannedMiB"] == 7500 + 256
        fleet.kubectl(*annotate, "moorage.dev/wake-at=2026-01-02T00:00:00Z")
        await server(bed, "memory-24")
        awake = await bed.until_condition("llama", "Ready", "True", "Ready")
        assert awake["status"]["placement"]["gpuClass"] == "24Gi", "8 GiB would do no second time"


async def test_gpus_that_no_label_tells_of_are_known_by_their_agent(fleet: TestCluster, bed: Bed, operator: Operator):
    await llama(bed, **SMALL, nodeSelector={"kubernetes.io/hostname": UNTOLD})
    await bed.until_condition("llama", "Placed", "False", "UnknownGPUMemory")
    async with agent(fleet, bed, UNTOLD, "127.45.8.2"):
        model = await bed.until_condition("llama", "Ready", "True")
        assert model["status"]["placement"]["gpuMemoryMiB"] == 24_564


async def test_the_drivers_count_wins_over_a_label_that_says_more(fleet: TestCluster, bed: Bed, operator: Operator):
    async with agent(fleet, bed, "memory-24", "127.45.8.3") as told:
        told.gpus = (gpu(total=11_264),)
        await heard(bed, told)
        await llama(bed, contextLength=65_536, maxSequences=1, nodeSelector={"kubernetes.io/hostname": "memory-24"})
        model = await bed.until_condition("llama", "Placed", "False", "NoGPUFits")
        assert "largest GPU is 11Gi (memory-24)" in condition(model, "Placed")["message"]
        told.gpus = (gpu(total=24_564),)
        model = await bed.until_condition("llama", "Ready", "True")
        assert model["status"]["placement"]["gpuMemoryMiB"] == 24_564


async def test_a_new_version_waits_until_the_old_ones_memory_is_given_back(
    fleet: TestCluster, bed: Bed, operator: Operator
):
    """Recreate alone would make the new pod in the second in which the old one is gone."""
    async with agent(fleet, bed, "memory-24", "127.45.8.4") as told:
        await llama(bed, **SMALL, nodeSelector={"kubernetes.io/hostname": "memory-24"})
        await bed.until_condition("llama", "Ready", "True")
        old = await server(bed, "memory-24")
        told.gpus = (gpu(used=20_000, pod=(bed.namespace, old)),)
        await heard(bed, told)
        fleet.kubectl("-n", bed.namespace, "patch", "model", "llama", "--type=merge", "-p",
                      json.dumps({"spec": {"contextLength": 4096}}))  # fmt: skip
        model = await bed.until_condition("llama", "Serving", "False", "WaitingForMemory")
        assert "GPU 0 has 4.0Gi free of 24.0Gi" in condition(model, "Serving")["message"]
        assert condition(model, "UpToDate")["reason"] == "Progressing"
        assert (await bed.get(DEPLOYMENTS, "llama"))["spec"]["replicas"] == 0
        told.gpus = (gpu(),)
        new = await server(bed, "memory-24")
        assert new != old
        await bed.until_condition("llama", "Ready", "True", "Ready")
        args = (await bed.get(PODS, new))["spec"]["containers"][0]["args"]
        assert args[args.index("--ctx-size") + 1] == "4096"
