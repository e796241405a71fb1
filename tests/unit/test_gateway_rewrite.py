"""Request bodies: what is injected, and what is left alone."""

import copy
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moorage.gateway.rewrite import LENGTH_NAMES, Kind, Rewrite, Unusable, dump, is_stream, model_of, parse

MARKS = 2_000_000


def rewritten(body, *layers, kind=Kind.CHAT, **rules):
    body = {"model": "alias", "messages": [], **body}
    Rewrite.of("served", layers, **rules).apply(body, kind)
    del body["messages"]
    return body


def test_the_model_is_named_as_the_engine_knows_it():
    for kind in Kind:
        assert rewritten({}, kind=kind)["model"] == "served"


def test_precedence_is_overrides_request_alias_defaults_model_defaults():
    names = {"o": 1, "c": 1, "a": 1, "m": 1}
    body = {**names, "model": "x"}
    del body["a"], body["m"]
    alias, model = {"a": "alias", "c": "alias", "o": "alias"}, {"m": "model", "a": "model", "c": "model", "o": "model"}
    done = rewritten(body, alias, model, overrides={"o": "override"})
    assert {name: done[name] for name in names} == {"o": "override", "c": 1, "a": "alias", "m": "model"}


def test_a_key_that_is_there_is_never_replaced_by_a_default_not_even_null_or_zero():
    given_by_client = {"temperature": 0, "stop": None, "logit_bias": {}, "n": False}
    done = rewritten(given_by_client, dict.fromkeys(given_by_client, "default"))
    assert {name: done[name] for name in given_by_client} == given_by_client


def test_drop_takes_what_the_client_says_and_lets_defaults_in():
    done = rewritten({"seed": 1, "user": "u"}, {"seed": 2}, drop=["seed", "user", "absent"])
    assert done == {"model": "served", "seed": 2}


def test_an_override_wins_over_drop():
    assert rewritten({"seed": 1}, overrides={"seed": 3}, drop=["seed"])["seed"] == 3


@pytest.mark.parametrize("said", sorted(LENGTH_NAMES))
@pytest.mark.parametrize("other", sorted(LENGTH_NAMES))
def test_the_two_names_of_the_length_count_as_one(said, other):
    assert rewritten({said: 5}, {other: 9}) == {"model": "served", said: 5}
    assert rewritten({}, {said: 5}, {other: 9}) == {"model": "served", said: 5}
    assert rewritten({said: 5}, overrides={other: 9}) == {"model": "served", other: 9}
    assert rewritten({said: 5}, {"top_k": 1}, drop=[other]) == {"model": "served", "top_k": 1}
    assert rewritten({said: 5}, {other: 9}, drop=[other]) == {"model": "served", other: 9}


def test_the_length_is_injected_under_the_name_that_was_configured():
    assert rewritten({}, {}, {"max_tokens": 9})["max_tokens"] == 9


@pytest.mark.parametrize("kind", [Kind.EMBEDDING, Kind.RERANK])
def test_parameters_are_for_chat_and_completions_alone(kind):
    done = rewritten(
        {"input": "x", "user": "u", "stream": True},
        {"temperature": 1},
        kind=kind,
        overrides={"top_p": 1},
        drop=["user"],
    )
    assert done == {"model": "served", "input": "x", "user": "u", "stream": True}


@pytest.mark.parametrize(
    ("messages", "prompted"),
    [
        ([], True),
        ([{"role": "user", "content": "x"}], True),
        ([{"role": "system", "content": "own"}], False),
        ([{"role": "user"}, {"role": "system"}], True),
        (["odd"], True),
        ([None], True),
    ],
)
def test_the_system_prompt_comes_first_unless_there_is_one(messages, prompted):
    body = {"model": "a", "messages": copy.deepcopy(messages)}
    Rewrite.of("m", system_prompt="be kind").apply(body, Kind.CHAT)
    first = [{"role": "system", "content": "be kind"}] if prompted else []
    assert body["messages"] == first + messages


def test_the_system_prompt_is_for_chat_alone():
    body = {"model": "a", "prompt": "x"}
    Rewrite.of("m", system_prompt="be kind").apply(body, Kind.COMPLETION)
    assert body == {"model": "m", "prompt": "x"}


@pytest.mark.parametrize("messages", [None, "text", {"role": "user"}, 7])
def test_messages_that_are_no_list_cannot_get_a_system_prompt(messages):
    with pytest.raises(Unusable) as refused:
        Rewrite.of("m", system_prompt="p").apply({"messages": messages}, Kind.CHAT)
    assert (refused.value.refusal.status, refused.value.refusal.param) == (400, "messages")


