"""Requests that wait for a Model: bounded, first come first served, no faster than the engine's slots."""

import asyncio
import contextlib
import time
import tracemalloc

import pytest

from moorage.gateway.routes import Alias, Hold, Model, Obstacle
from tests.process.gateway.support import (
    OK,
    SHORT,
    Bed,
    EngineSide,
    RawEngine,
    address,
    always,
    chat,
    mock,
    model,
    serving,
)
from tests.support.eventually import SLACK, eventually


async def hold(bed: Bed, count: int, name: str = "m", **more: object) -> list[asyncio.Task]:
    """`count` requests that wait, in the order of their texts: 0, 1, 2 ..."""
    tasks = []
    before = bed.gateway.proxy.fleet.held
    for number in range(count):
        tasks.append(asyncio.create_task(bed.ask(chat(name, str(number), **more))))
        await eventually(lambda wanted=before + number + 1: bed.gateway.proxy.fleet.held == wanted, every=0.001)
    return tasks


def texts(engine: RawEngine) -> list[str]:
    return [request.body["messages"][0]["content"] for request in engine.requests]


async def test_a_request_waits_for_a_sleeping_model_and_is_told_so():
    async with RawEngine(always(OK)) as engine, serving([model("m")]) as bed:
        (waiting,) = await hold(bed, 1)
        await asyncio.sleep(0.05)
        bed.apply([model("m", engine)])
        reply = await waiting
        assert (reply.status, reply.json) == (200, OK)
        assert reply.headers["x-moorage-cold-start"] == "true"
        assert 50 <= int(reply.headers["x-moorage-held-milliseconds"]) < SLACK * 1000
        warm = await bed.ask(chat())
        assert "x-moorage-cold-start" not in warm.headers
        assert "x-moorage-held-milliseconds" not in warm.headers


async def test_demand_for_a_sleeping_model_is_reported():
    async with mock() as engine, serving([model("m"), model("n")]) as bed:
        assert bed.gateway.demand.take_touched() == set()
        tasks = await hold(bed, 3)
        assert bed.gateway.demand.take_touched() == {"m"}
        wanted = bed.gateway.demand.wanted("m")
        assert (wanted.requests, wanted.pending) == (3, 3)
        assert time.time() - wanted.last < SLACK
        bed.apply([model("m", engine), model("n")])
        await asyncio.gather(*tasks)
        await bed.ask(chat())
        assert (wanted.requests, wanted.pending) == (3, 0), "a Model that is awake is in no demand"


async def test_waiters_are_released_in_order_and_no_faster_than_the_slots():
    running = most = 0

    async def script(side: EngineSide) -> None:
        nonlocal running, most
        while True:
            await side.request()
            running += 1
            most = max(most, running)
            await asyncio.sleep(0.02)
            running -= 1
            await side.json(OK)

    async with RawEngine(script) as engine, serving([model("m")]) as bed:
        tasks = await hold(bed, 20)
        bed.apply([model("m", engine, max_in_flight=2)])
        assert {reply.status for reply in await asyncio.gather(*tasks)} == {200}
        assert most == 2
        # Two connections race each other to the engine, so neighbours may swap; nobody passes more than one.
        assert all(abs(place - int(text)) <= 1 for place, text in enumerate(texts(engine)))


async def test_a_single_slot_is_strictly_first_come_first_served():
    async with RawEngine(always(OK)) as engine, serving([model("m")]) as bed:
        tasks = await hold(bed, 20)
        bed.apply([model("m", engine, max_in_flight=1)])
        await asyncio.gather(*tasks)
        assert texts(engine) == [str(number) for number in range(20)]


async def test_without_a_limit_all_are_released_at_once():
    async with RawEngine(always(OK)) as engine, serving([model("m")]) as bed:
        tasks = await hold(bed, 10)
        bed.apply([model("m", engine)])
        assert bed.gateway.proxy.fleet.held == 0
        await asyncio.gather(*tasks)


async def test_a_busy_engine_makes_requests_wait_too_without_calling_it_a_cold_start():
    release = asyncio.Event()

    async def script(side: EngineSide) -> None:
        while True:
            await side.request()
            await release.wait()
            await side.json(OK)

    async with RawEngine(script) as engine, serving([model("m", engine, max_in_flight=2)]) as bed:
        first = [asyncio.create_task(bed.ask(chat())) for _ in range(2)]
        await eventually(lambda: len(engine.requests) == 2)
        (third,) = await hold(bed, 1)
        assert bed.gateway.demand.wanted("m").requests == 0
        release.set()
        reply = await third
        assert reply.status == 200
        assert "x-moorage-held-milliseconds" in reply.headers
        assert "x-moorage-cold-start" not in reply.headers
        await asyncio.gather(*first)


