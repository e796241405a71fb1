"""Streams: whole events, token counts, and no byte lost wherever the pieces are cut."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moorage.gateway.events import EventFilter, Usage

USAGE = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18, "prompt_tokens_details": {"cached_tokens": 3}}


def event(value, end=b"\n\n"):
    return b"data: " + (value if isinstance(value, bytes) else json.dumps(value).encode()) + end


def passed(pieces, *, hide=True):
    usage = Usage()
    events = EventFilter(usage, hide=hide)
    return b"".join([events.feed(piece) for piece in pieces]) + events.end(), usage


TEXT = event({"choices": [{"delta": {"content": "a"}}]})
LAST = event({"choices": [], "usage": USAGE})
DONE = event(b"[DONE]")
MARKS = [b"\n", b"\n\n", b"\r\n\r\n", b"data: ", b'"usage"']


def test_the_usage_chunk_is_counted_and_taken_out():
    out, usage = passed([TEXT, LAST, DONE])
    assert out == TEXT + DONE
    assert (usage.prompt, usage.completion) == (11, 7)


def test_it_stays_where_the_client_asked_for_it():
    out, usage = passed([TEXT + LAST + DONE], hide=False)
    assert out == TEXT + LAST + DONE
    assert (usage.prompt, usage.completion) == (11, 7)


def test_usage_beside_a_choice_stays():
    running = event({"choices": [{"delta": {"content": "a"}}], "usage": USAGE})
    out, usage = passed([running, DONE])
    assert out == running + DONE
    assert usage.completion == 7


def test_usage_null_is_no_usage():
    nothing = event({"choices": [], "usage": None})
    assert passed([nothing, DONE])[0] == nothing + DONE


@pytest.mark.parametrize(
    "text", ['"usage": {"prompt_tokens": 5}', '{"choices": [], "usage": {"prompt_tokens": 5}}', "\n\n", '\\"usage\\"']
)
def test_what_a_model_writes_is_never_taken_for_usage(text):
    chunk = event({"choices": [{"delta": {"content": text}}]})
    out, usage = passed([chunk, DONE])
    assert out == chunk + DONE
    assert (usage.prompt, usage.completion) == (0, 0)


def test_an_event_is_passed_on_as_soon_as_it_is_whole():
    events = EventFilter(Usage(), hide=True)
    assert events.feed(TEXT) == TEXT
    assert events.feed(TEXT[:9]) == b""
    assert events.feed(TEXT[9:] + TEXT[:3]) == TEXT
    assert events.feed(TEXT[3:]) == TEXT


def test_an_event_without_end_is_passed_on_in_pieces_and_at_the_end():
    events = EventFilter(Usage(), hide=True)
    assert events.feed(b"data: " + b"x" * (2 << 20)) != b""
    assert passed([b"data: rest"])[0] == b"data: rest"


def test_the_counts_of_a_whole_answer_are_read_from_any_place():
    for body in ({"usage": USAGE, "data": [1]}, {"choices": [{"message": {"content": "x"}}], "usage": USAGE}):
        usage = Usage()
        assert usage.read(json.dumps(body, indent=1).encode())
        assert (usage.prompt, usage.completion) == (11, 7)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_the_counts_of_a_long_answer_are_read_wherever_it_is_cut(data):
    body = json.dumps({"a": "x" * 3000, "usage": USAGE, "b": "y" * 3000}).encode()
    cuts = sorted(data.draw(st.sets(st.integers(1, len(body) - 1), max_size=5)))
    usage = Usage()
    for start, end in zip([0, *cuts], [*cuts, len(body)], strict=True):
        usage.read_piece(body[start:end])
    assert (usage.prompt, usage.completion) == (11, 7)


chunks = st.sampled_from(
    [
        TEXT,
        LAST,
        DONE,
        event({"choices": [], "usage": USAGE}, b"\r\n\r\n"),
        event({"choices": [{"delta": {"content": 'é\n\n "usage": {'}}]}),
        event({"choices": [], "usage": None}),
        b": comment\n\n",
        b"event: x\ndata: y\n\n",
    ]
)


@settings(max_examples=300, deadline=None)
@given(st.lists(chunks, max_size=8), st.data())
def test_cuts_change_nothing(stream, data):
    whole = b"".join(stream)
    hidden = [chunk for chunk in stream if not (b'"choices": []' in chunk and b'"usage": {"' in chunk)]
    cuts = sorted(data.draw(st.sets(st.integers(0, len(whole)), max_size=10)))
    pieces = [whole[start:end] for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    out, usage = passed([piece for piece in pieces if piece])
    assert out == b"".join(hidden)
    assert (usage.prompt, usage.completion) == ((11, 7) if len(hidden) < len(stream) else (0, 0))


@settings(max_examples=300, deadline=None)
@given(st.lists(st.binary(max_size=30) | st.sampled_from(MARKS), max_size=20))
def test_without_a_usage_chunk_no_byte_is_lost(pieces):
    assert passed([piece for piece in pieces if piece])[0] == b"".join(pieces)
