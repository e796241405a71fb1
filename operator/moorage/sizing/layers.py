"""What each layer of a GGUF model remembers: cached keys and values, windows, recurrent state.

The rules are llama.cpp's: llama_kv_cache, llama_memory_recurrent and llama_hparams::n_embd_r / n_embd_s.
"""

from dataclasses import dataclass

from moorage.sizing import architectures as arch
from moorage.sizing.hparams import Hparams


@dataclass(frozen=True)
class Memory:
    """What one layer keeps; see `model.Layer`."""

    key_width: int = 0
    value_width: int = 0
    window: int = 0
    state: int = 0


@dataclass(frozen=True)
class HeadLengths:
    """Values per head of keys and values; the pair for layers with a sliding window may differ."""

    key: int
    value: int
    window_key: int
    window_value: int

    @classmethod
    def of(cls, hparams: Hparams) -> "HeadLengths":
        """From the header; embedding length over heads where it is silent."""
        heads = hparams.per_layer("attention.head_count")
        default = hparams.required("embedding_length") // heads[0] if heads[0] else 0
        key = hparams.number("attention.key_length", default)
        value = hparams.number("attention.value_length", default)
        return cls(
            key,
            value,
            hparams.number("attention.key_length_swa", key),
            hparams.number("attention.value_length_swa", value),
        )


def is_latent(hparams: Hparams) -> bool:
    """Multi-head latent attention: one compressed row per token, no values beside it."""
    return bool(hparams.number("attention.key_length_mla") and hparams.number("attention.value_length_mla"))


def kv_heads(hparams: Hparams) -> list[int]:
    """Key-value heads of each layer; the query heads where the header is silent."""
    if hparams.has("attention.head_count_kv"):
        return hparams.per_layer("attention.head_count_kv")
    return hparams.per_layer("attention.head_count")


def memories(hparams: Hparams) -> list[Memory]:
    """What each trunk layer keeps."""
    name = hparams.architecture
    if name in arch.NO_CACHE:
        return [Memory()] * hparams.trunk
    recurrent, attends = _recurrent(hparams), _attends(hparams)
    windows, heads, lengths = _windows(hparams, recurrent), kv_heads(hparams), HeadLengths.of(hparams)
    state = state_values(hparams)
    return [
        Memory(
            *(_widths(hparams, heads[at], lengths, windows[at]) if attends[at] else (0, 0)),
            window=windows[at] if attends[at] else 0,
            state=state if recurrent[at] else 0,
        )
        for at in range(hparams.trunk)
    ]


def _widths(hparams: Hparams, heads: int, lengths: HeadLengths, window: int) -> tuple[int, int]:
    key, value = (lengths.window_key, lengths.window_value) if window else (lengths.key, lengths.value)
    return heads * key, 0 if is_latent(hparams) else heads * value


def _recurrent(hparams: Hparams) -> list[bool]:
    """Which layers keep recurrent state."""
    name, count = hparams.architecture, hparams.trunk
    if name in arch.RECURRENT or name in arch.BOTH_PER_LAYER:
        return [True] * count
    if name in arch.RECURRENT_BY_KV_HEADS:
        return [heads == 0 for heads in kv_heads(hparams)]
    if name in arch.NEMOTRON_H:
        pairs = zip(kv_heads(hparams), hparams.per_layer("feed_forward_length"), strict=True)
        return [heads == 0 and ff == 0 for heads, ff in pairs]
    if name in arch.RECURRENT_BY_INTERVAL:
        listed = hparams.flags("attention.recurrent_layers")
        interval = max(1, hparams.number("full_attention_interval", arch.RECURRENT_BY_INTERVAL[name]))
        return listed if listed is not None else [(at + 1) % interval != 0 for at in range(count)]
    return [False] * count


def _attends(hparams: Hparams) -> list[bool]:
    """Which layers have a key-value cache of their own."""
    name, count = hparams.architecture, hparams.trunk
    if name in arch.BOTH_PER_LAYER:
        return [True] * count
    if name in arch.NEMOTRON_H:
        pairs = zip(_recurrent(hparams), hparams.per_layer("feed_forward_length"), strict=True)
        return [not recurrent and ff == 0 for recurrent, ff in pairs]
    if name == "gemma3n":
        return [at < 20 for at in range(count)]
    if name == "gemma4":
        return [at < count - hparams.number("attention.shared_kv_layers") for at in range(count)]
    return [not recurrent for recurrent in _recurrent(hparams)]


def _windows(hparams: Hparams, recurrent: list[bool]) -> list[int]:
    """Window of each layer in tokens, 0 for none."""
    name, count = hparams.architecture, hparams.trunk
    rule = arch.SLIDING.get(name)
    if name == "exaone4" and count == arch.EXAONE4_WINDOWED_LAYERS:
        rule = arch.Windows(4, window=4096)
    window = hparams.number("attention.sliding_window", (rule.window if rule else None) or 0)
    if name == "lfm2" and window:
        return [0 if recurrent[at] else window for at in range(count)]
    if rule is None or window == 0:
        return [0] * count
    window = arch.FIXED_WINDOW.get(name, window)
    listed = hparams.flags("attention.sliding_window_pattern")
    if listed is not None:
        return [window if flag else 0 for flag in listed]
    period = hparams.number("attention.sliding_window_pattern", rule.period)
    return [window if _slides(at, period, rule.dense_first) else 0 for at in range(count)]


def _slides(layer: int, period: int, dense_first: bool) -> bool:
    """llama_hparams::set_swa_pattern."""
    if period == 0:
        return True
    return layer % period != 0 if dense_first else layer % period < period - 1


def state_values(hparams: Hparams) -> int:
    """f32 values of recurrent state of one layer and sequence: n_embd_r + n_embd_s."""
    embedding = hparams.number("embedding_length")
    if head := hparams.number("wkv.head_size"):
        return embedding * (hparams.number("token_shift_count", 2) + head)
    if cache := hparams.number("shortconv.l_cache"):
        return embedding * (cache - 1)
    heads = max(hparams.per_layer("attention.head_count"))
    kernel = hparams.number("ssm.conv_kernel")
    if head := hparams.number("kda.head_dim"):
        return 3 * (kernel - 1 if kernel else 3) * heads * head + head * head * heads
    if hparams.architecture == "minimax-01":
        return HeadLengths.of(hparams).key ** 2 * heads
    inner, state, groups = (hparams.number(f"ssm.{key}") for key in ("inner_size", "state_size", "group_count"))
    return max(0, kernel - 1) * (inner + 2 * groups * state) + state * inner
