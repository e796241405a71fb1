"""API keys: who may use what, before anything is read or sent."""

import asyncio
import hashlib
import hmac
import time
from dataclasses import replace

import pytest

from moorage.gateway.keys import Limits
from moorage.gateway.routes import Alias, Card, Model, Snapshot
from tests.process.gateway.support import (
    CHAT,
    OK,
    PATIENCE,
    EngineSide,
    RawEngine,
    address,
    always,
    chat,
    get,
    key,
    mock,
    model,
    post,
    serving,
)
from tests.support.eventually import eventually

ALIASES = [Alias("chat", (("m", 1),)), Alias("other", (("m", 1),))]
KEYS = [key("all", "sk-all"), key("team", "sk-team", ["chat"])]


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


@pytest.mark.parametrize(
    "headers",
    [
        {}, {"Authorization": ""}, {"Authorization": "Bearer"}, {"Authorization": "Bearer "}, bearer("sk-al"),
        bearer("sk-all1"), bearer("SK-ALL"), {"Authorization": "sk-all"}, {"Authorization": "Basic sk-all"},
        bearer("sk-all sk-all"), {"Authorization": "Bearer sk-all, Bearer x"}, {"X_Api_Key": "sk-all"},
        bearer(hashlib.sha256(b"sk-all").hexdigest()),
    ],
)  # fmt: skip
async def test_without_a_known_key_everything_is_401(headers):
    async with RawEngine(always(OK)) as engine, serving([model("m", engine)], ALIASES, KEYS) as bed:
        for request in (post(chat(), **headers), post(chat("nope"), **headers), get("/v1/models", **headers)):
            reply = await bed.raw(request)
            assert (reply.status, reply.error["code"]) == (401, "invalid_api_key")
            assert reply.headers["www-authenticate"] == "Bearer"
        assert engine.sides == []


@pytest.mark.parametrize("scheme", ["Bearer sk-all", "bearer sk-all", "BEARER   sk-all", "Bearer sk-all  "])
async def test_a_known_key_opens(scheme):
    async with RawEngine(always(OK)) as engine, serving([model("m", engine)], ALIASES, KEYS) as bed:
        assert (await bed.ask(chat(), Authorization=scheme)).status == 200


async def test_a_limited_key_gets_403_elsewhere_whether_the_name_exists_or_not():
    async with RawEngine(always(OK)) as engine, serving([model("m", engine)], ALIASES, KEYS) as bed:
        assert (await bed.ask(chat("chat"), **bearer("sk-team"))).status == 200
        for name in ("m", "other", "nope"):
            reply = await bed.ask(chat(name), **bearer("sk-team"))
            assert (reply.status, reply.error["code"]) == (403, "model_not_allowed")
        assert (await bed.ask(chat("nope"), **bearer("sk-all"))).status == 404
        assert len(engine.requests) == 1


async def test_models_lists_what_the_key_may_use():
    async with serving([model("m")], ALIASES, KEYS) as bed:
        for secret, names in (("sk-all", ["chat", "m", "other"]), ("sk-team", ["chat"])):
            listed = (await bed.raw(get("/v1/models", **bearer(secret)))).json["data"]
            assert [entry["id"] for entry in listed] == names


async def test_without_keys_the_gateway_is_open():
    async with RawEngine(always(OK)) as engine, serving([model("m", engine)]) as bed:
        assert (await bed.ask(chat())).status == 200
        assert (await bed.ask(chat(), **bearer("anything"))).status == 200


async def test_a_key_is_refused_before_its_body_is_sent():
    async with serving([model("m")], keys=KEYS) as bed, bed.client() as client:
        head = f"POST {CHAT} HTTP/1.1\r\nHost: g\r\nExpect: 100-continue\r\nContent-Length: 1000\r\n\r\n"
        await client.send(head.encode())
        assert (await client.reply()).status == 401


async def test_a_wrong_key_can_be_followed_by_a_right_one_on_the_same_connection():
    async with RawEngine(always(OK)) as engine, serving([model("m", engine)], keys=KEYS) as bed, bed.client() as client:
        assert (await client.ask(chat(text="x" * 100_000), **bearer("no"))).status == 401
        assert (await client.ask(chat(), **bearer("sk-all"))).status == 200


