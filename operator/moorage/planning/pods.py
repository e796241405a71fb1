"""What is wrong with a pod, in words a person searches for. Pure readings of pod projections."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from moorage.api.conditions import Reason
from moorage.engines.failures import OutOfMemory, Ran, out_of_memory

DEADLINE = "ProgressDeadlineExceeded"
"""Why a Deployment's condition Progressing is False when a rollout took too long."""

_PULL = {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable"}
_CONFIG = {"CreateContainerConfigError", "CreateContainerError", "RunContainerError"}
_OOM_EXIT = 137
_MESSAGE_LIMIT = 600


@dataclass(frozen=True)
class Trouble:
    """Why a pod does not serve: a condition reason and a sentence."""

    reason: Reason
    message: str


def trouble(pod: dict[str, Any]) -> Trouble | None:
    """The trouble of one pod projection, None where it is fine or merely starting."""
    if pod.get("unschedulable"):
        return Trouble(Reason.UNSCHEDULABLE, f"no node takes the pod: {scheduler_words(pod['unschedulable'])}")
    if pod["phase"] == "Failed" and pod.get("reason") in {"UnexpectedAdmissionError", "Evicted", "NodeAffinity"}:
        return Trouble(Reason.UNSCHEDULABLE, f"pod was rejected by its node: {pod.get('message') or pod['reason']}")
    for container in pod.get("containers", ()):
        if found := _container_trouble(container):
            return found
    return None


def _container_trouble(container: dict[str, Any]) -> Trouble | None:
    waiting = container.get("waiting") or {}
    reason = waiting.get("reason", "")
    if reason in _PULL:
        return Trouble(Reason.IMAGE_PULL_FAILED, waiting.get("message") or f"the image cannot be pulled ({reason})")
    if reason in _CONFIG:
        return Trouble(Reason.INVALID_SPEC, f"the container cannot be made: {waiting.get('message') or reason}")
    ended = container.get("terminated") or (container.get("last") if not container.get("ready") else None)
    if ended is None or (ended.get("exitCode") == 0 and reason != "CrashLoopBackOff"):
        return None
    if ended.get("reason") == "OOMKilled" or ended.get("exitCode") == _OOM_EXIT:
        # Killed in the middle of something: the end of the log says nothing about it.
        what = f"container {container['name']} was killed for lack of host memory{_restarts(container)}"
        return Trouble(Reason.OUT_OF_MEMORY, f"{what}; raise resources.limits.memory, or ask for less context")
    if found := out_of_memory(ended.get("message", "")):
        return _ran_out(container, found)
    last = last_words(ended.get("message", ""))
    what = f"container {container['name']} exited with code {ended.get('exitCode')}{_restarts(container)}"
    return Trouble(Reason.CRASH_LOOP, f"{what}: {last}" if last else what)


def _ran_out(container: dict[str, Any], found: OutOfMemory) -> Trouble:
    """An engine that said itself what it had too little of."""
    remedy = {
        Ran.HOST_MEMORY: "; raise resources.limits.memory, or ask for less context",
        Ran.GPU_IN_USE: "; another program uses the GPU, it is tried again until that ends",
    }.get(found.ran, "")
    what = f"container {container['name']} ran out of {found.ran.value}{_restarts(container)}"
    return Trouble(Reason.OUT_OF_MEMORY, f"{what}: {found.words}{remedy}")


def _restarts(container: dict[str, Any]) -> str:
    """How often the container was started again, where it was."""
    times = container.get("restarts", 0)
    return f" ({times} restart{'s' if times > 1 else ''})" if times else ""


def scheduler_words(message: str) -> str:
    """kube-scheduler's message without what it adds about preemption, which repeats the first part."""
    return re.sub(r"\.? (no new claims to deallocate|preemption: ).*$", "", message.strip(), flags=re.DOTALL)


def last_words(log: str, limit: int = _MESSAGE_LIMIT) -> str:
    """The end of a log that says most: error lines where there are any, else the last three lines, at most `limit`."""
    lines = [line.strip() for line in log.strip().splitlines() if line.strip()]
    telling = [line for line in lines if any(w in line.lower() for w in ("error", "failed", "fatal", "abort"))]
    text = "; ".join((telling or lines)[-3:])
    return text if len(text) <= limit else "..." + text[-(limit - 3) :]


def first_trouble(pods: Iterable[dict[str, Any]]) -> Trouble | None:
    """The gravest trouble among `pods`, oldest pod first; what a person must mend outranks what may pass."""
    found = [t for pod in sorted(pods, key=lambda p: p.get("created") or "") if (t := trouble(pod))]
    order = [
        Reason.INVALID_SPEC,
        Reason.IMAGE_PULL_FAILED,
        Reason.OUT_OF_MEMORY,
        Reason.CRASH_LOOP,
        Reason.UNSCHEDULABLE,
    ]
    return min(found, key=lambda t: order.index(t.reason), default=None)
