"""Headers in which any number may be any number: what a stranger's repository can hold.

`python -m tests.unit.lying_headers` searches them under a limit of address space, so that a number that sizes an
allocation fails at once; the operator itself may take no more.
"""

import contextlib
import json
import math
import os
import resource
import struct
from collections.abc import Iterator
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moorage.engines.facts import read_facts
from moorage.sizing import architectures as arch
from moorage.sizing.errors import HeaderError
from moorage.sizing.reading import Want, drive
from moorage.sources import RepoFile
from tests.unit.gguf_bytes import header, text, value

ADDRESS_SPACE = 1 << 30
"""Bytes; Python with what is imported here takes a quarter."""
KEYS = (
    "block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count",
    "attention.head_count_kv", "attention.key_length", "attention.value_length", "attention.key_length_swa",
    "attention.value_length_swa", "attention.key_length_mla", "attention.value_length_mla", "vocab_size",
    "attention.sliding_window", "attention.sliding_window_pattern", "attention.shared_kv_layers",
    "attention.recurrent_layers", "full_attention_interval", "nextn_predict_layers", "expert_count",
    "expert_used_count", "expert_feed_forward_length", "expert_shared_feed_forward_length", "ssm.conv_kernel",
    "ssm.inner_size", "ssm.state_size", "ssm.group_count", "ssm.time_step_rank", "kda.head_dim", "wkv.head_size",
    "token_shift_count", "shortconv.l_cache", "embedding_length_per_layer_input",
)  # fmt: skip
"""Every number that sizing reads of an architecture."""
OTHERS = (
    "split.no", "split.count", "split.tensors.count", "general.file_type", "general.alignment",
    "general.parameter_count", "tokenizer.ggml.tokens",
)  # fmt: skip

EDGES = (
    0, 1, 2, 7, 32, 127, 1 << 16, 1 << 20, 1 << 24, (1 << 31) - 1, 1 << 31, 1 << 32, 1 << 40, (1 << 63) - 1, 1 << 63,
    (1 << 64) - 1, -1, -(1 << 63),
)  # fmt: skip
FAMILIES = ("llama", "deepseek2", "mamba2", "jamba", "nemotron_h", "qwen3next", "gemma3n", "rwkv7", "lfm2", "x")
edges = st.sampled_from([edge for edge in EDGES if edge >= 0])
sane = st.sampled_from([1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096])
u64 = edges | st.integers(0, (1 << 64) - 1)
any_number = sane | u64 | st.integers(-(1 << 63), -1)
any_value = any_number | st.lists(sane | edges, min_size=1, max_size=40) | st.booleans() | st.floats(width=32)


@st.composite
def gguf(draw: st.DrawFn) -> bytes:
    """A GGUF header of a known architecture that makes sense but for one or two of its numbers, so that it gets far."""
    name = draw(st.sampled_from(sorted(arch.KNOWN)) | st.sampled_from(["x", "deepseek32"]))
    told_of = REQUIRED | draw(st.sets(st.sampled_from(KEYS), max_size=8))
    pairs: dict[str, object] = {"general.architecture": name, **{f"{name}.{key}": draw(sane) for key in told_of}}
    pairs[f"{name}.block_count"] = draw(st.sampled_from([1, 2, 36, 512]))
    lies = draw(st.sets(st.sampled_from([*KEYS, *OTHERS, *OTHERS, "tensor", "counts"]), min_size=1, max_size=2))
    keys = sorted(lies - {"tensor", "counts"})
    pairs |= {key if key in OTHERS else f"{name}.{key}": draw(edges | any_value) for key in keys}
    infos = [draw(tensor(at, wild="tensor" in lies)) for at in range(draw(st.integers(0, 3)))]
    counts = [draw(u64), draw(u64)] if "counts" in lies else [len(infos), len(pairs)]
    body = b"".join(text(key) + value(item) for key, item in pairs.items())
    return b"GGUF" + struct.pack("<IQQ", 3, *counts) + body + b"".join(infos)


REQUIRED = {"block_count", "embedding_length", "attention.head_count", "feed_forward_length"}


@st.composite
def tensor(draw: st.DrawFn, at: int, *, wild: bool) -> bytes:
    """One tensor info, as large as any; a `wild` one has any type and any number of any dimensions."""
    name = "token_embd.weight" if at == 0 else f"blk.0.ffn_down.{at}"
    large = sane | st.sampled_from([1 << 17, 1 << 20, 1 << 31, 1 << 32])
    dims = draw(st.lists(large | edges, max_size=5) if wild else st.lists(large, min_size=1, max_size=3))
    kind = draw(u64.map(lambda number: number % (1 << 32)) if wild else st.sampled_from([0, 1]))
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, draw(u64) if wild else 0)


