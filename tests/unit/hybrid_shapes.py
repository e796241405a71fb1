"""GGUF headers of models that are more than a plain transformer: state, windows per layer, experts, encoders.

Published shapes (rounded where a detail does not matter for memory), all weights Q8_0, vectors F32.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from tests.unit.gguf_bytes import header

Named = tuple[str, tuple[int, ...]]


@dataclass(frozen=True)
class Shape:
    """An architecture's keys (without its prefix) and its tensors without types."""

    arch: str
    keys: dict[str, object]
    named: tuple[Named, ...]

    @property
    def metadata(self) -> dict[str, object]:
        base = {"attention.layer_norm_rms_epsilon": 1e-6, "attention.layer_norm_epsilon": 1e-6}
        pairs = {f"{self.arch}.{key}": value for key, value in {**base, **self.keys}.items()}
        return {"general.architecture": self.arch, **pairs, "tokenizer.ggml.model": "no_vocab"}

    @property
    def tensors(self) -> list[tuple[str, tuple[int, ...], str]]:
        return [(name, dims, "F32" if _is_vector(name, dims) else "Q8_0") for name, dims in self.named]

    @property
    def header(self) -> bytes:
        return header(self.metadata, self.tensors)


def _is_vector(name: str, dims: tuple[int, ...]) -> bool:
    kept = ("ssm_conv1d", "ssm_a", "ssm_d", "ssm_norm", "ffn_gate_inp", "shortconv.conv", "norm", "lerp")
    return len(dims) == 1 or any(part in name for part in kept) or dims[0] % 32 != 0


def _keys(
    layers: int, embedding: int, ff: object, heads: object, kv: object, head: int, vocab: int
) -> dict[str, object]:
    return {
        "block_count": layers, "context_length": 131072, "embedding_length": embedding, "feed_forward_length": ff,
        "attention.head_count": heads, "attention.head_count_kv": kv, "attention.key_length": head,
        "attention.value_length": head, "rope.dimension_count": head, "vocab_size": vocab,
    }  # fmt: skip


def _outside(embedding: int, vocab: int, *, tied: bool = False, norm: str = "output_norm") -> list[Named]:
    ends: list[Named] = [("token_embd.weight", (embedding, vocab)), (f"{norm}.weight", (embedding,))]
    return ends if tied else [*ends, ("output.weight", (embedding, vocab))]


def _in_layer(layer: int, parts: Iterator[Named]) -> list[Named]:
    return [(f"blk.{layer}.{name}", dims) for name, dims in parts]


def _attention(e: int, heads: int, kv: int, head: int, *, norms: bool = False) -> Iterator[Named]:
    yield "attn_q.weight", (e, heads * head)
    yield "attn_k.weight", (e, kv * head)
    yield "attn_v.weight", (e, kv * head)
    yield "attn_output.weight", (heads * head, e)
    if norms:
        yield "attn_q_norm.weight", (head,)
        yield "attn_k_norm.weight", (head,)


def _dense(e: int, ff: int, *, gate: bool = True) -> Iterator[Named]:
    yield "ffn_up.weight", (e, ff)
    yield "ffn_down.weight", (ff, e)
    if gate:
        yield "ffn_gate.weight", (e, ff)


def _experts(e: int, ff: int, count: int, *, gate: bool = True, shared: int = 0) -> Iterator[Named]:
    yield "ffn_gate_inp.weight", (e, count)
    yield "ffn_up_exps.weight", (e, ff, count)
    yield "ffn_down_exps.weight", (ff, e, count)
    if gate:
        yield "ffn_gate_exps.weight", (e, ff, count)
    if shared:
        yield "ffn_up_shexp.weight", (e, shared)
        yield "ffn_down_shexp.weight", (shared, e)
        if gate:
            yield "ffn_gate_shexp.weight", (e, shared)


