"""Sizes, counts and lists of nodes in words."""

from collections.abc import Sequence


def gib(mib: int) -> str:
    """A need in GiB with one digit, rounded up, so that it never reads as less than it is: 31.2Gi."""
    tenths = -(-mib * 10 // 1024)
    return f"{tenths // 10}.{tenths % 10}Gi"


def gib_down(mib: int) -> str:
    """What there is, in GiB with one digit, rounded down: 23.2Gi."""
    tenths = mib * 10 // 1024
    return f"{tenths // 10}.{tenths % 10}Gi"


def plural(count: int, word: str) -> str:
    """`1 GPU`, `3 GPUs`."""
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def listed(items: Sequence[str], most: int = 3) -> str:
    """The first few of `items`: `gpu-1, gpu-2, gpu-3 and 5 more`."""
    head = ", ".join(items[:most])
    return f"{head} and {len(items) - most} more" if len(items) > most else head
