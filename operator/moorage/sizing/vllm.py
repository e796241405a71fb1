"""How much GPU memory vLLM needs for a model, and how to tell it to keep to that.

vLLM measures itself at start and gives the rest of `--gpu-memory-utilization` to the cache; here the cache is what the
plan wants, and utilisation follows. The constants are fitted to published measurements (llm-d-planner on H100, KAITO);
they change between minor versions, so each set names the version it holds from.
"""

import math
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from moorage.errors import InvalidSpec
from moorage.sizing.model import Confidence
from moorage.sizing.need import GIB, MIB, MemoryNeed, nearest_mib, up_mib
from moorage.sizing.transformer import TransformerModel

BLOCK: Final = 16
"""Tokens of one cache block."""
VOCABULARY_PADDING: Final = 64
"""vLLM pads the vocabulary so that it divides evenly (DEFAULT_VOCAB_PADDING_SIZE)."""
LOADED_FACTOR: Final = 1.02
"""Memory after loading over bytes in files (KAITO's presets)."""
MARGIN_MIB: Final = 256
"""With it the activation formula is an upper bound on all 21 measured architectures but never 0.6 GiB over."""
EXPERTS_GIB: Final = 0.3
"""What a model with experts takes beside its activations."""
HOST_GIB: Final = 2
"""A planning value for the front end and the engine's own process in host memory: Python, PyTorch, tokenizers."""
WORKER_GIB: Final = 2
"""The same for the process of each GPU: its libraries, the CUDA context's side on the host, pinned buffers."""
SHARED_GIB: Final = 1
"""Of /dev/shm for each GPU; what lies there counts as the pod's memory."""

CPU_HOST_GIB: Final = 2
"""The same on CPUs (measured: 1.5 GB in all with a model of 0.3 MB and 64 MiB of cache, version 0.32)."""


class Constants(NamedTuple):
    """What one range of versions takes, in GiB unless named.

    sampler      f32 copies of the logits of all sequences alive in the warm-up of the sampler
    other        memory that PyTorch does not see (NCCL buffers above all), on one GPU and on each of several
    context      CUDA context, outside of what utilisation counts
    graphs       CUDA graphs; `graphs_counted`: inside of what utilisation counts
    """

    sampler: float
    other: float
    other_parallel: float
    context: float
    graphs: float
    graphs_counted: bool


CONSTANTS: Final[dict[tuple[int, int], Constants]] = {
    (0, 11): Constants(9.75, 0.15, 0.6, 0.55, 1.0, False),
    (0, 17): Constants(3.75, 0.25, 0.6, 0.55, 1.0, False),
    (0, 18): Constants(3.75, 0.25, 2.1, 0.55, 1.0, False),
    (0, 21): Constants(3.75, 0.25, 2.1, 0.55, 1.0, True),
}
"""By the minor version they hold from."""
NEWEST: Final = (0, 32)
"""The newest version that they are known to hold for: the pinned one, which every argument is checked against."""


@dataclass(frozen=True)
class VllmSettings:
    """The arguments of vLLM that decide about memory.

    context_length      `--max-model-len`
    full_sequences      requests of that length the cache must hold at once (vLLM serves more, shorter ones)
    max_sequences       `--max-num-seqs`
    max_batched_tokens  `--max-num-batched-tokens`
    cache_type          auto | fp8
    tensor_parallel     GPUs
    version             major and minor; None: the newest known
    cpu_offload_gib     `--cpu-offload-gb`: of each GPU's weights, in host memory instead
    host_gib            further host memory that arguments ask for
    """

    context_length: int
    full_sequences: int = 4
    max_sequences: int = 64
    max_batched_tokens: int = 2048
    cache_type: str = "auto"
    tensor_parallel: int = 1
    enforce_eager: bool = False
    version: tuple[int, int] | None = None
    cpu_offload_gib: float = 0
    host_gib: float = 0


