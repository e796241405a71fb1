"""Write the tiny model as GGUF, in one file or in parts named as `gguf-split` names them."""

import os
from collections.abc import Iterable
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

from e2e.tinymodels.vocabulary import BOS_ID, CHAT_TEMPLATE, EOS_ID, SPECIAL_TOKENS, Vocabulary, build_vocabulary
from e2e.tinymodels.weights import Shape, generate, largest_shape

_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}

_Tensors = list[tuple[str, npt.NDArray[np.generic]]]


def write_gguf(path: str | Path, *, seed: int = 0, pad_to_bytes: int | None = None, split: int = 1) -> list[Path]:
    """Write a Llama GGUF of about 0.3 MB that llama.cpp loads, and return the paths written, first part first.

    `pad_to_bytes` is the exact total size wanted: the model grows to fill it (llama.cpp refuses a file with a tensor
    that it does not use), and zeros after the last tensor fill the rest, less than 1 % of it.
    With `split` > 1, `NAME.gguf` becomes `NAME-00001-of-0000N.gguf` and so on.

    Raises ValueError if `pad_to_bytes` is smaller than the smallest model or there are fewer tensors than parts.
    """
    target = Path(path)
    shape = Shape(vocab_size=len(build_vocabulary().tokens))
    paths = _write(target, shape, seed=seed, split=split)
    if pad_to_bytes is None:
        return paths
    smallest = _total(paths)
    if pad_to_bytes < smallest:
        raise ValueError(f"the smallest model has {smallest} bytes, {pad_to_bytes} were asked for")
    room = pad_to_bytes - (smallest - _weight_bytes(shape))
    shape = largest_shape(shape.vocab_size, room, _weight_bytes)
    paths = _write(target, shape, seed=seed, split=split)
    os.truncate(paths[-1], paths[-1].stat().st_size + pad_to_bytes - _total(paths))
    return paths


def _weight_bytes(shape: Shape) -> int:
    """Return the size of the weights, with room for their entries in the header and for their alignment."""
    entries = 9 * shape.layers * 96
    return 2 * shape.matrix_weights + 4 * shape.norm_weights + entries


def _total(paths: Iterable[Path]) -> int:
    return sum(path.stat().st_size for path in paths)


def _write(target: Path, shape: Shape, *, seed: int, split: int) -> list[Path]:
    vocabulary = build_vocabulary()
    tensors: _Tensors = [
        (_gguf_name(name), weights if weights.ndim == 1 else weights.astype(np.float16))
        for name, weights in generate(shape, vocabulary, seed=seed)
    ]
    paths = _part_paths(target, split)
    if not 1 <= split <= len(tensors):
        raise ValueError(f"{len(tensors)} tensors cannot be split into {split} parts")
    for number, part in enumerate(paths):
        writer = gguf.GGUFWriter(part, "llama")
        if number == 0:
            _add_metadata(writer, shape, vocabulary)
        if split > 1:
            writer.add_uint16(gguf.Keys.Split.LLM_KV_SPLIT_NO, number)
            writer.add_uint16(gguf.Keys.Split.LLM_KV_SPLIT_COUNT, split)
            writer.add_int32(gguf.Keys.Split.LLM_KV_SPLIT_TENSORS_COUNT, len(tensors))
        for name, weights in tensors[len(tensors) * number // split : len(tensors) * (number + 1) // split]:
            writer.add_tensor(name, weights)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return paths


def _part_paths(target: Path, split: int) -> list[Path]:
    if split == 1:
        return [target]
    return [target.with_name(f"{target.stem}-{number:05d}-of-{split:05d}.gguf") for number in range(1, split + 1)]


def _gguf_name(name: str) -> str:
    """Translate a Hugging Face tensor name: `model.layers.0.mlp.up_proj.weight` is `blk.0.ffn_up.weight`."""
    stem = name.removesuffix(".weight")
    if not stem.startswith("model.layers."):
        return _NAMES[stem] + ".weight"
    layer, _, rest = stem.removeprefix("model.layers.").partition(".")
    return f"blk.{layer}.{_NAMES[rest]}.weight"


def _add_metadata(writer: gguf.GGUFWriter, shape: Shape, vocabulary: Vocabulary) -> None:
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name("Moorage tiny random Llama")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_vocab_size(shape.vocab_size)
    writer.add_context_length(shape.context_length)
    writer.add_embedding_length(shape.hidden_size)
    writer.add_feed_forward_length(shape.intermediate_size)
    writer.add_block_count(shape.layers)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.heads)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(shape.rope_theta)
    writer.add_layer_norm_rms_eps(shape.rms_norm_eps)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(vocabulary.tokens)
    special, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_token_types([special if token in SPECIAL_TOKENS else normal for token in vocabulary.tokens])
    writer.add_token_merges(vocabulary.merges)
    writer.add_bos_token_id(BOS_ID)
    writer.add_eos_token_id(EOS_ID)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)
