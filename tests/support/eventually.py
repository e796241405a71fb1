"""Waiting for what is going to be true, with a time limit, instead of sleeping and hoping."""

import asyncio
import time
from collections.abc import Callable

PATIENCE = 120.0
"""Seconds for what takes moments. A limit tells right from wrong, and a machine that is busy with other things is not
wrong; what has to be quick is measured in a test that says so."""

SLACK = 30.0
"""Seconds that a busy machine may add to anything: a limit that tells an answer from a hang leaves room for them."""


async def eventually(
    predicate: Callable[[], object], timeout: float = PATIENCE, what: str = "", every: float = 0.02
) -> None:
    """Return as soon as `predicate()` is true; AssertionError after `timeout` seconds, with its last value."""
    deadline = time.monotonic() + timeout
    while not (value := predicate()):
        if time.monotonic() > deadline:
            raise AssertionError(f"{what or predicate} not within {timeout:g} s; last: {value!r}")
        await asyncio.sleep(every)