class VllmPlan(NamedTuple):
    """A need with what vLLM must be told to keep to it, for each GPU."""

    need: MemoryNeed
    kv_cache_bytes: int
    claimed_bytes: int

    def utilization(self, visible_mib: int, given_mib: int) -> float:
        """`--gpu-memory-utilization` that keeps vLLM to `given_mib` of the `visible_mib` that CUDA shows of a GPU.

        Less than `given_mib` by what vLLM does not count (its CUDA context), and rounded down to a thousandth.
        """
        return math.floor(1000 * max(given_mib - self.uncounted_mib, 0) / visible_mib) / 1000

    @property
    def uncounted_mib(self) -> int:
        """What it holds on each GPU beside what it counts."""
        return max(self.need.per_gpu_mib) - self.claimed_bytes // MIB


def constants_for(version: tuple[int, int] | None) -> Constants:
    """The constants of a version: those of the newest version that is not newer (the oldest for still older ones)."""
    held = [since for since in CONSTANTS if version is None or since <= version]
    return CONSTANTS[max(held, default=min(CONSTANTS))]


def judged(model: TransformerModel, version: tuple[int, int] | None, why: str = "") -> TransformerModel:
    """`model` with its confidence lowered where no constants are known for `version`, or (`why`) nobody knows it."""
    newest, oldest = (".".join(map(str, known)) for known in (NEWEST, min(CONSTANTS)))
    told = f"vLLM {version[0]}.{version[1]}" if version else ""
    if why:
        found = (Confidence.GUESS, f"{why}; the figures of vLLM {newest} are used")
    elif version and version > NEWEST:
        found = (Confidence.BOUNDED, f"{told} was not seen; the figures of {newest} are used")
    elif version and version < min(CONSTANTS):
        found = (Confidence.GUESS, f"{told} is older than all figures; those of {oldest} are used")
    else:
        return model
    confidence = Confidence.GUESS if model.confidence == Confidence.GUESS else found[0]
    return replace(model, confidence=confidence, reasons=(*model.reasons, found[1]))


def vllm_plan(model: TransformerModel, settings: VllmSettings) -> VllmPlan:
    """Memory for `model` under `settings`; raises InvalidSpec where vLLM would refuse them."""
    check(model, settings)
    constants, gpus = constants_for(settings.version), settings.tensor_parallel
    whole = model.weight_bytes / gpus * LOADED_FACTOR
    weights = max(whole - settings.cpu_offload_gib * GIB, 0)
    cache = cache_bytes(model, settings)
    activation = activation_bytes(model, settings)
    graphs = 0 if settings.enforce_eager else constants.graphs * GIB
    other = (constants.other if gpus == 1 else constants.other_parallel) * GIB
    compute_mib, overhead_mib = up_mib(activation + graphs), up_mib(other + constants.context * GIB)
    margin_mib = (
        max(MARGIN_MIB, up_mib((weights + cache) * 0.1)) if model.confidence == Confidence.GUESS else MARGIN_MIB
    )
    processes = HOST_GIB + (WORKER_GIB + SHARED_GIB) * gpus + settings.host_gib
    each = nearest_mib(weights) + nearest_mib(cache) + compute_mib + overhead_mib + margin_mib
    need = MemoryNeed(
        weights_mib=nearest_mib(weights * gpus),
        kv_mib=nearest_mib(cache * gpus),
        compute_mib=compute_mib * gpus,
        overhead_mib=overhead_mib * gpus,
        margin_mib=margin_mib * gpus,
        per_gpu_mib=(each,) * gpus,
        host_mib=up_mib(processes * GIB + (whole - weights) * gpus),
        confidence=model.confidence,
        reasons=model.reasons,
    )
    claimed = weights + cache + activation + other + margin_mib * MIB + (graphs if constants.graphs_counted else 0)
    return VllmPlan(need, cache, math.ceil(claimed))


def vllm_cpu_plan(model: TransformerModel, settings: VllmSettings) -> VllmPlan:
    """Host memory for `model` on CPUs; no GPU is claimed. Raises InvalidSpec where vLLM would refuse `settings`."""
    check(model, settings)
    cache = cache_bytes(model, settings)
    working = activation_bytes(model, settings)
    beside = (CPU_HOST_GIB + settings.host_gib) * GIB
    host_mib = up_mib(model.weight_bytes * LOADED_FACTOR + cache + working + beside)
    need = MemoryNeed(0, 0, 0, 0, 0, (), host_mib, model.confidence, model.reasons)
    return VllmPlan(need, cache, 0)


