"""What `config.json` of a transformers model says of its shape, as far as vLLM's memory goes."""

from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from moorage.sizing.errors import HeaderError
from moorage.sizing.model import Confidence
from moorage.sizing.safetensors import SafetensorsHeader, parse_object
from moorage.sizing.stored import checked
from moorage.sizing.text import clean

MAX_NUMBER: Final = 1 << 31
MAX_LAYERS: Final = 1024
_DTYPE_BYTES: Final = {"float32": 4, "float16": 2, "bfloat16": 2}
_RECURRENT_KEYS: Final = ("mamba_d_state", "ssm_state_size", "state_size", "linear_key_head_dim", "mamba_num_heads")


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

    Raises HeaderError where a number that the formulas need is missing or impossible.
    """
    whole = parse_object(config, "config.json")
    text = _Section(_text_section(whole))
    layers = text.required("num_hidden_layers", "n_layer", "num_layers", limit=MAX_LAYERS)
    hidden = text.required("hidden_size", "n_embd", "d_model")
    heads = text.required("num_attention_heads", "n_head", "num_heads")
    windowed, window = _windows(text, layers)
    head_length = text.number("head_dim", default=hidden // max(1, heads))
    confidence, reasons = _confidence(whole, text)
    return TransformerModel(
        architecture=_architecture(whole),
        context_length=text.number("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"),
        parameters=0 if "quantization_config" in whole else sum(weights.elements.values()),
        quantization=_quantization(whole) or weights.main_type,
        weight_bytes=weights.data_bytes,
        cache_bytes_per_value=_cache_bytes(whole, text),
        hidden=hidden,
        heads=heads,
        kv_heads=text.number("num_key_value_heads", "num_kv_heads", default=heads),
        key_length=head_length,
        value_length=text.number("v_head_dim", default=head_length),
        latent_width=_latent_width(text),
        full_layers=layers - windowed,
        window_layers=windowed,
        window=window,
        vocabulary=text.required("vocab_size"),
        feed_forward=_feed_forward(text, hidden),
        experts=_experts(text),
        quantization_group=_quantization_group(whole),
        confidence=confidence,
        reasons=reasons,
    )


class _Section:
    """Reads numbers of one JSON object under any of their names, each checked before it is believed."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.values = values

    def number(self, *names: str, default: int = 0, limit: int = MAX_NUMBER) -> int:
        for name in names:
            value = self.values.get(name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= limit:
                raise HeaderError(f"{name} in config.json is {clean(str(value), 40)!r}, which is impossible")
            return value
        return default

    def required(self, *names: str, limit: int = MAX_NUMBER) -> int:
        value = self.number(*names, limit=limit)
        if value == 0:
            raise HeaderError(f"config.json lacks {names[0]}")
        return value


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


def _windows(text: _Section, layers: int) -> tuple[int, int]:
    """How many layers have a sliding window, and its tokens."""
    window = text.number("sliding_window", "attention_chunk_size")
    kinds = text.values.get("layer_types")
    if window == 0 or text.values.get("use_sliding_window") is False:
        return 0, 0
    if isinstance(kinds, list) and len(kinds) <= MAX_LAYERS:
        windowed = sum(kind in ("sliding_attention", "chunked_attention") for kind in kinds[:layers])
        return (windowed, window) if windowed else (0, 0)
    period = text.number("sliding_window_pattern")
    if period > 1:
        return layers - layers // period, window
    return (0, 0)  # a window for all or none: full attention is the upper bound


def _latent_width(text: _Section) -> int:
    rank = text.number("kv_lora_rank")
    return rank + text.number("qk_rope_head_dim") if rank else 0


def _experts(text: _Section) -> int:
    return text.number("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts")


def _feed_forward(text: _Section, hidden: int) -> int:
    dense = text.number("intermediate_size", "ffn_hidden_size", "n_inner", default=4 * hidden) or 4 * hidden
    if not _experts(text):
        return dense
    width = text.number("moe_intermediate_size", "expert_intermediate_size", default=dense)
    used = text.number("num_experts_per_tok", "experts_per_token", "moe_topk", "num_experts_per_token", default=1)
    shared = text.number("n_shared_experts", "num_shared_experts") * width
    return used * width + text.number("shared_expert_intermediate_size", default=shared)


def _cache_bytes(whole: dict[str, Any], text: _Section) -> int:
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


def _confidence(whole: dict[str, Any], text: _Section) -> tuple[Confidence, tuple[str, ...]]:
    kinds = text.values.get("layer_types")
    linear = isinstance(kinds, list) and any(kind in ("linear_attention", "mamba") for kind in kinds)
    if linear or any(key in text.values for key in _RECURRENT_KEYS):
        return Confidence.GUESS, ("recurrent layers keep state that is counted as if they cached every token",)
    reasons = ["activations and CUDA graphs are fitted to measurements of other models"]
    if text.values is not whole:
        reasons.append("what images need beside the text is not counted")
        return Confidence.GUESS, tuple(reasons)
    return Confidence.BOUNDED, tuple(reasons)
