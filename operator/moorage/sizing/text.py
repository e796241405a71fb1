"""Small readings of text that strangers wrote."""

import re

_LABEL = re.compile(r"(?:(\d+)x)?(\d+(?:\.\d+)?)([KMBT])", re.IGNORECASE)
_UNITS = {"K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}


def clean(text: str, limit: int) -> str:
    """`text` on one line without control characters, cut to `limit` characters: fit for status and messages."""
    return "".join(char if char.isprintable() else " " for char in text[:limit]).strip()


def parameters_of_label(label: str) -> int | None:
    """Parameters by a size label: `8B`, `0.6B`, `8x7B`, `30B-A3B` (the first number counts); None where it has none."""
    found = _LABEL.search(label[:64])
    if found is None:
        return None
    times, number, unit = found.groups()
    return round(int(times or 1) * float(number) * _UNITS[unit.upper()])
