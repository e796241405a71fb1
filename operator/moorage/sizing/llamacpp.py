"""How much memory llama.cpp needs for a model, by its own rules.

Weights and cache are arithmetic that agrees with llama.cpp to the byte. The compute buffer is what
`ggml_backend_sched_reserve` would find for the largest graph; the formulas give it from the widest point of each part
and were fitted to dry runs of llama.cpp without a GPU (`llama-fit-params` against a remote-procedure device). A test
runs the pinned llama.cpp again and compares.
"""

from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from moorage.errors import InvalidSpec
from moorage.sizing import architectures as arch
from moorage.sizing.ggml import TENSOR_TYPES
from moorage.sizing.model import Confidence, Layer, LlamaModel
from moorage.sizing.need import GIB, MIB, MemoryNeed, nearest_mib, up_mib
from moorage.sizing.projector import Projector

CACHE_TYPES: Final = {
    kind.name.lower(): kind
    for kind in TENSOR_TYPES.values()
    if kind.name in {"F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "IQ4_NL", "Q5_0", "Q5_1"}
}
"""What `--cache-type-k` and `--cache-type-v` take."""
MAX_SEQUENCES: Final = 256
"""LLAMA_MAX_SEQ."""
CELL_STEP: Final = 256
"""llama_context pads the cells of a cache to whole steps."""
OVERHEAD_MIB: Final = 512
LARGE_OVERHEAD_MIB: Final = 768
"""CUDA context (107 MiB on an RTX 4060 Ti, 555 on an RTX PRO 6000: llama.cpp #23604) and growth while serving
(90..140 MiB, context checkpoints: #23446). Contexts cost by the number of multiprocessors: large cards, large cost."""
LARGE_CARD: Final = 30 * GIB
"""A need beyond this goes to a card of 32 GiB or more."""
COMPUTE_SLACK: Final = (1.05, 24 * MIB)
"""Buffers differ between builds and backends: between two builds by -6..+34 %, measured on 25 models."""
PIPELINE_MASKS: Final = 3
PIPELINE_ROWS: Final = (13, 7)
"""With several GPUs the inputs of a graph exist four times (GGML_SCHED_MAX_COPIES): so many more masks, and rows of
one embedding per token, on a GPU without and on the one with the output. Measured on six models over two to four."""
HOST_ROWS: Final = (4, 10)
HOST_MASKS: Final = (1, 4)
HOST_SLACK: Final = 16 * MIB
"""The host's side of the graph with one GPU and with several: rows of one embedding per token, and masks."""


@dataclass(frozen=True)
class LlamaSettings:
    """The arguments of llama-server that decide about memory, by their names there.

    ctx_size        cells of the whole cache (`-c`), shared out over `parallel` unless `kv_unified`
    gpu_layers      None: all
    gpus            cards the layers are split over in equal shares (`--tensor-split 1,1,..`)
    outputs         tokens of a micro-batch that give logits; None: all of them (older builds). Builds of 2026 reserve
                    one for each slot, and none where the vectors of a text become one (embeddings, reranking)
    projector       the multimodal projector served beside the model (`--mmproj`); it lies on the first GPU, or in host
                    memory where no layer is on a GPU
    image_max_tokens  `--image-max-tokens`; 0: the projector's own limit
    projector_offload  False: the projector lies in host memory (`--no-mmproj-offload`)
    """

    ctx_size: int
    parallel: int = 1
    kv_unified: bool = False
    cache_type_k: str = "f16"
    cache_type_v: str = "f16"
    ubatch_size: int = 512
    flash_attention: bool = True
    swa_full: bool = False
    gpu_layers: int | None = None
    gpus: int = 1
    outputs: int | None = None
    projector: Projector | None = None
    image_max_tokens: int = 0
    projector_offload: bool = True


class Cells(NamedTuple):
    """Cells of one stream of the cache: of layers that see everything, and of those with a window.

    Where nothing is cached, the tokens of a micro-batch stand in: that is what attention sees.
    """

    full: int
    window: int
    streams: int


def llama_need(model: LlamaModel, settings: LlamaSettings) -> MemoryNeed:
    """Memory for `model` under `settings`; raises InvalidSpec where llama.cpp would refuse them."""
    check(model, settings)
    cells = cache_cells(model, settings)
    on_gpu = _shares(model, settings)
    gpus = [_gpu(model, settings, cells, share, first=at == 0) for at, share in enumerate(on_gpu)]
    reasons = list(model.reasons)
    confidence = model.confidence
    if settings.projector:
        reasons.append(settings.projector.reason)
        confidence = Confidence.BOUNDED if confidence == Confidence.EXACT else confidence
    return MemoryNeed(
        weights_mib=nearest_mib(sum(gpu.weights for gpu in gpus)),
        kv_mib=nearest_mib(sum(gpu.cache for gpu in gpus)),
        compute_mib=sum(gpu.compute_mib for gpu in gpus),
        overhead_mib=sum(gpu.overhead_mib for gpu in gpus),
        margin_mib=sum(gpu.margin_mib for gpu in gpus),
        per_gpu_mib=tuple(gpu.total_mib for gpu in gpus),
        host_mib=_host_mib(model, settings, cells, on_gpu),
        confidence=confidence,
        reasons=tuple(reasons),
    )


def check(model: LlamaModel, settings: LlamaSettings) -> None:
    """Raises InvalidSpec for what llama.cpp refuses, in words that say what to change."""
    if not 1 <= settings.parallel <= MAX_SEQUENCES:
        raise InvalidSpec(
            "InvalidSpec", f"{settings.parallel} parallel sequences: llama.cpp serves 1 to {MAX_SEQUENCES}"
        )
    if settings.ctx_size < settings.parallel or settings.ubatch_size < 1 or settings.gpus < 1:
        raise InvalidSpec("InvalidSpec", "the context, the micro-batch and the number of GPUs must be positive")
    for option, name in (("k", settings.cache_type_k), ("v", settings.cache_type_v)):
        kind = CACHE_TYPES.get(name)
        if kind is None:
            known = ", ".join(sorted(CACHE_TYPES))
            raise InvalidSpec("InvalidSpec", f"llama.cpp has no cache type {name!r}; it has {known}")
        if model.head_length % kind.block_values:
            raise InvalidSpec(
                "InvalidSpec",
                f"cache type {name} stores {kind.block_values} values at a time, but a {option} head of this model "
                f"has {model.head_length}",
            )
    if not settings.flash_attention and CACHE_TYPES[settings.cache_type_v].block_values > 1:
        raise InvalidSpec("InvalidSpec", f"a {settings.cache_type_v} cache for values needs flash attention")
    if model.latent_attention and settings.cache_type_k != settings.cache_type_v:
        raise InvalidSpec("InvalidSpec", "a model with latent attention needs one cache type for keys and values")


def cache_cells(model: LlamaModel, settings: LlamaSettings) -> Cells:
    """Cells of the cache, padded as llama_context does; a window needs room for a micro-batch too."""
    total = _padded(settings.ctx_size)
    full = total if settings.kv_unified else _padded(total // settings.parallel)
    window = max((layer.window for layer in model.layers), default=0)
    share = settings.parallel if settings.kv_unified else 1
    windowed = full if settings.swa_full else _padded(min(full, window * share + _ubatch(settings)))
    if model.architecture in arch.NO_CACHE:
        return Cells(_padded(_ubatch(settings)), 0, 1)
    sees_all = any(layer.key_width and not layer.window for layer in model.layers)
    return Cells(full if sees_all else 0, windowed if window else 0, 1 if settings.kv_unified else settings.parallel)


def layer_cache_bytes(layer: Layer, settings: LlamaSettings, cells: Cells, widest_value: int) -> int:
    """Bytes that one layer keeps: cache rows of all streams and f32 state of all sequences."""
    rows = (cells.window if layer.window else cells.full) * cells.streams
    # without flash attention values are stored transposed, every layer as wide as the widest
    value_width = layer.value_width if settings.flash_attention or not layer.value_width else widest_value
    cached = _row_bytes(layer.key_width, settings.cache_type_k) + _row_bytes(value_width, settings.cache_type_v)
    return rows * cached + 4 * layer.state * settings.parallel


def compute_bytes(model: LlamaModel, settings: LlamaSettings, cells: Cells, *, output: bool = True) -> int:
    """The largest compute buffer of one device in bytes, with slack for builds and backends.

    The widest of: the logits (where the device has the `output`), the feed-forward part, attention, a recurrent
    layer; each with the attention masks.
    """
    tokens = _ubatch(settings)
    masks, row = _mask_bytes(settings, cells), 4 * tokens * model.embedding
    given = 0 if model.architecture in arch.ENCODERS else settings.outputs
    outputs = tokens if given is None else min(tokens, given)
    held = 4 * row + (4 * tokens * model.input_values + row if model.input_values else 0)
    logits = held + 4 * outputs * model.vocabulary if output else 0
    parts = [4 * tokens * model.feed_forward_values, 4 * tokens * model.recurrent_values]
    if settings.flash_attention:
        parts += [logits, 4 * tokens * model.attention_values]
    else:
        cached = 2 * max(layer.key_width + layer.value_width for layer in model.layers)
        scores = model.heads * cells.full
        parts += [logits + 4 * tokens * cached + row, 4 * tokens * (model.plain_attention_values + scores)]
    copies = PIPELINE_MASKS * masks + PIPELINE_ROWS[output] * row if settings.gpus > 1 else 0
    factor, extra = COMPUTE_SLACK
    return round(factor * (max(parts) + masks + copies) + extra)


def _mask_bytes(settings: LlamaSettings, cells: Cells) -> int:
    """Attention masks of one graph: f16 with flash attention, f32 without."""
    return (2 if settings.flash_attention else 4) * _ubatch(settings) * (cells.full + cells.window)


class _Gpu(NamedTuple):
    """One GPU's part, bytes and MiB."""

    weights: int
    cache: int
    compute_mib: int
    overhead_mib: int
    margin_mib: int

    @property
    def total_mib(self) -> int:
        held = nearest_mib(self.weights) + nearest_mib(self.cache)
        return held + self.compute_mib + self.overhead_mib + self.margin_mib


def _shares(model: LlamaModel, settings: LlamaSettings) -> list[list[int]]:
    """Units (layers, then the output) on each GPU: the last `gpu_layers` of them in equal shares.

    llama_model_base::load_tensors: unit j of n goes to the GPU whose share of [0, 1) holds j / n.
    """
    count = model.units if settings.gpu_layers is None else min(settings.gpu_layers, model.units)
    shares: list[list[int]] = [[] for _ in range(settings.gpus if count else 0)]
    for at in range(count):
        shares[at * settings.gpus // count].append(model.units - count + at)
    return shares


def _gpu(model: LlamaModel, settings: LlamaSettings, cells: Cells, share: list[int], *, first: bool) -> _Gpu:
    weights, cache = _held(model, settings, cells, share)
    compute = compute_bytes(model, settings, cells, output=model.units - 1 in share)
    if first and settings.projector and settings.projector_offload:
        weights += settings.projector.weight_bytes
        compute += _encoder_bytes(settings.projector, settings)
    compute_mib = up_mib(compute)
    held = weights + cache + compute
    overhead = OVERHEAD_MIB if held < LARGE_CARD else LARGE_OVERHEAD_MIB
    floor, percent = (512, 10) if model.confidence == Confidence.GUESS else (256, 2)
    return _Gpu(weights, cache, compute_mib, overhead, max(floor, up_mib(held * percent / 100)))


def _held(model: LlamaModel, settings: LlamaSettings, cells: Cells, units: list[int]) -> tuple[int, int]:
    """Weights and cache of `units` in bytes."""
    widest = max((layer.value_width for layer in model.layers), default=0)
    layers = [model.layers[unit] for unit in units if unit < len(model.layers)]
    weights = sum(layer.weight_bytes for layer in layers)
    if model.units - 1 in units:
        weights += model.output_bytes
    return weights, sum(layer_cache_bytes(layer, settings, cells, widest) for layer in layers)


def _host_mib(model: LlamaModel, settings: LlamaSettings, cells: Cells, on_gpu: list[list[int]]) -> int:
    """The rest in host memory: inputs, layers that are not on a GPU, and the host's side of the graph."""
    away = {unit for share in on_gpu for unit in share}
    weights, cache = _held(model, settings, cells, [unit for unit in range(model.units) if unit not in away])
    several = settings.gpus > 1
    looked_up = HOST_ROWS[several] + (model.architecture in arch.NO_CACHE)  # positions beside tokens
    rows = 4 * _ubatch(settings) * (looked_up * model.embedding + model.input_values)
    masks = _mask_bytes(settings, cells) * (1 if settings.flash_attention else 2)  # cast on the host
    graph = rows + HOST_MASKS[several] * masks + HOST_SLACK
    if len(away) < model.units:
        graph += compute_bytes(model, replace(settings, gpus=1), cells)
    seeing = _projector_host_bytes(settings, on_gpu=bool(on_gpu))
    return up_mib(model.input_bytes + weights + cache + graph + seeing + 4 * model.vocabulary * settings.parallel)


def _encoder_bytes(projector: Projector, settings: LlamaSettings) -> int:
    return projector.compute_bytes(flash_attention=settings.flash_attention, image_max_tokens=settings.image_max_tokens)


def _projector_host_bytes(settings: LlamaSettings, *, on_gpu: bool) -> int:
    """The projector's part in host memory: all of it, or what a GPU leaves there."""
    projector = settings.projector
    if projector is None:
        return 0
    if not on_gpu or not settings.projector_offload:
        return projector.weight_bytes + _encoder_bytes(projector, settings)
    return projector.host_bytes(flash_attention=settings.flash_attention, image_max_tokens=settings.image_max_tokens)


def _ubatch(settings: LlamaSettings) -> int:
    """A micro-batch is never larger than the context."""
    return min(settings.ubatch_size, settings.ctx_size)


def _padded(cells: int) -> int:
    return -(-cells // CELL_STEP) * CELL_STEP


def _row_bytes(width: int, cache_type: str) -> int:
    kind = CACHE_TYPES[cache_type]
    return width * kind.block_bytes // kind.block_values
