"""SIMULATED GPUs on the real kubelet: a device plugin of ours offers them, a stub of NVML shows them to the agent.

The scheduler, the kubelet's admission, its PodResources API, the agent's pod and the operator are real. No GPU is:
llama.cpp's CPU image stands in for the CUDA one, and what "the driver" counts is what the test writes into a file.
"""

import json
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from e2e.cluster.oci import write_archive
from e2e.demo import ROOT, SYSTEM, Demo
from e2e.gpusim.machine import Machine as Gpus
from e2e.gpusim.machine import SimulatedGpu, compile_oom_engine, compile_stub, uuid
from tests.e2e.conftest import Machine, condition
from tests.e2e.test_gateway import Address, gateway

__all__ = ["gateway"]  # the fixture

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1200)]

RESERVE = 460  # of the stub; "used" in the state file includes it
AGENT = """
agent:
  enabled: true
  runtimeClassName: ""
  extraArgs: [--nvml, /simulated/libnvidia-ml.so.1]
  extraEnv: [{name: NVML_SIM_STATE, value: /simulated/gpus.txt}]
  extraVolumes: [{name: simulated, hostPath: {path: FOLDER, type: Directory}}]
  extraVolumeMounts: [{name: simulated, mountPath: /simulated, readOnly: true}]
"""
LABELS = {
    "nvidia.com/gpu.present": "true",
    "nvidia.com/gpu.memory": "24564",
    "nvidia.com/gpu.count": "1",
    "nvidia.com/gpu.product": "NVIDIA-Simulated-24GB",
    "nvidia.com/gpu.sharing-strategy": "none",
}


def eventually(good: Callable[[], Any], what: str, timeout: float = 180.0) -> Any:
    deadline = time.monotonic() + timeout
    while not (found := good()):
        assert time.monotonic() < deadline, f"{what}; last: {found!r}"
        time.sleep(0.2)
    return found


