"""Llama models whose weights are a table: after this token comes that one, whatever stood before.

Random weights never call a tool, and a model that does is gigabytes. So these weights are written by hand: every token
has a channel of its own in the hidden state, attention and feed-forward add nothing to it, and the output matrix holds
for each token how much each other one is wanted next. Only the weights are made: files, tokens, chat template, grammar,
sampling and the reading of tool calls are the engine's own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

from e2e.tinymodels.vocabulary import BOS_ID, EOS_ID, SPECIAL_TOKENS, Vocabulary, build_vocabulary

END = SPECIAL_TOKENS[EOS_ID]
"""The last token of a chain; with it the answer ends."""

CONTEXT_LENGTH = 4096  # tokens
_HEAD_DIM = 32
_GAP = 50.0  # between the logits of a token and the next best: nothing else is drawn at any temperature in use


@dataclass(frozen=True)
class Table:
    """What follows what.

    `chains` of tokens, the more wanted first: where two go on differently after one token, the first is taken as long
    as a grammar lets it. A token is any text, such as `{"city": `. `template` is the chat template; what its prompt
    ends with chooses the chain.
    """

    chains: Sequence[Sequence[str]]
    template: str


def write_table_model(path: Path, table: Table) -> None:
    """Write `table` as a GGUF of about 4 MB; its tokens are the tiny models' and its own."""
    vocabulary = build_vocabulary()
    tokens = tuple(dict.fromkeys(chain(vocabulary.tokens, *table.chains)))
    writer = gguf.GGUFWriter(path, "llama")
    _add_metadata(writer, len(tokens))
    _add_tokenizer(writer, tokens, vocabulary)
    writer.add_chat_template(table.template)
    for name, weights in _tensors(tokens, table):
        writer.add_tensor(name, weights)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _width(tokens: int) -> int:
    return -(-tokens // _HEAD_DIM) * _HEAD_DIM


def _add_metadata(writer: gguf.GGUFWriter, tokens: int) -> None:
    width = _width(tokens)
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name("Moorage table model")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_vocab_size(tokens)
    writer.add_context_length(CONTEXT_LENGTH)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(_HEAD_DIM)
    writer.add_block_count(1)
    writer.add_head_count(width // _HEAD_DIM)
    writer.add_head_count_kv(width // _HEAD_DIM)
    writer.add_rope_dimension_count(_HEAD_DIM)
    writer.add_layer_norm_rms_eps(1e-5)


def _add_tokenizer(writer: gguf.GGUFWriter, tokens: tuple[str, ...], vocabulary: Vocabulary) -> None:
    """The tiny models' own; the words of the chains are added tokens, which are found in a text before all others."""
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    known = set(vocabulary.tokens)
    writer.add_token_types([_kind(token, known) for token in tokens])
    writer.add_token_merges(vocabulary.merges)
    writer.add_bos_token_id(BOS_ID)
    writer.add_eos_token_id(EOS_ID)
    writer.add_add_bos_token(False)


def _kind(token: str, known: set[str]) -> gguf.TokenType:
    if token in SPECIAL_TOKENS:
        return gguf.TokenType.CONTROL
    return gguf.TokenType.NORMAL if token in known else gguf.TokenType.USER_DEFINED


def _tensors(tokens: tuple[str, ...], table: Table) -> list[tuple[str, npt.NDArray[np.generic]]]:
    width = _width(len(tokens))
    square, ones = np.zeros((width, width), np.float16), np.ones(width, np.float32)
    return [
        ("token_embd.weight", np.eye(len(tokens), width, dtype=np.float16)),
        ("output_norm.weight", ones),
        ("output.weight", _wanted_next(tokens, table, width)),
        ("blk.0.attn_norm.weight", ones),
        *((f"blk.0.attn_{part}.weight", square) for part in ("q", "k", "v", "output")),
        ("blk.0.ffn_norm.weight", ones),
        *((f"blk.0.ffn_{part}.weight", np.zeros((_HEAD_DIM, width), np.float16)) for part in ("gate", "up")),
        ("blk.0.ffn_down.weight", np.zeros((width, _HEAD_DIM), np.float16)),
    ]


def _wanted_next(tokens: tuple[str, ...], table: Table, width: int) -> npt.NDArray[np.float16]:
    """[next token, channel of the last token]; the norm before it makes a token's channel the root of the width."""
    ids = {token: number for number, token in enumerate(tokens)}
    wanted = np.zeros((len(tokens), width), np.float16)
    for rank, words in enumerate(reversed(table.chains), 1):
        for last, following in pairwise(words):
            wanted[ids[following], ids[last]] = rank * _GAP / width**0.5
    return wanted
