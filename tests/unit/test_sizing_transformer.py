"""Published configurations that are not plain transformers: each is read, and says how far it can be trusted."""

import json
from typing import Any

import pytest

from moorage.sizing.errors import UnsizedError
from moorage.sizing.facts import HEADER_LIMIT, transformer_facts
from moorage.sizing.model import Confidence
from moorage.sizing.need import GIB
from moorage.sizing.safetensors import SafetensorsHeader
from moorage.sizing.transformer import TransformerModel, transformer_of
from moorage.sizing.vllm import VllmSettings, cache_bytes, tensor_parallel_problem, vllm_plan

ONE = VllmSettings(8192, full_sequences=1, max_sequences=1)


def made(config: dict[str, Any]) -> TransformerModel:
    return transformer_of(json.dumps(config).encode(), SafetensorsHeader(15 * GIB, {"BF16": 1}, 1))


GEMMA_3N = {  # google/gemma-3n-E4B-it
    "architectures": ["Gemma3nForConditionalGeneration"],
    "text_config": {
        "hidden_size": 2048, "intermediate_size": [16384] * 35, "num_hidden_layers": 35, "num_attention_heads": 8,
        "num_key_value_heads": 2, "head_dim": 256, "vocab_size": 262400, "max_position_embeddings": 32768,
        "layer_types": (["sliding_attention"] * 4 + ["full_attention"]) * 7, "sliding_window": 512,
        "activation_sparsity_pattern": [0.95] * 10 + [0.0] * 25, "num_kv_shared_layers": 15,
    },
    "vision_config": {"hidden_size": 2048},
}  # fmt: skip
MAMBA = {  # state-spaces/mamba-2.8b-hf
    "architectures": ["MambaForCausalLM"], "hidden_size": 2560, "intermediate_size": 5120, "state_size": 16,
    "conv_kernel": 4, "time_step_rank": 160, "num_hidden_layers": 64, "vocab_size": 50280,
}  # fmt: skip
CODESTRAL_MAMBA = {  # mistralai/Mamba-Codestral-7B-v0.1
    "architectures": ["Mamba2ForCausalLM"], "hidden_size": 4096, "num_heads": 128, "head_dim": 64, "n_groups": 8,
    "state_size": 128, "conv_kernel": 4, "expand": 2, "num_hidden_layers": 64, "vocab_size": 32768,
}  # fmt: skip
JAMBA = {  # ai21labs/Jamba-v0.1
    "architectures": ["JambaForCausalLM"], "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 65536, "attn_layer_period": 8,
    "attn_layer_offset": 4, "mamba_d_state": 16, "mamba_d_conv": 4, "mamba_expand": 2, "num_experts": 16,
    "num_experts_per_tok": 2, "max_position_embeddings": 262144,
}  # fmt: skip
BAMBA = {  # ibm-ai-platform/Bamba-9B-v2
    "architectures": ["BambaForCausalLM"], "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "attn_layer_indices": [9, 18, 27],
    "mamba_d_state": 128, "mamba_n_heads": 128, "mamba_d_head": 64, "mamba_n_groups": 1, "mamba_d_conv": 4,
    "mamba_expand": 2,
}  # fmt: skip
NEMOTRON_H = {  # nvidia/NVIDIA-Nemotron-Nano-9B-v2
    "architectures": ["NemotronHForCausalLM"], "hidden_size": 4480, "intermediate_size": 15680,
    "hybrid_override_pattern": "M-M-M-MM-M-M-M*-M-M-M*-M-M-M-M*-M-M-M-M*-M-MM-M-M-M-M-M-", "num_hidden_layers": 56,
    "num_attention_heads": 40, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 131072, "ssm_state_size": 128,
    "mamba_num_heads": 128, "mamba_head_dim": 80, "n_groups": 8, "conv_kernel": 4,
}  # fmt: skip
QWEN3_NEXT = {  # Qwen/Qwen3-Next-80B-A3B-Instruct
    "architectures": ["Qwen3NextForCausalLM"], "hidden_size": 2048, "intermediate_size": 5120, "num_hidden_layers": 48,
    "num_attention_heads": 16, "num_key_value_heads": 2, "head_dim": 256, "vocab_size": 151936,
    "full_attention_interval": 4, "linear_num_key_heads": 16, "linear_key_head_dim": 128, "linear_num_value_heads": 32,
    "linear_value_head_dim": 128, "linear_conv_kernel_dim": 4, "num_experts": 512, "num_experts_per_tok": 10,
    "moe_intermediate_size": 512, "shared_expert_intermediate_size": 512,
}  # fmt: skip
GRANITE_HYBRID = {  # ibm-granite/granite-4.0-h-small
    "architectures": ["GraniteMoeHybridForCausalLM"], "hidden_size": 4096, "intermediate_size": 768,
    "num_hidden_layers": 40, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 100352,
    "layer_types": (["mamba"] * 5 + ["attention"] + ["mamba"] * 4) * 4, "mamba_d_state": 128, "mamba_n_heads": 128,
    "mamba_d_head": 64, "mamba_n_groups": 1, "mamba_d_conv": 4, "mamba_expand": 2, "num_local_experts": 72,
    "num_experts_per_tok": 10, "shared_intermediate_size": 1536,
}  # fmt: skip
LFM2 = {  # LiquidAI/LFM2-1.2B
    "architectures": ["Lfm2ForCausalLM"], "hidden_size": 2048, "block_ff_dim": 12288, "num_hidden_layers": 16,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 65536, "conv_L_cache": 3, "conv_dim": 2048,
    "full_attn_idxs": [2, 5, 8, 10, 12, 14],
}  # fmt: skip
FALCON_H1 = {  # tiiuae/Falcon-H1-7B-Instruct
    "architectures": ["FalconH1ForCausalLM"], "hidden_size": 3072, "intermediate_size": 12288, "num_hidden_layers": 44,
    "num_attention_heads": 12, "num_key_value_heads": 2, "head_dim": 128, "vocab_size": 130048, "mamba_d_ssm": 3072,
    "mamba_d_state": 256, "mamba_n_heads": 24, "mamba_d_head": 128, "mamba_n_groups": 1, "mamba_d_conv": 4,
}  # fmt: skip
MINIMAX = {  # MiniMaxAI/MiniMax-Text-01
    "architectures": ["MiniMaxText01ForCausalLM"], "hidden_size": 6144, "intermediate_size": 9216,
    "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 200064,
    "attn_type_list": ([0] * 7 + [1]) * 10, "num_local_experts": 32, "num_experts_per_tok": 2,
}  # fmt: skip
NEMOTRON_SUPER = {  # nvidia/Llama-3_3-Nemotron-Super-49B-v1: each layer of its own make
    "architectures": ["DeciLMForCausalLM"], "hidden_size": 8192, "intermediate_size": None, "num_hidden_layers": 80,
    "num_attention_heads": 64, "num_key_value_heads": None, "vocab_size": 128256,
    "block_configs": [{"attention": {"n_heads_in_group": 8}, "ffn": {"ffn_mult": 2.625}}] * 80,
}  # fmt: skip

