"""What a client gets when everything works: paths, bodies, streams, names, keys, request ids."""

import asyncio
import contextlib
import json

import pytest

from moorage.gateway.routes import Alias, Card, Parameters
from tests.process.gateway.support import (
    CHAT,
    OK,
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


async def test_a_whole_answer_comes_through_as_it_was():
    async with RawEngine(always({**OK, "x_unknown": [1, {"a": None}]})) as engine, serving([model("m", engine)]) as bed:
        reply = await bed.ask(chat())
        assert reply.status == 200
        assert reply.json == {**OK, "x_unknown": [1, {"a": None}]}


async def test_a_stream_comes_through_event_by_event():
    async def script(side: EngineSide) -> None:
        await side.request()
        await side.start_events()
        for number in range(3):
            await side.event({"choices": [{"delta": {"content": str(number)}}]})
            await go.get()
        await side.end_events()

    go: asyncio.Queue[None] = asyncio.Queue()
    async with RawEngine(script) as engine, serving([model("m", engine)]) as bed, bed.client() as client:
        await client.post(chat(stream=True))
        status, headers = await client.head()
        assert (status, headers["content-type"]) == (200, "text/event-stream")
        for number in range(3):
            # The engine does not go on before this event was seen: nothing may be held back.
            assert json.loads((await client.chunk())[6:])["choices"][0]["delta"]["content"] == str(number)
            go.put_nowait(None)
        assert await client.chunk() == b"data: [DONE]\n\n"
        assert await client.chunk() == b""


@pytest.mark.parametrize("path", [CHAT, "/v1/completions", "/v1/embeddings", "/v1/rerank", "/rerank"])
async def test_each_listed_path_reaches_the_engine_under_its_own_name(path):
    async with RawEngine(always(OK)) as engine, serving([model("m", engine, served_name="real")]) as bed:
        assert (await bed.ask({"model": "m", "input": "x"}, path)).status == 200
        assert engine.requests[0].line == f"POST {path} HTTP/1.1"
        assert engine.requests[0].body["model"] == "real"


@pytest.mark.parametrize(
    "path",
    [
        "/", "/v1", "/v1/", "/v1/chat/completions/", "/v1/chat/completions%2f", "//v1/chat/completions",
        "/v1/load_lora_adapter", "/slots", "/metrics", "/healthz", "/readyz", "/props",
        "/v1/../slots", "/v1/chat/completions/../../slots", "/V1/CHAT/COMPLETIONS",
    ],
)  # fmt: skip
async def test_any_other_path_does_not_exist(path):
    async with RawEngine(always(OK)) as engine, serving([model("m", engine)]) as bed:
        for request in (post(chat(), path), get(path)):
            reply = await bed.raw(request)
            assert (reply.status, reply.error["code"]) == (404, "unknown_url")
        assert engine.sides == []


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "OPTIONS", "HEAD", "PATCH"])
async def test_any_other_method_is_not_allowed(method):
    async with serving() as bed, bed.client() as client:
        await client.send(f"{method} {CHAT} HTTP/1.1\r\nHost: g\r\n\r\n".encode())
        status, headers = await client.head()
        assert (status, headers["allow"]) == (405, "POST")


async def test_a_query_is_ignored_and_never_passed_on():
    async with RawEngine(always(OK)) as engine, serving([model("m", engine)]) as bed:
        assert (await bed.ask(chat(), f"{CHAT}?api-version=1")).status == 200
        assert engine.requests[0].line == f"POST {CHAT} HTTP/1.1"


async def test_an_absolute_target_means_the_same():
    async with RawEngine(always(OK)) as engine, serving([model("m", engine)]) as bed:
        assert (await bed.ask(chat(), f"http://elsewhere:81{CHAT}")).status == 200


async def test_models_lists_exactly_models_and_aliases():
    async with serving([model("m"), model("n")], [Alias("chat", (("m", 1),))]) as bed:
        reply = await bed.raw(get("/v1/models"))
    assert [entry["id"] for entry in reply.json["data"]] == ["chat", "m", "n"]
    assert {entry["object"] for entry in reply.json["data"]} == {"model"}


CARD = Card(8192, ("chat", "completion", "tools", "vision"), "Sees and acts.", ("agents", "team a"))


