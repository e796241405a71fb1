"""What a Model's own past tells about its memory: what it really held, and what was not enough.

Kept in `status.memory.learned`, so that a restart of the operator finds it, and only for as long as what shapes the
need (files, engine, image, settings, arguments) stays the same. It enters plans as a ratio to the estimate, so that it
holds for other numbers of GPUs and, in remedies, for other settings too.
"""

from collections.abc import Iterator
from datetime import timedelta

from moorage import names
from moorage.api.conditions import ModelCondition as C
from moorage.api.model_status import Confidence, LearnedStatus, MemoryStatus
from moorage.engines.failures import OutOfMemory, Ran, out_of_memory
from moorage.placement import memory as gpu_memory
from moorage.placement.gpu_report import SILENT_MS, used_by_pod
from moorage.planning import text
from moorage.planning.model_engine import engine_of, image_of, serving_of
from moorage.planning.model_pass import ModelPass
from moorage.planning.startup import moment
from moorage.planning.types import Manifest

MIB = 1 << 20
MARGIN_MIB = 256
"""On top of what was seen in use: the next start may be a little larger."""
NEWS_MIB = 32
"""Growth that is worth a write of the status."""
LOOKING = timedelta(minutes=2)
"""How long after its start a server's memory is waited for."""
TRIES = 2
"""Starts that may run out of GPU memory: the planned one, and one with more room."""
LASTING = 3
"""A server that had served and died this often without becoming ready again will not by itself."""
IN_PLACE_PERCENT = 90
"""Less than this of weights and cache in GPU memory, and some of it is elsewhere."""
_SHAPING = {"llama_cpp", "vllm", "args", "env", "env_from"}
"""Fields of a spec that change what its engine needs, beside those that `Serving` holds."""
_PLAN_FAILED = (Ran.GPU_MEMORY, Ran.CACHE_MEMORY)


def learn(step: ModelPass) -> None:
    """Bring `status.memory.learned` up to date from the pods' last words and the agents' reports."""
    memory = step.status.memory or MemoryStatus()
    inputs, restart = inputs_of(step), step.model.metadata.annotations.get(names.RESTART_AT, "")
    learned = memory.learned
    if learned is None or learned.inputs_hash != inputs:
        learned, memory.observed_mib = LearnedStatus(inputs_hash=inputs), None
    if restart and (learned.restarted_at or "") != restart:  # a person wants it tried again as it is
        gpus, observed = learned.gpus, learned.observed_gpu_mib
        learned = LearnedStatus(inputs_hash=inputs, restarted_at=restart, gpus=gpus, observed_gpu_mib=observed)
    memory.learned, step.status.memory = learned, memory
    _ran_out(step, learned)
    _observe(step, memory, learned)
    if not any(pod["node"] for pod in step.servers) and not engine_of(step).fills_gpu:
        _adopt(memory, learned)


