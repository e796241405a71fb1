"""Which bytes of which files a header takes, without fetching them.

A reading is a generator: it yields what it wants, is sent the bytes, and returns what it learnt. A local file, a hub
or a test drives it alike:

    want = next(reading)
    want = reading.send(read(want.path, want.start, want.length))     # until StopIteration, whose value is the answer

Ranges stay inside the file; an answer may be shorter only where the file has been cut. `whole` files must be long
enough for the tensors that they describe; others may be headers alone.
"""

from collections.abc import Awaitable, Callable, Generator, Sequence
from typing import Final, NamedTuple, TypeVar

from moorage.sizing.errors import HeaderError, NeedMoreBytes
from moorage.sizing.gguf import CHUNK_BYTES, GgufHeader, GgufReader, join_parts
from moorage.sizing.safetensors import FIRST_BYTES, SafetensorsHeader, join_files, read_safetensors_header

FIRST_CHUNK: Final = 256 << 10
"""Holds the whole header of a file without a vocabulary, as later parts of a split one are."""
MAX_CONFIG_BYTES: Final = 4 << 20
MAX_FILES: Final = 1000
MAX_HEADERS_BYTES: Final = 64 << 20
"""Headers of all files of a model together; the largest known, of a thousand billion parameters, have some twenty."""


_Answer = TypeVar("_Answer")


class File(NamedTuple):
    """A file and its size in bytes."""

    path: str
    size: int


class Want(NamedTuple):
    """`length` bytes of `path` from `start`."""

    path: str
    start: int
    length: int


def read_gguf(parts: Sequence[File], *, whole: bool) -> Generator[Want, bytes, GgufHeader]:
    """The header of a GGUF model in one file or in `parts` in order. Raises HeaderError."""
    _check_count(len(parts))
    headers, left = [], MAX_HEADERS_BYTES
    for part in parts:
        try:
            header = yield from _read_part(part)
            left = _less(left, header.data_offset)
            if whole:
                _check_end(header.end, part.size)
        except HeaderError as error:
            raise HeaderError(f"{part.path}: {error}") from error
        headers.append(header)
    return join_parts(headers)


def _less(left: int, header_bytes: int) -> int:
    if header_bytes > left:
        raise HeaderError(f"the headers of all files together are larger than {MAX_HEADERS_BYTES >> 20} MiB")
    return left - header_bytes


def _check_end(end: int, size: int) -> None:
    if end > size:
        raise HeaderError(f"the file has {size:,} bytes, but its tensors end at byte {end:,}: it is cut short")


def _read_part(part: File) -> Generator[Want, bytes, GgufHeader]:
    reader = GgufReader()
    while reader.needs:
        chunk = CHUNK_BYTES if reader.received else FIRST_CHUNK
        length = min(max(reader.needs - reader.received, chunk), part.size - reader.received)
        data = (yield Want(part.path, reader.received, length)) if length > 0 else b""
        if not data:
            raise HeaderError(f"the file ends inside its header, after {reader.received:,} bytes")
        reader.feed(data)
    if reader.header is None:
        raise HeaderError("the file has no header")
    return reader.header


def read_safetensors(
    config: File, weights: Sequence[File], *, whole: bool
) -> Generator[Want, bytes, tuple[bytes, SafetensorsHeader]]:
    """The config.json of a safetensors model, and the headers of all its weight files together. Raises HeaderError."""
    _check_count(len(weights))
    if not 0 < config.size <= MAX_CONFIG_BYTES:
        raise HeaderError(f"{config.path} has {config.size} bytes; a configuration has a few thousand")
    text = yield Want(config.path, 0, config.size)
    headers, left = [], MAX_HEADERS_BYTES
    for file in weights:
        try:
            header = yield from _read_header(file)
            left = _less(left, header.data_offset)
            if whole:
                _check_end(header.end, file.size)
        except HeaderError as error:
            raise HeaderError(f"{file.path}: {error}") from error
        headers.append(header)
    return text, join_files(headers)


def first_reads(files: Sequence[File]) -> list[Want]:
    """What `read_safetensors` wants first of each weight file."""
    return [Want(file.path, 0, min(FIRST_BYTES, file.size)) for file in files if file.size]


def _read_header(file: File) -> Generator[Want, bytes, SafetensorsHeader]:
    data, wanted = b"", FIRST_BYTES
    while True:
        length = min(wanted, file.size) - len(data)
        more = (yield Want(file.path, len(data), length)) if length > 0 else b""
        if not more:
            raise HeaderError(f"the file ends inside its header, after {len(data):,} bytes")
        data += more
        try:
            return read_safetensors_header(data)
        except NeedMoreBytes as short:
            wanted = short.at_least


def _check_count(count: int) -> None:
    if not 0 < count <= MAX_FILES:
        raise HeaderError(f"a model of {count} files cannot be read, 1 to {MAX_FILES} can")


def drive(reading: Generator[Want, bytes, _Answer], read: Callable[[Want], bytes]) -> _Answer:
    """The answer of `reading`, its wants fulfilled by `read`."""
    try:
        want = next(reading)
        while True:
            want = reading.send(read(want))
    except StopIteration as end:
        answer: _Answer = end.value
        return answer


async def drive_async(reading: Generator[Want, bytes, _Answer], read: Callable[[Want], Awaitable[bytes]]) -> _Answer:
    """The answer of `reading`, its wants fulfilled by awaiting `read`."""
    try:
        want = next(reading)
        while True:
            want = reading.send(await read(want))
    except StopIteration as end:
        answer: _Answer = end.value
        return answer
