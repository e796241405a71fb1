"""The vLLM need against published measurements (H100, 79.19 GiB), and its rules."""

import json
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moorage.errors import InvalidSpec
from moorage.sizing.errors import HeaderError
from moorage.sizing.model import Confidence
from moorage.sizing.need import GIB, MIB
from moorage.sizing.safetensors import SafetensorsHeader
from moorage.sizing.transformer import TransformerModel, transformer_of
from moorage.sizing.vllm import (
    VllmSettings,
    activation_bytes,
    cache_bytes,
    constants_for,
    tensor_parallel_problem,
    token_bytes,
    vllm_plan,
)


def config(**keys: object) -> bytes:
    return json.dumps({"architectures": ["LlamaForCausalLM"], "torch_dtype": "bfloat16", **keys}).encode()


def made(weights_gib: float = 15.0, **keys: object) -> TransformerModel:
    return transformer_of(config(**keys), SafetensorsHeader(round(weights_gib * GIB), {"BF16": 1}, 1))


def dense(
    weights: float, layers: int, hidden: int, heads: int, kv: int, head: int, ff: int, vocab: int
) -> TransformerModel:
    return made(
        weights, num_hidden_layers=layers, hidden_size=hidden, num_attention_heads=heads, num_key_value_heads=kv,
        head_dim=head, intermediate_size=ff, vocab_size=vocab, max_position_embeddings=131072,
    )  # fmt: skip


LLAMA = dense(14.99, 32, 4096, 32, 8, 128, 14336, 128256)
QWEN25 = dense(14.25, 28, 3584, 28, 4, 128, 18944, 152064)
QWEN3 = dense(27.52, 40, 5120, 40, 8, 128, 17408, 151936)
GPT_OSS = made(
    13.47, num_hidden_layers=24, hidden_size=2880, num_attention_heads=64, num_key_value_heads=8, head_dim=64,
    intermediate_size=2880, vocab_size=201088, num_local_experts=32, num_experts_per_tok=4, sliding_window=128,
    layer_types=["sliding_attention", "full_attention"] * 12,
)  # fmt: skip
MEASURED = {"max_sequences": 1024, "max_batched_tokens": 8192}


class Row(NamedTuple):
    """Activation peak in GiB as vLLM reported it."""

    model: TransformerModel
    tensor_parallel: int
    activation: float


