"""Protocol Buffers, as far as the simulation's own messages go: texts, booleans, messages and lists of them."""


def varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def field(number: int, value: "str | bytes | bool") -> bytes:
    """One field: a boolean as a number, a text or message with its length."""
    if isinstance(value, bool):
        return varint(number << 3) + varint(int(value))
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def fields(*pairs: "tuple[int, str | bytes | bool]") -> bytes:
    return b"".join(field(number, value) for number, value in pairs)
