"""The sampler: what it says when NVML or the kubelet does not."""

import pytest

from moorage.agent.grpc import CallFailed
from moorage.agent.nvml import NoDriver
from moorage.agent.sampler import SILENT_SECONDS, Sampler
from moorage.placement.gpu_report import Gpu, Holder, Slice

GPU = Gpu(0, "GPU-1", 3, "NVIDIA L4", 23034, 460, 9000, 13574, 37)
WHOSE = Holder("ns", "tiny", "engine")


class FakeDriver:
    def __init__(self) -> None:
        self.found: tuple[Gpu, ...] = (GPU,)
        self.gone = False
        self.reopened = 0

    def driver(self) -> str:
        return "580"

    def gpus(self) -> tuple[Gpu, ...]:
        if self.gone:
            raise NoDriver("the driver does not answer: Driver Not Loaded")
        return self.found

    def reopen(self) -> None:
        self.reopened += 1


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_gpus_bear_their_pods_by_uuid_or_device_file():
    driver = FakeDriver()
    driver.found = (GPU, Gpu(1, "GPU-2", 4, mig=True, slices=(Slice("MIG-1", 1, 1),)))
    held = {"GPU-1": (WHOSE,), "gpu-4": (Holder("ns", "dra", "c"),), "MIG-1": (WHOSE,)}
    report = Sampler("n", driver, lambda: held).report()
    assert [gpu.pods for gpu in report.gpus] == [(WHOSE,), (Holder("ns", "dra", "c"),)]
    assert report.gpus[1].slices[0].pods == (WHOSE,)


@pytest.mark.parametrize(
    ("offered", "hidden"),
    [
        ((), [False, False]),
        (("GPU-1",), [False, True]),
        (("GPU-1", "GPU-2"), [False, False]),
        (("nvidia0", "nvidia1"), [False, False]),
    ],
    ids=["nobody says", "one", "both", "GKE's own names"],
)
def test_what_a_device_plugin_does_not_offer_is_hidden(offered, hidden):
    driver = FakeDriver()
    driver.found = (GPU, Gpu(1, "GPU-2", 4))
    report = Sampler("n", driver, dict, lambda: frozenset(offered)).report()
    assert [gpu.hidden for gpu in report.gpus] == hidden


def test_a_lost_driver_is_reported_and_looked_for_again():
    driver = FakeDriver()
    sampler = Sampler("n", driver, dict)
    driver.gone = True
    sampler.sample()
    assert "Driver Not Loaded" in sampler.report().problem
    assert sampler.report().gpus == ()
    assert driver.reopened == 0, "it was open until now"
    driver.gone = False
    sampler.sample()
    assert driver.reopened == 1
    assert (sampler.report().problem, sampler.report().gpus) == ("", (GPU,))


def test_a_silent_kubelet_leaves_the_numbers_and_says_that_owners_are_unknown():
    def away() -> dict[str, tuple[Holder, ...]]:
        raise CallFailed("no such socket")

    report = Sampler("n", FakeDriver(), away).report()
    assert report.gpus == (GPU,)
    assert report.pods_problem == "no such socket"


def test_a_hanging_driver_makes_the_report_old_and_then_a_problem():
    clock = Clock()
    sampler = Sampler("n", FakeDriver(), dict, clock=clock)
    clock.now = 3.0
    assert (sampler.report().age_ms, sampler.report().problem) == (3000, "")
    clock.now = SILENT_SECONDS + 1
    assert "has not answered for 11 s" in sampler.report().problem
