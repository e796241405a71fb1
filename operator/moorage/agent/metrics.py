"""The agent's numbers for Prometheus, made from the newest report when somebody asks."""

from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from moorage.placement.gpu_report import Gpu, GpuReport, Holder

MIB = 1 << 20
_LABELS = ("gpu", "product", "namespace", "pod", "container")


class AgentCollector(Collector):
    """Memory in bytes; a GPU that nobody holds has empty pod labels, one that several share bears the first holder's.

    MIG devices are told apart by their own UUID in the label `gpu`.
    """

    def __init__(self, report: Callable[[], GpuReport]) -> None:
        self._report = report

    def collect(self) -> Iterable[Metric]:
        """One family per number, one series per GPU."""
        report = self._report()
        used = GaugeMetricFamily("moorage_gpu_memory_used_bytes", "GPU memory that programs use.", labels=_LABELS)
        total = GaugeMetricFamily("moorage_gpu_memory_total_bytes", "GPU memory as NVML counts it.", labels=_LABELS)
        busy = GaugeMetricFamily(
            "moorage_gpu_utilization_ratio", "Share of time in which a kernel ran.", labels=_LABELS
        )
        healthy = GaugeMetricFamily("moorage_gpu_healthy", "1 while the driver can tell about the GPU.", labels=_LABELS)
        for gpu in report.gpus:
            labels = _labels(gpu.uuid, gpu.product, gpu.pods)
            healthy.add_metric(labels, 0 if gpu.problem else 1)
            for device_labels, mib_used, mib_total in _memory(gpu):
                used.add_metric(device_labels, mib_used * MIB)
                total.add_metric(device_labels, mib_total * MIB)
            if gpu.utilization_percent >= 0:
                busy.add_metric(labels, gpu.utilization_percent / 100)
        yield from (used, total, busy, healthy)
        age = report.age_ms / 1000
        yield GaugeMetricFamily("moorage_gpu_sample_age_seconds", "How old these numbers are.", value=age)
        up = 0 if report.problem else 1
        yield GaugeMetricFamily("moorage_gpu_driver_up", "1 while the driver answers.", value=up)
        known = 0 if report.pods_problem else 1
        yield GaugeMetricFamily("moorage_gpu_pods_known", "1 while the kubelet tells whose the GPUs are.", value=known)


def _memory(gpu: Gpu) -> Iterator[tuple[list[str], int, int]]:
    if gpu.problem:
        return
    yield _labels(gpu.uuid, gpu.product, gpu.pods), gpu.used_mib, gpu.total_mib
    for part in gpu.slices:
        yield _labels(part.uuid, gpu.product, part.pods), part.used_mib, part.total_mib


def _labels(uuid: str, product: str, pods: tuple[Holder, ...]) -> list[str]:
    first = pods[0] if pods else Holder("", "", "")
    return [uuid, product, first.namespace, first.pod, first.container]


def registry(report: Callable[[], GpuReport]) -> CollectorRegistry:
    """What `/metrics` shows: the GPUs and the process itself."""
    made = CollectorRegistry()
    made.register(AgentCollector(report))
    ProcessCollector(registry=made)
    return made


def render(made: CollectorRegistry) -> bytes:
    """All of it in the text format."""
    return generate_latest(made)
