"""Reads made together: how many at once, and that each is made once."""

import asyncio

import pytest

from moorage.hub.ahead import TOGETHER, Ahead


class Source:
    """Counts reads and the most that ran at once."""

    def __init__(self) -> None:
        self.reads: list[int] = []
        self.now = self.most = 0

    async def read(self, want: int) -> bytes:
        self.reads.append(want)
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(0)
        self.now -= 1
        if want == 13:
            raise OSError("gone")
        return bytes([want])


async def test_expected_reads_are_made_together_and_once():
    source = Source()
    ahead = Ahead(source.read, range(12))
    assert [await ahead(want) for want in range(12)] == [bytes([want]) for want in range(12)]
    assert sorted(source.reads) == list(range(12))
    assert source.most == TOGETHER


async def test_what_was_not_expected_is_read_alone():
    source = Source()
    ahead = Ahead(source.read, [1, 2])
    assert await ahead(99) == b"c"
    assert source.reads == [99]


async def test_a_read_that_fails_fails_the_one_that_asked():
    ahead = Ahead(Source().read, [12, 13])
    with pytest.raises(OSError, match="gone"):
        await ahead(12)
