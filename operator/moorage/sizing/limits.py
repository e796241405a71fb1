"""The largest model that is believed, so that no sum of a header's numbers outgrows 64 bits.

A thousand times what exists: the largest published models have some 2^40 parameters in 2^41 bytes. With these limits,
and those of contexts and micro-batches in the API, no need reaches 2^63 MiB, which is where Kubernetes' integers end.
"""

from typing import Final

from moorage.sizing.errors import HeaderError

MAX_PARAMETERS: Final = 1 << 50
MAX_BYTES: Final = 1 << 50
"""1 PiB of weights."""
MAX_CONTEXT: Final = 1 << 31
"""Tokens."""
MAX_VOCABULARY: Final = 1 << 28
MAX_EMBEDDING: Final = 1 << 24
MAX_ROW: Final = 1 << 24
"""Values that one layer caches for one token; DeepSeek V2 without latent attention has 2^15."""
MAX_STATE: Final = 1 << 36
"""Values of recurrent state in one layer."""
MAX_ALIVE: Final = 1 << 36
"""Values alive at once for one token of a micro-batch."""


def check_totals(what: str, parameters: int, size: int) -> None:
    """Raises HeaderError where `what` has more than MAX_PARAMETERS values or MAX_BYTES bytes."""
    at_most("parameters", what, parameters, MAX_PARAMETERS)
    at_most("bytes", what, size, MAX_BYTES)


def at_most(unit: str, what: str, number: int, limit: int) -> int:
    """`number`; raises HeaderError where it is more than `limit`."""
    if number > limit:
        raise HeaderError(f"{what} would have {number:,} {unit}, more than the {limit:,} of any model")
    return number