@pytest.fixture(scope="module")
def gpus(demo: Demo, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gpus]:
    """One simulated GPU on the demo's node, offered by the device plugin and shown to an agent."""
    assert demo.cluster is not None
    folder = tmp_path_factory.mktemp("gpus")
    compile_stub(folder)
    hardware = Gpus(folder / "gpus.txt", [SimulatedGpu(uuid(1), total=24564, used=RESERVE)])
    node = demo.cluster.node_name
    plugins = demo.cluster.folder / "kubelet/device-plugins"
    plugin = subprocess.Popen(
        [sys.executable, "-m", "e2e.gpusim.device_plugin", str(hardware.state), "--folder", str(plugins)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={"PYTHONPATH": f"{ROOT}/operator", "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    try:
        demo.kubectl("label", "node", node, "--overwrite", *(f"{k}={v}" for k, v in LABELS.items()))
        _agent(demo, folder)
        allocatable = r"jsonpath={.status.allocatable.nvidia\.com/gpu}"
        eventually(lambda: demo.kubectl("get", "node", node, "-o", allocatable) == "1", "the node offers a GPU")
        yield hardware
    finally:
        plugin.terminate()
        plugin.wait(120)
        demo.kubectl("label", "node", node, *(f"{key}-" for key in LABELS), check=False)
        _without_agent(demo)


def _agent(demo: Demo, folder: Path) -> None:
    values = folder / "agent.yaml"
    values.write_text(AGENT.replace("FOLDER", str(folder)))
    standing_in = f"images.llamaCppNvidia={demo.images['llamacpp-cpu']['ref']}"
    _upgrade(demo, "--set", standing_in, "--values", str(values))
    demo.kubectl("-n", SYSTEM, "rollout", "status", "daemonset/moorage-agent", "--timeout=240s")


def _without_agent(demo: Demo) -> None:
    _upgrade(demo, "--set", "agent.enabled=false")


def _upgrade(demo: Demo, *options: str) -> None:
    chart = ("upgrade", "moorage", "charts/moorage", "--namespace", SYSTEM, "--reuse-values")
    demo.helm(*chart, *options, "--wait", "--timeout", "6m")


def on_gpu(machine: Machine, name: str, **accelerator: Any) -> None:
    machine.model(name, accelerator={"vendor": "Nvidia", **accelerator})


def pod_of(machine: Machine, model: str) -> dict[str, Any] | None:
    found = json.loads(machine.kubectl("get", "pods", "-l", f"moorage.dev/model={model}", "-o", "json"))["items"]
    live = [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]
    return live[0] if live else None


def agent(demo: Demo, path: str) -> str:
    selector = "app.kubernetes.io/component=agent"
    name = demo.kubectl("-n", SYSTEM, "get", "pods", "-l", selector, "-o", "jsonpath={.items[0].metadata.name}")
    return demo.kubectl("get", "--raw", f"/api/v1/namespaces/{SYSTEM}/pods/{name}:9445/proxy{path}")


def test_a_model_is_placed_admitted_seen_and_told_of(machine: Machine, gpus: Gpus):
    on_gpu(machine, "on-gpu")
    model = machine.until_condition("on-gpu", "Ready", "True")
    placement, summary = model["status"]["placement"], model["status"]["summary"]
    assert (placement["vendor"], placement["count"], placement["gpuClass"]) == ("Nvidia", 1, "24Gi")
    assert summary["node"] == machine.demo.cluster.node_name
    assert re.fullmatch(r"[\d.]+[MG]i", summary["vram"])

    pod = pod_of(machine, "on-gpu")
    assert pod is not None
    [container] = pod["status"]["containerStatuses"]
    [given] = container["allocatedResourcesStatus"]  # the kubelet's own word: the device that the plugin named
    assert [r["resourceID"] for r in given["resources"]] == [uuid(1)]
    assert machine.chat("on-gpu")["usage"]["completion_tokens"] > 0

    # The image is the one for CPUs, so nothing is in the GPU.
    served = machine.until_condition("on-gpu", "Serving", "True", "PartiallyOffloaded")
    assert "only 0B of GPU memory are in use" in condition(served, "Serving")["message"]
    assert condition(served, "Ready")["status"] == "True"

    name = pod["metadata"]["name"]
    gpus.change(0, used=RESERVE + 1500, utilization=42)
    told = eventually(
        lambda: (r := json.loads(agent(machine.demo, "/v1/gpus")))["gpus"][0]["usedMiB"] == 1500 and r,
        "the agent tells",
    )
    assert told["node"] == machine.demo.cluster.node_name
    assert told["gpus"][0]["pods"] == [{"namespace": "default", "pod": name, "container": "engine"}]
    metrics = agent(machine.demo, "/metrics")
    [used] = re.findall(rf'moorage_gpu_memory_used_bytes{{.*gpu="{uuid(1)}".*pod="{name}".*}} (\S+)', metrics)
    assert float(used) == 1500 * 2**20
    machine.until("model", "on-gpu", lambda m: m["status"]["memory"].get("observedMiB") == 1500)
    machine.until_condition("on-gpu", "Serving", "True", "Serving")

    on_gpu(machine, "too-large", memoryPerGPUOverride="40Gi")
    on_gpu(machine, "no-room", memoryPerGPUOverride="10Gi")
    large = machine.until_condition("too-large", "Placed", "False", "NoGPUFits")
    assert "40.0Gi" in condition(large, "Placed")["message"]
    room = machine.until_condition("no-room", "Placed", "False", "NoGPUFree")
    assert "10.0Gi" in condition(room, "Placed")["message"]
    assert "default/on-gpu" in condition(room, "Placed")["message"]
    assert pod_of(machine, "no-room") is None

    # The GPU is given back, and its memory is not.
    gpus.change(0, used=RESERVE + 20_000)
    machine.until("model", "on-gpu", lambda m: m["status"]["memory"].get("observedMiB") == 20_000)
    machine.kubectl("delete", "model", "on-gpu")
    machine.until_condition("no-room", "Serving", "False", "WaitingForMemory")
    machine.until("model", "no-room", lambda m: "GPU 0 has 4.0Gi free of 24.0Gi" in condition(m, "Serving")["message"])
    assert pod_of(machine, "no-room") is None
    gpus.change(0, used=RESERVE)
    machine.until_condition("no-room", "Ready", "True")


def test_a_new_version_starts_when_the_old_ones_memory_is_given_back(machine: Machine, gpus: Gpus):
    gpus.change(0, used=RESERVE)
    on_gpu(machine, "rolled", memoryPerGPUOverride="10Gi")
    machine.until_condition("rolled", "Ready", "True")
    old = pod_of(machine, "rolled")
    gpus.change(0, used=RESERVE + 20_000)
    machine.patch("rolled", {"contextLength": 1024})
    model = machine.until_condition("rolled", "Serving", "False", "WaitingForMemory")
    assert condition(model, "UpToDate")["reason"] == "Progressing"
    assert pod_of(machine, "rolled") is None
    gpus.change(0, used=RESERVE)
    machine.until_condition("rolled", "Serving", "True")
    new = pod_of(machine, "rolled")
    assert old is not None
    assert new is not None
    assert new["metadata"]["name"] != old["metadata"]["name"]
    machine.until_condition("rolled", "UpToDate", "True")


def test_an_idle_model_makes_room_in_order(machine: Machine, gpus: Gpus, gateway: Address):
    """Nothing new is sent to it, it ends what it answers, it stops, its memory is seen to be free, the other starts."""
    gpus.change(0, used=RESERVE)
    need = {"vendor": "Nvidia", "memoryPerGPUOverride": "10Gi"}
    machine.model("resident", "moorage/harbor-llama-GGUF", accelerator=need, preemption={"minResidency": "1s"})
    machine.until_condition("resident", "Ready", "True")
    gateway.until("resident", 200)
    began = time.monotonic()
    assert gateway.chat("resident", max_tokens=50, ignore_eos=True)[0] == 200
    tokens = min(int(50 / (time.monotonic() - began) * 30), 3900)  # for half a minute, as far as its context goes

    with direct_stream(machine, "resident", tokens) as told:  # past the gateway, to which it is idle
        chunks = iter(told)
        next(chunks)
        gpus.change(0, used=RESERVE + 20_000)
        machine.model("usurper", accelerator=need)
        machine.until("model", "resident", lambda m: m["status"].get("phase") == "Preempted")
        eventually(lambda: "deletionTimestamp" in every_pod_of(machine, "resident")[0]["metadata"], "its pod ends")
        eventually(lambda: not answers(gateway, "resident"), "the gateway sends it nothing more")
        [pod] = every_pod_of(machine, "resident")
        assert pod["status"]["containerStatuses"][0]["state"].keys() == {"running"}, "it has not been told to stop"
        path = f"/api/v1/namespaces/default/pods/{pod['metadata']['name']}:8080/proxy/metrics"
        assert "llamacpp:requests_processing 1\n" in machine.kubectl("get", "--raw", path), "and nobody else asks it"
        assert every_pod_of(machine, "usurper") == []
        rest = list(chunks)
    assert rest[-2] == b"data: [DONE]\n", rest[-2:]

    machine.until_condition("usurper", "Serving", "False", "WaitingForMemory")
    assert [p for p in every_pod_of(machine, "resident") if p["status"]["phase"] not in ("Succeeded", "Failed")] == []
    assert every_pod_of(machine, "usurper") == []
    gpus.change(0, used=RESERVE)
    machine.until_condition("usurper", "Ready", "True")
    machine.told("resident", "Preempted")


def direct_stream(machine: Machine, model: str, tokens: int) -> Any:
    """A streamed answer from the Model's own Service."""
    address = machine.get("service", model)["spec"]["clusterIP"]
    question = {"model": model, "max_tokens": tokens, "ignore_eos": True, "stream": True}
    body = json.dumps(question | {"messages": [{"role": "user", "content": "Hi"}]}).encode()
    request = urllib.request.Request(
        f"http://{address}/v1/chat/completions", body, {"Content-Type": "application/json"}
    )
    return urllib.request.urlopen(request, timeout=180)


def answers(gateway: Address, model: str) -> bool:
    """Whether the gateway sends a request to a server of the Model; where it holds or refuses it, not."""
    question = {"model": model, "max_tokens": 1, "messages": [{"role": "user", "content": "Hi"}]}
    request = urllib.request.Request(f"{gateway.url}/v1/chat/completions", json.dumps(question).encode())
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return bool(answer.status == 200)
    except (TimeoutError, urllib.error.HTTPError):
        return False


def every_pod_of(machine: Machine, model: str) -> list[dict[str, Any]]:
    """The Model's pods, those that end included."""
    found = json.loads(machine.kubectl("get", "pods", "-l", f"moorage.dev/model={model}", "-o", "json"))["items"]
    return list(found)


def test_an_engine_that_runs_out_of_gpu_memory_is_explained_and_does_not_crash_in_a_loop(
    machine: Machine, gpus: Gpus, tmp_path: Path
):
    """The engine is a stand-in that says what llama.cpp says; the kubelet keeps its last words."""
    gpus.change(0, used=RESERVE)
    image, archive = "moorage.local/simulated-oom-engine:1", tmp_path / "oom.tar"
    write_archive(archive, image, compile_oom_engine(tmp_path), command=["/oom-engine"])
    assert machine.demo.cluster is not None
    machine.demo.cluster.load(archive)
    machine.model("hungry", accelerator={"vendor": "Nvidia"}, image=image)
    model = machine.until_condition("hungry", "Placed", "False", "InsufficientMemory")
    message = condition(model, "Placed")["message"]
    assert "ran out of GPU memory on a 24Gi GPU" in message
    assert "allocating 30817.04 MiB on device 0: cudaMalloc failed: out of memory" in message
    assert model["status"]["phase"] == "Blocked"
    assert model["status"]["memory"]["learned"]["outOfMemory"] == 1, "no GPU is larger, so there is no second try"
    eventually(lambda: pod_of(machine, "hungry") is None, "its pod is gone")
    before = condition(model, "Placed")["lastTransitionTime"]
    machine.kubectl("annotate", "model", "hungry", "moorage.dev/restart-at=2026-01-01T00:00:00Z")
    machine.until("model", "hungry", lambda m: condition(m, "Placed")["lastTransitionTime"] != before)
    machine.until_condition("hungry", "Placed", "False", "InsufficientMemory")


def test_a_driver_that_is_lost_and_a_gpu_that_fails_unsettle_nobody(machine: Machine, gpus: Gpus):
    gpus.change(0, used=RESERVE)
    on_gpu(machine, "steady")
    machine.until_condition("steady", "Ready", "True")
    gpus.driver = ""
    gpus.write()
    eventually(lambda: "Driver Not Loaded" in json.loads(agent(machine.demo, "/v1/gpus"))["problem"], "the agent tells")
    gpus.change(0, healthy=False)  # the device plugin says so: the node offers none any more
    node = machine.demo.cluster.node_name
    eventually(
        lambda: machine.kubectl("get", "node", node, "-o", r"jsonpath={.status.allocatable.nvidia\.com/gpu}") == "0",
        "the node offers no GPU",
    )
    time_to_settle = time.monotonic() + 3
    while time.monotonic() < time_to_settle:
        assert condition(machine.get("model", "steady"), "Ready")["status"] == "True"
        time.sleep(0.5)
    assert machine.chat("steady")["usage"]["completion_tokens"] > 0
    gpus.driver = "580.95.05"
    gpus.change(0, healthy=True)
    eventually(lambda: json.loads(agent(machine.demo, "/v1/gpus"))["problem"] == "", "the driver is found again")