def _mamba2(e: int, inner: int, state: int, groups: int, heads: int, *, norm: bool = True) -> Iterator[Named]:
    mixed = inner + 2 * groups * state
    yield "ssm_in.weight", (e, inner + mixed + heads)
    yield "ssm_conv1d.weight", (4, mixed)
    yield "ssm_conv1d.bias", (mixed,)
    yield "ssm_dt.bias", (heads,)
    yield "ssm_a", (1, heads)
    yield "ssm_d", (1, heads)
    if norm:
        yield "ssm_norm.weight", (inner // groups, groups)
    yield "ssm_out.weight", (inner, e)


def _ssm(inner: int, state: int, groups: int, heads: int) -> dict[str, object]:
    return {
        "ssm.conv_kernel": 4, "ssm.inner_size": inner, "ssm.state_size": state, "ssm.group_count": groups,
        "ssm.time_step_rank": heads,
    }  # fmt: skip


def falcon_h1_7b() -> Shape:
    """Attention and state in every layer."""
    e, named = 3072, _outside(3072, 130048)
    for at in range(44):
        parts = [*_mamba2(e, 3072, 256, 1, 24), *_attention(e, 12, 2, 128), *_dense(e, 12288)]
        parts += [("attn_norm.weight", (e,)), ("ffn_norm", (e,))]
        named += _in_layer(at, iter(parts))
    return Shape("falcon-h1", {**_keys(44, e, 12288, 12, 2, 128, 130048), **_ssm(3072, 256, 1, 24)}, tuple(named))


def nemotron_h_9b() -> Shape:
    """Each layer one of three; feed-forward without a gate."""
    e, count, named = 4480, 56, _outside(4480, 131072)
    attends = {14, 21, 30, 39}
    kinds = ["attention" if at in attends else "state" if at % 2 == 0 else "dense" for at in range(count)]
    for at, kind in enumerate(kinds):
        parts: list[Named] = [("attn_norm.weight", (e,))]
        if kind == "attention":
            parts += _attention(e, 40, 8, 128)
        elif kind == "state":
            parts += _mamba2(e, 10240, 128, 8, 128)
        else:
            parts += _dense(e, 15680, gate=False)
        named += _in_layer(at, iter(parts))
    kv = [8 if kind == "attention" else 0 for kind in kinds]
    ff = [15680 if kind == "dense" else 0 for kind in kinds]
    heads = [40] * count
    return Shape(
        "nemotron_h", {**_keys(count, e, ff, heads, kv, 128, 131072), **_ssm(10240, 128, 8, 128)}, tuple(named)
    )


def granite_hybrid_tiny() -> Shape:
    """Experts in every layer, their width under the dense key; four layers of forty attend."""
    e, named = 1536, _outside(1536, 100352, tied=True)
    kv = [4 if at in (5, 15, 25, 35) else 0 for at in range(40)]
    for at, heads in enumerate(kv):
        parts: list[Named] = [("attn_norm.weight", (e,)), ("ffn_norm.weight", (e,))]
        parts += _attention(e, 12, 4, 128) if heads else _mamba2(e, 3072, 128, 1, 48)
        parts += _experts(e, 512, 64, shared=1024)
        named += _in_layer(at, iter(parts))
    keys = {**_keys(40, e, 512, 12, kv, 128, 100352), **_ssm(3072, 128, 1, 48)}
    keys |= {"expert_count": 64, "expert_used_count": 6, "expert_shared_feed_forward_length": 1024}
    return Shape("granitehybrid", keys, tuple(named))


def mamba2_2_7b() -> Shape:
    """State alone."""
    e, named = 2560, _outside(2560, 50288, tied=True)
    for at in range(64):
        named += _in_layer(at, iter([("attn_norm.weight", (e,)), *_mamba2(e, 5120, 128, 1, 80)]))
    keys: dict[str, object] = {
        "block_count": 64, "context_length": 1048576, "embedding_length": e, "feed_forward_length": 0,
        "attention.head_count": 0, "vocab_size": 50288, **_ssm(5120, 128, 1, 80),
    }  # fmt: skip
    return Shape("mamba2", keys, tuple(named))


def lfm2_1_2b() -> Shape:
    """Short convolutions between attention layers."""
    e, named = 2048, _outside(2048, 65536, tied=True, norm="token_embd_norm")
    kv = [8 if at in (2, 5, 8, 10, 12, 14) else 0 for at in range(16)]
    for at, heads in enumerate(kv):
        parts: list[Named] = [("attn_norm.weight", (e,)), ("ffn_norm.weight", (e,)), *_dense(e, 8192)]
        if heads:
            parts += _attention(e, 32, 8, 64, norms=True)
        else:
            convolution = ("shortconv.conv.weight", (3, e))
            parts += [convolution, ("shortconv.in_proj.weight", (e, 3 * e)), ("shortconv.out_proj.weight", (e, e))]
        named += _in_layer(at, iter(parts))
    return Shape("lfm2", {**_keys(16, e, 8192, 32, kv, 64, 65536), "shortconv.l_cache": 3}, tuple(named))


def gemma4_e4b() -> Shape:
    """Windows by a list, two head lengths, shared caches, and an embedding table for every layer."""
    e, count, vocab, own = 2560, 42, 262144, 256
    pattern = [(at + 1) % 6 != 0 for at in range(count)]
    named = _outside(e, vocab, tied=True)
    named += [("per_layer_token_embd.weight", (own * count, vocab)), ("per_layer_model_proj.weight", (e, own * count))]
    named += [("per_layer_proj_norm.weight", (own,)), ("rope_freqs.weight", (256,))]
    norms = ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm", "post_norm")
    for at, windowed in enumerate(pattern):
        parts: list[Named] = [(f"{name}.weight", (e,)) for name in norms]
        parts += [*_attention(e, 8, 2, 256 if windowed else 512, norms=True), *_dense(e, 10240)]
        parts += [("inp_gate.weight", (e, own)), ("proj.weight", (own, e)), ("layer_output_scale.weight", (1,))]
        named += _in_layer(at, iter(parts))
    keys = {
        **_keys(count, e, 10240, 8, 2, 512, vocab), "attention.sliding_window": 512, "attention.key_length_swa": 256,
        "attention.value_length_swa": 256, "attention.sliding_window_pattern": pattern,
        "attention.shared_kv_layers": 18, "embedding_length_per_layer_input": own, "rope.dimension_count_swa": 256,
    }  # fmt: skip
    return Shape("gemma4", keys, tuple(named))


def starcoder2_7b() -> Shape:
    """A feed-forward part without a gate, and biases everywhere."""
    e, named = 4608, _outside(4608, 49152)
    named.append(("output_norm.bias", (e,)))
    for at in range(32):
        parts = [*_attention(e, 36, 4, 128), *_dense(e, 18432, gate=False), ("ffn_up.bias", (18432,))]
        parts += [(f"{name}.weight", (e,)) for name in ("attn_norm", "ffn_norm")]
        parts += [(f"{name}.bias", (e,)) for name in ("attn_norm", "ffn_norm", "attn_output", "ffn_down")]
        named += _in_layer(at, iter(parts))
    return Shape("starcoder2", _keys(32, e, 18432, 36, 4, 128, 49152), tuple(named))


def command_r7b() -> Shape:
    """Windows in three of four layers, attention and feed-forward side by side."""
    e, named = 4096, _outside(4096, 256000, tied=True)
    for at in range(32):
        named += _in_layer(at, iter([("attn_norm.weight", (e,)), *_attention(e, 32, 8, 128), *_dense(e, 14336)]))
    keys = {**_keys(32, e, 14336, 32, 8, 128, 256000), "attention.sliding_window": 4096, "logit_scale": 0.25}
    return Shape("cohere2", keys, tuple(named))


def glm45_air() -> Shape:
    """Experts behind one dense layer, and a layer for multi-token prediction that is not loaded."""
    e, count, named = 4096, 47, _outside(4096, 151552)
    for at in range(count):
        parts = [*_attention(e, 96, 8, 128), ("attn_norm.weight", (e,)), ("post_attention_norm.weight", (e,))]
        parts += _dense(e, 10944) if at == 0 else _experts(e, 1408, 128, shared=1408)
        if at > 0:
            parts.append(("exp_probs_b.bias", (128,)))
        if at == count - 1:
            parts += [("nextn.eh_proj.weight", (2 * e, e)), ("nextn.enorm.weight", (e,)), ("nextn.hnorm.weight", (e,))]
            parts.append(("nextn.shared_head_norm.weight", (e,)))
        named += _in_layer(at, iter(parts))
    keys = {
        **_keys(count, e, 10944, 96, 8, 128, 151552), "nextn_predict_layers": 1, "expert_count": 128,
        "expert_used_count": 8, "expert_shared_count": 1, "expert_feed_forward_length": 1408,
        "leading_dense_block_count": 1, "expert_gating_func": 2, "expert_weights_norm": True,
    }  # fmt: skip
    return Shape("glm4moe", keys, tuple(named))


def gemma3n_e2b() -> Shape:
    """Four streams of embeddings (altup), caches of its own in the first twenty layers only."""
    e, count, vocab, own = 2048, 30, 262144, 256
    named = _outside(e, vocab, tied=True)
    named += [("per_layer_token_embd.weight", (own * count, vocab)), ("per_layer_model_proj.weight", (e, own * count))]
    named += [("per_layer_proj_norm.weight", (own,))]
    named += [("altup_proj.weight", (e, e, 3)), ("altup_unembd_proj.weight", (e, e, 3))]
    vectors = ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm", "post_norm", "altup_correct_scale",
               "altup_router_norm", "laurel_post_norm")  # fmt: skip
    for at in range(count):
        parts: list[Named] = [(f"{name}.weight", (e,)) for name in vectors]
        parts += [*_attention(e, 8, 2, 256, norms=True), *_dense(e, 8192)]
        parts += [("inp_gate.weight", (e, own)), ("proj.weight", (own, e)), ("altup_correct_coef.weight", (4, 4))]
        parts += [("altup_predict_coef.weight", (4, 16)), ("altup_router.weight", (e, 4))]
        parts += [("laurel_l.weight", (e, 64)), ("laurel_r.weight", (64, e))]
        named += _in_layer(at, iter(parts))
    keys = {"attention.sliding_window": 512, "embedding_length_per_layer_input": own}
    return Shape("gemma3n", {**_keys(count, e, 8192, 8, 2, 256, vocab), **keys}, tuple(named))


