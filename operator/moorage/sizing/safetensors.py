"""Reads the header of a safetensors file: how many bytes of which type, never a weight.

Format: 8 bytes little-endian length, then that many bytes of JSON, then the data
(https://github.com/huggingface/safetensors, README). The bytes come from strangers, so the JSON is bounded before it
is parsed.
"""

import json
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from moorage.sizing.errors import HeaderError, NeedMoreBytes
from moorage.sizing.limits import MAX_BYTES, check_totals
from moorage.sizing.text import clean, instead_of_weights

MAX_JSON_BYTES: Final = 16 << 20
"""The format allows 100 MB; a file of 100,000 tensors takes ten."""
MAX_CONTAINERS: Final = 600_000
"""Objects and lists in the JSON: three for each of 200,000 tensors."""
FIRST_BYTES: Final = 128 << 10
"""A sensible first range: most headers fit (huggingface_hub reads 100,000 bytes)."""
MAX_TYPES: Final = 64
"""Types of tensors in one model; the format has some twenty."""
TYPE_BYTES: Final = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "F8_E4M3FNUZ": 1, "F8_E5M2FNUZ": 1,
    "U16": 2, "I16": 2, "F16": 2, "BF16": 2, "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8, "C64": 8,
}  # fmt: skip


@dataclass(frozen=True)
class SafetensorsHeader:
    """What one file, or all files of a model together, hold.

    data_bytes   bytes of all tensors
    elements     stored values by type name; packed quantized weights count as the integers they are packed in
    tensors      number of tensors
    data_offset  where the data begins (0 for several files together)
    end          length in bytes that the file must have to hold the tensors (0 for several files together)
    """

    data_bytes: int
    elements: dict[str, int]
    tensors: int
    data_offset: int = 0
    end: int = 0

    @property
    def main_type(self) -> str:
        """The type of most bytes, such as `BF16`; empty for a file without tensors."""
        return max(self.elements, key=lambda kind: self.elements[kind] * TYPE_BYTES.get(kind, 1), default="")


def read_safetensors_header(data: bytes) -> SafetensorsHeader:
    """The header in the first bytes of a safetensors file.

    Raises NeedMoreBytes where `data` is too short (the next attempt with `at_least` succeeds) and HeaderError where it
    is wrong.
    """
    if len(data) < 8:
        raise NeedMoreBytes(8)
    length = struct.unpack_from("<Q", data)[0]
    if not 2 <= length <= MAX_JSON_BYTES:
        what = instead_of_weights(data) or f"its header would have {length:,} bytes"
        raise HeaderError(f"not a safetensors file: {what}")
    if len(data) < 8 + length:
        raise NeedMoreBytes(8 + length)
    entries = parse_object(bytes(data[8 : 8 + length]), "the safetensors header")
    elements: dict[str, int] = {}
    total = count = end = 0
    for name, entry in entries.items():
        if name == "__metadata__":
            continue
        kind, values, size, last = _tensor(name, entry)
        elements[kind] = elements.get(kind, 0) + values
        total, count, end = total + size, count + 1, max(end, last)
    if len(elements) > MAX_TYPES:
        raise HeaderError(f"tensors of {len(elements)} types, more than the {MAX_TYPES} allowed")
    return SafetensorsHeader(total, elements, count, 8 + length, 8 + length + end)


def join_files(headers: Sequence[SafetensorsHeader]) -> SafetensorsHeader:
    """All files of one model together; raises HeaderError where there is none."""
    if not headers:
        raise HeaderError("no safetensors file to read")
    elements: dict[str, int] = {}
    for header in headers:
        for kind, count in header.elements.items():
            elements[kind] = elements.get(kind, 0) + count
    size = sum(header.data_bytes for header in headers)
    check_totals("the tensors", sum(elements.values()), size)
    return SafetensorsHeader(size, elements, sum(header.tensors for header in headers))


def parse_object(raw: bytes, what: str) -> dict[str, Any]:
    """`raw` as a JSON object; raises HeaderError where it is none, or too large or deep to be a model's."""
    if len(raw) > MAX_JSON_BYTES or raw.count(b"{") + raw.count(b"[") > MAX_CONTAINERS:
        raise HeaderError(f"{what} is too large")
    try:
        parsed = json.loads(raw)
    except (ValueError, RecursionError):
        raise HeaderError(f"{what} is not JSON") from None
    if not isinstance(parsed, dict):
        raise HeaderError(f"{what} is not a JSON object")
    return parsed


def _tensor(name: str, entry: Any) -> tuple[str, int, int, int]:
    """Type, stored values, bytes and the end (from the start of the data) of one tensor."""
    broken = HeaderError(f"the tensor {clean(name, 60)!r} is not described as safetensors describe one")
    if not isinstance(entry, dict):
        raise broken
    kind, shape, offsets = entry.get("dtype"), _sizes(entry.get("shape"), 16), _sizes(entry.get("data_offsets"), 2)
    if not isinstance(kind, str) or shape is None or offsets is None or len(offsets) != 2:
        raise broken
    size, values = offsets[1] - offsets[0], math.prod(shape)
    if size < 0:
        raise broken
    check_totals(f"the tensor {clean(name, 60)!r}", values, size)
    if kind in TYPE_BYTES and size != values * TYPE_BYTES[kind]:
        raise HeaderError(f"the tensor {clean(name, 60)!r} has {size} bytes for {values} values of {kind}")
    return clean(kind, 20), values, size, offsets[1]


def _sizes(value: Any, limit: int) -> list[int] | None:
    """`value` where it is a short list of sizes, else None."""
    if not isinstance(value, list) or len(value) > limit:
        return None
    whole = all(isinstance(item, int) and not isinstance(item, bool) and 0 <= item <= MAX_BYTES for item in value)
    return value if whole else None
