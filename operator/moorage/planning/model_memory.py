"""How much memory one replica of a Model needs: from the header facts in its status, by the sizing room's formulas."""

import json
from dataclasses import dataclass

from moorage.api.model_status import Confidence, MemoryStatus
from moorage.engines import llamacpp
from moorage.errors import InvalidSpec
from moorage.planning import text
from moorage.planning.model_pass import ModelPass
from moorage.sizing.llamacpp import LlamaSettings, llama_need
from moorage.sizing.model import LlamaModel
from moorage.sizing.need import MemoryNeed

MIB = 1024 * 1024
PROCESS_MIB = 512
"""Host memory of llama-server itself: program, libraries, HTTP threads and what it parses."""


def context_length(step: ModelPass) -> int:
    """Tokens of one request: as asked for, else what the model was trained for, 8192 at most."""
    trained = step.source.context_length or llamacpp.DEFAULT_CONTEXT
    return step.model.spec.context_length or min(trained, llamacpp.DEFAULT_CONTEXT)


def check_context(step: ModelPass) -> None:
    """Refuse a context that the model was not trained for: llama-server would cut it without a word.

    Raises InvalidSpec. Who stretches it by rope scaling says so in args, and is believed.
    """
    wanted, trained = step.model.spec.context_length, step.source.context_length
    stretched = any(arg.startswith(("--rope", "--yarn")) for arg in step.model.spec.args)
    if wanted and trained and wanted > trained and not stretched:
        raise InvalidSpec(
            "InvalidSpec",
            f"spec.contextLength {wanted} is more than the {trained} tokens the model was trained for; lower it, or "
            "stretch it with rope scaling in spec.args",
        )


def sequences(step: ModelPass) -> int:
    """Requests served at once."""
    return step.model.spec.max_sequences or llamacpp.DEFAULT_SEQUENCES


@dataclass(frozen=True)
class Changes:
    """Other settings than the spec's, for finding out what would fit; 0 and empty: as the spec says."""

    context_length: int = 0
    max_sequences: int = 0
    kv_cache_type: str = ""


AS_WRITTEN = Changes()


def need(step: ModelPass, gpus: int, changes: Changes = AS_WRITTEN) -> MemoryNeed | None:
    """The need on `gpus` GPUs (0: CPU only); None where the header is not known.

    Raises InvalidSpec where llama.cpp would refuse the settings.
    """
    check_context(step)
    header = step.source.header
    if not header:
        return None
    spec, options = step.model.spec, step.model.spec.llama_cpp
    parallel, cache = changes.max_sequences or sequences(step), changes.kv_cache_type or spec.kv_cache_type.value
    return llama_need(
        LlamaModel.from_json(json.loads(header)),
        LlamaSettings(
            ctx_size=(changes.context_length or context_length(step)) * parallel,
            parallel=parallel,
            kv_unified=options.unified_kv_cache if options else False,
            cache_type_k=cache,
            cache_type_v=cache,
            ubatch_size=options.ubatch_size if options else 512,
            flash_attention=options.flash_attention if options else True,
            gpu_layers=options.gpu_layers if options and gpus else None if gpus else 0,
            gpus=max(gpus, 1),
        ),
    )


def memory(step: ModelPass, gpus: int) -> MemoryStatus:
    """The status of the need; without a header the files, a tenth and 1 GiB for the program: a guess, and says so."""
    found = need(step, gpus)
    size = step.source.size_bytes or 0
    if found is None:
        return MemoryStatus(host_mib=int(size * 1.1) // MIB + 1024, confidence=Confidence.GUESS)
    host = found.host_mib + PROCESS_MIB + llamacpp.PROMPT_CACHE_MIB
    if not gpus:
        return MemoryStatus(host_mib=host, confidence=Confidence(found.confidence.value))
    return MemoryStatus(
        estimated_mib=found.total_mib,
        planned_mib=found.total_mib,
        confidence=Confidence(found.confidence.value),
        weights_mib=found.weights_mib,
        kv_mib=found.kv_mib,
        compute_mib=found.compute_mib,
        overhead_mib=found.overhead_mib,
        margin_mib=found.margin_mib,
        host_mib=host,
        per_gpu_mib=list(found.per_gpu_mib),
    )


def vram(status: MemoryStatus | None) -> str | None:
    """GPU memory for a column: 9.9Gi on one GPU, 2x38Gi on two; None without GPUs."""
    if status is None or not status.per_gpu_mib:
        return None
    each = text.size(max(status.per_gpu_mib) * MIB)
    return each if len(status.per_gpu_mib) == 1 else f"{len(status.per_gpu_mib)}x{each}"