async def test_models_are_listed_with_what_can_be_counted_on():
    plain = model("n", card=Card(4096, ("chat", "completion")))
    aliases = [Alias("chat", (("m", 1),)), Alias("both", (("m", 1),), fallbacks=("n",)), Alias("new", (("o", 1),))]
    async with serving([model("m", card=CARD), plain, model("o")], aliases) as bed:
        listed = {entry["id"]: entry for entry in (await bed.raw(get("/v1/models"))).json["data"]}
        one = (await bed.raw(get("/v1/models/m"))).json
    known = {"object": "model", "created": 0, "owned_by": "moorage"}
    taken = {"input_modalities": ["text", "image"], "output_modalities": ["text"]}
    offered = {"capabilities": list(CARD.capabilities or ()), "architecture": taken}
    sizes = {"context_length": 8192, "max_model_len": 8192}
    assert one == listed["m"]
    assert one == {
        "id": "m", **known, **sizes, **offered, "description": "Sees and acts.", "tags": ["agents", "team a"],
    }  # fmt: skip
    assert listed["chat"] == {"id": "chat", **known, **sizes, **offered}
    assert listed["both"]["context_length"] == 4096, "of an alias what all of its Models offer"
    assert listed["both"]["capabilities"] == ["chat", "completion"]
    assert listed["both"]["architecture"]["input_modalities"] == ["text"]
    assert listed["o"] == {"id": "o", **known}, "what is not known is not claimed"
    assert listed["new"] == {"id": "new", **known}


async def test_a_server_of_embeddings_is_listed_as_one():
    async with serving([model("m", card=Card(512, ("embeddings",)))]) as bed:
        listed = (await bed.raw(get("/v1/models/m"))).json
    assert listed["architecture"] == {"input_modalities": ["text"], "output_modalities": ["embeddings"]}


@pytest.mark.parametrize(("serves", "other"), [("embeddings", "rerank"), ("rerank", "embeddings")])
async def test_a_server_of_one_thing_is_not_asked_for_another(serves: str, other: str):
    """llama-server with --embeddings was seen to end on a chat; with --reranking it gives vectors of stray memory."""
    card = Card(512, (serves,))
    async with (
        RawEngine(always(OK)) as engine,
        serving([model("m", engine, card=card)], [Alias("a", (("m", 1),))]) as bed,
    ):
        for name in ("m", "a"):
            for path in (CHAT, "/v1/completions", f"/v1/{other}"):
                reply = await bed.ask(chat(name), path)
                told = (reply.status, reply.error["code"], reply.error["param"])
                assert told == (400, "unsupported_endpoint", "model")
                assert f"it serves /v1/{serves}" in reply.error["message"]
            assert (await bed.ask({"model": name, "input": "x"}, f"/v1/{serves}")).status == 200
        assert len(engine.requests) == 2


CHATS, VECTORS, RANKS = Card(8192, ("chat", "completion", "tools")), Card(512, ("embeddings",)), Card(512, ("rerank",))
KINDS = [(CHAT, "messages"), ("/v1/embeddings", "input"), ("/v1/rerank", "query")]


@pytest.mark.parametrize(
    ("cards", "fallbacks", "reached"),
    [
        ({"a": CHATS, "b": VECTORS}, {}, ["a", "b", "a"]),  # nobody reranks: the engine that may says so
        ({"a": VECTORS, "b": CHATS}, {}, ["b", "a", "b"]),
        ({"a": CHATS, "c": RANKS}, {}, ["a", "a", "c"]),
        ({"a": CHATS, "b": VECTORS, "c": RANKS}, {}, ["a", "b", "c"]),
        ({"a": CHATS}, {"b": VECTORS}, ["a", "b", "a"]),
        ({"a": VECTORS}, {"b": CHATS}, ["b", "a", "b"]),
        ({"a": Card(), "b": VECTORS}, {}, ["a", "b", "a"]),  # who nobody knows anything of may generate
        ({"a": VECTORS, "b": RANKS}, {}, ["unsupported_endpoint", "a", "b"]),
        ({"a": VECTORS}, {"b": VECTORS}, ["unsupported_endpoint", "a", "unsupported_endpoint"]),
    ],
)
async def test_of_different_models_behind_one_alias_each_gets_the_requests_that_it_can_answer(
    cards, fallbacks, reached
):
    every = cards | fallbacks
    async with contextlib.AsyncExitStack() as stack:
        engines = {name: await stack.enter_async_context(RawEngine(always(OK))) for name in every}
        models = [model(name, engines[name], card=card, served_name=name) for name, card in every.items()]
        mixed = Alias("mixed", tuple((name, 1) for name in cards), fallbacks=tuple(fallbacks))
        bed = await stack.enter_async_context(serving(models, [mixed]))
        for (path, field), wanted in zip(KINDS, reached, strict=True):
            replies = [await bed.ask({"model": "mixed", field: []}, path, X_Request_Id=f"r{n}") for n in range(12)]
            codes = {reply.error["code"] for reply in replies if reply.status != 200}
            asked = {name for name, engine in engines.items() for r in engine.requests if r.line.split()[1] == path}
            assert " ".join(sorted(codes | asked)) == wanted, path


