"""The two shapes of load: streams that each send again when answered, and arrivals that do not wait for anyone."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from itertools import accumulate

Send = Callable[[], Awaitable[None]]


async def closed_loop(send: Send, requests: int, concurrency: int) -> None:
    """`requests` calls of `send`, always `concurrency` at once until none are left to start.

    An exception of one call cancels the others and is raised.
    """
    left = iter(range(requests))

    async def stream() -> None:
        for _ in left:
            await send()

    await _together(stream() for _ in range(concurrency))


async def poisson(send: Send, requests: int, rate: float, seed: int) -> None:
    """`requests` calls of `send`, `rate` per second on average, at exponentially distributed distances.

    The schedule is fixed beforehand by `seed`: a slow server makes requests overlap, it never slows the arrivals. An
    exception of one call cancels the others and is raised.
    """
    clock = asyncio.get_running_loop().time
    start = clock()

    async def at(due: float) -> None:
        await asyncio.sleep(start + due - clock())
        await send()

    await _together(at(due) for due in arrivals(requests, rate, seed))


def arrivals(requests: int, rate: float, seed: int) -> list[float]:
    """Seconds from the start at which each request is due; the first is due at once."""
    source = random.Random(seed)
    return list(accumulate((source.expovariate(rate) for _ in range(requests - 1)), initial=0.0))


async def _together(coroutines: Iterator[Coroutine[None, None, None]]) -> None:
    try:
        async with asyncio.TaskGroup() as group:
            for coroutine in coroutines:
                group.create_task(coroutine)
    except BaseExceptionGroup as several:
        raise several.exceptions[0] from None
