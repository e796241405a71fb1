import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moorage.bench.stream import MAX_EVENT_BYTES, Transcript, Usage, error_text

ROLE = {"choices": [{"delta": {"role": "assistant", "content": ""}}], "usage": None}
TEXT = {"choices": [{"delta": {"content": "tok\u00e9"}}]}
END = {"choices": [{"delta": {}, "finish_reason": "length"}]}
COUNTS = {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 2}}


def wire(*events, newline=b"\n"):
    return b"".join(b"data: " + json.dumps(event).encode() + newline * 2 for event in events)


def read(*pieces):
    transcript = Transcript()
    for now, piece in enumerate(pieces, start=1):
        transcript.feed(piece, now)
    return transcript


def test_text_has_the_time_of_the_bytes_that_completed_it():
    event = wire(TEXT)
    transcript = read(
        wire(ROLE), event[:10], event[10:], wire(TEXT, TEXT), wire(END), wire(COUNTS) + b"data: [DONE]\n\n"
    )
    assert transcript.text_ns == [3, 4, 4]
    assert transcript.usage == Usage(7, 2)
    assert transcript.done_ns == 6
    assert transcript.over
    assert not transcript.error


@pytest.mark.parametrize("key", ["content", "reasoning_content", "reasoning"])
def test_reasoning_counts_as_text(key):
    assert read(wire({"choices": [{"delta": {key: "x"}}]})).text_ns == [1]


@pytest.mark.parametrize(
    "event",
    [
        ROLE,
        END,
        COUNTS,
        {},
        {"choices": None},
        {"choices": ["x"]},
        {"choices": [{"delta": None}]},
        {"choices": [{"delta": {"content": None}}]},
        {"choices": [{"delta": {"content": 5}}]},
        {"choices": [{"delta": {"tool_calls": []}}]},
    ],
)
def test_chunks_without_text_are_no_first_token(event):
    transcript = read(wire(event))
    assert transcript.text_ns == []
    assert not transcript.error


@given(st.data(), st.sampled_from([b"\n", b"\r\n"]))
def test_how_the_bytes_are_cut_changes_nothing(data, newline):
    whole = b": a comment" + newline * 2 + wire(ROLE, TEXT, TEXT, END, COUNTS, newline=newline) + b"data: [DONE]"
    whole += newline * 2
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=8)))
    transcript = read(*(whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)))
    assert (len(transcript.text_ns), transcript.usage, transcript.error) == (2, Usage(7, 2), "")
    assert transcript.done_ns is not None


@given(st.lists(st.binary(max_size=200) | st.builds(wire, st.recursive(st.none() | st.integers(), st.lists))))
def test_no_bytes_make_it_raise(pieces):
    read(*pieces)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists))
def test_no_usage_is_made_up(value):
    transcript = read(wire({"choices": [], "usage": {"prompt_tokens": value, "completion_tokens": value}}))
    counted = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    assert (transcript.usage is not None) == counted


def test_the_last_usage_is_the_one_that_counts():
    running = {**TEXT, "usage": {"prompt_tokens": 7, "completion_tokens": 1}}
    assert read(wire(running, COUNTS)).usage == Usage(7, 2)


def test_cached_tokens_are_read_where_the_server_tells_them():
    usage = {"prompt_tokens": 7, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 3}}
    assert read(wire({"choices": [], "usage": usage})).usage == Usage(7, 2, 3)


def test_an_error_in_the_stream_ends_it():
    transcript = read(wire({"error": {"message": "out of memory", "code": 500}}), wire(TEXT))
    assert transcript.error == "the server broke off: out of memory"
    assert transcript.text_ns == []


@pytest.mark.parametrize("line", [b"data: {no json\n", b"data: [1]\n", b"data: \n"])
def test_what_is_no_event_is_an_error(line):
    assert read(line).over


def test_an_endless_line_is_an_error_and_not_memory():
    transcript = read(b"data: ", b"x" * MAX_EVENT_BYTES, b"x")
    assert "longer" in transcript.error


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"error": {"message": "no such model"}}, "no such model"),
        ({"error": "no such model"}, "no such model"),
        ({"object": "error", "message": "no such model"}, "no such model"),
        (["x"], "['x']"),
        ({"error": {"message": "x" * 1000}}, "x" * 300),
    ],
)
def test_error_bodies_of_all_servers_are_readable(body, text):
    assert error_text(body) == text
