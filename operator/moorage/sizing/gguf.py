"""Reads the header of a GGUF file: metadata and tensor infos, never a weight.

The bytes come from strangers. Every count and length is bounded before it is believed, nothing is allocated that is
larger than the bytes at hand, and what is wrong ends in `HeaderError`. The limits are those of huggingface.js
(packages/gguf), made for the same job; the format is ggml/docs/gguf.md, versions 2 and 3.
"""

import struct
from collections import Counter
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from moorage.sizing.errors import HeaderError, NeedMoreBytes
from moorage.sizing.ggml import FILE_TYPE_GUESSED, FILE_TYPES, TENSOR_TYPES, tensor_bytes
from moorage.sizing.limits import check_totals
from moorage.sizing.text import clean, instead_of_weights, shown

MAX_HEADER_BYTES: Final = 50 << 20
CHUNK_BYTES: Final = 2 << 20
"""A sensible size for one range request; the largest real header (gemma-4, 15.8 MB) takes eight."""
MAX_KEYS: Final = 100_000
MAX_TENSORS: Final = 100_000
MAX_STRING_BYTES: Final = 10 << 20
MAX_NAME_BYTES: Final = 65_535
MAX_ARRAY: Final = 1_000_000
MAX_WALKED: Final = 4_000_000
"""Strings in arrays, which are stepped over one by one, all keys together; an array in an array counts as 100."""
MAX_NESTING: Final = 4
MAX_DIMS: Final = 4
MAX_DIM: Final = 1 << 32
KEPT_STRING_BYTES: Final = 64 << 10
KEPT_TEXT_BYTES: Final = 1 << 20
"""Bytes of strings kept from all keys together; a character of Python's takes up to four."""
KEPT_ARRAY: Final = 4096
"""Longer arrays (vocabularies) are stepped over and only their length is kept; per-layer arrays have <= 512."""
KEPT_NUMBERS: Final = 64 << 10
"""Numbers kept from all arrays together; a Python int is up to 36 times the byte it was read from."""

_STRING: Final = 8
_ARRAY: Final = 9
_SCALARS: Final = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_U32: Final = struct.Struct("<I")
_U64: Final = struct.Struct("<Q")


@dataclass(frozen=True)
class Skipped:
    """Stands for an array or string too long to keep; `length` counts its elements or bytes."""

    length: int


Value = int | float | bool | str | tuple[int | float | bool, ...] | Skipped


@dataclass(frozen=True)
class Tensor:
    """One tensor info: `dims` fastest axis first, `offset` from the start of the data part."""

    name: str
    dims: tuple[int, ...]
    type_id: int
    offset: int

    @property
    def elements(self) -> int:
        """Number of values."""
        count = 1
        for dim in self.dims:
            count *= dim
        return count

    @property
    def bytes(self) -> int | None:
        """Size in bytes; None where the type is unknown to this version of Moorage."""
        return tensor_bytes(self.type_id, self.dims)


@dataclass(frozen=True)
class GgufHeader:
    """What a GGUF file says of itself; `data_offset` is the byte at which the weights begin."""

    metadata: dict[str, Value]
    tensors: tuple[Tensor, ...]
    data_offset: int

    def integer(self, key: str) -> int | None:
        """The value of `key` where it is a whole number >= 0; raises HeaderError where it is anything else."""
        value = self.metadata.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise HeaderError(f"{key} must be a whole number, not {shown(value)}")
        return value

    def text(self, key: str) -> str:
        """The value of `key` where it is a string, without control characters, at most 256 characters; else empty."""
        value = self.metadata.get(key)
        return clean(value, 256) if isinstance(value, str) else ""

    @property
    def architecture(self) -> str:
        """`general.architecture`, such as `llama` or `qwen3moe`; empty in later parts of a split file."""
        return self.text("general.architecture")

    @property
    def name(self) -> str:
        """`general.name`, for people."""
        return self.text("general.name")

    @property
    def context_length(self) -> int | None:
        """Tokens the model was trained for."""
        return self.integer(f"{self.architecture}.context_length")

    @property
    def block_count(self) -> int | None:
        """Number of layers, multi-token-prediction layers included."""
        return self.integer(f"{self.architecture}.block_count")

    @property
    def split(self) -> tuple[int, int]:
        """Which part of how many this file is, counted from 0: (0, 1) for a file in one piece."""
        return self.integer("split.no") or 0, max(1, self.integer("split.count") or 1)

    @cached_property
    def parameters(self) -> int:
        """Number of weights in the tensors."""
        return sum(tensor.elements for tensor in self.tensors)

    @property
    def end(self) -> int:
        """Length in bytes that the file must have to hold its tensors (0: it has none); of one part, not of all."""
        ends = (self.data_offset + tensor.offset + (tensor.bytes or 0) for tensor in self.tensors)
        return max(ends, default=0)

    @cached_property
    def quantization(self) -> str:
        """The name people use (`Q4_K_M`, `F16`), else the type of most bytes, else empty."""
        declared = self.metadata.get("general.file_type")
        if isinstance(declared, int) and (name := FILE_TYPES.get(declared & ~FILE_TYPE_GUESSED)):
            return name
        sizes: Counter[int] = Counter()
        for tensor in self.tensors:
            sizes[tensor.type_id] += tensor.bytes or 0
        known = [TENSOR_TYPES[type_id].name for type_id, _ in sizes.most_common(1) if type_id in TENSOR_TYPES]
        return known[0] if known else ""