async def test_the_limit_counts_per_endpoint():
    release = asyncio.Event()

    async def script(side: EngineSide) -> None:
        while True:
            await side.request()
            await release.wait()
            await side.json(OK)

    async with (
        RawEngine(script) as one,
        RawEngine(script) as two,
        serving([model("m", one, two, max_in_flight=2)]) as bed,
    ):
        asked = [asyncio.create_task(bed.ask(chat())) for _ in range(5)]
        await eventually(lambda: len(one.requests) + len(two.requests) == 4 and bed.gateway.proxy.fleet.held == 1)
        assert len(one.requests) == len(two.requests) == 2
        release.set()
        await asyncio.gather(*asked)


async def test_nobody_new_passes_those_who_wait():
    """A slot that gets free goes to the first waiter even if a request arrives in the same moment."""
    async with RawEngine(always(OK)) as engine, serving([model("m")]) as bed:
        tasks = await hold(bed, 5)
        bed.apply([model("m", engine, max_in_flight=1)])
        tasks.append(asyncio.create_task(bed.ask(chat(text="late"))))
        await asyncio.gather(*tasks)
        assert texts(engine)[-1] == "late"


async def test_a_full_queue_is_429_with_retry_after():
    alias = Alias("chat", (("m", 1),), hold=Hold(max_pending=2, timeout=5))
    async with mock() as engine, serving([model("m")], [alias]) as bed:
        tasks = await hold(bed, 2, "chat")
        reply = await bed.ask(chat("chat"))
        assert (reply.status, reply.error["code"], reply.error["type"]) == (
            429,
            "hold_queue_full",
            "rate_limit_error",
        )
        assert int(reply.headers["retry-after"]) > 0
        tasks += await hold(bed, 1, "m")  # waiters count by the name they asked for
        bed.apply([model("m", engine)], [alias])
        assert {reply.status for reply in await asyncio.gather(*tasks)} == {200}


async def test_a_name_that_holds_nothing_says_that_the_model_is_loading():
    alias = Alias("chat", (("m", 1),), hold=Hold(max_pending=0))
    async with serving([model("m")], [alias]) as bed:
        reply = await bed.ask(chat("chat"))
        assert (reply.status, reply.error["code"]) == (503, "model_loading")
        assert int(reply.headers["retry-after"]) > 0
        assert bed.gateway.demand.wanted("m").requests == 1


async def test_waiting_has_an_end():
    """An end of its own for each name."""
    for name, other in (("chat", "m"), ("m", "chat")):
        holds = {name: Hold(timeout=SHORT), other: Hold(timeout=600)}
        async with serving([model("m")], [Alias("chat", (("m", 1),), hold=holds["chat"])], own=holds["m"]) as bed:
            began = time.monotonic()
            reply = await bed.ask(chat(name))
            assert (reply.status, reply.error["code"]) == (504, "hold_timeout")
            assert SHORT * 0.9 < time.monotonic() - began < SLACK
            assert bed.gateway.demand.wanted("m").pending == 0
            alias = "chat" if name == "chat" else ""
            assert await bed.metric("moorage_gateway_requests_total", alias=alias, outcome="error") == 1


async def test_a_waiter_that_leaves_makes_room():
    alias = Alias("chat", (("m", 1),), hold=Hold(max_pending=1))
    async with mock() as engine, serving([model("m")], [alias]) as bed:
        async with bed.client() as client:
            await client.post(chat("chat"))
            await eventually(lambda: bed.gateway.proxy.fleet.held == 1)
        await eventually(lambda: bed.gateway.proxy.fleet.held == 0)
        (task,) = await hold(bed, 1, "chat")
        bed.apply([model("m", engine)], [alias])
        assert (await task).status == 200
        assert len(engine.requests) == 1
        assert bed.gateway.stats.route("chat", "m").cancelled == 1


async def test_a_waiter_goes_to_whichever_of_target_and_fallbacks_wakes_first():
    alias = Alias("chat", (("m", 1),), fallbacks=("n", "o"))
    async with mock() as engine, serving([model("m"), model("n"), model("o")], [alias]) as bed:
        tasks = await hold(bed, 2, "chat")
        bed.apply([model("m"), model("n"), model("o", engine)], [alias])
        for reply in await asyncio.gather(*tasks):
            assert (reply.status, reply.headers["x-moorage-cold-start"]) == (200, "true")
        assert {request.body["model"] for request in engine.requests} == {"o"}


