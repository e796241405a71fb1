"""The GGUF header reader: right on real layouts, bounded and polite on anything else."""

import contextlib
import io
import struct
import time
import tracemalloc

import gguf
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from moorage.sizing import gguf as reader_module
from moorage.sizing.errors import HeaderError, NeedMoreBytes
from moorage.sizing.ggml import FILE_TYPES, TENSOR_TYPES
from moorage.sizing.gguf import CHUNK_BYTES, GgufReader, Skipped, join_parts, read_gguf_header
from tests.unit.gguf_bytes import header, text

METADATA = {
    "general.architecture": "llama",
    "general.name": "A test\nmodel",
    "general.size_label": "8B",
    "llama.block_count": 2,
    "llama.context_length": 8192,
    "llama.attention.head_count_kv": [8, 0],
    "llama.rope.freq_base": 10000.0,
    "tokenizer.ggml.tokens": [f"token{i}" for i in range(5000)],
    "tokenizer.ggml.scores": [float(i) for i in range(5000)],
    "tokenizer.chat_template": "x" * 70_000,
    "general.file_type": 15,
    "split.no": 0,
    "split.count": 1,
}
TENSORS = [("token_embd.weight", (256, 5000), "Q4_K"), ("blk.0.attn_q.weight", (256, 256), "F16")]
WHOLE = header(METADATA, TENSORS)


def test_reads_metadata_tensors_and_facts():
    read = read_gguf_header(WHOLE + b"weights")
    assert (read.architecture, read.name, read.context_length, read.block_count) == ("llama", "A test model", 8192, 2)
    assert read.metadata["llama.attention.head_count_kv"] == (8, 0)
    assert read.metadata["tokenizer.ggml.tokens"] == Skipped(5000)
    assert read.metadata["tokenizer.ggml.scores"] == Skipped(5000)
    assert read.metadata["tokenizer.chat_template"] == Skipped(70_000)
    assert (read.quantization, read.split, read.parameters) == ("Q4_K_M", (0, 1), 256 * 5000 + 256 * 256)
    assert read.tensors is not None
    assert [tensor.bytes for tensor in read.tensors] == [5000 * 144, 2 * 256 * 256]
    assert read.data_offset == -(-len(WHOLE) // 32) * 32


def test_agrees_with_the_writer_of_llama_cpp(tmp_path):
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "qwen3")
    writer.add_block_count(1)
    writer.add_context_length(40960)
    writer.add_array("tokenizer.ggml.tokens", ["a", "b"])
    writer.add_tensor("token_embd.weight", np.zeros((4, 64), dtype=np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    read = read_gguf_header(path.read_bytes())
    assert (read.architecture, read.block_count, read.context_length) == ("qwen3", 1, 40960)
    assert read.tensors is not None
    assert [(tensor.name, tensor.dims, tensor.bytes) for tensor in read.tensors] == [
        ("token_embd.weight", (64, 4), 64 * 4 * 2)
    ]
    assert path.stat().st_size == read.data_offset + 512


def test_type_tables_are_those_of_the_gguf_package():
    theirs = {int(kind): (kind.name, *sizes) for kind, sizes in gguf.GGML_QUANT_SIZES.items()}
    assert {type_id: tuple(kind) for type_id, kind in TENSOR_TYPES.items()} == theirs
    names = {int(kind): kind.name.removeprefix("MOSTLY_").removeprefix("ALL_") for kind in gguf.LlamaFileType}
    assert names == {**FILE_TYPES, 1024: "GUESSED"}


@pytest.mark.parametrize("size", [1, 7, 1000, CHUNK_BYTES])
def test_pieces_of_any_size_give_the_same_header(size):
    reader, stream = GgufReader(), io.BytesIO(WHOLE)
    while reader.needs:
        assert reader.needs > reader.received
        reader.feed(stream.read(size))
    assert reader.header == read_gguf_header(WHOLE)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, len(WHOLE) - 1))
def test_a_prefix_asks_for_more_and_never_for_too_much(length):
    with pytest.raises(NeedMoreBytes) as more:
        read_gguf_header(WHOLE[:length])
    assert length < more.value.at_least <= len(WHOLE)


def _raw(keys: int = 0, tensors: int = 0, body: bytes = b"", *, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, keys) + body


def _array(kind: int, count: int) -> bytes:
    return text("k") + struct.pack("<IIQ", 9, kind, count)


def _tensor(dims: list[int], name: str = "t") -> bytes:
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, 0, 0)


