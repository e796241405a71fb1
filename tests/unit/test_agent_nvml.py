"""NVML through pynvml: the stub library for what it can show, replaced functions for old drivers."""

import ctypes
from collections.abc import Iterator
from pathlib import Path

import pynvml
import pytest

from e2e.gpusim.machine import Machine, SimulatedGpu, SimulatedSlice, compile_stub, uuid
from moorage.agent.nvml import NoDriver, Nvml


@pytest.fixture(scope="session")
def stub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_stub(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    state = tmp_path / "gpus.txt"
    monkeypatch.setenv("NVML_SIM_STATE", str(state))
    monkeypatch.delenv("NVIDIA_VISIBLE_DEVICES", raising=False)
    yield Machine(state, [SimulatedGpu(uuid(1), total=24564, used=1530, utilization=37), SimulatedGpu(uuid(2))])
    pynvml.nvmlLib = None
    pynvml._nvmlGetFunctionPointer_cache.clear()


@pytest.fixture
def nvml(machine: Machine, stub: Path) -> Nvml:
    return Nvml(stub)


def test_memory_is_told_with_the_drivers_reserve_apart(nvml: Nvml):
    first, second = nvml.gpus()
    assert (first.index, first.minor, first.uuid) == (0, 0, uuid(1))
    assert (first.total_mib, first.reserved_mib, first.used_mib, first.free_mib) == (24564, 460, 1070, 23034)
    assert (first.product, first.utilization_percent, first.mig) == ("NVIDIA Simulated 24GB", 37, False)
    assert second.used_mib == 0
    assert nvml.driver() == "580.95.05"


def test_a_gpu_that_is_lost_is_reported_beside_the_others(nvml: Nvml, machine: Machine):
    machine.change(0, lost=True)
    first, second = nvml.gpus()
    assert (first.problem, first.total_mib) == ("GPU is lost", 0)
    assert second.problem == ""
    machine.change(0, lost=False)
    assert nvml.gpus()[0].problem == ""


def test_a_driver_that_goes_and_comes(nvml: Nvml, machine: Machine):
    machine.driver = ""
    machine.write()
    with pytest.raises(NoDriver, match="Driver Not Loaded"):
        nvml.gpus()
    with pytest.raises(NoDriver, match="does not answer"):
        nvml.reopen()
    machine.driver = "590.1"
    machine.write()
    nvml.reopen()
    assert nvml.driver() == "590.1"
    assert len(nvml.gpus()) == 2


def test_no_library_is_said_with_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pynvml, "nvmlLib", None)
    with pytest.raises(NoDriver, match=r"nowhere\.so"):
        Nvml(tmp_path / "nowhere.so")


def test_no_driver_behind_the_library(stub: Path, machine: Machine):
    machine.state.unlink()
    with pytest.raises(NoDriver, match="Driver Not Loaded"):
        Nvml(stub)


def test_drivers_before_510_know_one_number_for_used(nvml: Nvml, monkeypatch: pytest.MonkeyPatch):
    real = pynvml.nvmlDeviceGetMemoryInfo

    def old(handle: object, version: int | None = None) -> object:
        if version is not None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)
        return real(handle)

    monkeypatch.setattr(pynvml, "nvmlDeviceGetMemoryInfo", old)
    first = nvml.gpus()[0]
    assert (first.reserved_mib, first.used_mib) == (0, 1530)


def test_mig_devices_are_listed_with_memory_of_their_own(nvml: Nvml, machine: Machine):
    parts = (SimulatedSlice(0, "MIG-0", 9984, 1024), SimulatedSlice(2, "MIG-2", 9984, 0))
    machine.change(0, slices=parts)
    first, second = nvml.gpus()
    assert (first.mig, second.mig) == (True, False)
    assert [(s.uuid, s.total_mib, s.used_mib) for s in first.slices] == [("MIG-0", 9984, 1024), ("MIG-2", 9984, 0)]
    assert first.utilization_percent == -1


def test_the_stub_is_what_is_loaded(nvml: Nvml, stub: Path):
    assert isinstance(pynvml.nvmlLib, ctypes.CDLL)
    assert pynvml.nvmlLib._name == str(stub)
