"""Which ranges a reading asks for, and what it makes of files that end too soon."""

import json
import struct
from collections.abc import Generator
from typing import TypeVar

import pytest

from moorage.sizing import reading
from moorage.sizing.errors import HeaderError
from moorage.sizing.gguf import CHUNK_BYTES, read_gguf_header
from moorage.sizing.reading import FIRST_CHUNK, File, Want, read_gguf, read_safetensors
from moorage.sizing.safetensors import FIRST_BYTES
from tests.unit.gguf_bytes import header
from tests.unit.model_shapes import MODELS

Answer = TypeVar("Answer")
MODEL = MODELS["qwen3-8b Q4_K_M"]
CONFIG = json.dumps(
    {"architectures": ["X"], "num_hidden_layers": 1, "hidden_size": 64, "num_attention_heads": 4, "vocab_size": 9}
).encode()


def drive(reading: Generator[Want, bytes, Answer], files: dict[str, bytes]) -> tuple[Answer, list[Want]]:
    """Run a reading over bytes in memory; its answer and what it asked for."""
    asked: list[Want] = []
    try:
        want = next(reading)
        while True:
            asked.append(want)
            assert want.length > 0
            want = reading.send(files[want.path][want.start : want.start + want.length])
    except StopIteration as end:
        return end.value, asked


def of(files: dict[str, bytes]) -> list[File]:
    return [File(name, len(raw)) for name, raw in files.items()]


def safetensors(tensors: int) -> bytes:
    entries = {f"{'x' * 200}{at}": {"dtype": "U8", "shape": [1], "data_offsets": [at, at + 1]} for at in range(tensors)}
    raw = json.dumps(entries).encode()
    return struct.pack("<Q", len(raw)) + raw + bytes(tensors)


def test_a_header_is_read_once_and_in_few_ranges():
    vocabulary = {**MODEL.metadata, "tokenizer.ggml.tokens": ["a token of some length"] * 150_000}
    raw = header(vocabulary, MODEL.tensors)
    files = {"m.gguf": raw + bytes(CHUNK_BYTES)}
    found, asked = drive(read_gguf(of(files), whole=False), files)
    assert found == read_gguf_header(raw)
    assert (asked[0].length, asked[1].length) == (FIRST_CHUNK, CHUNK_BYTES)
    assert [want.start for want in asked[1:]] == [want.start + want.length for want in asked[:-1]]
    assert len(asked) <= 2 + len(raw) // CHUNK_BYTES


def test_a_range_never_leaves_the_file():
    raw = header(MODEL.metadata, MODEL.tensors)
    _, asked = drive(read_gguf([File("m", len(raw))], whole=False), {"m": raw})
    assert sum(want.length for want in asked) == len(raw)


@pytest.mark.parametrize("length", [0, 10, 5000])
def test_a_cut_file_is_named(length):
    raw = header(MODEL.metadata, MODEL.tensors)[:length]
    with pytest.raises(HeaderError, match=r"m\.gguf: the file ends inside its header"):
        drive(read_gguf([File("m.gguf", length)], whole=False), {"m.gguf": raw})
    with pytest.raises(HeaderError, match=r"m\.gguf: the file ends inside its header"):
        drive(read_gguf([File("m.gguf", 1 << 40)], whole=False), {"m.gguf": raw})


def test_every_weight_file_is_read_and_a_long_header_in_a_second_range():
    files = {"config.json": CONFIG, "a": safetensors(2), "b": safetensors(2000)}
    config, *weights = of(files)
    (text, held), asked = drive(read_safetensors(config, weights, whole=True), files)
    assert text == CONFIG
    assert (held.data_bytes, held.elements) == (2002, {"U8": 2002})
    assert [want.path for want in asked] == ["config.json", "a", "b", "b"]
    assert asked[2].length == FIRST_BYTES
    assert sum(want.length for want in asked[2:]) == len(files["b"]) - 2000, "no weights"


def test_what_is_no_model_is_named():
    with pytest.raises(HeaderError, match="b: the file ends inside its header"):
        config = File("config.json", len(CONFIG))
        drive(read_safetensors(config, [File("b", 100)], whole=True), {"config.json": CONFIG, "b": b"123"})
    with pytest.raises(HeaderError, match="a model of 0 files"):
        drive(read_gguf([], whole=False), {})
    with pytest.raises(HeaderError, match="a model of 1001 files"):
        drive(read_gguf([File("x", 1)] * 1001, whole=False), {})
    with pytest.raises(HeaderError, match="a configuration has a few thousand"):
        drive(read_safetensors(File("config.json", 1 << 30), [File("x", 1)], whole=True), {})


def test_a_file_shorter_than_its_tensors_is_refused_where_it_has_to_be_whole():
    raw = header(MODEL.metadata, MODEL.tensors)
    end = read_gguf_header(raw).end
    for size in (len(raw), end - 1):
        with pytest.raises(HeaderError, match=f"m: the file has {size:,} bytes, but its tensors end at byte {end:,}"):
            drive(read_gguf([File("m", size)], whole=True), {"m": raw})
        assert drive(read_gguf([File("m", size)], whole=False), {"m": raw})[0].end == end
    assert drive(read_gguf([File("m", end)], whole=True), {"m": raw})[0].end == end


def test_many_files_share_one_allowance(monkeypatch):
    raw = header({"split.count": 3, "filler": "x" * 4000})
    monkeypatch.setattr(reading, "MAX_HEADERS_BYTES", 10_000)
    with pytest.raises(HeaderError, match="c: the headers of all files together are larger than"):
        drive(read_gguf([File(name, len(raw)) for name in "abc"], whole=True), dict.fromkeys("abc", raw))


def test_an_exact_need_costs_the_whole_header_of_which_nearly_all_is_the_vocabulary():
    """The shape of Llama 3.1's header: 128,256 tokens and 280,147 merges, of 6.6 and 11.6 bytes in the mean."""
    vocabulary = {
        "tokenizer.ggml.tokens": ["a token"[: 6 + (at % 5 < 3)] for at in range(128_256)],
        "tokenizer.ggml.token_type": [1] * 128_256,
        "tokenizer.ggml.merges": ["two long halves"[: 11 + (at % 5 < 3)] for at in range(280_147)],
    }
    llama = MODELS["llama31-8b Q4_K_M"]
    raw, bare = header({**llama.metadata, **vocabulary}, llama.tensors), header(llama.metadata, llama.tensors)
    assert len(raw) == pytest.approx(7.8e6, rel=0.05), "as long as the real one"
    assert len(bare) < 25_000
    _, asked = drive(read_gguf([File("m", 5 << 30)], whole=True), {"m": raw + bytes(CHUNK_BYTES)})
    assert (len(asked), sum(want.length for want in asked)) == (5, FIRST_CHUNK + 4 * CHUNK_BYTES)  # 8.7 MB
