"""From a GGUF header to what llama.cpp will load and run: `LlamaModel`."""

import re
from typing import Final, NamedTuple

from moorage.sizing import architectures as arch
from moorage.sizing import limits
from moorage.sizing.errors import HeaderError
from moorage.sizing.gguf import GgufHeader, Tensor
from moorage.sizing.hparams import Hparams
from moorage.sizing.layers import HeadLengths, is_latent, kv_heads, memories
from moorage.sizing.model import Confidence, Layer, LlamaModel
from moorage.sizing.text import clean

_BLOCK: Final = re.compile(r"blk\.(\d{1,4})\.")
_INPUTS: Final = ("token_embd.", "position_embd.", "token_types.", "per_layer_token_embd.")
"""LLM_TENSOR_LAYER_INPUT in src/llama-arch.cpp: looked up by row, so they stay in host memory."""
_POOLING_LAST: Final = 3
"""LLAMA_POOLING_TYPE_LAST in include/llama.h's enum llama_pooling_type."""


def model_of(header: GgufHeader) -> LlamaModel:
    """What llama.cpp will load and run for `header` (of a split file: of all its parts, see `join_parts`).

    Raises HeaderError where a number that the formulas need is missing or impossible.
    """
    hparams = Hparams(header)
    weights = _Weights(header.tensors, hparams)
    lengths = HeadLengths.of(hparams)
    looked_up = hparams.number("embedding_length_per_layer_input") * hparams.layer_count
    aside = 2 * looked_up + hparams.required("embedding_length") if looked_up else 0
    confidence, reasons = _confidence(hparams)
    model = LlamaModel(
        architecture=clean(hparams.architecture, 64),
        context_length=hparams.number("context_length"),
        embedding=hparams.required("embedding_length"),
        vocabulary=hparams.vocabulary() or weights.vocabulary,
        heads=max(hparams.per_layer("attention.head_count")),
        head_length=lengths.key,
        attention_values=_attention_values(hparams, lengths) + aside,
        plain_attention_values=_plain_attention_values(hparams, lengths) + aside,
        feed_forward_values=_feed_forward_values(hparams, weights.widths) + aside,
        recurrent_values=_recurrent_values(hparams),
        input_values=looked_up,
        latent_attention=is_latent(hparams),
        layers=tuple(
            Layer(size, memory.key_width, memory.value_width, memory.window, memory.state)
            for size, memory in zip(weights.layers, memories(hparams), strict=True)
        ),
        idle_layers=hparams.idle_layers,
        input_bytes=weights.inputs,
        output_bytes=weights.output,
        confidence=confidence,
        reasons=reasons,
        pools_last=header.metadata.get(f"{hparams.architecture}.pooling_type") == _POOLING_LAST,
    )
    _check(model)
    return model


def _check(model: LlamaModel) -> None:
    """Raises HeaderError where products of believable numbers make an unbelievable model."""
    limits.at_most("values", "a token's embedding", model.embedding, limits.MAX_EMBEDDING)
    limits.at_most("tokens", "the vocabulary", model.vocabulary, limits.MAX_VOCABULARY)
    limits.at_most("heads", "a layer", model.heads, limits.MAX_EMBEDDING)
    alive = (model.attention_values, model.plain_attention_values, model.feed_forward_values, model.recurrent_values)
    for at, layer in enumerate(model.layers):
        cached = layer.key_width + layer.value_width
        limits.at_most("cached values for each token", f"layer {at}", cached, limits.MAX_ROW)
        limits.at_most("values of recurrent state", f"layer {at}", layer.state, limits.MAX_STATE)
    limits.at_most("values alive at once", "a token", max(*alive, model.input_values), limits.MAX_ALIVE)


class _Weights:
    """Bytes of tensors by where they are loaded."""

    def __init__(self, tensors: tuple[Tensor, ...], hparams: Hparams) -> None:
        self.layers = [0] * hparams.trunk
        self.inputs = self.output = self.vocabulary = 0
        self.widths = _Widths.of(tensors)
        self._place(tensors, hparams)

    def _place(self, tensors: tuple[Tensor, ...], hparams: Hparams) -> None:
        embedding = output = 0
        for tensor in tensors:
            size = tensor.bytes
            if size is None:
                raise HeaderError(f"the tensor {clean(tensor.name, 60)!r} has an unknown type or a broken row")
            block = _BLOCK.match(tensor.name)
            if block is not None:
                self._place_in_layer(int(block[1]), size, hparams)
            elif tensor.name.startswith(_INPUTS):
                self.inputs += size
            else:
                self.output += size
            if tensor.name == "token_embd.weight":
                embedding, self.vocabulary = size, tensor.dims[1] if len(tensor.dims) > 1 else 0
            output += size if tensor.name == "output.weight" else 0
        if output == 0 and hparams.architecture not in arch.ENCODERS:
            self.output += embedding  # tied: loaded a second time as the output matrix

    def _place_in_layer(self, at: int, size: int, hparams: Hparams) -> None:
        if at >= hparams.layer_count:
            raise HeaderError(f"a tensor of layer {at} in a model of {hparams.layer_count} layers")
        if at < hparams.trunk:  # layers for multi-token prediction are not loaded without a draft
            self.layers[at] += size