async def test_an_alias_of_different_models_lists_what_requests_can_count_on_and_changes_only_chats():
    told = Parameters(defaults={"max_tokens": 7}, system_prompt="Be brief.")
    aliases = [Alias("mixed", (("a", 9), ("b", 1)), parameters=told), Alias("chats", (("a", 1), ("c", 1)))]
    async with RawEngine(always(OK)) as engine:
        cards = {"a": CHATS, "b": VECTORS, "c": Card(8192, ("chat", "completion", "embeddings"))}
        async with serving([model(name, engine, card=card) for name, card in cards.items()], aliases) as bed:
            listed = {entry["id"]: entry for entry in (await bed.raw(get("/v1/models"))).json["data"]}
            await bed.ask(chat("mixed"))
            await bed.ask({"model": "mixed", "input": "x"}, "/v1/embeddings")
    assert listed["mixed"]["capabilities"] == ["chat", "completion", "tools", "embeddings"]
    assert listed["mixed"]["architecture"]["output_modalities"] == ["text", "embeddings"]
    assert listed["mixed"]["context_length"] == 512, "whichever kind of request: so much is taken"
    assert listed["chats"]["capabilities"] == ["chat", "completion", "embeddings"]
    asked, vectors = (r.body for r in engine.requests)
    assert (asked["max_tokens"], asked["messages"][0]) == (7, {"role": "system", "content": "Be brief."})
    assert vectors == {"model": "b", "input": "x"}


async def test_a_chat_that_waits_is_refused_when_its_model_turns_out_to_make_vectors():
    async with RawEngine(always(OK)) as engine, serving([model("m")]) as bed, bed.client() as client:
        await client.post(chat())
        await eventually(lambda: bed.gateway.proxy.fleet.held == 1)
        bed.apply([model("m", engine, card=VECTORS)])
        reply = await client.reply()
        assert (reply.status, reply.error["code"]) == (400, "unsupported_endpoint")
        assert engine.requests == []


async def test_an_alias_whose_models_fall_short_is_503():
    short = Alias("chat", (), lacking=("tools", "vision"))
    async with RawEngine(always(OK)) as engine, serving([model("m", engine)], [short]) as bed:
        reply = await bed.ask(chat("chat"))
        assert (reply.status, reply.error["code"], reply.error["type"]) == (
            503,
            "requirements_not_met",
            "server_error",
        )
        assert "it requires tools, vision, and no Model offers that" in reply.error["message"]
        assert int(reply.headers["retry-after"]) > 0
        assert [entry["id"] for entry in (await bed.raw(get("/v1/models"))).json["data"]] == ["chat", "m"]
        assert (await bed.ask(chat("m"))).status == 200


@pytest.mark.parametrize("path", ["team/chat", "team%2Fchat"])
async def test_one_model_by_its_name(path):
    async with serving([model("m")], [Alias("team/chat", (("m", 1),))]) as bed:
        reply = await bed.raw(get(f"/v1/models/{path}"))
        assert (reply.status, reply.json["id"], reply.json["object"]) == (200, "team/chat", "model")
        missing = await bed.raw(get("/v1/models/nope"))
        assert (missing.status, missing.error["code"]) == (404, "model_not_found")
        assert (await bed.raw(get("/v1/models/"))).status == 404


async def test_one_model_that_a_key_may_not_use():
    secret = "sk-moorage-0123456789abcdef0123456789"
    async with serving([model("m"), model("n")], keys=[key("k", secret, ["m"])]) as bed:
        for name, status in (("m", 200), ("n", 403), ("nope", 403)):
            assert (await bed.raw(get(f"/v1/models/{name}", Authorization=f"Bearer {secret}"))).status == status
        assert (await bed.raw(get("/v1/models/m"))).status == 401


