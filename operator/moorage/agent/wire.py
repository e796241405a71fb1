"""The little of Protocol Buffers that one answer of the kubelet needs: fields by number, texts and messages.

Encoding: https://protobuf.dev/programming-guides/encoding/. A message is a run of fields, each a tag (number and wire
type) and a value; what is not asked for is passed over, so that later kubelets may add fields. The bytes come from the
kubelet, yet nothing here reads beyond them: a cut or senseless message raises ValueError.
"""

from collections.abc import Iterator

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5


def messages(data: memoryview, wanted: int) -> Iterator[memoryview]:
    """The values of field `wanted` that have a length: messages, texts, bytes."""
    place = 0
    while place < len(data):
        tag, place = _varint(data, place)
        kind, end = tag & 7, place
        if kind == VARINT:
            _, end = _varint(data, place)
        elif kind == FIXED64:
            end = place + 8
        elif kind == FIXED32:
            end = place + 4
        elif kind == LENGTH:
            size, place = _varint(data, place)
            end = place + size
        else:
            raise ValueError(f"field {tag >> 3} has wire type {kind}, which nothing uses any more")
        if end > len(data):
            raise ValueError(f"field {tag >> 3} ends beyond its message")
        if kind == LENGTH and tag >> 3 == wanted:
            yield data[place:end]
        place = end


def texts(data: memoryview, wanted: int) -> list[str]:
    """All texts of field `wanted`; raises ValueError where one is no UTF-8."""
    return [bytes(value).decode() for value in messages(data, wanted)]


def text(data: memoryview, wanted: int) -> str:
    """The text of field `wanted`, empty where it is absent; the last counts, as the encoding has it."""
    return next(reversed(texts(data, wanted)), "")


def _varint(data: memoryview, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if place >= len(data) or shift > 63:
            raise ValueError("a number is cut off, or longer than 64 bits")
        byte = data[place]
        value |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if byte < 0x80:
            return value, place
