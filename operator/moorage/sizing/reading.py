"""Which bytes of which files a header takes, without fetching them.

A reading is a generator: it yields what it wants, is sent the bytes, and returns what it learnt. A local file, a hub
or a test drives it alike:

    want = next(reading)
    want = reading.send(read(want.path, want.start, want.length))     # until StopIteration, whose value is the answer

Ranges stay inside the file; an answer may be shorter only where the file has been cut.
"""

from collections.abc import Awaitable, Callable, Generator, Sequence
from typing import Final, NamedTuple, TypeVar

from moorage.sizing.errors import HeaderError, NeedMoreBytes
from moorage.sizing.gguf import CHUNK_BYTES, GgufHeader, GgufReader, join_parts
from moorage.sizing.safetensors import FIRST_BYTES, SafetensorsHeader, join_files, read_safetensors_header
from moorage.sizing.transformer import TransformerModel, transformer_of

FIRST_CHUNK: Final = 256 << 10
"""Holds every key of most architectures, and the whole header of a file without a vocabulary."""
MAX_CONFIG_BYTES: Final = 4 << 20
MAX_FILES: Final = 1000


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


def read_gguf(parts: Sequence[File]) -> Generator[Want, bytes, GgufHeader]:
    """The header of a GGUF model in one file or in `parts` in order. Raises HeaderError."""
    _check_count(len(parts))
    headers = []
    for part in parts:
        try:
            headers.append((yield from _read_part(part)))
        except HeaderError as error:
            raise HeaderError(f"{part.path}: {error}") from error
    return join_parts(headers)


def _read_part(part: File) -> Generator[Want, bytes, GgufHeader]:
    reader = GgufReader()
    while reader.needs:
        chunk = CHUNK_BYTES if reader.received else FIRST_CHUNK
        length = min(max(reader.needs - reader.received, chunk), part.size - reader.received)
        data = (yield Want(part.path, reader.received, length)) if length > 0 else b""
        if not data:
            raise HeaderError("the file ends inside its header")
        reader.feed(data)
    if reader.header is None:
        raise HeaderError("the file has no header")
    return reader.header


def read_transformer(config: File, weights: Sequence[File]) -> Generator[Want, bytes, tuple[TransformerModel, bytes]]:
    """The shape of a safetensors model by its config.json and the header of every weight file; and that config.json.

    Raises HeaderError.
    """
    _check_count(len(weights))
    if not 0 < config.size <= MAX_CONFIG_BYTES:
        raise HeaderError(f"{config.path} has {config.size} bytes; a configuration has a few thousand")
    text = yield Want(config.path, 0, config.size)
    headers = []
    for file in weights:
        try:
            headers.append((yield from _read_safetensors(file)))
        except HeaderError as error:
            raise HeaderError(f"{file.path}: {error}") from error
    return transformer_of(text, join_files(headers)), text


def first_reads(files: Sequence[File]) -> list[Want]:
    """What `read_transformer` wants first of each weight file."""
    return [Want(file.path, 0, min(FIRST_BYTES, file.size)) for file in files if file.size]


def _read_safetensors(file: File) -> Generator[Want, bytes, SafetensorsHeader]:
    data, wanted = b"", FIRST_BYTES
    while True:
        length = min(wanted, file.size) - len(data)
        more = (yield Want(file.path, len(data), length)) if length > 0 else b""
        if not more:
            raise HeaderError("the file ends inside its header")
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
