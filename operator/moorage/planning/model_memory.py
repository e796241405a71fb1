"""How much memory one replica of a Model needs: from the header facts in its status, by the sizing room's formulas."""

from moorage.api.model_status import Confidence, MemoryStatus
from moorage.planning import text
from moorage.planning.model_engine import AS_WRITTEN, Changes, check, engine_of, requantized, serving_of
from moorage.planning.model_learn import planned
from moorage.planning.model_pass import ModelPass
from moorage.sizing.need import MemoryNeed

MIB = 1024 * 1024


def need(step: ModelPass, gpus: int, changes: Changes = AS_WRITTEN) -> MemoryNeed | None:
    """The need on `gpus` GPUs (0: CPU only); None where the header is not known.

    Raises InvalidSpec where the engine would refuse the settings.
    """
    check(step)
    return engine_of(step).need(requantized(step, changes.quantization, gpus), serving_of(step, changes), gpus)


def memory(step: ModelPass, gpus: int) -> MemoryStatus:
    """The status of the need and of what was learned; without a header the files, a tenth and 1 GiB for the program: a
    guess, and says so."""
    found, before = need(step, gpus), step.status.memory or MemoryStatus()
    size = step.source.size_bytes or 0
    if found is None:
        host = int(size * 1.1) // MIB + 1024
        past = (before.observed_mib, before.learned) if gpus else (None, None)
        guess = MemoryStatus(host_mib=host, confidence=Confidence.GUESS, reasons=["the header is not known"])
        return guess.model_copy(update={"observed_mib": past[0], "learned": past[1]})
    host = found.host_mib + engine_of(step).process_mib
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


def vram(status: MemoryStatus | None) -> str | None:
    """GPU memory for a column: 9.9Gi on one GPU, 2x38Gi on two; None without GPUs."""
    if status is None or not status.per_gpu_mib:
        return None
    each = text.size(max(status.per_gpu_mib) * MIB)
    return each if len(status.per_gpu_mib) == 1 else f"{len(status.per_gpu_mib)}x{each}"