async def test_a_revoked_key_stops_with_the_next_request():
    async with RawEngine(always(OK)) as engine, serving([model("m", engine)], keys=KEYS) as bed, bed.client() as client:
        assert (await client.ask(chat(), **bearer("sk-all"))).status == 200
        bed.apply([model("m", engine)], keys=KEYS[1:])
        assert (await client.ask(chat(), **bearer("sk-all"))).status == 401


async def test_an_expired_key_is_401_and_says_so_and_what_is_under_way_goes_on():
    release = asyncio.Event()

    async def script(side: EngineSide) -> None:
        await side.request()
        await release.wait()
        await side.json(OK)

    ends = int(time.time()) + 5
    keys = [key("k", "sk", expires=ends)]
    async with RawEngine(script) as engine, serving([model("m", engine)], keys=keys) as bed, bed.client() as client:
        await client.post(chat(), **bearer("sk"))
        await eventually(lambda: engine.requests)
        while (reply := await bed.raw(get("/v1/models", **bearer("sk")))).status == 200:
            assert time.time() < ends + PATIENCE
            await asyncio.sleep(0.05)
        assert time.time() >= ends
        assert (reply.status, reply.error["code"]) == (401, "invalid_api_key")
        assert reply.error["message"] == "This API key has expired."
        release.set()
        assert (await client.reply()).status == 200


async def test_the_last_word_on_a_key_is_a_comparison_in_constant_time(monkeypatch):
    compared = []
    real = hmac.compare_digest
    monkeypatch.setattr(
        "moorage.gateway.routes.hmac.compare_digest", lambda a, b: compared.append((a, b)) or real(a, b)
    )
    async with RawEngine(always(OK)) as engine, serving([model("m", engine)], keys=KEYS) as bed:
        await bed.ask(chat(), **bearer("sk-all"))
    digest = hashlib.sha256(b"sk-all").digest()
    assert compared == [(digest, digest)]


async def test_keys_are_in_no_log_and_no_answer(caplog):
    caplog.set_level("DEBUG")
    async with serving([model("m")], keys=KEYS) as bed:
        replies = [await bed.ask(chat(), **bearer(secret)) for secret in ("sk-team", "sk-wrong")]
        page = (await bed.admin("/metrics")).body.decode()
    for text in (caplog.text, page, *(reply.body.decode() + str(reply.headers) for reply in replies)):
        assert "sk-" not in text


async def test_where_keys_are_needed_and_there_is_none_nobody_is_served_and_told_why():
    async with RawEngine(always(OK)) as engine, serving() as bed:
        bed.gateway.apply(Snapshot.build([model("m", engine)], closed=True))
        for headers in ({}, bearer("sk-any")):
            reply = await bed.ask(chat(), **headers)
            assert (reply.status, reply.error["code"]) == (401, "invalid_api_key")
            assert "no API key has been made" in reply.error["message"]
        assert engine.sides == []


TEAMS = [
    Model("m", namespace="default"),
    Model("a/m", namespace="a"),
    Model("b/m", namespace="b"),
]


async def test_bare_names_and_the_list_are_those_of_the_keys_namespaces():
    keys = [key("a", "sk-a", namespaces=("a",)), key("ab", "sk-ab", namespaces=("b", "a")), key("all", "sk-all")]
    async with RawEngine(always(OK)) as engine:
        models = [replace(m, endpoints=(address(engine),), served_name=m.name) for m in TEAMS]
        async with serving(models, keys=keys) as bed:

            async def reached(name: str, secret: str) -> str:
                reply = await bed.ask(chat(name), **bearer(secret))
                return engine.requests[-1].body["model"] if reply.status == 200 else reply.error["code"]

            assert [await reached("m", secret) for secret in ("sk-a", "sk-ab", "sk-all")] == ["a/m", "b/m", "m"]
            assert [await reached("a/m", secret) for secret in ("sk-a", "sk-ab", "sk-all")] == ["a/m"] * 3
            assert await reached("b/m", "sk-a") == await reached("b/nothing", "sk-a") == "model_not_allowed"
            assert await reached("nothing", "sk-a") == await reached("a/nothing", "sk-a") == "model_not_found"
            for secret, names in (("sk-a", ["m"]), ("sk-ab", ["a/m", "m"]), ("sk-all", ["a/m", "b/m", "m"])):
                listed = (await bed.raw(get("/v1/models", **bearer(secret)))).json["data"]
                assert sorted(entry["id"] for entry in listed) == names


