"""Rules of the llama.cpp need that hold for every model, and the special cases of architectures."""

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moorage.errors import InvalidSpec
from moorage.sizing.errors import HeaderError
from moorage.sizing.gguf import GgufHeader, read_gguf_header
from moorage.sizing.gguf_model import model_of
from moorage.sizing.llamacpp import CACHE_TYPES, LlamaSettings, cache_cells, layer_cache_bytes, llama_need
from moorage.sizing.model import Confidence, LlamaModel
from moorage.sizing.need import MIB
from tests.unit.gguf_bytes import header
from tests.unit.model_shapes import MODELS, Model

READ = {name: model_of(read_gguf_header(model.header)) for name, model in MODELS.items()}
QWEN = READ["qwen3-8b Q4_K_M"]
names = st.sampled_from(sorted(READ))
contexts = st.integers(512, 200_000)
slots = st.integers(1, 16)


@settings(max_examples=60, deadline=None)
@given(names, contexts, st.integers(1, 65_536), slots, st.booleans())
def test_more_context_never_needs_less(name, ctx_size, more, parallel, unified):
    small = llama_need(READ[name], LlamaSettings(ctx_size, parallel, unified))
    large = llama_need(READ[name], LlamaSettings(ctx_size + more, parallel, unified))
    assert large.kv_mib >= small.kv_mib
    assert large.total_mib >= small.total_mib
    assert large.host_mib >= small.host_mib


@settings(max_examples=60, deadline=None)
@given(names, st.integers(512, 20_000), st.integers(1, 8), st.booleans())
def test_more_slots_of_the_same_context_never_need_less(name, context, parallel, unified):
    fewer = llama_need(READ[name], LlamaSettings(context * parallel, parallel, unified))
    more = llama_need(READ[name], LlamaSettings(context * (parallel + 1), parallel + 1, unified))
    assert more.kv_mib >= fewer.kv_mib


@settings(max_examples=60, deadline=None)
@given(names, contexts, slots)
def test_smaller_cache_types_need_less(name, ctx_size, parallel):
    def cache(kind: str) -> int:
        chosen = LlamaSettings(ctx_size, parallel, cache_type_k=kind, cache_type_v=kind)
        cells = cache_cells(READ[name], chosen)
        return sum(layer_cache_bytes(layer, chosen, cells, 0) for layer in READ[name].layers)

    assert cache("f32") > cache("f16") == cache("bf16") > cache("q8_0") > cache("q5_1") > cache("q4_0")


@settings(max_examples=60, deadline=None)
@given(names, st.integers(0, 130), contexts)
def test_layers_move_between_host_and_gpu_and_none_is_lost(name, gpu_layers, ctx_size):
    model = READ[name]
    here = llama_need(model, LlamaSettings(ctx_size, gpu_layers=gpu_layers))
    more = llama_need(model, LlamaSettings(ctx_size, gpu_layers=gpu_layers + 1))
    assert more.weights_mib >= here.weights_mib
    assert more.host_mib <= here.host_mib + 1
    everything = (model.file_bytes - model.input_bytes) / MIB
    assert here.weights_mib + here.host_mib >= everything - 1


@settings(max_examples=60, deadline=None)
@given(names, st.sampled_from([1, 2, 4, 8]), contexts)
def test_gpus_share_the_layers_out_and_each_pays_for_its_buffers(name, gpus, ctx_size):
    one, split = (llama_need(READ[name], LlamaSettings(ctx_size, gpus=count)) for count in (1, gpus))
    assert len(split.per_gpu_mib) == gpus
    assert (split.weights_mib, split.kv_mib) == (one.weights_mib, one.kv_mib)
    assert max(split.per_gpu_mib) <= one.total_mib or gpus == 1 or one.weights_mib < 4096
    assert abs(sum(split.per_gpu_mib) - split.total_mib) <= 2 * gpus
    assert split.compute_mib > one.compute_mib or gpus == 1


@settings(max_examples=40, deadline=None)
@given(names)
def test_facts_survive_status_and_stay_small(name):
    plain = json.loads(json.dumps(READ[name].to_json()))
    assert LlamaModel.from_json(plain) == READ[name]
    assert len(json.dumps(plain)) < 1500


@pytest.mark.parametrize(
    "broken", [{}, {"kinds": [[1, 2]]}, {**QWEN.to_json(), "layers": [7]}, {**QWEN.to_json(), "x": 1}]
)
def test_facts_of_another_version_are_refused(broken):
    with pytest.raises(HeaderError):
        LlamaModel.from_json(broken)


