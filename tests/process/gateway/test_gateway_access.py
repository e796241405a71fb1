"""API keys: who may use what, before anything is read or sent."""

import hashlib
import hmac

import pytest

from moorage.gateway.routes import Alias
from tests.process.gateway.support import CHAT, OK, RawEngine, always, chat, get, key, model, post, serving

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
