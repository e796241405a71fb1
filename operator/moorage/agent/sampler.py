"""Takes the samples: NVML and the kubelet, every few seconds, in a thread of its own.

A driver in trouble can hang for minutes inside a call. The thread hangs with it and nothing else does: the last report
is still handed out, with its age, and past a limit it says that the driver does not answer.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from moorage.agent.grpc import CallFailed
from moorage.agent.nvml import NoDriver
from moorage.agent.podresources import Holders
from moorage.placement.gpu_report import Gpu, GpuReport

log = logging.getLogger(__name__)

PERIOD_SECONDS = 2.0
SILENT_SECONDS = 10.0
"""Older samples are reported with the problem that the driver does not answer."""


class Driver(Protocol):
    """What the sampler asks of NVML; all of it raises NoDriver."""

    def driver(self) -> str:
        """The driver's version."""
        ...

    def gpus(self) -> tuple[Gpu, ...]:
        """Every GPU with its memory now."""
        ...

    def reopen(self) -> None:
        """Look for a lost driver again."""
        ...


@dataclass(frozen=True)
class _Sample:
    report: GpuReport
    taken: float  # monotonic


class Sampler:
    """Samples `driver`, `whose` and `offered` (UUIDs; empty: not known) from `start` on; `report` never waits."""

    def __init__(
        self,
        node: str,
        driver: Driver,
        whose: Callable[[], Holders],
        offered: Callable[[], frozenset[str]] = frozenset,
        *,
        period: float = PERIOD_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._node, self._driver, self._whose = node, driver, whose
        self._offered = offered
        self._period, self._clock = period, clock
        self._lost = False
        self._sample = self._take()
        self._stop = threading.Event()

    def start(self) -> None:
        """Begin to sample; the thread dies with the process, even out of a call that never ends."""
        threading.Thread(target=self._run, name="sampler", daemon=True).start()

    def stop(self) -> None:
        """Take no further sample."""
        self._stop.set()

    def report(self) -> GpuReport:
        """The newest report, with its age."""
        sample = self._sample
        age = self._clock() - sample.taken
        report = replace(sample.report, age_ms=int(age * 1000))
        if age > SILENT_SECONDS and not report.problem:
            return replace(report, problem=f"NVML or the kubelet has not answered for {age:.0f} s")
        return report

    def sample(self) -> None:
        """Take one sample now."""
        self._sample = self._take()

    def _run(self) -> None:
        while not self._stop.wait(self._period):
            try:
                self.sample()
            except Exception:  # a defect: the report grows old and says so, and the next sample may do better
                log.exception("no sample could be taken")

    def _take(self) -> _Sample:
        began = self._clock()
        try:
            if self._lost:
                self._driver.reopen()
            version, gpus = self._driver.driver(), self._driver.gpus()
            self._found()
        except NoDriver as error:
            self._missed(error)
            return _Sample(GpuReport(self._node, 0, problem=str(error)), began)
        try:
            return _Sample(GpuReport(self._node, 0, version, _told(gpus, self._whose(), self._offered())), began)
        except CallFailed as error:
            return _Sample(GpuReport(self._node, 0, version, gpus, pods_problem=str(error)), began)

    def _missed(self, error: NoDriver) -> None:
        if not self._lost:
            log.error("%s", error)
        self._lost = True

    def _found(self) -> None:
        if self._lost:
            log.info("the driver answers again")
        self._lost = False


def _told(gpus: tuple[Gpu, ...], holders: Holders, offered: frozenset[str]) -> tuple[Gpu, ...]:
    """The GPUs with what the kubelet tells of them: the containers that hold them, by UUID (device plugin) or by
    device file (DRA), and whether a device plugin offers them.

    A plugin that calls its devices by other names (`nvidia0` on GKE) tells nothing of what it does not offer."""
    known = offered & {gpu.uuid for gpu in gpus}
    return tuple(
        replace(
            gpu,
            pods=(*holders.get(gpu.uuid, ()), *holders.get(f"gpu-{gpu.minor}", ())),
            slices=tuple(replace(part, pods=holders.get(part.uuid, ())) for part in gpu.slices),
            hidden=bool(known) and gpu.uuid not in known and not gpu.mig,
        )
        for gpu in gpus
    )
