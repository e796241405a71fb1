"""Write the tiny model as a Hugging Face folder: configuration, tokenizer and safetensors in bfloat16."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import TensorSpec, serialize_file

from e2e.tinymodels.vocabulary import BOS_ID, CHAT_TEMPLATE, EOS_ID, SPECIAL_TOKENS, Vocabulary, build_vocabulary
from e2e.tinymodels.weights import FloatArray, Shape, generate, largest_shape

_BFloat16Bits = npt.NDArray[np.uint16]  # NumPy has no bfloat16


def write_safetensors(
    folder: str | Path, *, seed: int = 0, shards: int = 1, weight_bytes: int | None = None
) -> list[Path]:
    """Write a model folder that transformers and vLLM load, and return the paths of its weight files.

    With `shards` > 1 the weights are split into `model-0000i-of-0000N.safetensors` with an index beside them.
    With `weight_bytes` the model grows until its weights fill that many bytes, or up to 1 % less: a safetensors file
    must end where its header says, so it cannot be padded to an exact size.

    Raises ValueError if there are fewer tensors than shards.
    """
    target, vocabulary = Path(folder), build_vocabulary()
    shape = largest_shape(len(vocabulary.tokens), weight_bytes or 0, _weight_bytes)
    target.mkdir(parents=True, exist_ok=True)
    for name, content in _documents(shape, vocabulary).items():
        (target / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    tensors = [(name, _bfloat16(weights)) for name, weights in generate(shape, vocabulary, seed=seed)]
    if not 1 <= shards <= len(tensors):
        raise ValueError(f"{len(tensors)} tensors cannot be split into {shards} shards")
    return _write_shards(target, tensors, shards)


def _weight_bytes(shape: Shape) -> int:
    return 2 * (shape.matrix_weights + shape.norm_weights)


def _write_shards(target: Path, tensors: list[tuple[str, _BFloat16Bits]], shards: int) -> list[Path]:
    paths, weight_map = [], {}
    for number in range(shards):
        name = "model.safetensors" if shards == 1 else f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        part = dict(tensors[len(tensors) * number // shards : len(tensors) * (number + 1) // shards])
        serialize_file({key: _spec(bits) for key, bits in part.items()}, target / name, {"format": "pt"})
        (target / name).chmod(0o644)  # safetensors leaves 0600, which a server under another user cannot read
        weight_map.update(dict.fromkeys(part, name))
        paths.append(target / name)
    if shards > 1:
        total = sum(bits.nbytes for _, bits in tensors)
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (target / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return paths


def _bfloat16(weights: FloatArray) -> _BFloat16Bits:
    """Return the weights cut to bfloat16, which is the upper half of a float32."""
    return np.ascontiguousarray((weights.view(np.uint32) >> 16).astype(np.uint16))


def _spec(bits: _BFloat16Bits) -> TensorSpec:
    """Describe a tensor to safetensors by its address, so the array must outlive the description."""
    return TensorSpec(dtype="bfloat16", shape=bits.shape, data_ptr=bits.ctypes.data, data_len=bits.nbytes)


def _documents(shape: Shape, vocabulary: Vocabulary) -> dict[str, dict[str, Any]]:
    bos, eos = SPECIAL_TOKENS[BOS_ID], SPECIAL_TOKENS[EOS_ID]
    return {
        "config.json": _config(shape),
        "generation_config.json": {"bos_token_id": BOS_ID, "eos_token_id": EOS_ID},
        "tokenizer.json": _tokenizer(vocabulary),
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": bos,
            "eos_token": eos,
            "pad_token": bos,
            "clean_up_tokenization_spaces": False,
            "model_max_length": shape.context_length,
            "chat_template": CHAT_TEMPLATE,
        },
    }


def _config(shape: Shape) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.heads,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": shape.context_length,
        "rms_norm_eps": shape.rms_norm_eps,
        "rope_theta": shape.rope_theta,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "bos_token_id": BOS_ID,
        "eos_token_id": EOS_ID,
    }


def _tokenizer(vocabulary: Vocabulary) -> dict[str, Any]:
    """Return a `tokenizer.json` of the Hugging Face tokenizers library, format version 1.0."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": number,
                "content": token,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for number, token in enumerate(SPECIAL_TOKENS)
        ],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: number for number, token in enumerate(vocabulary.tokens)},
            "merges": [merge.split(" ") for merge in vocabulary.merges],
        },
    }
