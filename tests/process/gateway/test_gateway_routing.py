"""Aliases, weights, fallbacks, and tables that change under load; from a file and from memory."""

import asyncio
import json
import time
from collections import Counter
from dataclasses import replace

import pytest
import yaml

from moorage.errors import InvalidSpec
from moorage.gateway.routes import Alias, Hold, Model, Parameters, Snapshot
from moorage.gateway.routes_file import RoutesFile
from tests.process.gateway.support import (
    OK,
    EngineSide,
    RawEngine,
    address,
    always,
    chat,
    dead_address,
    mock,
    model,
    serving,
)
from tests.support.eventually import eventually


def names(engine: RawEngine) -> list[str]:
    return [request.body["model"] for request in engine.requests]


async def test_weights_split_by_request_id_and_every_gateway_agrees():
    alias = Alias("chat", (("a", 90), ("b", 10)))
    async with RawEngine(always(OK)) as engine:
        models = [model("a", engine), model("b", engine)]
        picked = []
        for _ in range(2):
            async with serving(models, [alias]) as bed, bed.client() as client:
                before = len(engine.requests)
                for number in range(300):
                    await client.ask(chat("chat"), X_Request_Id=f"request-{number}")
                picked.append(names(engine)[before:])
        assert picked[0] == picked[1]
        assert 15 < Counter(picked[0])["b"] < 50


async def test_requests_without_an_id_are_split_too():
    alias = Alias("chat", (("a", 50), ("b", 50)))
    async with RawEngine(always(OK)) as engine, serving([model("a", engine), model("b", engine)], [alias]) as bed:
        async with bed.client() as client:
            for _ in range(100):
                await client.ask(chat("chat"))
        assert 20 < Counter(names(engine))["a"] < 80


async def test_a_sticky_header_keeps_a_user_at_one_target():
    alias = Alias("chat", (("a", 50), ("b", 50)), sticky_header="X-User")
    async with RawEngine(always(OK)) as engine, serving([model("a", engine), model("b", engine)], [alias]) as bed:
        async with bed.client() as client:
            for number in range(60):
                await client.ask(chat("chat"), X_User=f"user-{number % 6}", X_Request_Id=str(number))
        used = names(engine)
        assert all(len(set(used[user::6])) == 1 for user in range(6))
        assert set(used) == {"a", "b"}


async def test_fallbacks_serve_in_order_while_the_target_is_still_wanted():
    alias = Alias("chat", (("a", 1),), fallbacks=("b", "c"), parameters=Parameters(overrides={"seed": 1}))
    async with RawEngine(always(OK)) as engine:
        asleep, b, c = model("a"), model("b", engine, served_name="bb"), model("c", engine, served_name="cc")
        async with serving([asleep, model("b"), c], [alias]) as bed:
            assert "x-moorage-cold-start" not in (await bed.ask(chat("chat"))).headers
            bed.apply([asleep, b, c], [alias])
            await bed.ask(chat("chat"))
            bed.apply([model("a", engine), b, c], [alias])
            await bed.ask(chat("chat"))
            assert names(engine) == ["cc", "bb", "a"]
            assert {request.body["seed"] for request in engine.requests} == {1}
            assert bed.gateway.demand.wanted("a").requests == 2
            assert bed.gateway.demand.take_touched() == {"a"}, "a fallback is not woken"


async def test_a_request_ends_where_it_began_though_the_alias_moves_on():
    release = asyncio.Event()

    async def slow(side: EngineSide) -> None:
        await side.request()
        await side.start_events()
        await side.event({"choices": [{"delta": {"content": "old"}}]})
        await release.wait()
        await side.end_events()

    async with RawEngine(slow) as old, RawEngine(always(OK)) as new:
        models = [model("a", old), model("b", new)]
        async with serving(models, [Alias("chat", (("a", 1),))]) as bed, bed.client() as client:
            await client.post(chat("chat", stream=True))
            await client.head()
            bed.apply(models[1:], [Alias("chat", (("b", 1),))])
            assert (await bed.ask(chat("chat"))).json == OK
            release.set()
            assert b"old" in await client.chunk()
            assert await client.chunk() == b"data: [DONE]\n\n"
        await eventually(lambda: not old.sides[0].writer.is_closing())


async def test_an_endpoint_that_goes_is_let_finish_and_its_connections_are_closed():
    async def script(side: EngineSide) -> None:
        await side.request()
        await side.json(OK)
        await side.gone()

    async with RawEngine(script) as engine, serving([model("m", engine)]) as bed:
        await bed.ask(chat())
        bed.apply([model("m")])
        await eventually(lambda: engine.sides[0].gone_at)