def rwkv7_2_9b() -> Shape:
    """A matrix of state for each head and no attention."""
    e, count, ff = 2560, 32, 10240
    named = _outside(e, 65536)
    named += [("output_norm.bias", (e,)), ("token_embd_norm.weight", (e,)), ("token_embd_norm.bias", (e,))]
    for at in range(count):
        parts: list[Named] = []
        for name in ("attn_norm", "attn_norm_2", "time_mix_ln"):
            parts += [(f"{name}.weight", (e,)), (f"{name}.bias", (e,))]
        parts += [(f"time_mix_{name}.weight", (e,)) for name in ("w0", "a0", "v0", "k_k", "k_a", "r_k")]
        for name, rank in (("w", 96), ("a", 96), ("v", 64 if at else 96), ("g", 320)):
            parts += [(f"time_mix_{name}1.weight", (e, rank)), (f"time_mix_{name}2.weight", (rank, e))]
        parts += [("time_mix_lerp_fused.weight", (e, 1, 1, 6)), ("channel_mix_lerp_k.weight", (e, 1, 1))]
        parts += [("channel_mix_key.weight", (e, ff)), ("channel_mix_value.weight", (ff, e))]
        parts += [(f"time_mix_{name}.weight", (e, e)) for name in ("key", "value", "receptance", "output")]
        named += _in_layer(at, iter(parts))
    keys: dict[str, object] = {
        "block_count": count, "context_length": 1048576, "embedding_length": e, "feed_forward_length": ff,
        "attention.head_count": 0, "vocab_size": 65536, "wkv.head_size": 64, "attention.decay_lora_rank": 96,
        "attention.iclr_lora_rank": 96, "attention.value_residual_mix_lora_rank": 64, "attention.gate_lora_rank": 320,
    }  # fmt: skip
    return Shape("rwkv7", keys, tuple(named))