TRANSFORMER_KEYS = (
    "num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim", "v_head_dim",
    "vocab_size", "intermediate_size", "max_position_embeddings", "sliding_window", "sliding_window_pattern",
    "kv_lora_rank", "qk_rope_head_dim", "num_experts", "num_experts_per_tok", "moe_intermediate_size",
    "n_shared_experts", "mamba_d_state", "mamba_n_heads", "mamba_d_head", "mamba_d_conv", "mamba_expand",
    "attn_layer_period", "attn_layer_offset", "full_attention_interval", "linear_key_head_dim",
    "linear_num_value_heads", "linear_num_key_heads", "linear_conv_kernel_dim", "conv_L_cache", "layer_types",
    "hybrid_override_pattern", "attn_layer_indices", "attn_type_list", "quantization_config",
)  # fmt: skip
odd = st.recursive(
    any_number | st.none() | st.text(max_size=8) | st.floats() | st.just("M-*M"),
    lambda inner: (
        st.lists(inner, max_size=5) | st.dictionaries(st.sampled_from(["group_size", "a"]), inner, max_size=2)
    ),
    max_leaves=8,
)


@st.composite
def config_json(draw: st.DrawFn) -> bytes:
    """A config.json that makes sense but for a few of its values."""
    shape = {"num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size"}
    found: dict[str, Any] = {
        key: draw(sane) for key in shape | draw(st.sets(st.sampled_from(TRANSFORMER_KEYS), max_size=8))
    }
    found["num_hidden_layers"] = draw(st.sampled_from([1, 2, 36, 1024]))
    found |= {key: draw(edges | odd) for key in draw(st.sets(st.sampled_from(TRANSFORMER_KEYS), max_size=3))}
    names = ["LlamaForCausalLM", "MambaForCausalLM", "JambaForCausalLM", "TotallyNewForCausalLM", "FalconH1ForCausalLM"]
    found["architectures"] = [draw(st.sampled_from(names))]
    whole = {"architectures": ["Seeing"], "text_config": found} if draw(st.integers(0, 9)) == 0 else found
    return json.dumps(whole).encode()


@st.composite
def safetensors(draw: st.DrawFn) -> bytes:
    """The header of a safetensors file with tensors as large as any."""
    entries, start, wild = {}, 0, draw(st.integers(0, 4)) == 0
    for at in range(draw(st.integers(1, 3))):
        shape = draw(st.lists(sane | st.sampled_from([1 << 20, 1 << 32]) | (edges if wild else sane), max_size=4))
        end = draw(edges) if wild else start + 2 * math.prod(shape)
        entries[f"t{at}"] = {"dtype": "F4" if wild else "BF16", "shape": shape, "data_offsets": [start, end]}
        start = end
    raw = json.dumps(entries).encode()
    return struct.pack("<Q", draw(u64) if draw(st.integers(0, 19)) == 0 else len(raw)) + raw


folders = st.builds(lambda raw: {"m.gguf": raw}, gguf()) | st.builds(
    lambda config, raw: {"config.json": config, "model.safetensors": raw}, config_json(), safetensors()
)
"""Files by name: one model."""


def told(files: dict[str, bytes]) -> dict[str, Any]:
    """What the operator would be told of `files`; raises HeaderError as it would."""
    sizes = [RepoFile(name, len(raw)) for name, raw in files.items()]

    def read(want: Want) -> bytes:
        return files[want.path][want.start : want.start + want.length]

    return drive(read_facts(sizes, whole=False), read)


def every_key() -> Iterator[bytes]:
    """A header for each key, alone in its lie, at each edge and in each family of architectures."""
    for name in FAMILIES:
        base = {f"{name}.{key}": 16 for key in KEYS} | {f"{name}.nextn_predict_layers": 0, f"{name}.block_count": 32}
        for key in [*(f"{name}.{key}" for key in KEYS), *OTHERS]:
            for edge in EDGES:
                yield header({"general.architecture": name, **base, key: edge}, [("token_embd.weight", (16, 9), "F16")])


@settings(
    max_examples=600,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    database=None,
    derandomize="MOORAGE_EXPLORE" not in os.environ,
)
@given(folders)
def search(files: dict[str, bytes]) -> None:
    """Facts, or the one exception that has a reason."""
    try:
        told(files)
    except HeaderError as error:
        assert str(error)


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    for raw in every_key():
        with contextlib.suppress(HeaderError):
            told({"m.gguf": raw})
    search()
