"""`moorage agent` as a process: the stub of NVML, and a kubelet's socket served by another gRPC implementation."""

import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from e2e.cluster.network import free_ports
from e2e.gpusim.machine import Machine, SimulatedGpu, SimulatedSlice, compile_stub, uuid
from moorage.agent.grpc import CallFailed, call
from moorage.agent.podresources import holders
from moorage.placement.gpu_report import Holder, from_json, totals_of, used_by_pod
from tests.support.eventually import PATIENCE
from tests.support.kubelet import allocatable, answer, claim, kubelet, plugin_devices, pod

COMMAND = [sys.executable, "-m", "moorage", "agent"]


def eventually(good: Any, timeout: float = PATIENCE) -> Any:
    deadline = time.monotonic() + timeout
    while not (found := good()):
        assert time.monotonic() < deadline, f"it never came to that; last: {found!r}"
        time.sleep(0.05)
    return found


class Agent:
    def __init__(self, port: int, process: "subprocess.Popen[str]") -> None:
        self.port, self.process = port, process

    def get(self, path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=PATIENCE) as found:
            return str(found.read().decode())

    def report(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.get("/v1/gpus"))
        return found

    def up(self) -> bool:
        assert self.process.poll() is None, self.process.communicate()
        try:
            return self.get("/healthz") == "ok"
        except OSError:
            return False