async def test_an_unknown_model_is_404():
    async with serving([model("m")]) as bed:
        reply = await bed.ask(chat("nope"))
        assert (reply.status, reply.error["code"], reply.error["param"]) == (404, "model_not_found", "model")


async def test_a_connection_serves_many_requests():
    async with RawEngine(always(OK)) as engine, serving([model("m", engine)]) as bed, bed.client() as client:
        for _ in range(20):
            assert (await client.ask(chat())).status == 200
        assert len(engine.sides) == 1, "the connection to the engine is kept, too"


async def test_pipelined_requests_are_answered_in_order():
    async with mock() as engine, serving([model("m", engine), model("n", engine)]) as bed, bed.client() as client:
        await client.send(post(chat("m", max_tokens=1)) + post(chat("nope")) + get("/v1/models") + post(chat("n")))
        assert [(await client.reply()).status for _ in range(4)] == [200, 404, 200, 200]


async def test_http_1_0_gets_an_answer_that_ends_by_closing():
    async with mock() as engine, serving([model("m", engine)]) as bed, bed.client() as client:
        await client.send(post(chat(stream=True)).replace(b"HTTP/1.1", b"HTTP/1.0", 1))
        reply = await client.reply()
        assert reply.status == 200
        assert "transfer-encoding" not in reply.headers
        assert reply.events[-1] == "[DONE]"


async def test_connection_close_is_obeyed():
    async with mock() as engine, serving([model("m", engine)]) as bed, bed.client() as client:
        reply = await client.ask(chat(), Connection="close")
        assert reply.headers["connection"] == "close"
        assert await client.closed() == b""


async def test_a_body_in_chunks_is_read_like_any_other():
    body = json.dumps(chat()).encode()
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\nX-Trailer: t\r\n\r\n"
    head = f"POST {CHAT} HTTP/1.1\r\nHost: g\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    async with RawEngine(always(OK)) as engine, serving([model("m", engine)]) as bed, bed.client() as client:
        await client.send(head + chunks)
        assert (await client.reply()).status == 200
        assert engine.requests[0].body == chat()
        assert (await client.ask(chat())).status == 200, "the trailer did not spoil the connection"


async def test_100_continue_is_sent_before_the_body():
    async with mock() as engine, serving([model("m", engine)]) as bed, bed.client() as client:
        head, _, body = post(chat(), Expect="100-continue").partition(b"\r\n\r\n")
        await client.send(head + b"\r\n\r\n")
        assert (await client.reply()).status == 100
        await client.send(body)
        assert (await client.reply()).status == 200


async def test_100_continue_is_sent_to_a_request_that_came_behind_another():
    async with mock() as engine, serving([model("m", engine)]) as bed, bed.client() as client:
        head, _, body = post(chat(), Expect="100-continue").partition(b"\r\n\r\n")
        await client.send(post(chat(max_tokens=1)) + head + b"\r\n\r\n")
        assert (await client.reply()).status == 200
        assert (await client.reply()).status == 100
        await client.send(body)
        assert (await client.reply()).status == 200


async def test_an_offered_upgrade_is_ignored_body_and_all():
    """Java's HttpClient offers h2c with its first request."""
    upgrade = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2_Settings": "AAEAAEAAAAIAAAAAAAMAAAAA"}
    async with RawEngine(always(OK)) as engine, serving([model("m", engine)]) as bed, bed.client() as client:
        assert (await client.ask(chat(), **upgrade)).status == 200
        assert engine.requests[0].body == chat()
        await client.send(post(chat(), **upgrade) + post(chat("nope")))
        assert [(await client.reply()).status for _ in range(2)] == [200, 404]


async def test_the_engine_gets_neither_key_nor_cookies_and_the_client_no_server_name():
    async def script(side: EngineSide) -> None:
        await side.request()
        await side.json(OK, extra="Server: engine/1.2 at 10.0.0.7\r\nSet-Cookie: a=b\r\nX-Kept: yes\r\n")

    async with RawEngine(script) as engine, serving([model("m", engine)], keys=[key("a", "sk-1")]) as bed:
        reply = await bed.ask(chat(), Authorization="Bearer sk-1", Cookie="session=1", X_Forwarded_For="1.2.3.4")
        assert reply.status == 200
        sent = engine.requests[0]
        assert set(sent.headers) == {"host", "content-type", "content-length", "x-request-id"}
        assert sent.headers["host"] == address(engine)
        assert "server" not in reply.headers
        assert "set-cookie" not in reply.headers
        assert reply.headers["x-kept"] == "yes"


