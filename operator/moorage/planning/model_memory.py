"""How much memory one replica of a Model needs: from the header facts in its status, by the sizing room's formulas."""

from moorage.api.model_status import Confidence, MemoryStatus
from moorage.planning import text
from moorage.planning.model_engine import AS_WRITTEN, Changes, check, engine_of, requantized, serving_of
from moorage.planning.model_learn import planned
from moorage.planning.model_pass import ModelPass
from moorage.sizing.need import MemoryNeed, need_by_size

MIB = 1024 * 1024
NO_HEADER = "the header of the files is not known"


def need(step: ModelPass, gpus: int, changes: Changes = AS_WRITTEN) -> MemoryNeed | None:
    """The need on `gpus` GPUs (0: CPU only): by the header, else by the size of the files; None while neither is known.

    Raises InvalidSpec where the engine would refuse the settings.
    """
    check(step)
    found = engine_of(step).need(requantized(step, changes.quantization, gpus), serving_of(step, changes), gpus)
    if found is None and step.source.size_bytes:
        return need_by_size(step.source.size_bytes, gpus, f"{step.source.unsized or NO_HEADER}; counted by the files")
    return found


def memory(step: ModelPass, gpus: int) -> MemoryStatus:
    """The status of the need and of what was learned; while nothing is known of the files, 1 GiB of host memory."""
    found, before = need(step, gpus), step.status.memory or MemoryStatus()
    if found is None:
        past = (before.observed_mib, before.learned) if gpus else (None, None)
        guess = MemoryStatus(host_mib=1024, confidence=Confidence.GUESS, reasons=[NO_HEADER])
        return guess.model_copy(update={"observed_mib": past[0], "learned": past[1]})
    host = found.host_mib + process_mib(step)
    sure = Confidence(found.confidence.value)
    if not gpus:
        return MemoryStatus(host_mib=host, confidence=sure, reasons=list(found.reasons))
    per_gpu = [planned(step, gpus, mib) for mib in found.per_gpu_mib]
    return MemoryStatus(
        estimated_mib=found.total_mib,
        planned_mib=found.total_mib + sum(per_gpu) - sum(found.per_gpu_mib),
        confidence=sure,
        reasons=list(found.reasons),
        weights_mib=found.weights_mib,
        kv_mib=found.kv_mib,
        compute_mib=found.compute_mib,
        overhead_mib=found.overhead_mib,
        margin_mib=found.margin_mib,
        host_mib=host,
        per_gpu_mib=per_gpu,
        observed_mib=before.observed_mib,
        learned=before.learned,
    )


def differs(step: ModelPass, gpus: int) -> str:
    """What a start would be planned with today, where that is not what the servers that run were planned with.

    Raises InvalidSpec where the engine would refuse the settings today.
    """
    found, ran = need(step, gpus), step.status.memory
    if found is None or ran is None or _surer(ran, found):
        return ""
    now = [planned(step, gpus, mib) for mib in found.per_gpu_mib] if gpus else [found.host_mib + process_mib(step)]
    before = ran.per_gpu_mib if gpus else [ran.host_mib or 0]
    planned_now, planned_then = text.size(sum(now) * MIB), text.size(sum(before) * MIB)
    if planned_now == planned_then or not sum(before):
        return ""
    return f"this version of Moorage would plan {planned_now}, not {planned_then}; that takes effect at the next start"


def _surer(ran: MemoryStatus, found: MemoryNeed) -> bool:
    """Whether less is known now than it was: a header is about to be read again."""
    return found.confidence.value == Confidence.GUESS.value != ran.confidence


def process_mib(step: ModelPass) -> int:
    """Host memory of the server itself."""
    return engine_of(step).process_mib


def vram(status: MemoryStatus | None) -> str | None:
    """GPU memory for a column: 9.9Gi on one GPU, 2x38Gi on two; None without GPUs."""
    if status is None or not status.per_gpu_mib:
        return None
    each = text.size(max(status.per_gpu_mib) * MIB)
    return each if len(status.per_gpu_mib) == 1 else f"{len(status.per_gpu_mib)}x{each}"