async def test_retargeting_under_load_fails_no_request():
    async with mock() as one, mock() as two:
        models = [model("a", one), model("b", two)]
        aliases = [[Alias("chat", ((name, 1),))] for name in ("a", "b")]
        stop = False
        statuses: Counter[tuple[int, bool]] = Counter()
        async with serving(models, aliases[0]) as bed:

            async def load() -> None:
                async with bed.client() as client:
                    while not stop:
                        reply = await client.ask(chat("chat", stream=True, max_tokens=2))
                        statuses[reply.status, reply.whole] += 1

            loads = [asyncio.create_task(load()) for _ in range(8)]
            for turn in range(1, 41):
                bed.apply(models, aliases[turn % 2])
                reply = await bed.ask(chat("chat", max_tokens=1))
                assert reply.status == 200
                used = (one, two)[turn % 2].requests
                assert used[-1].body["model"] == "ab"[turn % 2], "in force for the very next request"
                await asyncio.sleep(0.01)
            stop = True
            await asyncio.gather(*loads)
        assert set(statuses) == {(200, True)}
        assert statuses[200, True] > 40


async def test_parameters_change_with_the_table():
    async with RawEngine(always(OK)) as engine, serving([model("m", engine)]) as bed, bed.client() as client:
        for value in (0.1, 0.2, 0.3):
            bed.apply([model("m", engine)], [Alias("m", (("m", 1),), parameters=Parameters({"temperature": value}))])
            await client.ask(chat())
            assert engine.requests[-1].body["temperature"] == value


# The file


def document(endpoint: str, **alias: object) -> dict[str, object]:
    return {
        "models": [{"name": "m", "endpoints": [endpoint], "maxInFlight": 4}],
        "aliases": [{"name": "chat", "targets": [{"model": "m"}], **alias}],
    }


@pytest.fixture
def file(tmp_path):
    return tmp_path / "routes.yaml"


async def test_a_change_of_the_file_is_in_force_within_100_ms(file):
    async with RawEngine(always(OK)) as engine, serving() as bed, bed.client() as client:
        file.write_text(yaml.safe_dump(document(address(engine))))
        routes = RoutesFile(file, Hold(), bed.gateway.apply, bed.gateway.settings.routes_poll)
        routes.load()
        following = asyncio.create_task(routes.follow())
        delays = []
        for seed in range(7):
            file.write_text(yaml.safe_dump(document(address(engine), request={"overrides": {"seed": seed}})))
            changed = time.monotonic()
            while True:
                assert (await client.ask(chat("chat"))).status == 200
                if engine.requests[-1].body.get("seed") == seed:
                    break
            delays.append(time.monotonic() - changed)
        following.cancel()
        assert min(delays) < 0.1, f"where the machine lets it: {delays}"


@pytest.mark.parametrize(
    "bad",
    [
        "", "\n", "# nothing", "null", "{}", "[]", "text", "models: 7", "models: [7]", "models: [{name: m}]", "{",
        "models: [{name: m, endpoints: [nowhere]}]", "models: [{name: m, endpoints: 'a:1'}]", "aliases: []",
        "models: [{name: m, endpoints: []}, {name: m, endpoints: []}]",
        "models: []\naliases: [{name: a, targets: [{model: gone}]}]",
        "models: [{name: m, endpoints: []}]\naliases: [{name: a, targets: []}]",
        "models: [{name: m, endpoints: []}]\naliases: [{name: a, targets: [{model: m, weight: 0}]}]",
        "models: [{name: m, endpoints: []}]\naliases: [{name: a, targets: [{model: m, weight: -1}]}]",
        "models: []\napiKeys: [{name: k, sha256: abc}]", "\x00", "a: &a [*a]\nmodels: *a",
        "!!python/object:os.system {}",
    ],
)  # fmt: skip
async def test_a_bad_file_keeps_the_last_good_one_and_the_next_good_one_counts(file, bad, caplog):
    async with RawEngine(always(OK)) as engine, serving() as bed:
        file.write_text(yaml.safe_dump(document(address(engine))))
        routes = RoutesFile(file, Hold(), bed.gateway.apply, 0.005)
        routes.load()
        following = asyncio.create_task(routes.follow())
        file.write_text(bad)
        await eventually(lambda: "the last good version stays in force" in caplog.text)
        assert (await bed.ask(chat("chat"))).status == 200
        file.write_text(yaml.safe_dump(document(address(engine), request={"overrides": {"seed": 9}})))
        await eventually(lambda: "chat" in bed.gateway.proxy.snapshot.routes)
        await eventually(lambda: bed.gateway.proxy.snapshot.routes["chat"].targets[0].rewrite.overrides == {"seed": 9})
        following.cancel()


