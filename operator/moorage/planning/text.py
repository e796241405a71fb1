"""Numbers as people read them in a column."""

from collections.abc import Mapping, Sequence

_UNITS = ("B", "Ki", "Mi", "Gi", "Ti")


def size(bytes_: int) -> str:
    """Bytes with a binary unit and three significant digits: 812B, 490Ki, 39.1Gi."""
    value = float(bytes_)
    for unit in _UNITS:
        if value < 1000 or unit == _UNITS[-1]:
            break
        value /= 1024
    return f"{int(value)}{unit}" if unit == "B" or value >= 100 else f"{value:.1f}{unit}"


def done_of(done: int, total: int) -> str:
    """Progress in bytes with one unit where both have the same: 16.0/39.1Gi."""
    whole, part = size(total), size(done)
    unit = whole.lstrip("0123456789.")
    if part.endswith(unit) and part.lstrip("0123456789.") == unit:
        part = part[: -len(unit)]
    return f"{part}/{whole}"


def speed(bytes_per_second: int) -> str:
    """Bytes per second: 212 MiB/s."""
    value = size(bytes_per_second)
    number = value.rstrip("BKMGTi")
    unit = value[len(number) :]
    return f"{number} {unit if unit == 'B' else unit + 'B'}/s"


def duration(seconds: float) -> str:
    """A length of time as kubectl prints ages: 45s, 1m50s, 3h12m, 2d4h."""
    left = max(int(seconds), 0)
    days, left = divmod(left, 86400)
    hours, left = divmod(left, 3600)
    minutes, left = divmod(left, 60)
    parts = [(days, "d"), (hours, "h"), (minutes, "m"), (left, "s")]
    first = next((i for i, (n, _) in enumerate(parts) if n), 3)
    return "".join(f"{n}{u}" for n, u in parts[first : first + 2] if n) or "0s"


def line(message: str, limit: int = 120) -> str:
    """`message` on one line, cut to `limit` characters at a word where one is near."""
    flat = " ".join(message.split())
    if len(flat) <= limit:
        return flat
    cut = flat[: limit - 1]
    head, _, _ = cut.rpartition(" ")
    return (head if len(head) > limit * 2 // 3 else cut) + "…"


def capabilities(found: Sequence[Mapping[str, str]]) -> str:
    """`status.capabilities` in a line, by what they rest on: `chat, tools (Metadata); vision (Probe)`."""
    by_evidence: dict[str, list[str]] = {}
    for one in found:
        by_evidence.setdefault(one["evidence"], []).append(one["name"])
    return "; ".join(f"{', '.join(names)} ({evidence})" for evidence, names in by_evidence.items())
