"""The safetensors header reader: right on real files, bounded and polite on anything else."""

import contextlib
import json
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from moorage.sizing import safetensors as reader_module
from moorage.sizing.errors import HeaderError, NeedMoreBytes
from moorage.sizing.safetensors import join_files, read_safetensors_header


def file_of(entries: object) -> bytes:
    raw = json.dumps(entries).encode()
    return struct.pack("<Q", len(raw)) + raw


TENSOR = {"dtype": "BF16", "shape": [4, 8], "data_offsets": [0, 64]}


def test_agrees_with_the_library_that_writes_them():
    raw = save({"a": np.zeros((3, 5), dtype=np.float16), "b": np.zeros(7, dtype=np.uint8)}, {"format": "pt"})
    read = read_safetensors_header(raw)
    assert (read.data_bytes, read.elements, read.tensors) == (37, {"F16": 15, "U8": 7}, 2)
    assert read.data_offset + read.data_bytes == len(raw)
    assert read.main_type == "F16"


def test_a_short_prefix_says_how_much_it_needs():
    raw = file_of({"a": TENSOR})
    for length in (0, 7):
        with pytest.raises(NeedMoreBytes) as more:
            read_safetensors_header(raw[:length])
        assert more.value.at_least == 8
    with pytest.raises(NeedMoreBytes) as more:
        read_safetensors_header(raw[:20])
    assert more.value.at_least == len(raw)
    assert read_safetensors_header(raw[: more.value.at_least]).data_bytes == 64


def test_files_add_up():
    one, two = read_safetensors_header(file_of({"a": TENSOR})), read_safetensors_header(file_of({"b": TENSOR}))
    both = join_files([one, two])
    assert (both.data_bytes, both.elements, both.tensors) == (128, {"BF16": 64}, 2)
    with pytest.raises(HeaderError):
        join_files([])


BROKEN = {
    "would have 4,611,686,018,427,387,904 bytes": struct.pack("<Q", 1 << 62),
    "would have 1 bytes": struct.pack("<Q", 1) + b"{",
    "is not JSON": struct.pack("<Q", 4) + b"{..}",
    "is not a JSON object": file_of([]),
    "'a' is not described": file_of({"a": {"dtype": "BF16", "shape": [4]}}),
    "'b' is not described": file_of({"b": {**TENSOR, "shape": [4, -8]}}),
    "'c' is not described": file_of({"c": {**TENSOR, "data_offsets": [64, 0]}}),
    "'d' would have 1,208,925,819,614,629,174,706,176 parameters": file_of(
        {"d": {**TENSOR, "shape": [1 << 40, 1 << 40]}}
    ),
    "has 64 bytes for 33 values of BF16": file_of({"e": {**TENSOR, "shape": [33]}}),
}


@pytest.mark.parametrize("message", BROKEN)
def test_what_is_wrong_is_said(message):
    with pytest.raises(HeaderError) as error:
        read_safetensors_header(BROKEN[message])
    assert message in str(error.value)


def test_deep_and_crowded_json_is_refused(monkeypatch):
    deep = b'{"a":' + b"[" * 100_000
    with pytest.raises(HeaderError, match="is not JSON"):
        read_safetensors_header(struct.pack("<Q", len(deep)) + deep)
    monkeypatch.setattr(reader_module, "MAX_CONTAINERS", 3)
    with pytest.raises(HeaderError, match="too large"):
        read_safetensors_header(file_of({"a": TENSOR, "b": TENSOR}))


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_end_in_a_header_or_a_typed_answer(body):
    for raw in (body, struct.pack("<Q", len(body)) + body, file_of({"a": TENSOR})[:10] + body):
        with contextlib.suppress(HeaderError, NeedMoreBytes):
            read_safetensors_header(raw)
