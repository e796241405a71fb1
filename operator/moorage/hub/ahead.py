"""Reads that are known to come are made together, such as the headers of a model in 163 files."""

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import Final, Generic, TypeVar

TOGETHER: Final = 8
"""As many connections as one file is downloaded with; what was read and not yet asked for stays below a megabyte."""

_Want = TypeVar("_Want", bound=Hashable)


class Ahead(Generic[_Want]):
    """`read` with some of its reads made early: when one of `expected` is asked for, the next seven come with it."""

    def __init__(self, read: Callable[[_Want], Awaitable[bytes]], expected: Sequence[_Want]) -> None:
        self._read = read
        self._expected = list(expected)
        self._place = {want: place for place, want in enumerate(expected)}
        self._held: dict[_Want, bytes] = {}

    async def __call__(self, want: _Want) -> bytes:
        """The bytes for `want`; raises as `read` does."""
        if want not in self._held and want in self._place:
            start = self._place[want]
            batch = self._expected[start : start + TOGETHER]
            self._held.update(zip(batch, await asyncio.gather(*map(self._read, batch)), strict=True))
        return self._held.pop(want) if want in self._held else await self._read(want)