NESTED = text("k") + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 5
BROKEN = {
    "not a GGUF file": b"PK\x03\x04" + bytes(30),
    "a Git LFS pointer, whose file was never uploaded": b"version https://git-lfs.github.com/spec/v1\noid sha256:00",
    "it is a web page": b"<!DOCTYPE html><html><title>Sign in</title></html>",
    "GGUF version 1 ": _raw(version=1),
    "a big-endian file": _raw(version=3 << 24),
    "the number of keys": _raw(keys=1 << 40),
    "the number of tensors": _raw(tensors=1 << 63),
    "the length of a key": _raw(1, 0, struct.pack("<Q", 1 << 62)),
    "a key is not UTF-8": _raw(1, 0, struct.pack("<Q", 2) + b"\xff\xfe" + bytes(20)),
    "the arrays have too many elements": _raw(1, 0, _array(9, 50_000)),
    "'k' has the unknown type 13": _raw(1, 0, text("k") + struct.pack("<I", 13) + bytes(20)),
    "the length of 'k' is 1099511627776": _raw(1, 0, _array(8, 1 << 40)),
    "nests arrays deeper": _raw(1, 0, NESTED + bytes(40)),
    "a string of 4611686018427387904 bytes": _raw(1, 0, _array(8, 1) + struct.pack("<Q", 1 << 62)),
    "the key 'k' appears twice": _raw(2, 0, (text("k") + struct.pack("<II", 4, 1)) * 2),
    "the tensor 't' appears twice": _raw(0, 2, _tensor([1]) * 2),
    "has 5 dimensions": _raw(0, 1, _tensor([1] * 5)),
    "impossible shape [0]": _raw(0, 1, _tensor([0])),
    "impossible shape [4294967297": _raw(0, 1, _tensor([(1 << 32) + 1])),
    "would have 9,223,372,036,854,775,808 parameters": _raw(0, 1, _tensor([1 << 32, 1 << 31])),
    "would have 2,251,799,813,685,248 bytes": _raw(0, 1, _tensor([1 << 32, 1 << 17])),
    "not a power of two": header({"general.alignment": 33}),
}


@pytest.mark.parametrize("message", BROKEN)
def test_what_is_wrong_is_said(message):
    with pytest.raises(HeaderError) as error:
        read_gguf_header(BROKEN[message])
    assert message in str(error.value)


def test_a_header_beyond_the_cap_is_refused_before_it_is_fetched(monkeypatch):
    monkeypatch.setattr(reader_module, "MAX_HEADER_BYTES", 4000)
    with pytest.raises(HeaderError, match="larger than"):
        read_gguf_header(WHOLE[:3999])


@pytest.mark.parametrize("value", ["12", True, -1, 1.5, [1]])
def test_a_number_that_is_none_is_named(value):
    data = _raw(1, 0, text("n") + struct.pack("<Ii", 5, -1)) if value == -1 else header({"n": value})
    with pytest.raises(HeaderError, match="n must be a whole number"):
        read_gguf_header(data).integer("n")


def _part(number: int, count: int, tensors: list[tuple[str, tuple[int, ...], str]]) -> bytes:
    split = {"split.no": number, "split.count": count, "split.tensors.count": 2}
    return header({**(METADATA if number == 0 else {}), **split}, tensors)


def test_split_files_are_joined():
    parts = [read_gguf_header(_part(n, 2, [TENSORS[n]])) for n in range(2)]
    whole = join_parts(parts)
    assert [tensor.name for tensor in whole.tensors] == [name for name, _, _ in TENSORS]
    assert (whole.split, whole.parameters) == ((0, 1), 256 * 5000 + 256 * 256)
    assert parts[0].end == parts[0].data_offset + 256 * 5000 * 144 // 256
    for wrong in ([], parts[:1], parts[::-1], [parts[0], parts[0]]):
        with pytest.raises(HeaderError):
            join_parts(wrong)


def test_split_files_with_missing_tensors_are_refused():
    with pytest.raises(HeaderError, match="hold 3 tensors, 2 were declared"):
        join_parts([read_gguf_header(_part(0, 2, TENSORS)), read_gguf_header(_part(1, 2, [TENSORS[0]]))])


@settings(max_examples=400, deadline=None)
@given(st.binary(max_size=400))
@example(b"")
def test_any_bytes_end_in_a_header_or_a_typed_answer(body):
    for data in (body, _raw(3, 2, body), _raw(1, 0, text("k") + body)):
        with contextlib.suppress(HeaderError, NeedMoreBytes):
            read_gguf_header(data)


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_flipped_bytes_end_in_a_header_or_a_typed_answer(data):
    raw = bytearray(header({**METADATA, "tokenizer.ggml.tokens": ["a", "b"], "tokenizer.chat_template": ""}, TENSORS))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(HeaderError, NeedMoreBytes):
        read = read_gguf_header(bytes(raw))
        _ = (read.name, read.quantization, read.architecture)
        _ = (read.parameters, read.context_length, read.split)


WORST = {
    "strings": _raw(
        20, 0, b"".join(text(f"k{i}") + struct.pack("<IIQ", 9, 8, 1_000_000) + bytes(8_000_000) for i in range(6))
    ),
    "empty arrays": _raw(
        20, 0, text("k") + struct.pack("<IIQ", 9, 9, 1_000_000) + struct.pack("<IQ", 4, 0) * 1_000_000
    ),
    "numbers": _raw(
        10_000, 0, b"".join(text(f"{i}") + struct.pack("<IIQ", 9, 2, 4096) + bytes(8192) for i in range(4000))
    ),
}


@pytest.mark.parametrize("kind", WORST)
def test_the_worst_headers_take_little_time(kind):
    started = time.process_time()
    with pytest.raises((NeedMoreBytes, HeaderError)):
        read_gguf_header(WORST[kind])
    assert time.process_time() - started < 5


def test_many_short_arrays_take_little_memory():
    tracemalloc.start()
    with pytest.raises(NeedMoreBytes):
        read_gguf_header(WORST["numbers"])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * len(WORST["numbers"])