ACTIVATIONS = {
    "Llama-3.1-8B": Row(LLAMA, 1, 1.89),
    "Llama-3.1-8B tp2": Row(LLAMA, 2, 1.89),
    "Llama-3.1-8B tp4": Row(LLAMA, 4, 1.89),
    "Qwen2.5-7B": Row(QWEN25, 1, 2.21),
    "Qwen2.5-7B tp4": Row(QWEN25, 4, 2.21),
    "Qwen3-14B": Row(QWEN3, 1, 2.23),
    "gpt-oss-20b tp2": Row(GPT_OSS, 2, 2.87),
    "gemma2-9b": Row(dense(17.2, 42, 3584, 16, 8, 256, 14336, 256000), 1, 3.66),
    "gemma3-12b": Row(dense(22.7, 48, 3840, 16, 8, 256, 15360, 262208), 1, 3.99),
    "granite-8b": Row(dense(15.2, 40, 4096, 32, 8, 128, 12800, 49155), 1, 0.85),
    "phi-4": Row(dense(27.3, 40, 5120, 40, 10, 128, 17920, 100352), 1, 1.52),
    "CodeLlama-7b": Row(dense(12.6, 32, 4096, 32, 32, 128, 11008, 32016), 1, 0.77),
    "Mistral-Small-24B": Row(dense(44.8, 40, 5120, 32, 8, 128, 32768, 131072), 1, 2.18),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_are_bounded_and_not_far_over(name):
    row = ACTIVATIONS[name]
    chosen = VllmSettings(8192, tensor_parallel=row.tensor_parallel, version=(0, 18), **MEASURED)
    bound = (activation_bytes(row.model, chosen) + 256 * MIB) / GIB
    assert 0 <= bound - row.activation <= 0.6


class Cache(NamedTuple):
    """What was left for the cache: GiB and tokens, at a utilisation of a GPU of 79.19 GiB."""

    model: TransformerModel
    utilization: float
    gib: float
    tokens: int
    settings: VllmSettings


CACHES = {
    "Llama-3.1-8B": Cache(LLAMA, 0.95, 58.11, 476_016, VllmSettings(8192, version=(0, 18), **MEASURED)),
    "Qwen2.5-7B": Cache(QWEN25, 0.95, 58.53, 1_096_000, VllmSettings(8192, version=(0, 18), **MEASURED)),
    "Qwen3-14B v0.15": Cache(QWEN3, 0.95, 41.94, 0, VllmSettings(8192, version=(0, 15), **MEASURED)),
    "Qwen3-14B v0.17": Cache(QWEN3, 0.95, 45.34, 0, VllmSettings(8192, version=(0, 17), **MEASURED)),
    "Qwen3-14B v0.18": Cache(QWEN3, 0.95, 45.23, 0, VllmSettings(8192, version=(0, 18), **MEASURED)),
}


@pytest.mark.parametrize("name", CACHES)
def test_the_cache_that_was_left_fits_into_what_the_plan_would_claim_for_it(name):
    """Planning for exactly that cache claims what vLLM was given, at most 3 % more."""
    row = CACHES[name]
    plan = vllm_plan(row.model, row.settings)
    without_cache = plan.claimed_bytes - plan.kv_cache_bytes
    claimed = without_cache / GIB + row.gib
    given_to_vllm = row.utilization * 79.19
    assert 0 <= claimed / given_to_vllm - 1 <= 0.03
    if row.tokens:
        per_token = token_bytes(row.model, row.settings) * row.model.full_layers
        assert row.tokens * per_token / GIB == pytest.approx(row.gib, abs=0.01)


def test_the_worked_example_fits_a_24_gb_card():
    settings_ = VllmSettings(16384, full_sequences=4, max_sequences=64, max_batched_tokens=2048, version=(0, 33))
    plan = vllm_plan(QWEN25, settings_)
    assert plan.need.total_mib / 1024 == pytest.approx(20.4, abs=0.1)
    assert plan.kv_cache_bytes == 65_536 * 57_344
    assert plan.utilization(round(23.6 * 1024), plan.need.total_mib) == pytest.approx(0.84, abs=0.01)


@given(st.integers(2048, 200_000), st.integers(0, 200_000))
def test_what_vllm_is_given_and_its_context_stay_within_the_bound(visible: int, given: int):
    plan = vllm_plan(QWEN25, VllmSettings(8192))
    claimed = plan.utilization(visible, given) * visible
    assert claimed == 0 or claimed + 0.55 * 1024 <= given


BYTES_PER_TOKEN = {
    "phi-4-mini": (dense(7, 32, 3072, 24, 8, 128, 8192, 200064), 131_072),
    "qwen3-8b": (dense(15, 36, 4096, 32, 8, 128, 12288, 151936), 147_456),
    "falcon-7b": (dense(13, 32, 4544, 71, 1, 64, 18176, 65024), 8_192),
    "deepseek-v3": (
        made(641, num_hidden_layers=61, hidden_size=7168, num_attention_heads=128, num_key_value_heads=128,
             intermediate_size=18432, vocab_size=129280, kv_lora_rank=512, qk_rope_head_dim=64, v_head_dim=128,
             n_routed_experts=256, num_experts_per_tok=8, moe_intermediate_size=2048, n_shared_experts=1),
        70_272,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BYTES_PER_TOKEN)
def test_bytes_of_one_token_agree_with_published_ones(name):
    model, published = BYTES_PER_TOKEN[name]
    assert token_bytes(model, VllmSettings(8192)) * model.full_layers == published


def test_an_fp8_cache_is_half_and_latents_are_on_every_gpu():
    fp8 = VllmSettings(8192, cache_type="fp8")
    assert 2 * cache_bytes(LLAMA, fp8) == cache_bytes(LLAMA, VllmSettings(8192))
    latent = BYTES_PER_TOKEN["deepseek-v3"][0]
    assert cache_bytes(latent, VllmSettings(8192, tensor_parallel=8)) == cache_bytes(latent, VllmSettings(8192))


def test_a_request_takes_whole_blocks():
    assert cache_bytes(LLAMA, VllmSettings(17, 1)) == cache_bytes(LLAMA, VllmSettings(32, 1)) == 32 * 131_072


def test_experts_count_as_many_as_are_used():
    assert GPT_OSS.feed_forward == 4 * 2880
    assert BYTES_PER_TOKEN["deepseek-v3"][0].feed_forward == 8 * 2048 + 2048


def test_heads_fewer_than_gpus_are_on_several():
    per_gpu = [cache_bytes(QWEN25, VllmSettings(8192, tensor_parallel=gpus)) for gpus in (1, 2, 4)]
    assert per_gpu[0] == 2 * per_gpu[1] == 4 * per_gpu[2]
    assert token_bytes(QWEN25, VllmSettings(8192, tensor_parallel=28)) == 256 * 2


def test_a_window_saves_nothing_where_a_batch_is_as_long_as_the_context():
    saved = cache_bytes(GPT_OSS, VllmSettings(32768, max_batched_tokens=2048))
    none = cache_bytes(GPT_OSS, VllmSettings(32768, max_batched_tokens=32768))
    assert none == 4 * 24 * 32768 * 2 * 8 * 128 > 1.7 * saved


PARALLEL = [
    (QWEN3, 5, "8 key-value heads"),
    (QWEN3, 3, "40 attention heads"),
    (LLAMA, 16, ""),
    (LLAMA, 8, ""),
    (LLAMA, 0, "positive"),
]


@pytest.mark.parametrize(("model", "gpus", "words"), PARALLEL)
def test_tensor_parallelism_must_come_out_even(model, gpus, words):
    problem = tensor_parallel_problem(model, gpus)
    assert words in problem if words else problem == ""


def test_quantized_rows_are_split_in_whole_groups():
    keys = {"num_hidden_layers": 28, "hidden_size": 3584, "num_attention_heads": 28, "num_key_value_heads": 4,
            "intermediate_size": 18944, "vocab_size": 152064}  # fmt: skip
    awq = made(5.2, quantization_config={"quant_method": "awq", "group_size": 128}, **keys)
    assert tensor_parallel_problem(awq, 4) == ""  # 18944 = 4 x 37 x 128
    assert "groups of 256" in tensor_parallel_problem(made(5.2, quantization_config={"group_size": 256}, **keys), 4)
    assert "key-value heads" in tensor_parallel_problem(dense(5, 28, 3584, 28, 5, 128, 18944, 152064), 4)


def test_constants_follow_the_version():
    assert constants_for((0, 10)) == constants_for((0, 11)) == constants_for((0, 16))
    assert constants_for((0, 17)).sampler < constants_for((0, 16)).sampler
    assert constants_for((0, 18)).other_parallel > constants_for((0, 17)).other_parallel
    assert constants_for((0, 33)) == constants_for((1, 0)) == constants_for(None)
    assert constants_for(None).graphs_counted


@settings(max_examples=60, deadline=None)
@given(st.integers(16, 100_000), st.integers(1, 50_000), st.integers(1, 64), st.sampled_from([1, 2, 4, 8]))
def test_more_context_or_sequences_never_need_less(context, more, sequences, gpus):
    base = vllm_plan(LLAMA, VllmSettings(context, sequences, tensor_parallel=gpus)).need
    longer = vllm_plan(LLAMA, VllmSettings(context + more, sequences, tensor_parallel=gpus)).need
    wider = vllm_plan(LLAMA, VllmSettings(context, sequences + 1, tensor_parallel=gpus)).need
    assert longer.kv_mib >= base.kv_mib <= wider.kv_mib
    assert abs(base.total_mib - sum(base.per_gpu_mib)) <= 2 * gpus
    assert len(base.per_gpu_mib) == gpus


def test_no_graphs_without_graphs():
    eager = vllm_plan(LLAMA, VllmSettings(8192, enforce_eager=True)).need
    assert vllm_plan(LLAMA, VllmSettings(8192)).need.compute_mib - eager.compute_mib == 1024


@pytest.mark.parametrize(
    "wrong", [{"context_length": 0}, {"full_sequences": 0}, {"cache_type": "q8_0"}, {"tensor_parallel": 7}]
)
def test_what_vllm_refuses_is_refused_before_it_starts(wrong):
    with pytest.raises(InvalidSpec):
        vllm_plan(LLAMA, VllmSettings(**{"context_length": 8192, **wrong}))  # type: ignore[arg-type]


def test_recurrent_and_seeing_models_are_a_guess():
    keys = {"num_hidden_layers": 4, "hidden_size": 64, "num_attention_heads": 4, "vocab_size": 1000}
    assert made(**keys).confidence == Confidence.BOUNDED
    assert made(**keys, layer_types=["linear_attention", "full_attention"] * 2).confidence == Confidence.GUESS
    seeing = made(text_config={**keys, "hidden_size": 128}, vision_config={"hidden_size": 32})
    assert (seeing.confidence, seeing.hidden) == (Confidence.GUESS, 128)
    assert vllm_plan(seeing, VllmSettings(512)).need.margin_mib > 256


@pytest.mark.parametrize("model", [LLAMA, GPT_OSS])
def test_facts_survive_status(model):
    assert TransformerModel.from_json(json.loads(json.dumps(model.to_json()))) == model
    for broken in ({}, {"architecture": "x"}, {**model.to_json(), "confidence": "Sure"}):
        with pytest.raises(HeaderError):
            TransformerModel.from_json(broken)


WRONG_CONFIGS = {
    "is not JSON": b"{",
    "is not a JSON object": b"[]",
    "lacks num_hidden_layers": config(),
    "lacks vocab_size": config(num_hidden_layers=1, hidden_size=64, num_attention_heads=4),
    "hidden_size in config.json is 'wide'": config(num_hidden_layers=1, hidden_size="wide"),
    "num_hidden_layers in config.json is -1": config(num_hidden_layers=-1),
    "names no architecture": json.dumps(
        {"num_hidden_layers": 1, "hidden_size": 64, "num_attention_heads": 4, "vocab_size": 9}
    ).encode(),
}


@pytest.mark.parametrize("message", WRONG_CONFIGS)
def test_a_broken_configuration_is_named(message):
    with pytest.raises(HeaderError, match=message):
        transformer_of(WRONG_CONFIGS[message], SafetensorsHeader(1, {}, 1))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 1 << 40) | st.text(max_size=4) | st.floats(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)
KEYS = ["num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size",
        "intermediate_size", "sliding_window", "layer_types", "sliding_window_pattern", "kv_lora_rank", "text_config",
        "num_experts", "num_experts_per_tok", "quantization_config", "architectures", "torch_dtype"]  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(KEYS), json_values, max_size=5))
def test_any_configuration_ends_in_a_need_or_a_typed_answer(keys):
    base = {"num_hidden_layers": 4, "hidden_size": 64, "num_attention_heads": 4, "vocab_size": 1000}
    try:
        model = transformer_of(config(**(base | keys)), SafetensorsHeader(GIB, {"BF16": 1}, 1))
        assert vllm_plan(model, VllmSettings(512)).need.total_mib > 0
    except (HeaderError, InvalidSpec) as error:
        assert str(error)