@pytest.mark.parametrize(
    ("options", "sent", "hidden"),
    [
        ({}, {"include_usage": True}, True),
        ({"stream_options": None}, {"include_usage": True}, True),
        ({"stream_options": {}}, {"include_usage": True}, True),
        ({"stream_options": {"x": 1}}, {"x": 1, "include_usage": True}, True),
        ({"stream_options": {"include_usage": True}}, {"include_usage": True}, False),
        ({"stream_options": {"include_usage": False}}, {"include_usage": False}, False),
    ],
)
def test_usage_is_asked_for_only_where_the_client_said_nothing(options, sent, hidden):
    body = {"stream": True, **options}
    assert Rewrite.of("m").apply(body, Kind.CHAT) is hidden
    assert body["stream_options"] == sent


@pytest.mark.parametrize("stream", [{}, {"stream": False}, {"stream": None}])
def test_without_a_stream_usage_is_not_asked_for(stream):
    body = dict(stream)
    assert not Rewrite.of("m").apply(body, Kind.COMPLETION)
    assert "stream_options" not in body


def test_an_override_may_turn_streaming_on():
    body = {}
    assert Rewrite.of("m", overrides={"stream": True}).apply(body, Kind.CHAT)


@pytest.mark.parametrize("value", ["true", 1, 0, [], {}])
def test_stream_must_be_a_boolean(value):
    with pytest.raises(Unusable):
        is_stream({"stream": value})


def test_the_rules_themselves_are_not_changed_by_use():
    rewrite, before = (Rewrite.of("m", [{"stop": ["a"]}], overrides={"x": {"y": 1}}, drop=["d"]) for _ in range(2))
    for _ in range(2):
        body = {"d": 1}
        rewrite.apply(body, Kind.CHAT)
        dump(body)
    assert rewrite == before


keys = st.sampled_from(["temperature", "top_p", "stop", "seed", "max_tokens", "max_completion_tokens", "user", "n"])
layers = st.dictionaries(keys, st.integers(0, 9), max_size=5)


@settings(max_examples=300, deadline=None)
@given(client=layers, alias=layers, model=layers, overrides=layers, drop=st.sets(keys, max_size=3))
def test_every_key_has_exactly_one_owner(client, alias, model, overrides, drop):
    done = rewritten(client, alias, model, overrides=overrides, drop=drop)
    for name in {*client, *alias, *model, *overrides} - LENGTH_NAMES:
        kept = {k: v for k, v in client.items() if k not in drop}
        owner = next(layer for layer in (overrides, kept, alias, model, {name: None}) if name in layer)
        assert done.get(name) == owner[name]
    # Who speaks of the length first has the only word on it.
    spoken = LENGTH_NAMES & set(overrides)
    if not spoken and not LENGTH_NAMES & drop:
        spoken = LENGTH_NAMES & set(client)
    found = LENGTH_NAMES & set(done)
    if spoken:
        assert found == spoken
    else:
        assert len(found) == bool(LENGTH_NAMES & (set(alias) | set(model)))


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.text(), json_values, max_size=6))
def test_what_nobody_knows_comes_through_as_it_was(fields):
    fields = {k: v for k, v in fields.items() if k not in ("model", "messages", "stream", "stream_options")}
    body = parse(json.dumps({"model": "x", **fields}).encode(), MARKS)
    Rewrite.of("m").apply(body, Kind.CHAT)
    assert json.loads(dump(body)) == {"model": "m", **fields}


@settings(max_examples=300, deadline=None)
@given(
    st.binary(max_size=200)
    | st.text(max_size=200).map(lambda t: t.encode())
    | json_values.map(lambda v: json.dumps(v).encode())
)
def test_any_bytes_are_an_object_or_unusable(data):
    try:
        body = parse(data, MARKS)
        model_of(body)
        is_stream(body)
        Rewrite.of("m", [{"x": 1}], system_prompt="p").apply(body, Kind.CHAT)
        dump(body)
    except Unusable as unusable:
        assert unusable.refusal.status == 400
        json.loads(unusable.refusal.body())


def test_a_small_body_is_never_too_complex_and_a_large_one_is():
    assert parse(b'{"x": [' + b"0," * 100 + b"0]}", 10)
    with pytest.raises(Unusable, match="too many values"):
        parse(b'{"x": [' + b"0," * 600_000 + b"0]}", 500_000)
    assert parse(b'{"x": "' + b"a" * 2_000_000 + b'"}', 500_000)
