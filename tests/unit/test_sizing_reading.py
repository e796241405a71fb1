"""Which ranges a reading asks for, and what it makes of files that end too soon."""

import json
import struct
from collections.abc import Generator
from typing import TypeVar

import pytest

from moorage.sizing.errors import HeaderError
from moorage.sizing.gguf import CHUNK_BYTES, read_gguf_header
from moorage.sizing.reading import FIRST_CHUNK, File, Want, read_gguf, read_transformer
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
    return struct.pack("<Q", len(raw)) + raw


def test_a_header_is_read_once_and_in_few_ranges():
    vocabulary = {**MODEL.metadata, "tokenizer.ggml.tokens": ["a token of some length"] * 150_000}
    raw = header(vocabulary, MODEL.tensors)
    files = {"m.gguf": raw + bytes(CHUNK_BYTES)}
    found, asked = drive(read_gguf(of(files)), files)
    assert found == read_gguf_header(raw)
    assert (asked[0].length, asked[1].length) == (FIRST_CHUNK, CHUNK_BYTES)
    assert [want.start for want in asked[1:]] == [want.start + want.length for want in asked[:-1]]
    assert len(asked) <= 2 + len(raw) // CHUNK_BYTES


def test_a_range_never_leaves_the_file():
    raw = header(MODEL.metadata, MODEL.tensors)
    _, asked = drive(read_gguf([File("m", len(raw))]), {"m": raw})
    assert sum(want.length for want in asked) == len(raw)


@pytest.mark.parametrize("length", [0, 10, 5000])
def test_a_cut_file_is_named(length):
    raw = header(MODEL.metadata, MODEL.tensors)[:length]
    with pytest.raises(HeaderError, match=r"m\.gguf: the file ends inside its header"):
        drive(read_gguf([File("m.gguf", length)]), {"m.gguf": raw})
    with pytest.raises(HeaderError, match=r"m\.gguf: the file ends inside its header"):
        drive(read_gguf([File("m.gguf", 1 << 40)]), {"m.gguf": raw})


def test_every_weight_file_is_read_and_a_long_header_in_a_second_range():
    files = {"config.json": CONFIG, "a": safetensors(2), "b": safetensors(2000)}
    config, *weights = of(files)
    (model, text), asked = drive(read_transformer(config, weights), files)
    assert text == CONFIG
    assert (model.weight_bytes, model.parameters) == (2002, 2002)
    assert [want.path for want in asked] == ["config.json", "a", "b", "b"]
    assert asked[2].length == FIRST_BYTES
    assert sum(want.length for want in asked[2:]) == len(files["b"])


def test_what_is_no_model_is_named():
    with pytest.raises(HeaderError, match="b: the file ends inside its header"):
        drive(
            read_transformer(File("config.json", len(CONFIG)), [File("b", 100)]), {"config.json": CONFIG, "b": b"123"}
        )
    with pytest.raises(HeaderError, match="a model of 0 files"):
        drive(read_gguf([]), {})
    with pytest.raises(HeaderError, match="a model of 1001 files"):
        drive(read_gguf([File("x", 1)] * 1001), {})
    with pytest.raises(HeaderError, match="a configuration has a few thousand"):
        drive(read_transformer(File("config.json", 1 << 30), [File("x", 1)]), {})