def test_nothing_on_a_gpu_means_everything_on_the_host():
    need = llama_need(QWEN, LlamaSettings(8192, gpu_layers=0))
    assert (need.total_mib, need.per_gpu_mib) == (0, ())
    assert need.host_mib > 4455 + 333 + 1152


def test_the_context_is_padded_to_whole_steps():
    assert [cache_cells(QWEN, LlamaSettings(size)).full for size in (1, 256, 257, 8192)] == [256, 256, 512, 8192]
    assert cache_cells(QWEN, LlamaSettings(10_000, 3)) == (3584, 0, 3)
    assert cache_cells(QWEN, LlamaSettings(10_000, 3, kv_unified=True)) == (10_240, 0, 1)


def test_the_whole_window_cache_costs_what_full_attention_costs():
    gemma = READ["gemma3-12b Q4_K_M"]
    assert llama_need(gemma, LlamaSettings(32768, swa_full=True)).kv_mib == 12288


def test_one_large_window_sets_the_cells_of_all_windowed_layers():
    gemma = READ["gemma3-4b Q4_K_M"]
    assert cache_cells(gemma, LlamaSettings(32768)).window == 1536
    assert cache_cells(gemma, LlamaSettings(32768, 4, kv_unified=True)).window == 4608
    assert cache_cells(gemma, LlamaSettings(1024)).window == 1024


