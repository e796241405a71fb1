"""Recurrent and hybrid models in vLLM: which layers keep state instead of a cache, and how much.

Shapes: MambaStateShapeCalculator in vllm/model_executor/layers/mamba/mamba_utils.py. A state is two arrays, the tail of
a convolution and what the recurrence remembers; the latter is counted in float32, which some models ask for.
"""

from dataclasses import dataclass
from typing import Final

from moorage.sizing import vllm_architectures as arch
from moorage.sizing.config_json import Section

_STATE: Final = ("mamba_d_state", "ssm_state_size", "state_size")
_LINEAR: Final = ("linear_key_head_dim", "linear_num_value_heads")
_KINDS: Final = ("layer_types", "layers_block_type")
_RECURRENT_KINDS: Final = frozenset({"mamba", "mamba2", "linear_attention", "conv", "recurrent"})
_NEITHER: Final = frozenset({"mlp", "moe"})
_BOTH: Final = "hybrid"
_CONVOLVED_BYTES: Final = 2
_REMEMBERED_BYTES: Final = 4


@dataclass(frozen=True)
class Mixers:
    """How many layers attend and how many keep state (both may be the same layers), and bytes of one state.

    `told`: the configuration says which; otherwise each layer counts as both.
    """

    attending: int
    recurrent: int
    state_bytes: int
    told: bool = True


def mixers(architecture: str, text: Section, layers: int) -> Mixers:
    """The mixers of a model of `layers`; of a plain transformer `layers` that attend and none with state."""
    if architecture in arch.ATTENTION_FREE:
        return Mixers(0, layers, _state_bytes(text, pure=True))
    if architecture in arch.BOTH_PER_LAYER:
        return Mixers(layers, layers, _state_bytes(text))
    counted = _counted(text, layers)
    if counted is not None:
        attending, recurrent = counted
        return Mixers(attending, recurrent, _state_bytes(text) if recurrent else 0)
    if not text.has(*_STATE, *_LINEAR):
        return Mixers(layers, 0, 0)
    return Mixers(layers, layers, _state_bytes(text), told=False)


def _counted(text: Section, layers: int) -> tuple[int, int] | None:
    """Layers that attend and layers with state, where the configuration names either."""
    if kinds := text.words(*_KINDS)[:layers]:
        silent = sum(kind in _RECURRENT_KINDS or kind in _NEITHER for kind in kinds)
        return layers - silent, sum(kind in _RECURRENT_KINDS or kind == _BOTH for kind in kinds)
    if pattern := text.text("hybrid_override_pattern")[:layers]:  # Nemotron-H: M Mamba, * attention, - and E neither
        return pattern.count("*"), pattern.count("M")
    attending = _attending(text, layers)
    return None if attending is None else (attending, layers - attending)


def _attending(text: Section, layers: int) -> int | None:
    """Layers that attend, of those that do one or the other."""
    for name in ("attn_layer_indices", "full_attn_idxs"):
        if isinstance(listed := text.values.get(name), list):
            return min(len(listed), layers)
    if isinstance(listed := text.values.get("attn_type_list"), list):  # MiniMax: 1 attention, 0 linear
        return listed[:layers].count(1)
    if period := text.number("attn_layer_period"):
        return len(range(text.number("attn_layer_offset"), layers, period))
    if interval := text.number("full_attention_interval"):
        return layers // interval
    return None


def _state_bytes(text: Section, *, pure: bool = False) -> int:
    """Bytes of the state of one layer and sequence. In a `pure` Mamba model plain names are Mamba's."""
    hidden = text.number("hidden_size", "d_model")
    if text.has(*_LINEAR):
        key = text.number("linear_key_head_dim")
        values = text.number("linear_num_value_heads") * text.number("linear_value_head_dim", default=key)
        convolved = 2 * key * text.number("linear_num_key_heads") + values
        return _bytes(convolved, text.number("linear_conv_kernel_dim", default=4), values * key)
    if text.has("conv_L_cache"):
        return _bytes(text.number("conv_dim", default=hidden), text.number("conv_L_cache"), 0)
    if not text.has(*_STATE):  # linear attention as in MiniMax: one square for each head
        head = text.number("head_dim", default=hidden // max(1, text.number("num_attention_heads")))
        return _bytes(0, 1, text.number("num_attention_heads") * head * head)
    state = text.number(*_STATE)
    heads = text.number("mamba_n_heads", "mamba_num_heads", "n_mamba_heads", *(["num_heads"] if pure else []))
    of_heads = heads * text.number("mamba_d_head", "mamba_head_dim", "mamba_headdim", *(["head_dim"] if pure else []))
    expanded = text.number("mamba_expand", "expand", default=2) * hidden
    inner = text.number("mamba_d_ssm", *(["intermediate_size"] if pure else [])) or of_heads or expanded
    groups = text.number("mamba_n_groups", "mamba_ngroups", "n_groups", default=1) if heads else 0
    kernel = text.number("mamba_d_conv", "conv_kernel", "conv_kernel_size", "d_conv", default=4)
    return _bytes(inner + 2 * groups * state, kernel, inner * state)


def _bytes(convolved: int, kernel: int, remembered: int) -> int:
    return _CONVOLVED_BYTES * convolved * max(0, kernel - 1) + _REMEMBERED_BYTES * remembered