HYBRIDS = {
    # layers that attend, layers with state, bytes of one state: conv 2 bytes x (kernel - 1), the rest 4 bytes
    "Mamba": (MAMBA, 0, 64, 2 * 3 * 5120 + 4 * 5120 * 16),
    "Codestral Mamba": (CODESTRAL_MAMBA, 0, 64, 2 * 3 * (8192 + 2 * 8 * 128) + 4 * 8192 * 128),
    "Jamba": (JAMBA, 4, 28, 2 * 3 * 8192 + 4 * 8192 * 16),
    "Bamba": (BAMBA, 3, 29, 2 * 3 * (8192 + 2 * 128) + 4 * 8192 * 128),
    "Nemotron-H": (NEMOTRON_H, 4, 27, 2 * 3 * (10240 + 2 * 8 * 128) + 4 * 10240 * 128),
    "Qwen3-Next": (QWEN3_NEXT, 12, 36, 2 * 3 * (2 * 128 * 16 + 4096) + 4 * 32 * 128 * 128),
    "Granite 4 hybrid": (GRANITE_HYBRID, 4, 36, 2 * 3 * (8192 + 2 * 128) + 4 * 8192 * 128),
    "LFM2": (LFM2, 6, 10, 2 * 2 * 2048),
    "Falcon-H1": (FALCON_H1, 44, 44, 2 * 3 * (3072 + 2 * 256) + 4 * 3072 * 256),
    "MiniMax-Text": (MINIMAX, 10, 70, 4 * 64 * 128 * 128),
}