def check(model: TransformerModel, settings: VllmSettings) -> None:
    """Raises InvalidSpec for what vLLM refuses, in words that say what to change."""
    numbers = (settings.context_length, settings.full_sequences, settings.max_sequences, settings.max_batched_tokens)
    if min(numbers) < 1:
        raise InvalidSpec("InvalidSpec", "the context, the sequences and the batch must be positive")
    if settings.cache_type not in ("auto", "fp8"):
        raise InvalidSpec("InvalidSpec", f"vLLM has no cache type {settings.cache_type!r} here; it has auto and fp8")
    problem = tensor_parallel_problem(model, settings.tensor_parallel)
    if problem:
        raise InvalidSpec("InvalidSpec", problem)


def tensor_parallel_problem(model: TransformerModel, gpus: int) -> str:
    """Why `model` cannot be split over `gpus` GPUs, or an empty string.

    Heads, key-value heads, padded vocabulary and feed-forward rows must come out even (vllm/distributed/utils.py
    `divide`); fewer key-value heads than GPUs are replicated if they divide the GPUs.
    """
    if gpus < 1:
        return "the number of GPUs must be positive"
    vocabulary = -(-model.vocabulary // VOCABULARY_PADDING) * VOCABULARY_PADDING
    group = model.quantization_group or 1
    if model.heads % gpus:
        return f"{model.heads} attention heads cannot be shared out over {gpus} GPUs"
    if not model.latent_width and model.kv_heads % gpus and gpus % max(1, model.kv_heads):
        return f"{model.kv_heads} key-value heads cannot be shared out over {gpus} GPUs"
    if vocabulary % gpus:
        return f"a vocabulary of {vocabulary} cannot be shared out over {gpus} GPUs"
    if gpus > 1 and not model.experts and model.feed_forward % (gpus * group):
        return f"feed-forward rows of {model.feed_forward} in groups of {group} cannot be shared out over {gpus} GPUs"
    return ""


def cache_bytes(model: TransformerModel, settings: VllmSettings) -> int:
    """Bytes on each GPU of key-value cache for `full_sequences` requests of full length, in whole blocks, and of
    recurrent state for all sequences: vLLM refuses to start with fewer states than `--max-num-seqs`."""
    length = settings.context_length
    blocks = -(-length // BLOCK)
    windowed = min(blocks, -(-min(model.window - 1 + settings.max_batched_tokens, length) // BLOCK) + 1)
    layers_blocks = model.full_layers * blocks + model.window_layers * (windowed if model.window else blocks)
    states = settings.max_sequences * model.recurrent_layers * -(-model.state_bytes // settings.tensor_parallel)
    return settings.full_sequences * layers_blocks * BLOCK * token_bytes(model, settings) + states


def token_bytes(model: TransformerModel, settings: VllmSettings) -> int:
    """Bytes of one token in one layer on each GPU. Latents and heads fewer than GPUs are replicated."""
    size = 1 if settings.cache_type == "fp8" else model.cache_bytes_per_value
    if model.latent_width:
        return model.latent_width * size
    heads = max(1, model.kv_heads // settings.tensor_parallel)
    return heads * (model.key_length + model.value_length) * size


def activation_bytes(model: TransformerModel, settings: VllmSettings) -> int:
    """Peak of activations on each GPU, central estimate: the sampler's warm-up or the widest layer."""
    constants = constants_for(settings.version)
    sampler = constants.sampler * settings.max_sequences * model.vocabulary * 4
    row = 3 * model.feed_forward / settings.tensor_parallel + 6 * model.hidden
    widest = 2 * settings.max_batched_tokens * row
    return math.ceil(max(sampler, widest) + (EXPERTS_GIB * GIB if model.experts else 0))
