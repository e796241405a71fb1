"""Writes GGUF headers for tests: the real layout, without a single weight."""

import struct
from collections.abc import Mapping, Sequence

from moorage.sizing.ggml import TENSOR_TYPES, tensor_bytes

TYPE_IDS = {kind.name: type_id for type_id, kind in TENSOR_TYPES.items()}


def text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def value(item: object) -> bytes:
    """A typed value: bool, int (u32, u64 or i64), float (f32), str, or a list of one of them."""
    kind, raw = _value(item)
    return struct.pack("<I", kind) + raw


def _value(item: object) -> tuple[int, bytes]:
    match item:
        case bool():
            return 7, struct.pack("<?", item)
        case int():
            if item < 0:
                return 11, struct.pack("<q", item)
            return (4, struct.pack("<I", item)) if item < 1 << 32 else (10, struct.pack("<Q", item))
        case float():
            return 6, struct.pack("<f", item)
        case str():
            return 8, text(item)
        case list() | tuple():
            inner = [_value(one) for one in item] or [(4, b"")]
            body = b"".join(raw for _, raw in inner)
            return 9, struct.pack("<IQ", inner[0][0], len(item)) + body
    raise TypeError(type(item))


def header(
    metadata: Mapping[str, object],
    tensors: Sequence[tuple[str, tuple[int, ...], str]] = (),
    *,
    version: int = 3,
) -> bytes:
    """The bytes of a whole header; `tensors` are (name, dims, type name)."""
    parts = [b"GGUF", struct.pack("<IQQ", version, len(tensors), len(metadata))]
    parts += [text(key) + value(item) for key, item in metadata.items()]
    offset = 0
    for name, dims, kind in tensors:
        type_id = TYPE_IDS[kind]
        parts.append(text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, type_id, offset))
        offset += -(-(tensor_bytes(type_id, dims) or 0) // 32) * 32
    return b"".join(parts)


def data_bytes(tensors: Sequence[tuple[str, tuple[int, ...], str]]) -> int:
    """Length of the data part that belongs to `tensors`."""
    return sum(-(-(tensor_bytes(TYPE_IDS[kind], dims) or 0) // 32) * 32 for _, dims, kind in tensors)
