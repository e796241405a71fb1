"""The gate before a start: GPU memory that placement promises must also be free.

A GPU that no pod holds any more may still be full: the driver gives memory back late, and programs outside Kubernetes
ask nobody. Where a fresh report of the node's agent shows that, the start waits, a limited time; where there is no
agent, or it is silent, nothing is held up.
"""

from collections import Counter
from collections.abc import Iterator

from moorage.api.conditions import Reason
from moorage.placement.gpu_report import Gpu, GpuReport
from moorage.placement.vendors import NVIDIA
from moorage.planning import text
from moorage.planning.model_pass import ModelPass
from moorage.planning.types import FreeMemory, PlannedEvent

MIB = 1 << 20
FRESH_MS = 5_000
"""A report this old still says what is free now."""
SILENT_MS = 60_000
"""Older: the agent counts as silent, and nobody waits for it."""
ASK_SECONDS = 5.0
"""How long a fresh report is waited for."""


def taken(step: ModelPass) -> str | None:
    """Why the servers may not start yet; None: they may. Has the nodes' agents asked for as long as they may not."""
    limit = step.seen.defaults.memory_wait_seconds
    chosen = step.decision
    if not limit or chosen is None or chosen.candidate is None or chosen.vendor != NVIDIA or not chosen.candidate.mib:
        return None
    wanted = Counter(dict.fromkeys(chosen.nodes, 0))
    for node in chosen.nodes:
        wanted[node] += chosen.candidate.gpus
    reports = {node: report for node in wanted if (report := _usable(step, node)) is not None}
    stale = sorted(node for node, report in reports.items() if report.age_ms > FRESH_MS)
    short = [
        words
        for node, report in sorted(reports.items())
        if node not in stale and (words := _short(report, node, wanted[node], chosen.candidate.mib))
    ]
    waited = step.seen.waited_seconds
    if stale and waited < ASK_SECONDS:
        return _wait(step, tuple(wanted), f"asking the agent of {stale[0]} what its GPUs hold", ASK_SECONDS - waited)
    if not short:
        return None
    if waited < limit:
        return _wait(step, tuple(wanted), f"waiting for GPU memory: {'; '.join(short)}", limit - waited)
    message = f"GPU memory was not free within {limit} s, started all the same: {'; '.join(short)}"
    step.tell.append(PlannedEvent("Warning", Reason.WAITING_FOR_MEMORY.value, message))
    return None


def _wait(step: ModelPass, nodes: tuple[str, ...], message: str, seconds: float) -> str:
    step.ask.append(FreeMemory(nodes))
    step.wake_in(seconds)
    return message


def _usable(step: ModelPass, node: str) -> GpuReport | None:
    """The report of a node's agent if one can go by it: not too old, its driver and its kubelet answer."""
    report = step.seen.gpu_reports.get(node)
    if report is None or report.problem or report.pods_problem or report.age_ms > SILENT_MS:
        return None
    return report if any(not gpu.mig for gpu in report.gpus) else None


def _short(report: GpuReport, node: str, wanted: int, need_mib: int) -> str:
    """What is missing on a node, in numbers; empty where enough GPUs that no pod holds have the memory free."""
    idle = sorted(_idle(report), key=lambda gpu: -gpu.free_mib)
    if sum(gpu.free_mib >= need_mib for gpu in idle) >= wanted:
        return ""
    need, gpus = text.size(need_mib * MIB), "GPU" if wanted == 1 else "GPUs"
    if len(idle) < wanted:
        return f"{node} has to free {wanted - len(idle)} {gpus}, which pods that end still hold"
    worst = idle[wanted - 1]
    return (
        f"{node} needs {need} free on {wanted} {gpus} that no pod holds; GPU {worst.index} has "
        f"{text.size(worst.free_mib * MIB)} free of {text.size(worst.total_mib * MIB)}, the rest is not given back yet "
        "or in use by a program that Kubernetes does not know"
    )


def _idle(report: GpuReport) -> Iterator[Gpu]:
    return (gpu for gpu in report.gpus if not gpu.pods and not gpu.problem and not gpu.mig)