@contextmanager
def agent(machine: Machine, *arguments: str) -> Iterator[Agent]:
    port = free_ports(["agent"])["agent"]
    environment = {**os.environ, "NVML_SIM_STATE": str(machine.state), "NODE_NAME": "gpu-1"}
    environment.pop("NVIDIA_VISIBLE_DEVICES", None)
    process = subprocess.Popen(
        [*COMMAND, "--listen", f"127.0.0.1:{port}", *arguments],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    made = Agent(port, process)
    try:
        eventually(made.up)
        yield made
    finally:
        process.terminate()
        assert process.wait(PATIENCE) == 0, process.communicate()


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_stub(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "gpus.txt", [SimulatedGpu(uuid(1), used=9460, utilization=37), SimulatedGpu(uuid(2))])


def test_the_report_says_what_each_gpu_has_and_whose_it_is(machine: Machine, library: Path, tmp_path: Path):
    path = tmp_path / "kubelet.sock"
    with kubelet(path) as server, agent(machine, "--nvml", str(library), "--kubelet-socket", str(path)) as made:
        server.answer = answer(pod("ns", "tiny-1", devices=(plugin_devices("nvidia.com/gpu", uuid(1)),)))
        report = eventually(lambda: (r := from_json(made.report())).gpus[0].pods and r)
        assert report.gpus[0].pods == (Holder("ns", "tiny-1", "engine"),)
        assert (report.gpus[0].used_mib, report.gpus[1].pods, report.node) == (9000, (), "gpu-1")

        metrics = made.get("/metrics")
        pattern = (
            rf'moorage_gpu_memory_used_bytes{{container="engine",gpu="{uuid(1)}",namespace="ns",pod="tiny-1",.*}} (\S+)'
        )
        assert float(re.search(pattern, metrics)[1]) == 9000 * 2**20  # type: ignore[index]
        assert re.search(r"^moorage_gpu_driver_up 1.0", metrics, re.M)

        machine.change(1, lost=True)
        eventually(lambda: made.report()["gpus"][1]["problem"] == "GPU is lost")
        machine.driver = ""
        machine.write()
        eventually(lambda: "Driver Not Loaded" in made.report()["problem"])
        assert re.search(r"^moorage_gpu_driver_up 0.0", made.get("/metrics"), re.M)
        assert made.up(), "a lost driver is reported, not died of"
        machine.driver = "590"
        machine.change(1, lost=False)
        eventually(lambda: made.report()["driver"] == "590" and made.report()["problem"] == "")


def test_mig_devices_have_memory_and_holders_of_their_own(machine: Machine, library: Path, tmp_path: Path):
    """The device plugin names them by their own UUIDs, under a resource of the profile's name."""
    first, third = (SimulatedSlice(place, f"MIG-{place}", 9984, used) for place, used in ((0, 7000), (2, 16)))
    machine.change(0, slices=(first, third))
    path = tmp_path / "kubelet.sock"
    with kubelet(path) as server, agent(machine, "--nvml", str(library), "--kubelet-socket", str(path)) as made:
        server.answer = answer(pod("ns", "small-1", devices=(plugin_devices("nvidia.com/mig-1g.10gb", "MIG-0"),)))
        report = eventually(lambda: (r := from_json(made.report())).gpus[0].slices[0].pods and r)
        cut, whole = report.gpus
        assert (cut.mig, whole.mig, whole.slices) == (True, False, ())
        assert cut.utilization_percent == -1, "NVML tells none of a GPU that is cut up"
        assert [(part.uuid, part.total_mib, part.used_mib) for part in cut.slices] == [
            ("MIG-0", 9984, 7000),
            ("MIG-2", 9984, 16),
        ]
        assert cut.slices[0].pods == (Holder("ns", "small-1", "engine"),)
        assert (cut.pods, cut.slices[1].pods) == ((), ())
        assert used_by_pod(report) == {("ns", "small-1"): (7000,)}
        assert totals_of(report) == (24564,), "MIG devices are offered by names of their own"

        machine.change(0, slices=(third,))  # the driver took one apart
        eventually(lambda: [part["uuid"] for part in made.report()["gpus"][0]["slices"]] == ["MIG-2"])


def test_devices_that_dra_allocated_are_found_by_their_minor_number(machine: Machine, library: Path, tmp_path: Path):
    """NVIDIA's DRA driver names a device gpu-MINOR; the kubelet tells claims apart from device plugins' devices."""
    path = tmp_path / "kubelet.sock"
    with kubelet(path) as server, agent(machine, "--nvml", str(library), "--kubelet-socket", str(path)) as made:
        server.answer = answer(
            pod("ns", "by-claim", claims=(claim("gpu.nvidia.com", "gpu-1"),)),
            pod("ns", "nic", claims=(claim("net.example.com", "gpu-0"),)),
        )
        report = eventually(lambda: (r := from_json(made.report())).gpus[1].pods and r)
        assert report.gpus[1].minor == 1
        assert report.gpus[1].pods == (Holder("ns", "by-claim", "engine"),)
        assert report.gpus[0].pods == (), "another driver's devices bear the same names"
        assert used_by_pod(report) == {("ns", "by-claim"): (0,)}


def test_a_gpu_that_the_device_plugin_does_not_offer_is_hidden(machine: Machine, library: Path, tmp_path: Path):
    """The one that drives a screen, say: no pod ever gets it."""
    path = tmp_path / "kubelet.sock"
    with kubelet(path) as server, agent(machine, "--nvml", str(library), "--kubelet-socket", str(path)) as made:
        assert [gpu["hidden"] for gpu in made.report()["gpus"]] == [False, False], "an old kubelet does not say"
        others = plugin_devices("vendor.com/nic", "nic-1")
        server.allocatable = allocatable(others, plugin_devices("nvidia.com/gpu", f"{uuid(2)}::0", f"{uuid(2)}::1"))
        report = eventually(lambda: (r := from_json(made.report())).gpus[0].hidden and r)
        assert not report.gpus[1].hidden
        server.allocatable = allocatable(others)
        eventually(lambda: not made.report()["gpus"][0]["hidden"])


def test_without_a_kubelet_the_numbers_are_there_and_owners_unknown(machine: Machine, library: Path, tmp_path: Path):
    with agent(machine, "--nvml", str(library), "--kubelet-socket", str(tmp_path / "none.sock")) as made:
        report = made.report()
        assert report["gpus"][0]["usedMiB"] == 9000
        assert "none.sock" in report["podsProblem"]


def test_without_nvml_it_says_so_and_exits_with_3(tmp_path: Path):
    done = subprocess.run(
        [*COMMAND, "--nvml", str(tmp_path / "none.so")], capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 3
    assert "none.so" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_taken_port_is_said(machine: Machine, library: Path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = subprocess.run(
            [*COMMAND, "--nvml", str(library), "--listen", f"127.0.0.1:{taken.getsockname()[1]}"],
            env={**os.environ, "NVML_SIM_STATE": str(machine.state)}, capture_output=True, text=True, timeout=PATIENCE,
        )  # fmt: skip
    assert done.returncode == 1
    assert "cannot listen" in done.stderr


# -- the call itself --------------------------------------------------------------------------------------------------


def test_a_large_answer_comes_whole(tmp_path: Path):
    """Beyond the windows of HTTP/2: a node with a thousand pods."""
    with kubelet(tmp_path / "k.sock") as server:
        pods = [
            pod("ns", f"pod-{i}" + "x" * 1000, devices=(plugin_devices("nvidia.com/gpu", f"GPU-{i}"),))
            for i in range(3000)
        ]
        server.answer = answer(*pods)
        assert len(server.answer) > 3_000_000
        assert len(holders(tmp_path / "k.sock")) == 3000


def test_refusals_silence_and_absence_are_said(tmp_path: Path):
    path = tmp_path / "k.sock"
    with pytest.raises(CallFailed, match=r"k\.sock"):
        holders(path)
    with kubelet(path) as server:
        server.status = grpc.StatusCode.RESOURCE_EXHAUSTED
        with pytest.raises(CallFailed, match=r"gRPC status 8: too many of you"):
            holders(path)
        with pytest.raises(CallFailed, match=r"gRPC status 12"):
            call(path, "/v1.PodResourcesLister/NoSuchMethod")
        server.status, server.hang = None, 3.0
        with pytest.raises(CallFailed, match="within"):
            call(path, "/v1.PodResourcesLister/List", timeout=0.5)


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x00" * 64], ids=repr)
def test_whoever_speaks_no_grpc_is_refused(tmp_path: Path, said: bytes):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "k.sock"))
        server.listen()

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(said)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        with pytest.raises(CallFailed):
            call(tmp_path / "k.sock", "/v1.PodResourcesLister/List", timeout=5)
        thread.join(10)