async def test_the_request_id_goes_both_ways_and_is_made_where_there_is_none():
    async with RawEngine(always(OK)) as engine, serving([model("m", engine)]) as bed:
        assert (await bed.ask(chat(), X_Request_Id="abc-1")).headers["x-request-id"] == "abc-1"
        made = [(await bed.ask(chat())).headers["x-request-id"] for _ in range(2)]
        odd = (await bed.ask(chat(), X_Request_Id="two words")).headers["x-request-id"]
        assert [r.headers["x-request-id"] for r in engine.requests] == ["abc-1", *made, odd]
        assert len({"two words", *made, odd}) == 4


async def test_engine_errors_pass_through_unretried():
    for status in (400, 404, 422, 429, 500, 503):
        async with (
            RawEngine(always({"error": {"message": "own words", "code": status}}, status)) as engine,
            serving([model("m", engine)]) as bed,
        ):
            reply = await bed.ask(chat())
            assert (reply.status, reply.json["error"]["message"]) == (status, "own words")
            assert len(engine.requests) == 1


async def test_a_long_answer_is_passed_on_in_pieces():
    value = {**OK, "data": "x" * 3_000_000}
    async with RawEngine(always(value)) as engine, serving([model("m", engine)]) as bed:
        assert (await bed.ask(chat())).json == value
        assert await bed.metric("moorage_gateway_tokens_total", model="m", kind="prompt") == 3


async def test_a_long_question_arrives_whole():
    async with RawEngine(always(OK)) as engine, serving([model("m", engine)]) as bed:
        text = "long " * 1_000_000
        assert (await bed.ask(chat(text=text))).status == 200
        assert engine.requests[0].body["messages"][0]["content"] == text


async def test_an_answer_without_a_length_ends_with_its_connection():
    async def script(side: EngineSide) -> None:
        await side.request()
        await side.send(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n" + json.dumps(OK).encode())
        side.close()

    async with RawEngine(script) as engine, serving([model("m", engine)]) as bed, bed.client() as client:
        for _ in range(2):
            assert (await client.ask(chat())).json == OK


async def test_interim_responses_are_skipped():
    async def script(side: EngineSide) -> None:
        while True:
            await side.request()
            await side.send(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n")
            await side.json(OK)

    async with RawEngine(script) as engine, serving([model("m", engine)]) as bed, bed.client() as client:
        for _ in range(2):
            reply = await client.ask(chat())
            assert (reply.json, "link" in reply.headers) == (OK, False)


async def test_admin_pages_are_on_the_admin_port_alone():
    async with serving([model("m")]) as bed:
        assert (await bed.admin("/healthz")).status == 200
        assert (await bed.admin("/readyz")).status == 200
        assert (await bed.admin("/metrics")).status == 200
        assert (await bed.admin("/v1/models")).status == 404


async def test_an_alias_hides_a_model_of_its_name():
    async with mock() as engine, serving([model("a", engine), model("m")], [Alias("m", (("a", 1),))]) as bed:
        assert (await bed.ask(chat("m"))).status == 200
        assert engine.requests[0].body["model"] == "a"


async def test_what_happened_is_counted():
    parameters = Parameters(defaults={"temperature": 0.5})
    async with mock() as engine, serving([model("m", engine)], [Alias("chat", (("m", 1),), (), parameters)]) as bed:
        await bed.ask(chat("chat", max_tokens=3))
        await bed.ask(chat("chat", max_tokens=4, stream=True))
        await bed.ask(chat("m", max_tokens=5))

        async def counted(**labels: str) -> list[float]:
            tokens = [
                await bed.metric("moorage_gateway_tokens_total", model="m", kind=kind, **labels)
                for kind in ("prompt", "completion")
            ]
            return [await bed.metric("moorage_gateway_requests_total", model="m", outcome="ok", **labels), *tokens]

        assert await counted(alias="chat") == [2, 10, 7]
        assert await counted(alias="") == [1, 5, 5]
        for name in ("first_byte", "request"):
            assert await bed.metric(f"moorage_gateway_{name}_seconds_count", alias="chat") == 2
        await eventually(lambda: bed.gateway.stats.route("chat", "m").last_used > 1e9)
