"""A hostile day, small: 20,000 requests. `benchmarks.gateway --only day` makes it a million, against a process."""

import asyncio
import contextlib
import gc
from collections import Counter

from moorage.gateway.routes import Hold
from moorage.gateway.routes_document import read_routes
from tests.process.gateway.acts import ACTS, engine_stalls
from tests.process.gateway.hostileday import Day
from tests.process.gateway.moody import MoodyEngine
from tests.process.gateway.support import serving
from tests.support.eventually import eventually

REQUESTS = 20_000
# Not EngineConnection: uvloop and one that is given up while it is made hold each other, with nothing else in them.
OURS = {"ClientConnection", "Exchange", "Dial", "RequestReader", "Request"}


def alive() -> Counter[str]:
    """What there is of connections and requests, in this process. In circles, too: those cost memory for minutes."""
    return Counter(type(one).__name__ for one in gc.get_objects() if type(one).__name__ in OURS)


async def test_a_hostile_day_balances_and_leaves_nothing():
    settings = {"first_byte_timeout": 3.0, "engine_idle_timeout": 1.0}
    async with MoodyEngine() as engine, serving(**settings) as bed, contextlib.AsyncExitStack() as stack:
        stack.callback(gc.enable)
        gc.collect()
        gc.disable()
        before, tasks = alive(), len(asyncio.all_tasks())

        def apply(text: str) -> None:
            bed.gateway.apply(read_routes(text, Hold())[0])

        day = Day(engine, bed.gateway.address, bed.gateway.admin_address, apply, REQUESTS)
        await day.run((*ACTS, engine_stalls))
        await day.check(idle=1.0)
        await eventually(lambda: alive() == before, what="nothing of a connection or a request is left")
        assert len(asyncio.all_tasks()) == tasks
        assert bed.gateway.public.held == 0
