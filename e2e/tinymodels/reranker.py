"""A tiny reranker as bge-reranker is one: a BERT encoder with a classifier of one score, whose weights are random."""

from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np

from e2e.tinymodels.vocabulary import build_vocabulary
from e2e.tinymodels.weights import FloatArray, Source

CONTEXT_LENGTH = 2048  # tokens
_WIDTH, _INNER, _HEADS = 64, 128, 2
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_WORD_START = "\N{LOWER ONE EIGHTH BLOCK}"  # before pieces that begin a word, as llama.cpp stores WordPiece


def write_reranker(path: str | Path, *, seed: int = 0) -> list[Path]:
    """Write a GGUF of about 0.7 MB whose header says `pooling_type: rank`, and return the path written.

    The same seed gives the same file.
    """
    tokens = _tokens()
    writer = gguf.GGUFWriter(path, "bert")
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name("Moorage tiny random reranker")
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_context_length(CONTEXT_LENGTH)
    writer.add_embedding_length(_WIDTH)
    writer.add_feed_forward_length(_INNER)
    writer.add_block_count(1)
    writer.add_head_count(_HEADS)
    writer.add_layer_norm_eps(1e-12)
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.RANK)
    _add_tokenizer(writer, tokens)
    for name, weights in _tensors(len(tokens), Source(seed)):
        writer.add_tensor(name, weights)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return [Path(path)]


def _tokens() -> list[str]:
    """The tiny models' words, and letters to spell all others."""
    vocabulary = build_vocabulary()
    words = [vocabulary.tokens[number][1:] for number in sorted(vocabulary.word_ids)]
    letters = [chr(number) for number in range(ord("!"), ord("~") + 1)]
    return [*_SPECIAL, *(_WORD_START + piece for piece in (*letters, *words)), *letters]


def _add_tokenizer(writer: gguf.GGUFWriter, tokens: list[str]) -> None:
    special, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_tokenizer_model("bert")
    writer.add_token_list(tokens)
    writer.add_token_types([special if token in _SPECIAL else normal for token in tokens])
    writer.add_token_type_count(2)
    writer.add_pad_token_id(_SPECIAL.index("[PAD]"))
    writer.add_unk_token_id(_SPECIAL.index("[UNK]"))
    writer.add_bos_token_id(_SPECIAL.index("[CLS]"))
    writer.add_eos_token_id(_SPECIAL.index("[SEP]"))
    writer.add_sep_token_id(_SPECIAL.index("[SEP]"))
    writer.add_mask_token_id(_SPECIAL.index("[MASK]"))


def _tensors(vocabulary: int, source: Source) -> Iterator[tuple[str, FloatArray]]:
    def norm(name: str) -> Iterator[tuple[str, FloatArray]]:
        yield f"{name}.weight", np.ones(_WIDTH, np.float32)
        yield f"{name}.bias", np.zeros(_WIDTH, np.float32)

    def linear(name: str, rows: int, columns: int) -> Iterator[tuple[str, FloatArray]]:
        yield f"{name}.weight", source.matrix(rows, columns, (3 / columns) ** 0.5)
        yield f"{name}.bias", np.zeros(rows, np.float32)

    yield "token_embd.weight", source.matrix(vocabulary, _WIDTH, 1.7)
    yield "position_embd.weight", source.matrix(CONTEXT_LENGTH, _WIDTH, 0.1)
    yield "token_types.weight", source.matrix(2, _WIDTH, 0.1)
    yield from norm("token_embd_norm")
    for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
        yield from linear(f"blk.0.{part}", _WIDTH, _WIDTH)
    yield from norm("blk.0.attn_output_norm")
    yield from linear("blk.0.ffn_up", _INNER, _WIDTH)
    yield from linear("blk.0.ffn_down", _WIDTH, _INNER)
    yield from norm("blk.0.layer_output_norm")
    yield from linear("cls", _WIDTH, _WIDTH)
    yield from linear("cls.output", 1, _WIDTH)
