"""The gate before a start: GPU memory that placement promises must also be free.

A GPU that no pod holds any more may still be full: the driver gives memory back late, and programs outside Kubernetes
ask nobody. Where a fresh report of the node's agent shows that, the start waits, a limited time; where there is no
agent, or it is silent, nothing is held up.

Every new server passes it: the first ones, further ones, and those of a new version. A Recreate rollout would make the
new pod the moment the old one is gone, so where an agent looks on, the old version is scaled to 0 first and the new one
comes through the gate.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from moorage import names
from moorage.api.conditions import Reason
from moorage.placement import memory, vendors
from moorage.placement.gpu_report import SILENT_MS, Gpu, GpuReport, Holder
from moorage.placement.inventory import Inventory
from moorage.placement.request import Decision
from moorage.planning import text
from moorage.planning.model_engine import asked_of, engine_of
from moorage.planning.model_pass import ModelPass
from moorage.planning.model_place import candidates, decision, owner
from moorage.planning.model_start import start_of
from moorage.planning.types import FreeMemory, PlannedEvent

MIB = 1 << 20
FRESH_MS = 5_000
"""A report this old still says what is free now."""
ASK_SECONDS = 5.0
"""How long a fresh report is waited for."""
_OVER = ("Failed", "Succeeded")


@dataclass(frozen=True)
class Held:
    """Why new servers may not start yet. `stops`: those that run have to go first, and hold the GPUs until then."""

    message: str
    reason: Reason = Reason.WAITING_FOR_MEMORY
    stops: bool = False


def held(step: ModelPass, *, changed: bool, surge: bool) -> Held | None:
    """What holds back the servers that are to start; None: nothing does, or none are.

    `changed`: the template is another one than the live one's; `surge`: its pods start while the old ones run. Has the
    nodes' agents asked for as long as memory is waited for.
    """
    live, placed = step.seen.deployment, step.status.placement
    running = live["wanted"] if live else 0
    if not step.seen.defaults.memory_wait_seconds or not step.seen.gpu_reports:
        return None
    if placed is None or placed.vendor != vendors.NVIDIA or not step.replicas:
        return None
    if running >= step.replicas + step.surge and not changed:
        return None
    if changed and not surge and _watched(step):
        step.wake_in(SILENT_MS / 1000)  # by then an agent that says nothing more is not waited for
        return Held("the previous version stops; the new one starts when its memory is free", Reason.PENDING, True)
    beside = bool(running) and (surge or not changed)
    chosen = decision(step, candidates(step), replacing=False) if beside else step.decision
    why = _taken(step, chosen) if chosen else None
    return Held(why) if why else None


def _watched(step: ModelPass) -> bool:
    """Whether servers of the Model are still on nodes whose agents will tell what they leave behind."""
    live = (p for p in step.seen.pods if p["labels"].get(names.COMPONENT) == "server" and p["phase"] not in _OVER)
    return any(pod["node"] and _usable(step, pod["node"]) for pod in live)


def _taken(step: ModelPass, chosen: Decision) -> str | None:
    """What the GPUs of the planned nodes lack, or that nobody knows yet; None where they will do."""
    limit = step.seen.defaults.memory_wait_seconds
    if chosen.candidate is None or not chosen.candidate.mib or vendors.is_slice(chosen.resource):
        return None
    need = max(chosen.candidate.mib, engine_of(step).claim_mib(asked_of(step), start_of(step)))
    wanted = {node: servers * chosen.candidate.gpus for node, servers in Counter(chosen.nodes).items()}
    reports = {node: report for node in wanted if (report := _usable(step, node)) is not None}
    stale = sorted(node for node, report in reports.items() if report.age_ms > FRESH_MS)
    short = [
        words
        for node, report in sorted(reports.items())
        if node not in stale and (words := _short(tuple(_idle(step, report, node, chosen)), node, wanted[node], need))
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


def _short(idle: tuple[Gpu, ...], node: str, wanted: int, need_mib: int) -> str:
    """What is missing on a node, in numbers; empty where each of its idle GPUs has the memory free.

    Each, not just as many as are wanted: the kubelet and the device plugin choose, and know nothing of memory.
    """
    if len(idle) < wanted:
        missing = wanted - len(idle)
        return f"{node} has to free {missing} GPU{'s' if missing > 1 else ''}, which pods that end still hold"
    worst = min(idle, key=lambda gpu: gpu.free_mib)
    if worst.free_mib >= need_mib:
        return ""
    return (
        f"{node} needs {text.size(need_mib * MIB)} free on every GPU that no pod holds, because nobody chooses which "
        f"one it gets; GPU {worst.index} has {text.size(worst.free_mib * MIB)} free of "
        f"{text.size(worst.total_mib * MIB)}, the rest is not given back yet or in use by a program that Kubernetes "
        "does not know"
    )


def _idle(step: ModelPass, report: GpuReport, node: str, chosen: Decision) -> Iterator[Gpu]:
    """The GPUs that a pod might get: of a device plugin any that no pod holds, by DRA those that its claim admits."""
    need = chosen.candidate.mib if chosen.dra and chosen.candidate else 0
    lives = _lives(step, node)
    for gpu in report.gpus:
        never = gpu.problem or gpu.mig or (gpu.hidden and not chosen.dra)
        if not never and not any(map(lives, gpu.pods)) and memory.usable_mib(gpu.total_mib) >= need:
            yield gpu


def _lives(step: ModelPass, node: str) -> Callable[[Holder], bool]:
    """Whether a pod that a report names still is one; of those that are gone by now the kubelet gives the GPUs anew.

    A report may be seconds old, and kubelets before 1.34 list the GPUs of pods that have completed.
    """
    inventory, mine = step.seen.inventory or Inventory(()), owner(step)
    state = inventory.by_name.get(node)
    holders = {holder for pool in (state.pools if state else ()) for holder in inventory.holders(pool)} - {mine}
    own = {p["name"] for p in step.seen.pods if p["phase"] not in _OVER}

    def lives(holder: Holder) -> bool:
        if holder.namespace == step.model.metadata.namespace and holder.pod in own:
            return True
        if f"pod {holder.namespace}/{holder.pod}" in holders:
            return True
        return any(f"{holder.namespace}/{holder.pod}".startswith(f"{model}-") for model in holders)

    return lives