REFUSED = {
    "0 parallel sequences": {"parallel": 0},
    "257 parallel sequences": {"parallel": 257},
    "must be positive": {"ctx_size": 0},
    "no cache type 'fp8'": {"cache_type_k": "fp8"},
    "needs flash attention": {"cache_type_v": "q8_0", "flash_attention": False},
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_llama_cpp_refuses_is_refused_before_it_starts(message):
    chosen = {"ctx_size": 8192, **REFUSED[message]}
    with pytest.raises(InvalidSpec, match=message):
        llama_need(QWEN, LlamaSettings(**chosen))  # type: ignore[arg-type]


def test_latent_attention_takes_one_cache_type_and_odd_heads_no_blocks():
    with pytest.raises(InvalidSpec, match="one cache type"):
        llama_need(READ["deepseek-v3 Q4_K_M"], LlamaSettings(8192, cache_type_k="q8_0"))
    with pytest.raises(InvalidSpec, match="32 values at a time, but a k head of this model has 100"):
        llama_need(replace(QWEN, head_length=100), LlamaSettings(8192, cache_type_k="q8_0"))


def test_every_cache_type_of_llama_server_is_known():
    assert set(CACHE_TYPES) == {"f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1"}


BASE = {
    "block_count": 8,
    "embedding_length": 1024,
    "context_length": 4096,
    "feed_forward_length": 4096,
    "attention.head_count": 16,
    "vocab_size": 32000,
}
TENSORS = [("token_embd.weight", (1024, 32000), "F16"), ("blk.0.ffn_up.weight", (1024, 4096), "F16")]


def made(architecture: str, **keys: object) -> LlamaModel:
    return model_of(made_header(architecture, **keys))


def made_header(architecture: str, **keys: object) -> GgufHeader:
    pairs = {**BASE, **{key.replace("__", "."): value for key, value in keys.items()}}
    metadata: dict[str, object] = {"general.architecture": architecture}
    metadata |= {f"{architecture}.{key}": value for key, value in pairs.items()}
    return read_gguf_header(header(metadata, TENSORS))


def kept(model: LlamaModel) -> list[tuple[int, int, int, int]]:
    return [(layer.key_width, layer.value_width, layer.window, layer.state) for layer in model.layers]


def test_layers_without_key_value_heads_cache_nothing():
    widths = kept(made("deci", attention__head_count_kv=[4, 0, 4, 0, 0, 2, 4, 4]))
    assert [pair[:2] for pair in widths] == [(256, 256), (0, 0), (256, 256), (0, 0), (0, 0), (128, 128)] + [
        (256, 256)
    ] * 2


def test_encoders_cache_nothing_and_have_no_output_matrix():
    model = made("bert")
    assert set(kept(model)) == {(0, 0, 0, 0)}
    assert model.output_bytes == 0


WINDOWS = {
    "llama": [0] * 8,
    "gpt-oss": [128, 0] * 4,
    "cohere2": [128, 128, 128, 0] * 2,
    "cohere2moe": [0, 128, 128, 128] * 2,
    "smallthinker": [0, 4096, 4096, 4096] * 2,
    "llama4": [8192, 8192, 8192, 0] * 2,
    "phi3": [0] * 8,
    "lfm2": [128] * 8,
}


@pytest.mark.parametrize("architecture", WINDOWS)
def test_windows_follow_the_architecture(architecture):
    extra = {"shortconv__l_cache": 3} if architecture == "lfm2" else {}
    model = made(architecture, attention__sliding_window=128, **extra)
    assert [layer.window for layer in model.layers] == WINDOWS[architecture]


def test_windows_follow_the_header_where_it_lists_them():
    pattern = [True, True, False, True, True, True, False, False]
    model = made("gemma4", attention__sliding_window=512, attention__sliding_window_pattern=pattern,
                 attention__key_length=512, attention__key_length_swa=256, attention__value_length_swa=256,
                 attention__shared_kv_layers=2)  # fmt: skip
    assert [bool(layer.window) for layer in model.layers] == [*pattern[:6], False, False]
    assert [layer.key_width for layer in model.layers] == [4096, 4096, 8192, 4096, 4096, 4096, 0, 0]
    assert made("llama4", attention__sliding_window=0).layers[0].window == 0
    assert [layer.window for layer in made("gemma2").layers] == [4096, 0] * 4
    assert [layer.window for layer in made("gemma3").layers] == [0] * 8


SSM = {"ssm__conv_kernel": 4, "ssm__inner_size": 2048, "ssm__state_size": 16, "ssm__group_count": 1}
CONVOLUTION_AND_STATE = 3 * (2048 + 2 * 16) + 16 * 2048


def test_recurrent_models_keep_state_and_no_cache():
    assert set(kept(made("mamba2", attention__head_count=0, **SSM))) == {(0, 0, 0, CONVOLUTION_AND_STATE)}
    assert set(kept(made("rwkv7", attention__head_count=0, wkv__head_size=64))) == {(0, 0, 0, 1024 * (2 + 64))}


def test_hybrid_models_keep_either_or_both():
    heads = [0, 0, 4, 0, 0, 0, 4, 0]
    state = [0 if head else CONVOLUTION_AND_STATE for head in heads]
    granite = kept(made("granitehybrid", attention__head_count_kv=heads, **SSM))
    assert granite == [(64 * head, 64 * head, 0, kept_) for head, kept_ in zip(heads, state, strict=True)]
    assert set(kept(made("falcon-h1", attention__head_count_kv=2, **SSM))) == {(128, 128, 0, CONVOLUTION_AND_STATE)}
    next_ = kept(made("qwen35", attention__head_count_kv=2, full_attention_interval=2, **SSM))
    assert next_ == [(0, 0, 0, CONVOLUTION_AND_STATE), (128, 128, 0, 0)] * 4
    nemotron = kept(
        made("nemotron_h", attention__head_count_kv=heads, feed_forward_length=[0, 9, 0, 0, 9, 9, 0, 9], **SSM)
    )
    assert [bool(layer[0]) for layer in nemotron] == [False, False, True, False, False, False, True, False]
    assert [bool(layer[3]) for layer in nemotron] == [True, False, False, True, False, False, False, False]


def test_prediction_layers_are_not_loaded_but_count_where_layers_are_shared_out():
    model = made("glm4moe", nextn_predict_layers=1)
    assert (len(model.layers), model.idle_layers, model.units) == (7, 1, 9)
    assert llama_need(model, LlamaSettings(8192, gpu_layers=1)).weights_mib == 63


def test_the_unknown_is_called_a_guess_and_says_why():
    for architecture, words in (("marvel9", "'marvel9' is not known"), ("deepseek32", "sparse-attention index")):
        model = made(architecture)
        assert model.confidence == Confidence.GUESS
        assert words in model.reasons[0]
        need = llama_need(model, LlamaSettings(8192))
        assert need.confidence == Confidence.GUESS
        assert need.margin_mib >= 512


IMPOSSIBLE = {
    "0 layers are impossible": {"block_count": 0},
    "513 layers are impossible": {"block_count": 513},
    "cannot all be for prediction": {"nextn_predict_layers": 8},
    "has 2 entries for 8 layers": {"attention__head_count_kv": [1, 2]},
    "which is impossible": {"attention__key_length": 1 << 40},
    "must be a whole number": {"attention__head_count": "many"},
    "layer 0 would have .* cached values for each token": {"attention__key_length": 1 << 30},
    "a token's embedding would have": {"embedding_length": 1 << 30},
    "the vocabulary would have": {"vocab_size": 1 << 30},
}


@pytest.mark.parametrize("message", IMPOSSIBLE)
def test_a_header_that_lies_is_named(message):
    with pytest.raises(HeaderError, match=message):
        made("llama", **IMPOSSIBLE[message])


@pytest.mark.parametrize("missing", ["block_count", "embedding_length"])
def test_a_header_that_is_silent_is_named(missing):
    pairs = {f"llama.{key}": item for key, item in BASE.items() if key != missing}
    with pytest.raises(HeaderError, match=f"lacks llama.{missing}"):
        model_of(read_gguf_header(header({"general.architecture": "llama", **pairs}, TENSORS)))


def test_tensors_outside_the_model_and_of_unknown_types_are_named():
    pairs = {"general.architecture": "llama", **{f"llama.{key}": item for key, item in BASE.items()}}
    with pytest.raises(HeaderError, match="a tensor of layer 9 in a model of 8 layers"):
        model_of(read_gguf_header(header(pairs, [("blk.9.x.weight", (32,), "F32")])))
    with pytest.raises(HeaderError, match="unknown type or a broken row"):
        model_of(read_gguf_header(header(pairs, [("blk.1.x.weight", (33, 2), "Q8_0")])))


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(["llama", "gemma3", "mamba2", "nemotron_h", "qwen3next", "deepseek2", "rwkv7", "x"]),
    st.dictionaries(
        st.sampled_from(
            [*BASE, "attention.head_count_kv", "attention.key_length", "attention.key_length_mla", "ssm.inner_size",
             "attention.value_length_mla", "attention.sliding_window", "attention.sliding_window_pattern",
             "full_attention_interval", "nextn_predict_layers", "expert_count", "expert_used_count",
             "expert_feed_forward_length", "shortconv.l_cache", "wkv.head_size", "ssm.conv_kernel"]
        ),
        st.one_of(st.integers(0, 1 << 33), st.text(max_size=3), st.booleans(), st.lists(st.integers(0, 99), max_size=9),
                  st.floats(width=32)),
        max_size=6,
    ),
)  # fmt: skip
def test_any_numbers_end_in_a_need_or_a_typed_answer(architecture, keys):
    metadata: dict[str, object] = {"general.architecture": architecture}
    metadata |= {f"{architecture}.{key}": item for key, item in (BASE | keys).items()}
    try:
        model = model_of(read_gguf_header(header(metadata, TENSORS)))
        need = llama_need(model, LlamaSettings(8192, 2))
    except (HeaderError, InvalidSpec) as error:
        assert str(error)
    else:
        assert need.total_mib > 0
        assert LlamaModel.from_json(model.to_json()) == model