async def test_a_key_over_its_limit_is_429_with_the_time_to_wait_and_others_are_not():
    keys = [key("few", "sk-few", limits=Limits(requests_per_minute=2)), key("many", "sk-many")]
    async with RawEngine(always(OK)) as engine, serving([model("m", engine)], keys=keys) as bed:
        assert [(await bed.ask(chat(), **bearer("sk-few"))).status for _ in range(3)] == [200, 200, 429]
        reply = await bed.ask(chat(), **bearer("sk-few"))
        assert (reply.error["code"], reply.error["type"]) == ("rate_limit_exceeded", "rate_limit_error")
        assert 0 < int(reply.headers["retry-after"]) <= 30
        assert (await bed.ask(chat(), **bearer("sk-many"))).status == 200
        bed.apply([model("m", engine)], keys=keys)
        assert (await bed.ask(chat(), **bearer("sk-few"))).status == 429, "another table is no amnesty"
        bed.apply([model("m", engine)], keys=[key("few", "sk-few", limits=Limits(requests_per_minute=3))])
        assert (await bed.ask(chat(), **bearer("sk-few"))).status == 200, "other limits count anew"
        assert (await bed.raw(get("/v1/models", **bearer("sk-few")))).status == 200, "the list costs nothing"


async def test_tokens_count_when_the_stream_ends():
    keys = [key("few", "sk-few", limits=Limits(tokens_per_minute=10))]
    async with mock() as engine, serving([model("m", engine)], keys=keys) as bed:
        assert (await bed.ask(chat(stream=True, max_tokens=9), **bearer("sk-few"))).status == 200
        reply = await bed.ask(chat(), **bearer("sk-few"))
        assert (reply.status, reply.error["code"]) == (429, "rate_limit_exceeded")
        assert "10 tokens a minute" in reply.error["message"]


async def test_requests_at_once_count_held_ones_and_those_that_leave_give_their_place_back():
    keys = [key("few", "sk-few", limits=Limits(max_concurrency=2))]
    async with serving([model("m")], keys=keys) as bed:
        async with bed.client() as one, bed.client() as two:
            for client in (one, two):
                await client.post(chat(), **bearer("sk-few"))
            await eventually(lambda: bed.gateway.proxy.fleet.held == 2)
            assert (await bed.ask(chat(), **bearer("sk-few"))).status == 429
        await eventually(lambda: bed.gateway.proxy.fleet.held == 0)
        async with bed.client() as client:
            await client.post(chat(), **bearer("sk-few"))
            await eventually(lambda: bed.gateway.proxy.fleet.held == 1)


async def test_no_key_reaches_an_engine():
    keys = [key("few", "sk-few", limits=Limits(max_concurrency=2))]
    async with RawEngine(always(OK)) as engine, serving([model("m", engine)], keys=keys) as bed:
        await bed.ask(chat(), X_Api_Key="sk-few", Cookie="key=sk-few", **bearer("sk-few"))
        assert "sk-few" not in str(engine.requests[0].headers) + engine.requests[0].data.decode()


async def test_a_refusal_takes_nothing_of_a_keys_limits():
    """A request that goes nowhere must not hold its place among the requests at once for ever."""
    one = key("a", "sk", limits=Limits(max_concurrency=1))
    aliases = [Alias("short", (), lacking=("m lacks tools",))]
    vectors = Model("v", endpoints=("127.0.0.1:1",), card=Card(capabilities=("embeddings",)))
    async with RawEngine(always(OK)) as engine, serving([model("m", engine), vectors], aliases, [one]) as bed:
        for _ in range(3):
            assert (await bed.ask(chat("short"), Authorization="Bearer sk")).status == 503
            assert (await bed.ask(chat("v"), Authorization="Bearer sk")).status == 400
        assert (await bed.ask(chat("m"), Authorization="Bearer sk")).status == 200