@pytest.mark.parametrize("name", HYBRIDS)
def test_state_is_counted_by_the_shapes_of_vllm_and_is_a_guess(name):
    config, attending, recurrent, state = HYBRIDS[name]
    model = made(config)
    assert (model.full_layers, model.recurrent_layers, model.state_bytes) == (attending, recurrent, state)
    assert model.confidence == Confidence.GUESS
    assert f"the state of {recurrent} recurrent layers" in " ".join(model.reasons)
    cached = attending * 8192 * model.kv_heads * 2 * model.key_length * 2
    assert cache_bytes(model, ONE) == cached + recurrent * state


def test_every_sequence_has_its_state():
    """vLLM does not start with fewer states than `--max-num-seqs` (Each decode sequence requires one Mamba block)."""
    model = made(QWEN3_NEXT)
    more = cache_bytes(model, VllmSettings(8192, 1, 64)) - cache_bytes(model, ONE)
    assert more == 63 * 36 * model.state_bytes
    halved = VllmSettings(8192, 1, 1, tensor_parallel=2)
    assert 2 * cache_bytes(model, halved) == cache_bytes(model, ONE)


def test_a_model_without_attention_caches_nothing_and_can_be_shared_out():
    model = made(MAMBA)
    assert (model.heads, model.kv_heads, model.key_length) == (0, 0, 0)
    assert cache_bytes(model, VllmSettings(262144, 1, 1)) == cache_bytes(model, VllmSettings(16, 1, 1))
    assert tensor_parallel_problem(model, 2) == ""
    assert vllm_plan(model, VllmSettings(8192)).need.total_mib > 15 * 1024


def test_layers_of_unlike_width_count_by_the_widest():
    model = made(GEMMA_3N)
    assert (model.feed_forward, model.full_layers, model.window_layers, model.window) == (16384, 7, 28, 512)
    assert model.confidence == Confidence.GUESS
    odd = made(
        {**GEMMA_3N["text_config"], "intermediate_size": [8192, 16384]} | {"architectures": ["LlamaForCausalLM"]}
    )  # type: ignore[dict-item]
    assert odd.feed_forward == 16384


@pytest.mark.parametrize(("config", "why"), [
    ({**MAMBA, **dict.fromkeys(["num_attention_heads"], 8), "architectures": ["TotallyNewForCausalLM"]}, "is not told"),
    ({**BAMBA, "attn_layer_indices": None, "architectures": ["NewHybrid"]}, "which layers are recurrent is not told"),
    (NEMOTRON_SUPER, "the architecture 'DeciLMForCausalLM' is not known"),
    ({**NEMOTRON_SUPER, "architectures": ["TotallyNewForCausalLM"]}, "'TotallyNewForCausalLM' is not known"),
    ({**NEMOTRON_SUPER, "architectures": ["DeepseekV32ForCausalLM"]}, "a sparse-attention index beside the cache"),
    ({**JAMBA, "architectures": ["LlamaForCausalLM"], "head_dim": "wide"}, "head_dim in config.json is 'wide'"),
])  # fmt: skip
def test_what_is_not_known_is_a_guess_and_says_why(config, why):
    model = made(config)
    assert model.confidence == Confidence.GUESS
    assert why in "; ".join(model.reasons)


def test_a_plain_model_is_not_doubted():
    plain = {key: item for key, item in JAMBA.items() if not key.startswith(("mamba", "attn"))}
    model = made({**plain, "architectures": ["MixtralForCausalLM"]})
    assert (model.confidence, model.recurrent_layers) == (Confidence.BOUNDED, 0)


@pytest.mark.parametrize("missing", ["num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size"])
def test_words_that_are_missing_are_told_apart_from_numbers_that_lie(missing):
    with pytest.raises(UnsizedError, match=f"lacks {missing}"):
        made({key: item for key, item in JAMBA.items() if key != missing})


@pytest.mark.parametrize(
    "config", [GEMMA_3N, NEMOTRON_SUPER, *(row[0] for name, row in HYBRIDS.items() if name != "Mamba")]
)
def test_the_facts_fit_into_the_status(config):
    model = made({**config, "architectures": ["𝔸" * 200], "quantization_config": {"quant_method": "𝔸" * 99}})
    text = transformer_facts(model)["header"]
    assert len(text) <= HEADER_LIMIT
    assert TransformerModel.from_json(json.loads(text)) == model