class GgufReader:
    """Reads a header piece by piece, never the same byte twice.

    Feed prefixes in order until `needs` is 0, then take `header`:

        reader = GgufReader()
        while reader.needs:
            reader.feed(fetch(offset=reader.received, length=max(reader.needs - reader.received, CHUNK_BYTES)))

    `needs` is the length of the prefix without which nothing more can be said. There is no way round the vocabulary: it
    lies before the tensors, and where it ends only each of its strings' lengths tell.
    """

    def __init__(self) -> None:
        self.header: GgufHeader | None = None
        self.needs = 0
        self._data = bytearray()
        self._at = 0
        self._walked = self._kept = self._kept_text = 0
        self._metadata: dict[str, Value] = {}
        self._walk = self._read()
        self._advance()

    @property
    def received(self) -> int:
        """Bytes fed so far."""
        return len(self._data)

    def feed(self, chunk: bytes | memoryview) -> None:
        """Take the next bytes of the file; raises HeaderError as soon as they cannot be a header's."""
        if self.header is not None:
            return
        self._data += chunk
        if len(self._data) >= self.needs:
            self._advance()

    def _advance(self) -> None:
        self.needs = next(self._walk, 0)

    def _require(self, length: int) -> Generator[int, None, None]:
        """Wait until `length` bytes lie ahead."""
        end = self._at + length
        if end > MAX_HEADER_BYTES:
            raise HeaderError(f"the header is larger than {MAX_HEADER_BYTES >> 20} MiB")
        while len(self._data) < end:
            yield end

    def _number(self, layout: struct.Struct) -> Generator[int, None, int]:
        yield from self._require(layout.size)
        value: int = layout.unpack_from(self._data, self._at)[0]
        self._at += layout.size
        return value

    def _count(self, what: str, limit: int) -> Generator[int, None, int]:
        value = yield from self._number(_U64)
        if value > limit:
            raise HeaderError(f"{what} is {value}, more than the {limit} allowed")
        return value

    def _name(self, what: str) -> Generator[int, None, str]:
        length = yield from self._count(f"the length of {what}", MAX_NAME_BYTES)
        yield from self._require(length)
        raw = bytes(self._data[self._at : self._at + length])
        self._at += length
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise HeaderError(f"{what} is not UTF-8") from None

    def _read(self) -> Generator[int, None, None]:
        yield from self._require(24)
        if self._data[:4] != b"GGUF":
            what = instead_of_weights(self._data) or "it does not begin with 'GGUF'"
            raise HeaderError(f"not a GGUF file: {what}")
        self._at = 4
        version = yield from self._number(_U32)
        if version not in (2, 3):
            order = " (a big-endian file)" if version in (2 << 24, 3 << 24) else ""
            raise HeaderError(f"GGUF version {version}{order} is not supported, only 2 and 3")
        tensors = yield from self._count("the number of tensors", MAX_TENSORS)
        keys = yield from self._count("the number of keys", MAX_KEYS)
        for _ in range(keys):
            key = yield from self._name("a key")
            if key in self._metadata:
                raise HeaderError(f"the key {clean(key, 60)!r} appears twice")
            self._metadata[key] = yield from self._value(key, (yield from self._number(_U32)), 0)
        infos = yield from self._read_tensors(tensors)
        self.header = GgufHeader(self._metadata, infos, self._data_offset())
        self._data = bytearray()

    def _value(self, key: str, kind: int, depth: int) -> Generator[int, None, Value]:
        if kind == _STRING:
            return (yield from self._string(key))
        if kind == _ARRAY:
            return (yield from self._array(key, depth + 1))
        if kind not in _SCALARS:
            raise HeaderError(f"{clean(key, 60)!r} has the unknown type {kind}")
        return (yield from self._scalars(kind, 1))[0]

    def _scalars(self, kind: int, count: int) -> Generator[int, None, tuple[int | float | bool, ...]]:
        layout = struct.Struct(f"<{count}{_SCALARS[kind]}")
        yield from self._require(layout.size)
        values = layout.unpack_from(self._data, self._at)
        self._at += layout.size
        return values

    def _string(self, key: str) -> Generator[int, None, str | Skipped]:
        length = yield from self._count(f"the length of {clean(key, 60)!r}", MAX_STRING_BYTES)
        yield from self._require(length)
        start, self._at = self._at, self._at + length
        if length > KEPT_STRING_BYTES or self._kept_text + length > KEPT_TEXT_BYTES:
            return Skipped(length)
        self._kept_text += length
        return bytes(self._data[start : self._at]).decode(errors="replace")

    def _array(self, key: str, depth: int) -> Generator[int, None, Value]:
        if depth > MAX_NESTING:
            raise HeaderError(f"{clean(key, 60)!r} nests arrays deeper than {MAX_NESTING}")
        kind = yield from self._number(_U32)
        count = yield from self._count(f"the length of {clean(key, 60)!r}", MAX_ARRAY)
        if kind in _SCALARS:
            if count <= KEPT_ARRAY and self._kept + count <= KEPT_NUMBERS:
                self._kept += count
                return (yield from self._scalars(kind, count))
            size = count * struct.calcsize(f"<{_SCALARS[kind]}")
            yield from self._require(size)
            self._at += size
            return Skipped(count)
        self._walked += count if kind == _STRING else 100 * count
        if self._walked > MAX_WALKED:
            raise HeaderError("the arrays have too many elements together")
        if kind == _STRING:
            yield from self._skip_strings(key, count)
        else:
            for _ in range(count):
                yield from self._value(key, kind, depth)
        return Skipped(count)

    def _skip_strings(self, key: str, count: int) -> Generator[int, None, None]:
        """Step over `count` strings; the one loop that runs 100,000s of times, so it keeps to local names."""
        data, at, unpack = self._data, self._at, _U64.unpack_from
        for left in range(count, 0, -1):
            if at + 8 > len(data):
                self._at = at
                yield from self._require(8 * left)
            length = unpack(data, at)[0]
            if length > MAX_STRING_BYTES:
                raise HeaderError(f"a string of {length} bytes in {clean(key, 60)!r}")
            at += 8 + length
        self._at = at
        yield from self._require(0)

    def _read_tensors(self, count: int) -> Generator[int, None, tuple[Tensor, ...]]:
        tensors: dict[str, Tensor] = {}
        for left in range(count, 0, -1):
            yield from self._require(24 * left)
            name = yield from self._name("a tensor's name")
            if name in tensors:
                raise HeaderError(f"the tensor {clean(name, 60)!r} appears twice")
            tensors[name] = yield from self._read_tensor(name)
        return tuple(tensors.values())

    def _read_tensor(self, name: str) -> Generator[int, None, Tensor]:
        rank = yield from self._number(_U32)
        if rank > MAX_DIMS:
            raise HeaderError(f"the tensor {clean(name, 60)!r} has {rank} dimensions")
        yield from self._require(8 * rank)
        dims = struct.unpack_from(f"<{rank}Q", self._data, self._at)
        self._at += 8 * rank
        type_id = yield from self._number(_U32)
        tensor = Tensor(name, dims, type_id, (yield from self._number(_U64)))
        if any(not 0 < dim <= MAX_DIM for dim in dims):
            raise HeaderError(f"the tensor {clean(name, 60)!r} has the impossible shape {list(dims)}")
        check_totals(f"the tensor {clean(name, 60)!r} of shape {list(dims)}", tensor.elements, tensor.bytes or 0)
        return tensor

    def _data_offset(self) -> int:
        alignment = self._metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1 or alignment > 1 << 20 or alignment & (alignment - 1):
            raise HeaderError(f"general.alignment is {alignment}, not a power of two")
        return -(-self._at // alignment) * alignment


def read_gguf_header(data: bytes) -> GgufHeader:
    """The header in the first bytes of a GGUF file.

    Raises NeedMoreBytes where `data` is too short and HeaderError where it is wrong. `GgufReader` does the same without
    starting over for every chunk.
    """
    reader = GgufReader()
    reader.feed(data)
    if reader.header is None:
        raise NeedMoreBytes(reader.needs)
    return reader.header


def join_parts(parts: Sequence[GgufHeader]) -> GgufHeader:
    """One header for a file split into `parts` (in order): metadata of the first, tensors of all.

    Raises HeaderError where parts are missing, doubled or out of order, or where the whole is larger than can be.
    """
    if not parts:
        raise HeaderError("no file to read")
    count = parts[0].split[1]
    if count != len(parts) or any(part.split[0] != at for at, part in enumerate(parts)):
        raise HeaderError(f"the model is split into {count} files, but {len(parts)} are here, or in another order")
    tensors = tuple(tensor for part in parts for tensor in part.tensors)
    declared = parts[0].integer("split.tensors.count")
    if count > 1 and declared is not None and declared != len(tensors):
        raise HeaderError(f"the split files hold {len(tensors)} tensors, {declared} were declared")
    if len(tensors) > MAX_TENSORS:
        raise HeaderError(f"the split files hold {len(tensors)} tensors, more than the {MAX_TENSORS} allowed")
    metadata = {key: value for key, value in parts[0].metadata.items() if not key.startswith("split.")}
    joined = GgufHeader(metadata, tensors, parts[0].data_offset)
    check_totals("the tensors", joined.parameters, sum(tensor.bytes or 0 for tensor in tensors))
    return joined