def _mamba(inner: int, state: int, rank: int, *, norms: bool = False) -> Iterator[Named]:
    yield "ssm_in.weight", (inner // 2, 2 * inner)
    yield "ssm_conv1d.weight", (4, inner)
    yield "ssm_conv1d.bias", (inner,)
    yield "ssm_x.weight", (inner, rank + 2 * state)
    yield "ssm_dt.weight", (rank, inner)
    yield "ssm_dt.bias", (inner,)
    yield "ssm_a", (state, inner)
    yield "ssm_d", (inner,)
    yield "ssm_out.weight", (inner, inner // 2)
    if norms:
        yield "ssm_dt_norm.weight", (rank,)
        yield "ssm_b_norm.weight", (state,)
        yield "ssm_c_norm.weight", (state,)


def jamba_mini() -> Shape:
    """State in seven of eight layers, experts in every second one, their width under the dense key."""
    e, count, ff = 4096, 32, 14336
    named = _outside(e, 65536)
    kv = [8 if at % 8 == 4 else 0 for at in range(count)]
    for at, heads in enumerate(kv):
        parts: list[Named] = [("attn_norm.weight", (e,)), ("ffn_norm.weight", (e,))]
        parts += _attention(e, 32, 8, 128) if heads else _mamba(2 * e, 16, 256, norms=True)
        parts += _experts(e, ff, 16) if at % 2 else _dense(e, ff)
        named += _in_layer(at, iter(parts))
    keys = {**_keys(count, e, ff, 32, kv, 128, 65536), **_ssm(2 * e, 16, 0, 256)}
    del keys["ssm.group_count"]
    return Shape("jamba", {**keys, "expert_count": 16, "expert_used_count": 2}, tuple(named))


SHAPES = {
    build.__name__: build()
    for build in (
        falcon_h1_7b, nemotron_h_9b, granite_hybrid_tiny, mamba2_2_7b, lfm2_1_2b, gemma4_e4b, starcoder2_7b,
        command_r7b, glm45_air, gemma3n_e2b, rwkv7_2_9b, jamba_mini,
    )
}  # fmt: skip

# One vector, or one score, for a text

MEAN, LAST, RANK = 1, 3, 4
"""`pooling_type`."""


@dataclass(frozen=True)
class Encoder(Shape):
    """What llama.cpp calls bert."""

    @property
    def metadata(self) -> dict[str, object]:
        return {**super().metadata, "tokenizer.ggml.token_type_count": 2}


def _encoder(layers: int, e: int, ff: int, heads: int, vocab: int, context: int, pooling: int) -> Encoder:
    named: list[Named] = [("token_embd.weight", (e, vocab)), ("position_embd.weight", (e, context))]
    named += [("token_types.weight", (e, 2)), *_norm("token_embd_norm", e)]
    for layer in range(layers):
        named += _in_layer(layer, _encoder_layer(e, ff))
    if pooling == RANK:
        named += [*_linear("cls", e, e), *_linear("cls.output", e, 1)]
    sizes: dict[str, object] = {
        "block_count": layers, "context_length": context, "embedding_length": e, "feed_forward_length": ff,
        "attention.head_count": heads, "attention.causal": False, "pooling_type": pooling, "vocab_size": vocab,
    }  # fmt: skip
    return Encoder("bert", sizes, tuple(named))


def _encoder_layer(e: int, ff: int) -> Iterator[Named]:
    for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
        yield from _linear(name, e, e)
    yield from _linear("ffn_up", e, ff)
    yield from _linear("ffn_down", ff, e)
    yield from _norm("attn_output_norm", e)
    yield from _norm("layer_output_norm", e)


def _linear(name: str, inner: int, outer: int) -> Iterator[Named]:
    yield f"{name}.weight", (inner, outer)
    yield f"{name}.bias", (outer,)


def _norm(name: str, e: int) -> Iterator[Named]:
    yield f"{name}.weight", (e,)
    yield f"{name}.bias", (e,)


def _decoder(layers: int, e: int, ff: int, heads: int, kv: int, head: int, vocab: int, pooling: int) -> Shape:
    named = _outside(e, vocab, tied=True)
    for layer in range(layers):
        norms: list[Named] = [("attn_norm.weight", (e,)), ("ffn_norm.weight", (e,))]
        named += _in_layer(layer, iter([*norms, *_attention(e, heads, kv, head, norms=True), *_dense(e, ff)]))
    if pooling == RANK:
        named.append(("cls.output.weight", (e, 1)))
    return Shape("qwen3", _keys(layers, e, ff, heads, kv, head, vocab) | {"pooling_type": pooling}, tuple(named))


POOLED = {
    "bge-reranker-v2-m3": _encoder(24, 1024, 4096, 16, 250002, 8192, RANK),
    "all-MiniLM-L6-v2": _encoder(6, 384, 1536, 12, 30522, 512, MEAN),
    "Qwen3-Reranker-0.6B": _decoder(28, 1024, 3072, 16, 8, 128, 151669, RANK),
    "Qwen3-Embedding-0.6B": _decoder(28, 1024, 3072, 16, 8, 128, 151669, LAST),
}
