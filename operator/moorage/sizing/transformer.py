"""What `config.json` of a transformers model says of its shape, as far as vLLM's memory goes."""

from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from moorage.sizing import limits
from moorage.sizing import vllm_architectures as arch
from moorage.sizing.config_json import MAX_LAYERS, MAX_NUMBER, Section
from moorage.sizing.errors import HeaderError
from moorage.sizing.model import Confidence
from moorage.sizing.recurrent import Mixers, mixers
from moorage.sizing.safetensors import SafetensorsHeader, parse_object
from moorage.sizing.stored import checked
from moorage.sizing.text import clean

MAX_ODD: Final = 3
"""Keys of a configuration that were not understood, of which the reasons tell."""
_DTYPE_BYTES: Final = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True)
class TransformerModel:
    """A safetensors model as vLLM will hold it.

    parameters       0 where packed weights hide how many there are
    quantization     the method by name, else the type of most bytes
    weight_bytes     all tensors as stored
    cache_bytes_per_value  2 for a 16-bit cache, 4 for float32 models
    latent_width     values per token and layer with multi-head latent attention, else 0
    full_layers, window_layers  layers that cache every token, and those with a sliding window of `window` tokens
    feed_forward     widest feed-forward row of one token: for experts, those used and the shared ones together
    quantization_group  values that share a scale along a row, 0 where weights are not grouped
    recurrent_layers    layers with recurrent state (some of them may attend, too), of `state_bytes` for each sequence
    """

    architecture: str
    context_length: int
    parameters: int
    quantization: str
    weight_bytes: int
    cache_bytes_per_value: int
    hidden: int
    heads: int
    kv_heads: int
    key_length: int
    value_length: int
    latent_width: int
    full_layers: int
    window_layers: int
    window: int
    vocabulary: int
    feed_forward: int
    experts: int
    quantization_group: int
    confidence: Confidence
    reasons: tuple[str, ...] = ()
    recurrent_layers: int = 0
    state_bytes: int = 0

    def to_json(self) -> dict[str, Any]:
        """Plain JSON for status."""
        return asdict(self) | {"confidence": str(self.confidence), "reasons": list(self.reasons)}

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> "TransformerModel":
        """The inverse of `to_json`; raises HeaderError where it is not such a thing."""
        try:
            confidence, reasons = Confidence(plain["confidence"]), tuple(plain["reasons"])
            return checked(replace(cls(**plain), confidence=confidence, reasons=reasons))
        except (KeyError, TypeError, ValueError) as error:
            raise HeaderError(f"the stored model facts cannot be read: {error}") from error


