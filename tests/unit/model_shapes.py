"""GGUF headers of published models, built from their shapes: what a real file of that model would say.

Tensors get the types that `llama-quantize` gives them for Q4_K_M, less its exceptions for single models
(llama_tensor_get_type_impl in src/llama-quant.cpp).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.unit.gguf_bytes import header

Tensor = tuple[str, tuple[int, ...], str]


@dataclass(frozen=True)
class Model:
    """The published shape of a model; names as in the table: L e h k d f V."""

    arch: str
    quantization: str
    layers: int
    embedding: int
    heads: int
    kv_heads: int
    head: int
    ff: int
    vocab: int
    tied: bool = False
    experts: int = 0
    used: int = 0
    expert_ff: int = 0
    shared_ff: int = 0
    dense_lead: int = 0
    qk_norm: bool = False
    qkv_bias: bool = False
    post_norms: bool = False
    extra: dict[str, object] = field(default_factory=dict)

    @property
    def metadata(self) -> dict[str, object]:
        a = self.arch
        pairs: dict[str, object] = {
            "general.architecture": a,
            "general.name": a,
            f"{a}.block_count": self.layers,
            f"{a}.context_length": 131072,
            f"{a}.embedding_length": self.embedding,
            f"{a}.feed_forward_length": self.ff,
            f"{a}.attention.head_count": self.heads,
            f"{a}.attention.head_count_kv": self.kv_heads,
            f"{a}.attention.layer_norm_rms_epsilon": 1e-6,
            f"{a}.attention.layer_norm_epsilon": 1e-6,
            f"{a}.attention.key_length": self.head,
            f"{a}.attention.value_length": self.head,
            f"{a}.rope.dimension_count": self.head,
            f"{a}.vocab_size": self.vocab,
        }
        if self.experts:
            pairs |= {
                f"{a}.expert_count": self.experts,
                f"{a}.expert_used_count": self.used,
                f"{a}.expert_feed_forward_length": self.expert_ff,
            }
        if self.shared_ff:
            pairs[f"{a}.expert_shared_count"] = 1
            pairs[f"{a}.expert_shared_feed_forward_length"] = self.shared_ff
        if self.dense_lead:
            pairs[f"{a}.leading_dense_block_count"] = self.dense_lead
        pairs |= {key.replace("{a}", a): value for key, value in self.extra.items()}
        pairs["tokenizer.ggml.model"] = "no_vocab"
        pairs["general.file_type"] = {"F16": 1, "Q8_0": 7, "Q4_K_M": 15, "MXFP4": 38}[self.quantization]
        return pairs

    @property
    def tensors(self) -> list[Tensor]:
        return [(name, dims, self._type(name, dims)) for name, dims in self._tensors()]

    @property
    def header(self) -> bytes:
        return header(self.metadata, self.tensors)

    def _type(self, name: str, dims: tuple[int, ...]) -> str:
        last = name.rsplit(".", 1)[-1]
        if len(dims) == 1 or last == "bias" or "ffn_gate_inp" in name or "norm" in name or "ssm_conv1d" in name:
            return "F32"
        if self.quantization in ("F16", "Q8_0"):
            return self.quantization
        if self.quantization == "MXFP4":
            return "MXFP4" if len(dims) == 3 else "Q8_0"
        # where a row is no whole number of blocks another type must do
        return self._q4_k_m(name) if dims[0] % 256 == 0 else "Q8_0"

    def _q4_k_m(self, name: str) -> str:
        if name == "output.weight" or (name == "token_embd.weight" and self.tied):
            return "Q6_K"
        layer = int(name.split(".")[1]) if name.startswith("blk.") else 0
        eighth = self.layers // 8
        more = layer < eighth or layer >= 7 * self.layers // 8 or (layer - eighth) % 3 == 2
        part = name.split(".")[2] if name.startswith("blk.") else name
        match part:
            case "attn_qkv":
                return "Q5_K"
            case "attn_v" if self.experts == 8:
                return "Q8_0"
            case "attn_v" | "ffn_down" | "ffn_down_exps" | "ffn_down_shexp":
                return "Q6_K" if more else "Q4_K"
        return "Q4_K"

    def _tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield "token_embd.weight", (self.embedding, self.vocab)
        yield "output_norm.weight", (self.embedding,)
        if not self.tied:
            yield "output.weight", (self.embedding, self.vocab)
        for layer in range(self.layers):
            for name, dims in self._block(layer):
                yield f"blk.{layer}.{name}", dims

    def _block(self, layer: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield "attn_norm.weight", (self.embedding,)
        if self._recurrent(layer):
            yield from self._delta_net()
        elif "{a}.attention.key_length_mla" in self.extra:
            yield from self._latent_attention()
        else:
            yield from self._attention()
        if self.arch not in {"qwen3next", "gpt-oss"}:
            yield "ffn_norm.weight", (self.embedding,)
        if self.post_norms:
            yield "post_ffw_norm.weight", (self.embedding,)
        yield from self._experts() if self.experts and layer >= self.dense_lead else self._dense()

    def _recurrent(self, layer: int) -> bool:
        return self.arch == "qwen3next" and (layer + 1) % 4 != 0

    def _attention(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        e, q, kv = self.embedding, self.heads * self.head, self.kv_heads * self.head
        if self.arch == "phi3":
            yield "attn_qkv.weight", (e, q + 2 * kv)
        else:
            gated = 2 if self.arch == "qwen3next" else 1
            for name, width in (("q", q * gated), ("k", kv), ("v", kv)):
                yield f"attn_{name}.weight", (e, width)
                if self.qkv_bias:
                    yield f"attn_{name}.bias", (width,)
        yield "attn_output.weight", (q, e)
        if self.qk_norm:
            yield "attn_q_norm.weight", (self.head,)
            yield "attn_k_norm.weight", (self.head,)
        if self.post_norms or self.arch in ("gpt-oss", "qwen3next"):
            yield "post_attention_norm.weight", (e,)
        if self.arch == "gpt-oss":
            yield "attn_sinks.weight", (self.heads,)
            yield "attn_output.bias", (e,)

    def _latent_attention(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        e, h = self.embedding, self.heads
        q_rank = self.extra.get("{a}.attention.q_lora_rank")
        if isinstance(q_rank, int):
            yield "attn_q_a_norm.weight", (q_rank,)
            yield "attn_q_a.weight", (e, q_rank)
            yield "attn_q_b.weight", (q_rank, h * 192)
        else:
            yield "attn_q.weight", (e, h * 192)
        yield "attn_kv_a_norm.weight", (512,)
        yield "attn_kv_a_mqa.weight", (e, 576)
        yield "attn_k_b.weight", (128, 512, h)
        yield "attn_v_b.weight", (512, 128, h)
        yield "attn_output.weight", (h * 128, e)

    def _delta_net(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        e, key, value = self.embedding, 16 * 128, 32 * 128
        yield "post_attention_norm.weight", (e,)
        yield "attn_qkv.weight", (e, 2 * key + value)
        yield "attn_gate.weight", (e, value)
        yield "ssm_conv1d.weight", (4, 2 * key + value)
        yield "ssm_dt.bias", (32,)
        yield "ssm_a", (32,)
        yield "ssm_ba.weight", (e, 64)
        yield "ssm_norm.weight", (128,)
        yield "ssm_out.weight", (value, e)

    def _dense(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        e, ff = self.embedding, self.ff
        if self.arch == "phi3":
            yield "ffn_up.weight", (e, 2 * ff)
        else:
            yield "ffn_gate.weight", (e, ff)
            yield "ffn_up.weight", (e, ff)
        yield "ffn_down.weight", (ff, e)

    def _experts(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        e, ff, n = self.embedding, self.expert_ff, self.experts
        yield "ffn_gate_inp.weight", (e, n)
        yield "ffn_gate_exps.weight", (e, ff, n)
        yield "ffn_up_exps.weight", (e, ff, n)
        yield "ffn_down_exps.weight", (ff, e, n)
        if self.arch == "gpt-oss":
            yield "ffn_gate_inp.bias", (n,)
            for name, width in (("gate", ff), ("up", ff), ("down", e)):
                yield f"ffn_{name}_exps.bias", (width, n)
        if self.arch == "qwen3next":
            yield "ffn_gate_inp_shexp.weight", (e,)
        if self.shared_ff:
            yield "ffn_gate_shexp.weight", (e, self.shared_ff)
            yield "ffn_up_shexp.weight", (e, self.shared_ff)
            yield "ffn_down_shexp.weight", (self.shared_ff, e)


def _gemma3(layers: int, embedding: int, heads: int, kv_heads: int, head: int, ff: int) -> Model:
    window = {"{a}.attention.sliding_window": 1024}
    return Model(
        "gemma3", "Q4_K_M", layers, embedding, heads, kv_heads, head, ff, 262144,
        tied=True, qk_norm=True, post_norms=True, extra=window,
    )  # fmt: skip


def _gpt_oss(layers: int, experts: int) -> Model:
    return Model(
        "gpt-oss", "MXFP4", layers, 2880, 64, 8, 64, 2880, 201088,
        experts=experts, used=4, expert_ff=2880, qkv_bias=True,
        extra={"{a}.attention.sliding_window": 128},
    )  # fmt: skip


_MLA = {
    "{a}.attention.key_length": 576,
    "{a}.attention.value_length": 512,
    "{a}.attention.key_length_mla": 192,
    "{a}.attention.value_length_mla": 128,
    "{a}.attention.kv_lora_rank": 512,
    "{a}.rope.dimension_count": 64,
    "{a}.attention.head_count_kv": 1,
}
_DELTA_NET = {
    "{a}.ssm.conv_kernel": 4,
    "{a}.ssm.inner_size": 4096,
    "{a}.ssm.state_size": 128,
    "{a}.ssm.time_step_rank": 32,
    "{a}.ssm.group_count": 16,
    "{a}.rope.dimension_count": 64,
}


def _llama31_8b(quantization: str) -> Model:
    return Model("llama", quantization, 32, 4096, 32, 8, 128, 14336, 128256)


def _qwen3_30b(quantization: str) -> Model:
    return Model(
        "qwen3moe", quantization, 48, 2048, 32, 4, 128, 6144, 151936, experts=128, used=8, expert_ff=768, qk_norm=True
    )


MODELS = {
    "llama31-8b Q4_K_M": _llama31_8b("Q4_K_M"),
    "llama31-8b Q8_0": _llama31_8b("Q8_0"),
    "llama31-8b F16": _llama31_8b("F16"),
    "llama32-1b Q8_0": Model("llama", "Q8_0", 16, 2048, 32, 8, 64, 8192, 128256, tied=True),
    "llama32-3b Q4_K_M": Model("llama", "Q4_K_M", 28, 3072, 24, 8, 128, 8192, 128256, tied=True),
    "llama33-70b Q4_K_M": Model("llama", "Q4_K_M", 80, 8192, 64, 8, 128, 28672, 128256),
    "llama2-7b Q4_K_M": Model("llama", "Q4_K_M", 32, 4096, 32, 32, 128, 11008, 32000),
    "mixtral-8x7b Q4_K_M": Model(
        "llama", "Q4_K_M", 32, 4096, 32, 8, 128, 14336, 32000, experts=8, used=2, expert_ff=14336
    ),
    "mistral-small-24b Q4_K_M": Model("llama", "Q4_K_M", 40, 5120, 32, 8, 128, 32768, 131072),
    "qwen25-7b Q4_K_M": Model("qwen2", "Q4_K_M", 28, 3584, 28, 4, 128, 18944, 152064, qkv_bias=True),
    "qwen25-0.5b Q8_0": Model("qwen2", "Q8_0", 24, 896, 14, 2, 64, 4864, 151936, tied=True, qkv_bias=True),
    "qwen3-4b Q4_K_M": Model("qwen3", "Q4_K_M", 36, 2560, 32, 8, 128, 9728, 151936, tied=True, qk_norm=True),
    "qwen3-8b Q4_K_M": Model("qwen3", "Q4_K_M", 36, 4096, 32, 8, 128, 12288, 151936, qk_norm=True),
    "qwen3-30b-a3b Q4_K_M": _qwen3_30b("Q4_K_M"),
    "qwen3-30b-a3b F16": _qwen3_30b("F16"),
    "gemma2-9b Q4_K_M": Model(
        "gemma2", "Q4_K_M", 42, 3584, 16, 8, 256, 14336, 256000,
        tied=True, post_norms=True, extra={"{a}.attention.sliding_window": 4096},
    ),
    "gemma3-4b Q4_K_M": _gemma3(34, 2560, 8, 4, 256, 10240),
    "gemma3-12b Q4_K_M": _gemma3(48, 3840, 16, 8, 256, 15360),
    "gemma3-27b Q4_K_M": _gemma3(62, 5376, 32, 16, 128, 21504),
    "phi4-14b Q4_K_M": Model("phi3", "Q4_K_M", 40, 5120, 40, 10, 128, 17920, 100352),
    "gpt-oss-20b MXFP4": _gpt_oss(24, 32),
    "gpt-oss-120b MXFP4": _gpt_oss(36, 128),
    "deepseek-v2-lite Q4_K_M": Model(
        "deepseek2", "Q4_K_M", 27, 2048, 16, 1, 576, 10944, 102400,
        experts=64, used=6, expert_ff=1408, shared_ff=2816, dense_lead=1, extra={**_MLA, "{a}.expert_shared_count": 2},
    ),
    "deepseek-v3 Q4_K_M": Model(
        "deepseek2", "Q4_K_M", 61, 7168, 128, 1, 576, 18432, 129280,
        experts=256, used=8, expert_ff=2048, shared_ff=2048, dense_lead=3,
        extra={**_MLA, "{a}.attention.q_lora_rank": 1536},
    ),
    "qwen3-next-80b Q4_K_M": Model(
        "qwen3next", "Q4_K_M", 48, 2048, 16, 2, 256, 5120, 151936,
        experts=512, used=10, expert_ff=512, shared_ff=512, qk_norm=True, extra=_DELTA_NET,
    ),
}  # fmt: skip