def quantized(shape: Model, quantization: str) -> tuple[LlamaModel, int]:
    """The model as that quantization's own header tells it, and the bytes of its file."""
    found = model_of(read_gguf_header(replace(shape, quantization=quantization).header))
    return found, found.file_bytes - (found.output_bytes if shape.tied else 0)


@pytest.mark.parametrize("gpus", [1, 2, 4, 8])
@pytest.mark.parametrize(("now", "then"), [("F16", "Q8_0"), ("F16", "Q4_K_M"), ("Q8_0", "Q4_K_M")])
@pytest.mark.parametrize("name", [name for name in MODELS if name.endswith(("Q4_K_M", "Q8_0"))])
def test_another_quantization_by_the_size_of_its_file_is_never_under_its_own_header(name, now, then, gpus):
    shape = MODELS[name]
    (present, bytes_now), (exact, bytes_then) = quantized(shape, now), quantized(shape, then)
    guessed = present.requantized(bytes_now, bytes_then, gpus)
    settings = LlamaSettings(ctx_size=8192, parallel=1, gpus=gpus)
    wanted, found = llama_need(exact, settings), llama_need(guessed, settings)
    assert max(found.per_gpu_mib) >= max(wanted.per_gpu_mib)
    assert found.kv_mib == wanted.kv_mib
    assert found.confidence is not Confidence.EXACT
    assert max(found.per_gpu_mib) <= max(wanted.per_gpu_mib) * 1.25 + 200