def transformer_of(config: bytes, weights: SafetensorsHeader) -> TransformerModel:
    """The shape in `config` (the bytes of config.json) with the bytes of `weights` (all files, see `join_files`).

    Raises HeaderError where a number is impossible, UnsizedError where one that the formulas need is missing.
    """
    whole = parse_object(config, "config.json")
    text, architecture = Section(_text_section(whole)), _architecture(whole)
    layers = text.required("num_hidden_layers", "n_layer", "num_layers", limit=MAX_LAYERS)
    hidden = text.required("hidden_size", "n_embd", "d_model")
    mixing = mixers(architecture, text, layers)
    heads = text.required("num_attention_heads", "n_head", "num_heads") if mixing.attending else 0
    windowed, window = _windows(text, mixing.attending)
    head_length = text.number("head_dim", "attention_head_dim", default=hidden // max(1, heads)) if heads else 0
    model = TransformerModel(
        architecture=architecture,
        context_length=text.number("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"),
        parameters=0 if "quantization_config" in whole else sum(weights.elements.values()),
        quantization=_quantization(whole) or weights.main_type,
        weight_bytes=weights.data_bytes,
        cache_bytes_per_value=_cache_bytes(whole, text),
        hidden=hidden,
        heads=heads,
        kv_heads=text.number("num_key_value_heads", "num_kv_heads", default=heads) if heads else 0,
        key_length=head_length,
        value_length=text.number("v_head_dim", default=head_length) if heads else 0,
        latent_width=_latent_width(text),
        full_layers=mixing.attending - windowed,
        window_layers=windowed,
        window=window,
        vocabulary=text.required("vocab_size"),
        feed_forward=_feed_forward(text, hidden),
        experts=_experts(text),
        quantization_group=_quantization_group(whole),
        recurrent_layers=mixing.recurrent,
        state_bytes=mixing.state_bytes,
        confidence=Confidence.BOUNDED,
    )
    _check(model)
    confidence, reasons = _confidence(whole, text, architecture, mixing)
    return replace(model, confidence=confidence, reasons=reasons)


def _check(model: TransformerModel) -> None:
    """Raises HeaderError where products of believable numbers make an unbelievable model."""
    cached = max(model.kv_heads * (model.key_length + model.value_length), model.latent_width)
    limits.at_most("values", "a token's embedding", model.hidden, limits.MAX_EMBEDDING)
    limits.at_most("tokens", "the vocabulary", model.vocabulary, limits.MAX_VOCABULARY)
    limits.at_most("cached values for each token", "a layer", cached, limits.MAX_ROW)
    limits.at_most("bytes of recurrent state", "a layer", model.state_bytes, 4 * limits.MAX_STATE)
    limits.at_most("values alive at once", "a token", model.feed_forward, limits.MAX_ALIVE)


def _text_section(whole: dict[str, Any]) -> dict[str, Any]:
    """The language model's part of a multimodal configuration."""
    for name in ("text_config", "llm_config", "language_config"):
        inner = whole.get(name)
        if isinstance(inner, dict) and "hidden_size" in inner:
            return inner
    return whole


def _architecture(whole: dict[str, Any]) -> str:
    names = whole.get("architectures")
    if isinstance(names, list) and names and isinstance(names[0], str):
        return clean(names[0], 80)
    kind = whole.get("model_type")
    if isinstance(kind, str):
        return clean(kind, 80)
    raise HeaderError("config.json names no architecture")


def _windows(text: Section, layers: int) -> tuple[int, int]:
    """How many of the `layers` that attend have a sliding window, and its tokens."""
    window = text.number("sliding_window", "attention_chunk_size")
    kinds = text.values.get("layer_types")
    if window == 0 or text.values.get("use_sliding_window") is False:
        return 0, 0
    if isinstance(kinds, list) and len(kinds) <= MAX_LAYERS:
        windowed = sum(kind in ("sliding_attention", "chunked_attention") for kind in kinds)
        windowed = min(windowed, layers)
        return (windowed, window) if windowed else (0, 0)
    period = text.number("sliding_window_pattern")
    if period > 1:
        return layers - layers // period, window
    return (0, 0)  # a window for all or none: full attention is the upper bound


def _latent_width(text: Section) -> int:
    rank = text.number("kv_lora_rank")
    return rank + text.number("qk_rope_head_dim") if rank else 0


def _experts(text: Section) -> int:
    return text.number("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts")


def _feed_forward(text: Section, hidden: int) -> int:
    dense = text.number("intermediate_size", "ffn_hidden_size", "n_inner", default=4 * hidden) or 4 * hidden
    if not _experts(text):
        return dense
    width = text.number("moe_intermediate_size", "expert_intermediate_size", default=dense)
    used = text.number("num_experts_per_tok", "experts_per_token", "moe_topk", "num_experts_per_token", default=1)
    shared = text.number("n_shared_experts", "num_shared_experts") * width
    return used * width + text.number("shared_expert_intermediate_size", default=shared)


def _cache_bytes(whole: dict[str, Any], text: Section) -> int:
    for section in (text.values, whole):
        for name in ("dtype", "torch_dtype"):
            if isinstance(value := section.get(name), str):
                return _DTYPE_BYTES.get(value, 2)
    return 2


def _quantization(whole: dict[str, Any]) -> str:
    section = whole.get("quantization_config")
    method = section.get("quant_method") if isinstance(section, dict) else None
    return clean(method, 40) if isinstance(method, str) else ""


def _quantization_group(whole: dict[str, Any]) -> int:
    quantization = whole.get("quantization_config")
    group = quantization.get("group_size") if isinstance(quantization, dict) else None
    return group if isinstance(group, int) and 0 < group <= MAX_NUMBER else 0


def _confidence(
    whole: dict[str, Any], text: Section, architecture: str, mixing: Mixers
) -> tuple[Confidence, tuple[str, ...]]:
    """BOUNDED for plain transformers by name, else GUESS; with the reasons."""
    doubts = list(text.odd[:MAX_ODD])
    if mixing.recurrent:
        doubts.append(f"the state of {mixing.recurrent} recurrent layers follows vLLM's shapes and was not measured")
    if not mixing.told:
        doubts.append("which layers are recurrent is not told: each counts as if it cached every token, too")
    if architecture in arch.UNKNOWN_MEMORY:
        doubts.append(f"{architecture} keeps {arch.UNKNOWN_MEMORY[architecture]}, which is not counted")
    elif text.values is not whole:
        doubts.append("what images need beside the text is not counted")
    elif architecture not in arch.PLAIN and not mixing.recurrent:
        doubts.append(f"the architecture {architecture!r} is not known: counted as if every layer cached every token")
    fitted = "activations and CUDA graphs are fitted to measurements of other models"
    return Confidence.GUESS if doubts else Confidence.BOUNDED, (fitted, *doubts)