class _Widths(NamedTuple):
    """Feed-forward widths by the tensors: of dense layers (gate included), of one expert, of shared experts."""

    dense: int
    expert: int
    shared: int
    gated: bool

    @classmethod
    def of(cls, tensors: tuple[Tensor, ...]) -> "_Widths":
        rows = {"ffn_down": 0, "ffn_down_exps": 0, "ffn_down_shexp": 0, "ffn_up": 0}
        gated = False
        for tensor in tensors:
            part = tensor.name.split(".")[2:3]
            gated |= "ffn_gate" in tensor.name and "inp" not in tensor.name
            if part and part[0] in rows and tensor.dims and tensor.name.endswith(".weight"):
                axis = 1 if part[0] == "ffn_up" and len(tensor.dims) > 1 else 0
                rows[part[0]] = max(rows[part[0]], tensor.dims[axis])
        fused = rows["ffn_up"] > rows["ffn_down"]  # gate and up in one matrix
        return cls(rows["ffn_down"], rows["ffn_down_exps"], rows["ffn_down_shexp"], gated or fused)


def _attention_values(hparams: Hparams, lengths: HeadLengths) -> int:
    """Values per token alive in the attention part with flash attention."""
    embedding, heads = hparams.required("embedding_length"), max(hparams.per_layer("attention.head_count"))
    key, value = max(lengths.key, lengths.window_key), max(lengths.value, lengths.window_value)
    if is_latent(hparams):
        return 4 * embedding + heads * (2 * key + hparams.number("attention.key_length_mla"))
    return 3 * embedding + 3 * heads * key + 2 * max(kv_heads(hparams)) * (key + value)


def _plain_attention_values(hparams: Hparams, lengths: HeadLengths) -> int:
    """The same without flash attention, less the scores (heads x cells)."""
    if is_latent(hparams):
        return _attention_values(hparams, lengths)
    embedding, heads = hparams.required("embedding_length"), max(hparams.per_layer("attention.head_count"))
    key, value = max(lengths.key, lengths.window_key), max(lengths.value, lengths.window_value)
    return 4 * embedding + 2 * heads * key + max(kv_heads(hparams)) * (key + value)


def _feed_forward_values(hparams: Hparams, widths: _Widths) -> int:
    """Values per token alive in the feed-forward part: up, gate and their product, or the experts' rows."""
    embedding = hparams.required("embedding_length")
    factor = 3 if widths.gated else 2
    used = max(hparams.per_layer("expert_used_count")) if hparams.number("expert_count") else 0
    routed = max(factor * used * widths.expert, (2 * used + 1) * embedding) if used else 0
    loose = arch.LOOSE_ROWS.get(hparams.architecture, 0) * embedding
    return 4 * embedding + max(factor * widths.dense, factor * widths.shared, routed) + loose


def _recurrent_values(hparams: Hparams) -> int:
    """Values per token alive in a recurrent layer; 0 where there is none."""
    if not any(memory.state for memory in memories(hparams)):
        return 0
    embedding = hparams.required("embedding_length")
    if hparams.has("wkv.head_size"):
        return 20 * embedding
    inner, rank = hparams.number("ssm.inner_size"), hparams.number("ssm.time_step_rank")
    mixed = hparams.number("ssm.group_count") * hparams.number("ssm.state_size")
    return 5 * embedding + 6 * inner + 6 * mixed + rank


def _confidence(hparams: Hparams) -> tuple[Confidence, tuple[str, ...]]:
    name = clean(hparams.architecture, 40)
    if name in arch.UNKNOWN_MEMORY:
        return Confidence.GUESS, (f"{name} keeps {arch.UNKNOWN_MEMORY[name]}, which is not counted",)
    if name not in arch.KNOWN:
        return Confidence.GUESS, (f"the architecture {name!r} is not known: counted as if every layer cached all",)
    if name in arch.UNMEASURED:
        return Confidence.BOUNDED, (f"working buffers of {name} are estimated by those of its relatives",)
    return Confidence.EXACT, ()
