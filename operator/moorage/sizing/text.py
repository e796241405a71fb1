"""Small readings of text that strangers wrote."""


def clean(text: str, limit: int) -> str:
    """`text` on one line without control characters, cut to `limit` characters: fit for status and messages."""
    return "".join(char if char.isprintable() else " " for char in text[:limit]).strip()


def shown(value: object) -> str:
    """A value of untrusted JSON for a message; lists and objects by kind only, whatever their depth and length."""
    if isinstance(value, list | tuple):
        return "a list"
    return "an object" if isinstance(value, dict) else clean(repr(value)[:200], 40)


def instead_of_weights(data: bytes | bytearray) -> str:
    """What `data`, the head of a file, is where it is one of the usual things in place of weights; else empty."""
    head = bytes(data[:64]).lstrip().lower()
    if head.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer, whose file was never uploaded"
    return "it is a web page" if head.startswith((b"<!doctype html", b"<html")) else ""