async def test_a_waiter_whose_alias_no_model_suffices_for_any_more_is_told():
    async with serving([model("m")], [Alias("chat", (("m", 1),))]) as bed:
        (task,) = await hold(bed, 1, "chat")
        bed.apply([model("m")], [Alias("chat", (), lacking=("tools",))])
        reply = await task
        assert (reply.status, reply.error["code"]) == (503, "requirements_not_met")


async def test_a_waiter_follows_its_alias_when_it_is_retargeted():
    aliases = [[Alias("chat", ((name, 1),))] for name in ("m", "n")]
    async with mock() as engine:
        models = [model("m"), model("n", engine, defaults={"temperature": 0.25})]
        async with serving(models, aliases[0]) as bed:
            (task,) = await hold(bed, 1, "chat")
            bed.apply(models, aliases[1])
            assert (await task).status == 200
            (task,) = await hold(bed, 1)
            for _ in range(3):
                bed.apply(models, aliases[0])
            assert bed.gateway.demand.wanted("m").requests == 2, "asked for once, however many tables"
            bed.apply([model("m", engine)])
            await task
            assert engine.requests[0].body["temperature"] == 0.25


async def test_a_waiter_that_is_led_to_another_sleeper_wakes_that_one():
    models = [model("m"), model("n")]
    async with mock() as engine, serving(models, [Alias("chat", (("m", 1),))]) as bed:
        (task,) = await hold(bed, 1, "chat")
        bed.apply(models, [Alias("chat", (("n", 1),))])
        wanted = [bed.gateway.demand.wanted(name) for name in "mn"]
        assert [(one.requests, one.pending) for one in wanted] == [(1, 0), (1, 1)]
        bed.apply([model("m"), model("n", engine)], [Alias("chat", (("n", 1),))])
        assert (await task).status == 200


async def test_a_waiter_whose_name_disappears_is_told():
    async with serving([model("m")]) as bed:
        (task,) = await hold(bed, 1)
        bed.apply([model("n")])
        assert (await task).error["code"] == "model_not_found"


async def test_a_waiter_for_a_busy_model_that_falls_asleep_goes_to_its_fallback():
    async def script(side: EngineSide) -> None:
        await side.request()
        await side.gone()

    alias = Alias("chat", (("m", 1),), fallbacks=("n",))
    async with (
        RawEngine(script) as engine,
        RawEngine(always(OK)) as other,
        serving([model("m", engine, max_in_flight=1), model("n", other)], [alias]) as bed,
        bed.client() as client,
    ):
        await client.post(chat("chat"))
        await eventually(lambda: engine.requests)
        (task,) = await hold(bed, 1, "chat")
        bed.apply([model("m"), model("n", other)], [alias])
        assert (await task).status == 200


async def test_many_tables_lose_no_waiter_and_keep_the_order():
    async with RawEngine(always(OK)) as engine, serving([model("m")]) as bed:
        tasks = await hold(bed, 10)
        for _ in range(5):
            bed.apply([model("m"), model("other")])
        bed.apply([model("m", engine, max_in_flight=1)])
        bed.apply([model("m", engine, max_in_flight=1), model("other")])
        assert {reply.status for reply in await asyncio.gather(*tasks)} == {200}
        assert texts(engine) == [str(number) for number in range(10)]


async def test_a_thousand_waiters_cost_little_and_are_released_without_an_error():
    alias = Alias("chat", (("m", 1),), hold=Hold(max_pending=1000, timeout=60))
    async with mock() as engine, serving([model("m")], [alias]) as bed, contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(bed.client()) for _ in range(1000)]
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            await asyncio.gather(*(client.post(chat("chat", "x" * 700)) for client in clients))
            await eventually(lambda: bed.gateway.proxy.fleet.held == 1000)
            each = (tracemalloc.get_traced_memory()[0] - before) / 1000
        finally:
            tracemalloc.stop()
        assert each < 20_000, "bytes for each waiter, the test's own share included"
        assert (await bed.ask(chat("chat"))).status == 429
        bed.apply([model("m", engine, max_in_flight=64)], [alias])
        replies = await asyncio.gather(*(client.reply() for client in clients))
        assert {(reply.status, reply.whole) for reply in replies} == {(200, True)}


