"""Token counts: the engine's own, asked for without the client noticing."""

import json

import pytest

from moorage.gateway.keys import Limits
from tests.process.gateway.support import OK, EngineSide, RawEngine, always, chat, key, mock, model, serving


async def tokens(bed) -> tuple[int, int]:
    stats = bed.gateway.stats.route("", "m")
    return stats.prompt_tokens, stats.completion_tokens


@pytest.mark.parametrize("crlf", [False, True])
@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("chunked", [False, True])
async def test_a_stream_is_counted_and_the_extra_chunk_not_shown(crlf, split, chunked):
    behaviour = {"crlf": crlf, "split": split, "chunked": chunked}
    async with mock(**behaviour) as engine, serving([model("m", engine)]) as bed:
        reply = await bed.ask(chat(stream=True, max_tokens=7))
        assert engine.requests[0].body["stream_options"] == {"include_usage": True}
        assert [event for event in reply.events[:-1] if not event["choices"]] == []
        assert reply.events[-1] == "[DONE]"
        assert sum("content" in event["choices"][0]["delta"] for event in reply.events[:-1]) == 8
        assert await tokens(bed) == (5, 7)


async def test_who_asks_for_usage_gets_it():
    async with mock() as engine, serving([model("m", engine)]) as bed:
        reply = await bed.ask(chat(stream=True, max_tokens=3, stream_options={"include_usage": True}))
        assert reply.events[-2]["usage"]["completion_tokens"] == 3
        assert reply.events[-2]["choices"] == []
        assert await tokens(bed) == (5, 3)


async def test_who_declines_usage_is_not_overruled():
    async with mock(usage="none") as engine, serving([model("m", engine)]) as bed:
        await bed.ask(chat(stream=True, stream_options={"include_usage": False}))
        assert engine.requests[0].body["stream_options"] == {"include_usage": False}


async def test_whose_tokens_are_limited_cannot_decline_usage():
    limited = key("a", "sk", limits=Limits(tokens_per_minute=5))
    async with mock() as engine, serving([model("m", engine)], [], [limited]) as bed:
        question = chat(stream=True, stream_options={"include_usage": False}, max_tokens=50)
        reply = await bed.ask(question, Authorization="Bearer sk")
        assert engine.requests[0].body["stream_options"] == {"include_usage": True}
        assert not any(event.get("usage") for event in reply.events[:-1]), "and does not see it"
        assert (await bed.ask(question, Authorization="Bearer sk")).status == 429


async def test_other_stream_options_stay():
    async with mock() as engine, serving([model("m", engine)]) as bed:
        await bed.ask(chat(stream=True, stream_options={"chunk_size": 3}))
        assert engine.requests[0].body["stream_options"] == {"chunk_size": 3, "include_usage": True}


async def test_running_counts_in_each_chunk_are_shown_and_the_last_one_counts():
    async with mock(usage="every") as engine, serving([model("m", engine)]) as bed:
        reply = await bed.ask(chat(stream=True, max_tokens=4))
        assert sum("usage" in event for event in reply.events[:-1]) == 5
        assert await tokens(bed) == (5, 4)


async def test_requests_that_are_no_stream_are_not_touched():
    async with mock() as engine, serving([model("m", engine)]) as bed:
        await bed.ask(chat(max_tokens=6))
        assert "stream_options" not in engine.requests[0].body
        assert await tokens(bed) == (5, 6)


async def test_embeddings_are_counted_without_stream_options():
    answer = {"data": [{"embedding": [0.1] * 4000}], "usage": {"prompt_tokens": 8, "total_tokens": 8}}
    async with RawEngine(always(answer)) as engine, serving([model("m", engine)]) as bed:
        await bed.ask({"model": "m", "input": "x", "stream": True}, "/v1/embeddings")
        assert engine.requests[0].body == {"model": "m", "input": "x", "stream": True}
        assert await tokens(bed) == (8, 0)


async def test_text_that_looks_like_usage_is_not_counted():
    text = '"usage": {"prompt_tokens": 999, "completion_tokens": 999}, "choices": []'
    answer = {"usage": {"prompt_tokens": 1, "completion_tokens": 2}, "choices": [{"message": {"content": text}}]}

    async def script(side: EngineSide) -> None:
        await side.request()
        await side.json(answer)
        await side.request()
        await side.start_events()
        await side.event({"choices": [{"delta": {"content": text}}]})
        await side.event({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4}})
        await side.end_events()

    async with RawEngine(script) as engine, serving([model("m", engine)]) as bed, bed.client() as client:
        assert (await client.ask(chat())).json == answer
        assert await tokens(bed) == (1, 2)
        reply = await client.ask(chat(stream=True))
        assert [event["choices"][0]["delta"]["content"] for event in reply.events[:-1]] == [text]
        assert await tokens(bed) == (4, 6)


async def test_a_stream_cut_at_every_byte_is_still_the_same_stream():
    events = [{"choices": [{"delta": {"content": "a\n"}}]}, {"choices": [], "usage": {"prompt_tokens": 1}}]
    stream = b"".join(b"data: %b\n\n" % json.dumps(event).encode() for event in events) + b"data: [DONE]\n\n"

    async def script(side: EngineSide) -> None:
        for cut in range(1, len(stream)):
            await side.request()
            await side.start_events()
            await side.send(b"%x\r\n%b\r\n" % (cut, stream[:cut]))
            await side.send(b"%x\r\n%b\r\n0\r\n\r\n" % (len(stream) - cut, stream[cut:]))

    async with RawEngine(script) as engine, serving([model("m", engine)]) as bed, bed.client() as client:
        for _ in range(1, len(stream)):
            assert (await client.ask(chat(stream=True))).events == [events[0], "[DONE]"]
        assert await tokens(bed) == (len(stream) - 1, 0)


async def test_an_answer_without_usage_counts_no_tokens():
    async with RawEngine(always({**OK, "usage": None})) as engine, serving([model("m", engine)]) as bed:
        assert (await bed.ask(chat())).status == 200
        assert await tokens(bed) == (0, 0)
        assert bed.gateway.stats.route("", "m").ok == 1


async def test_outcomes_are_told_apart():
    async with (
        RawEngine(always({}, 400)) as refusing,
        RawEngine(always({}, 500)) as failing,
        serving([model("a", refusing), model("b", failing)]) as bed,
    ):
        await bed.ask(chat("a"))
        await bed.ask(chat("b"))
        for name, outcome in (("a", "ok"), ("b", "error")):
            assert await bed.metric("moorage_gateway_requests_total", model=name, outcome=outcome) == 1