def planned(step: ModelPass, gpus: int, estimate_mib: int) -> int:
    """MiB to plan on each of `gpus` GPUs where the formula says `estimate_mib` (0: it says nothing)."""
    learned = step.status.memory.learned if step.status.memory else None
    if learned is None or not learned.least_gpu_mib:
        return estimate_mib
    if not estimate_mib or not learned.estimated_gpu_mib:
        return max(estimate_mib, learned.least_gpu_mib)
    return max(estimate_mib, -(-estimate_mib * learned.least_gpu_mib // learned.estimated_gpu_mib))


def exhausted(step: ModelPass) -> str | None:
    """Why no further start is tried, with the numbers; None: one may be."""
    learned = step.status.memory.learned if step.status.memory else None
    if learned is None or not learned.out_of_memory:
        return None
    gpu = step.model.spec.accelerator
    if gpu.memory_per_gpu_override:
        return f"{learned.message}; raise spec.accelerator.memoryPerGPUOverride ({gpu.memory_per_gpu_override}){_ELSE}"
    return f"{learned.message}, also with more room{_ELSE}" if learned.out_of_memory >= TRIES else None


_ELSE = f", or lower contextLength or maxSequences; to try again as it is, annotate {names.RESTART_AT}"


def history(step: ModelPass) -> str:
    """What went wrong before this plan, as a beginning of its message; empty where nothing did."""
    learned = step.status.memory.learned if step.status.memory else None
    return f"{learned.message}; " if learned and learned.out_of_memory else ""


def inputs_of(step: ModelPass) -> str:
    """Hash of what shapes the memory that a replica needs, apart from how many GPUs share it."""
    spec, source, defaults = step.model.spec, step.source, step.seen.defaults
    engine, serving = engine_of(step), serving_of(step)
    image = spec.image or [defaults.engine_image(engine.name, vendor) for vendor in ("Nvidia", "AMD")]
    image = image_of(step) if step.seen.deployment else image  # a newer image of the chart waits, what runs goes on
    options = spec.model_dump(mode="json", include=_SHAPING, exclude_none=True, exclude_defaults=True)
    shape = [serving.context_length, serving.max_sequences, serving.kv_cache_type, options]
    files = [file for file in (source.main_file, source.projector_file) if file]
    return names.digest([source.resolved_revision, *files, engine.name, image, shape])


# -- starts that ran out ----------------------------------------------------------------------------------------------


def _ran_out(step: ModelPass, learned: LearnedStatus) -> None:
    """Count each template of which a pod ran out of GPU memory once, however often and in how many pods it did.

    Where one of its servers is ready, or was and has only died since, the plan is not what is wrong: the kubelet starts
    the container again, and what serves is never moved for another's sake.
    """
    if any(pod["ready"] for pod in step.servers):
        return
    live = step.seen.deployment or {}
    served = step.status.template is not None and step.status.template == live.get("inputsHash")
    for pod, found in _last_words(step.servers):
        template = str(pod.get("templateHash") or pod["uid"])
        restarts = sum(container.get("restarts", 0) for container in pod["containers"])
        if found.ran not in _PLAN_FAILED or template in learned.templates or (served and restarts < LASTING):
            continue
        learned.templates = [*learned.templates, template]
        learned.out_of_memory = (learned.out_of_memory or 0) + 1
        _raise_floor(step, learned, found)


def _last_words(pods: list[Manifest]) -> Iterator[tuple[Manifest, OutOfMemory]]:
    for pod in sorted(pods, key=lambda p: str(p.get("created") or "")):
        for container in pod.get("containers", ()):
            for ended in (container.get("terminated"), container.get("last")):
                if ended and ended.get("exitCode") and (found := out_of_memory(ended.get("message", ""))):
                    yield pod, found


def _raise_floor(step: ModelPass, learned: LearnedStatus, found: OutOfMemory) -> None:
    """An engine has its GPUs to itself, so all that they had was not enough."""
    memory, placed = step.status.memory or MemoryStatus(), step.status.placement
    before = max(memory.per_gpu_mib, default=0)
    size = (placed.gpu_memory_mib if placed else None) or 0
    had = gpu_memory.usable_mib(size) if size else before * 11 // 10
    learned.gpus = (placed.count if placed else None) or 1
    learned.least_gpu_mib = max(learned.least_gpu_mib or 0, had + 1)
    learned.estimated_gpu_mib = _estimated(memory, learned, before)
    plan = f"{text.size(before * MIB)} planned" if before else "no plan"
    where = f"on a {placed.gpu_class} GPU" if placed and placed.gpu_class else "on its GPU"
    learned.message = f"ran out of {found.ran.value} {where} ({plan}): {found.words}"


def _estimated(memory: MemoryStatus, learned: LearnedStatus, before: int) -> int | None:
    """The formula's share of the largest GPU, whatever was planned on top of it."""
    if not memory.estimated_mib or not memory.planned_mib:
        return learned.estimated_gpu_mib
    return before * memory.estimated_mib // memory.planned_mib


# -- what was really held ---------------------------------------------------------------------------------------------


def held(step: ModelPass) -> Iterator[tuple[int, ...]]:
    """MiB in use on each GPU of each ready server, where an agent has looked since it became ready."""
    for pod in step.servers:
        report = step.seen.gpu_reports.get(pod["node"])
        if not pod["ready"] or report is None or report.problem or report.age_ms > SILENT_MS:
            continue
        if (since := moment(pod.get("readyAt"))) and since > step.seen.now - timedelta(milliseconds=report.age_ms):
            continue
        if used := used_by_pod(report).get((pod.get("namespace", ""), pod["name"])):
            yield used


def unseen(step: ModelPass) -> bool:
    """Whether an agent is about to tell for the first time what a server holds that became ready lately."""
    if step.status.memory is None or step.status.memory.observed_mib:
        return False
    return any(
        pod["ready"] and pod["node"] in step.seen.gpu_reports and since > step.seen.now - LOOKING
        for pod in step.servers
        if (since := moment(pod.get("readyAt")))
    )


def _observe(step: ModelPass, memory: MemoryStatus, learned: LearnedStatus) -> None:
    """Keep the most that one replica held; while a rollout is on its way nobody knows which version it was."""
    if step.status.observed_generation != step.model.metadata.generation or not step.draft.true(C.UP_TO_DATE):
        return
    for used in held(step):
        if sum(used) >= (memory.observed_mib or 0) + NEWS_MIB:
            memory.observed_mib, learned.observed_gpu_mib = sum(used), max(used)
            learned.gpus = len(used)


def _adopt(memory: MemoryStatus, learned: LearnedStatus) -> None:
    """Nothing runs, so the next start is planned with what the last one held, if that was more than planned."""
    seen, before = learned.observed_gpu_mib, max(memory.per_gpu_mib, default=0)
    if seen and before and len(memory.per_gpu_mib) == learned.gpus and seen + MARGIN_MIB > before:
        learned.estimated_gpu_mib = _estimated(memory, learned, before)
        learned.least_gpu_mib = max(learned.least_gpu_mib or 0, seen + MARGIN_MIB)


def partly_on_cpu(step: ModelPass) -> str:
    """Words for a server that is not in GPU memory as it was planned to be; empty where none is.

    Engines take weights and cache before they are ready, and beside them a CUDA context and working buffers of several
    hundred MiB. So what is in use is more than weights and cache where all is well, and a tenth less than them is no
    inaccuracy: layers are missing. Of an architecture that is a guess only the weights are known.
    """
    memory = step.status.memory or MemoryStatus()
    cache = 0 if memory.confidence == Confidence.GUESS else memory.kv_mib or 0
    least = ((memory.weights_mib or 0) + cache) * IN_PLACE_PERCENT // 100
    for used in held(step):
        if sum(used) < least:
            and_cache = f" and {text.size(cache * MIB)} of cache" if cache else ""
            return (
                f"only {text.size(sum(used) * MIB)} of GPU memory are in use, where "
                f"{text.size((memory.weights_mib or 0) * MIB)} of weights{and_cache} should be: the engine runs partly "
                "or wholly on the CPU; its log says which layers"
            )
    return ""