async def test_a_file_that_is_away_for_a_moment_changes_nothing(file):
    async with RawEngine(always(OK)) as engine, serving() as bed:
        file.write_text(yaml.safe_dump(document(address(engine))))
        routes = RoutesFile(file, Hold(), bed.gateway.apply, 0.005)
        routes.load()
        following = asyncio.create_task(routes.follow())
        file.unlink()
        await asyncio.sleep(0.05)
        assert (await bed.ask(chat("chat"))).status == 200
        other = file.with_suffix(".new")
        other.write_text(json.dumps(document(address(engine), name="renamed")))
        other.rename(file)
        await eventually(lambda: "renamed" in bed.gateway.proxy.snapshot.routes)
        following.cancel()


async def test_a_file_that_is_being_written_is_not_believed(file):
    """Half of a document can be a document: here, one without the alias."""
    async with serving():
        whole = "models: [{name: m, endpoints: []}]\naliases: [{name: chat, targets: [{model: m}]}]\n"
        cut = whole.index("\n") + 1
        seen = []
        file.write_text(whole)
        routes = RoutesFile(file, Hold(), lambda snapshot: seen.append(set(snapshot.routes)), 0.03)
        routes.load()
        following = asyncio.create_task(routes.follow())
        for _ in range(5):
            before = len(seen)
            with file.open("w") as out:
                out.write(whole[:cut])
                out.flush()
                await asyncio.sleep(0.02)
                out.write(whole[cut:])
            await eventually(lambda before=before: len(seen) > before)
        following.cancel()
        assert all(names == {"m", "chat"} for names in seen), seen


async def test_a_bad_file_at_the_start_is_an_error(file):
    file.write_text("models: 7")
    with pytest.raises(InvalidSpec, match="models"):
        RoutesFile(file, Hold(), lambda _: None, 1).load()


async def test_an_endpoint_that_stays_keeps_its_connections_over_a_change():
    async with RawEngine(always(OK)) as engine, serving([model("m", engine)]) as bed, bed.client() as client:
        for number in range(5):
            await client.ask(chat())
            bed.apply([model("m", engine, max_in_flight=number + 1), Model(f"other-{number}")])
        assert len(engine.sides) == 1


async def test_a_fallback_serves_where_no_endpoint_of_the_target_can_be_reached():
    """The minute after a node has died: its endpoints are still there."""
    alias = Alias("chat", (("a", 1),), fallbacks=("b", "c"), parameters=Parameters(defaults={"seed": 1}))
    async with RawEngine(always(OK)) as asleep, RawEngine(always(OK)) as spare, dead_address() as nobody:
        target = Model("a", endpoints=(nobody,), defaults={"top_k": 7})
        models = [target, replace(model("b", asleep), endpoints=()), model("c", spare)]
        async with serving(models, [alias]) as bed:
            for streams in (False, True):
                reply = await bed.ask(chat("chat", stream=streams))
                assert reply.status == 200
            assert bed.gateway.stats.retries == 2
            first, second = (request.body for request in spare.requests)
            assert (first["model"], first["seed"]) == ("c", 1)
            assert "top_k" not in first, "what the other Model's defaults say is not for this one"
            assert second["stream_options"] == {"include_usage": True}
            assert await bed.metric("moorage_gateway_requests_total", alias="chat", model="c", outcome="ok") == 2
            assert (await bed.ask(chat("a"))).status == 502, "who asks for the Model itself gets the Model"
            assert bed.outstanding() == 0


async def test_a_connection_that_breaks_is_no_reason_to_leave_the_target():
    async def once(side: EngineSide) -> None:
        await side.request()
        if len(side.requests) == 1:
            side.reset()
        else:
            await side.json(OK)

    alias = Alias("chat", (("a", 1),), fallbacks=("b",))
    async with (
        RawEngine(once) as engine,
        RawEngine(always(OK)) as spare,
        serving([model("a", engine), model("b", spare)], [alias]) as bed,
    ):
        assert (await bed.ask(chat("chat"))).status == 200
        assert (len(engine.requests), len(spare.requests)) == (2, 0)


async def test_a_fallback_that_went_while_the_request_was_on_its_way_is_not_missed():
    gone = asyncio.Event()

    async def breaks(side: EngineSide) -> None:
        await side.request()
        await gone.wait()
        side.reset()

    alias = Alias("chat", (("a", 1),), fallbacks=("b",))
    async with RawEngine(breaks) as engine, RawEngine(always(OK)) as spare:
        models = [model("a", engine), model("b", spare)]
        async with serving(models, [alias]) as bed:
            asked = asyncio.create_task(bed.ask(chat("chat")))
            await eventually(lambda: engine.requests)
            bed.gateway.apply(Snapshot.build(models[:1], [Alias("chat", (("a", 1),))]))
            gone.set()
            assert (await asked).status == 502
            assert bed.outstanding() == 0