async def test_a_waiting_stream_hears_comments_where_that_was_asked_for():
    alias, hasty = (Alias("chat", (("m", 1),), hold=Hold(timeout=limit)) for limit in (600, SHORT))
    async with mock() as engine, serving([model("m")], [alias], hold_keepalive=0.05) as bed, bed.client() as client:
        await client.post(chat("chat", stream=True, max_tokens=2))
        status, headers = await client.head()
        assert (status, headers["content-type"]) == (200, "text/event-stream")
        assert (await client.chunk()).startswith(b": ")
        assert (await client.chunk()).startswith(b": ")
        bed.apply([model("m", engine)], [alias])
        body = b""
        while piece := await client.chunk():
            body += piece
        assert body.endswith(b"data: [DONE]\n\n")
        # A whole answer cannot be begun before it is there.
        bed.apply([model("m")], [hasty])
        async with bed.client() as other:
            await other.post(chat("chat"))
            reply = await other.reply()
            assert (reply.status, reply.error["code"]) == (504, "hold_timeout")


@pytest.mark.parametrize("how", ["timeout", "status 400", "not a stream"])
async def test_after_comments_an_error_comes_as_an_event(how):
    async def script(side: EngineSide) -> None:
        await side.request()
        await side.json({"error": {"code": "bad", "message": "so\nbad"}}, 400 if how == "status 400" else 200)

    async with RawEngine(script) as engine:
        models = [Model("m", endpoints=(address(engine),))]
        own = Hold(timeout=0.5 if how == "timeout" else 600)
        async with serving([model("m")], own=own, hold_keepalive=0.05) as bed, bed.client() as client:
            await client.post(chat(stream=True))
            await client.head()
            assert (await client.chunk()).startswith(b": ")
            if how != "timeout":
                bed.apply(models)
            rest = await client.closed()
            assert (b'"hold_timeout"' if how == "timeout" else b'"bad"') in rest
            assert b"data: {" in rest
            assert not rest.endswith(b"0\r\n\r\n"), "and never looks whole"


NO_GPU = Obstacle("insufficient_gpu_memory", "needs 40.0Gi, the largest GPU has 24.0Gi")


async def test_nobody_waits_for_a_model_that_only_a_person_can_mend():
    async with mock() as engine, serving([model("m", obstacle=NO_GPU)], [Alias("chat", (("m", 1),))]) as bed:
        for name in ("m", "chat"):
            reply = await bed.ask(chat(name))
            assert (reply.status, reply.error["code"]) == (503, "insufficient_gpu_memory")
            assert reply.error["message"] == f"The model `{name}` cannot be served now: {NO_GPU.message}"
            assert reply.headers["retry-after"] == "30"
        assert bed.gateway.demand.wanted("m").requests == 2, "the operator hears of it all the same"
        bed.apply([model("m", engine, obstacle=NO_GPU)])
        assert (await bed.ask(chat())).status == 200, "what has a server serves, whatever its status says"


async def test_who_waits_already_is_told_when_it_turns_out_to_be_in_vain():
    async with serving([model("m")]) as bed:
        tasks = await hold(bed, 2)
        bed.apply([model("m", obstacle=Obstacle("model_blocked", "the repository does not exist"))])
        assert {(await task).error["code"] for task in tasks} == {"model_blocked"}


async def test_a_stand_in_that_may_come_is_waited_for():
    alias = Alias("chat", (("m", 1),), ("spare",))
    async with mock() as engine, serving([model("m", obstacle=NO_GPU), model("spare")], [alias]) as bed:
        (task,) = await hold(bed, 1, "chat")
        bed.apply([model("m", obstacle=NO_GPU), model("spare", engine)], [alias])
        assert (await task).status == 200


async def test_who_asks_for_what_a_person_unloaded_is_told_so():
    aliases = [Alias("hasty", (("m", 1),), hold=Hold(0)), Alias("covered", (("m", 1),), ("n",), hold=Hold(0))]
    async with serving([model("m", unloaded=True), model("n")], aliases, own=Hold(timeout=0.2)) as bed:
        told = "unloaded (its replicas are 0), and waits for a person to load it again."
        for name, status, code in (("m", 504, "hold_timeout"), ("hasty", 503, "model_loading")):
            reply = await bed.ask(chat(name))
            assert (reply.status, reply.error["code"]) == (status, code)
            assert reply.error["message"].endswith(told)
        reply = await bed.ask(chat("covered"))
        assert reply.error["message"] == "The model `covered` is being loaded; try again later.", "its stand-in wakes"
