"""API keys: the Secret that one is, what it opens, how its limits count, and the command that makes one."""

import base64
import json
import time

import pytest
import yaml
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from moorage import names
from moorage.errors import InvalidSpec
from moorage.gateway.cluster_facts import AliasFacts, ModelFacts, alias_facts, model_facts
from moorage.gateway.cluster_table import Table
from moorage.gateway.key_command import command
from moorage.gateway.keys import PREFIX, Key, Limits, digest, key_of, manifest, new_secret
from moorage.gateway.limits import Meter
from moorage.gateway.routes import Hold, Snapshot

HEX = digest("k" * 32).hex()


def stored(made: dict) -> dict:
    """A Secret as the API server keeps it."""
    data = {name: base64.b64encode(text.encode()).decode() for name, text in made["stringData"].items()}
    return {**{k: v for k, v in made.items() if k != "stringData"}, "data": data}


def secret(sha256: str = HEX, **annotations: str) -> dict:
    notes = {f"moorage.dev/{name.replace('_', '-')}": value for name, value in annotations.items()}
    metadata = {"name": "k", "annotations": notes}
    return {"metadata": metadata, "data": {"sha256": base64.b64encode(sha256.encode()).decode()}}


listed = st.none() | st.lists(st.from_regex(r"[a-z][a-z0-9:/-]{0,20}", fullmatch=True), min_size=1, unique=True)


@given(
    listed, listed, st.integers(0, 10**9), st.integers(0, 10**9), st.integers(0, 10**6), st.integers(1, 3),
    st.integers(0, 2**32),
)  # fmt: skip
def test_a_key_survives_its_secret(namespaces, aliases, requests, tokens, concurrency, count, expires):
    key = Key(
        "k",
        tuple(digest(f"secret-{n}") for n in range(count)),
        None if aliases is None else frozenset(aliases),
        None if namespaces is None else tuple(namespaces),
        Limits(requests, tokens, concurrency),
        expires,
    )
    assert key_of(stored(manifest(key, "moorage-system"))) == key


def test_a_bare_secret_opens_everything_without_limits():
    assert key_of(secret()) == Key("k", (bytes.fromhex(HEX),))


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        (secret(sha256=""), "data.sha256"),
        (secret(sha256="sk-plain-text"), "data.sha256"),
        (secret(sha256=HEX[:-1]), "data.sha256"),
        (secret(sha256=f"{HEX}\nnot-hex"), "data.sha256"),
        ({"metadata": {"name": "k"}}, "data.sha256"),
        ({"metadata": {"name": "k"}, "data": {"sha256": "%%%"}}, "data.sha256"),
        (secret(requests_per_minute="many"), "requests-per-minute is a whole number"),
        (secret(requests_per_minute="-1"), "whole number"),
        (secret(tokens_per_minute="0"), "whole number above 0"),
        (secret(tokens_per_minute="1.5"), "whole number"),
        (secret(max_concurrency="9" * 30), "whole number"),
        (secret(max_concurrency=""), "whole number"),
        (secret(request_per_minute="60"), "moorage.dev/request-per-minute means nothing; there are"),
        (secret(expires_at="tomorrow"), "expires-at is a time with its zone"),
        (secret(expires_at="2026-12-31T00:00:00"), "expires-at is a time with its zone"),
        (secret(expires_at=""), "expires-at is a time with its zone"),
        (secret(namespaces=""), "list of names"),
        (secret(aliases="chat,,embed"), "list of names"),
        (secret(aliases="chat, *"), "list of names"),
    ],
)
def test_a_secret_with_a_slip_lets_nobody_in(bad, told):
    with pytest.raises(InvalidSpec, match=told) as raised:
        key_of(bad)
    assert "sk-plain-text" not in str(raised.value)


def test_annotations_of_others_are_their_affair():
    assert (
        key_of({**secret(), "metadata": {"name": "k", "annotations": {"kubectl.kubernetes.io/x": "y"}}}).limited
        is False
    )


def facts(*served: str) -> ModelFacts:
    return model_facts({"metadata": {}, "spec": {"servedNames": list(served)}})


def chat(namespace: str) -> AliasFacts:
    spec = {"targets": [{"modelRef": {"name": "m"}}]}
    return alias_facts({"metadata": {"namespace": namespace}, "spec": spec})


TABLE = Table(
    {("default", "m"): facts("org/model"), ("a", "m"): facts(), ("b", "m"): facts(), ("b", "n"): facts()},
    {("a", "chat"): chat("a"), ("b", "chat"): chat("b")},
    {},
    {},
    default_namespace="default",
    own_hold=Hold(),
).snapshot()


@pytest.mark.parametrize(
    ("namespaces", "asked", "found"),
    [
        (None, "m", "m"),
        (None, "a/m", "a/m"),
        (None, "chat", None),
        (("a",), "m", "a/m"),
        (("a",), "chat", "a/chat"),
        (("a", "b"), "n", "b/n"),
        (("b", "a"), "chat", "b/chat"),
        (("a", "b"), "b/chat", "b/chat"),
        (("a",), "n", None),
        (("default",), "org/model", "m"),
        (("a",), "default/org/model", "m"),  # found, and refused below
    ],
)
def test_a_bare_name_is_looked_up_in_the_keys_namespaces(namespaces, asked, found):
    route = TABLE.route(asked, Key("k", (), namespaces=namespaces))
    assert (route and route.name) == found


@pytest.mark.parametrize(
    ("key", "allowed"),
    [
        (Key("k", ()), {"m", "a/m", "b/m", "b/n", "a/chat", "b/chat"}),
        (Key("k", (), namespaces=("a",)), {"a/m", "a/chat"}),
        (Key("k", (), frozenset({"chat"})), {"a/chat", "b/chat"}),
        (Key("k", (), frozenset({"a/chat", "default/m"})), {"a/chat", "m"}),
        (Key("k", (), frozenset({"chat", "n"}), ("b",)), {"b/chat", "b/n"}),
        (Key("k", (), frozenset({"a/chat"}), ("b",)), set()),
    ],
)
def test_what_a_key_opens(key, allowed):
    assert {name for name in TABLE.listed if TABLE.routes[name].allowed(key, name)} == allowed


def test_one_text_in_two_secrets_is_the_first_by_name():
    both = [Key("b", (digest("x"),)), Key("a", (digest("x"), digest("y")))]
    table = Snapshot.build([], [], both)
    assert [key and key.name for key in map(table.find_key, (b"x", b"y", b"z"))] == ["a", "a", None]


def admitted(meter: Meter, now: float) -> bool:
    return meter.admit(now) is None


def test_requests_a_minute_come_back_evenly():
    meter = Meter(Limits(requests_per_minute=60), 0)
    assert [admitted(meter, 0) for _ in range(61)] == [True] * 60 + [False]
    assert (meter.admit(0.1).retry_after, meter.admit(0.1).status) == (1, 429)
    assert [admitted(meter, 2.0) for _ in range(3)] == [True, True, False]
    assert [admitted(meter, 3600) for _ in range(61)] == [True] * 60 + [False], "no more than a minute's worth is kept"


def test_tokens_are_owed_when_they_are_known():
    meter = Meter(Limits(tokens_per_minute=600), 0)
    assert admitted(meter, 0)
    assert admitted(meter, 0), "nobody knows yet what these cost"
    meter.end(500, 1)
    meter.end(400, 1)
    refused = meter.admit(1)
    assert refused.code == "rate_limit_exceeded"
    assert "600 tokens a minute" in refused.message
    assert not admitted(meter, refused.retry_after)
    assert admitted(meter, 1 + refused.retry_after)


def test_requests_at_once():
    meter = Meter(Limits(max_concurrency=2), 0)
    assert [admitted(meter, 0) for _ in range(3)] == [True, True, False]
    meter.end(0, 0)
    assert admitted(meter, 0)


def test_a_refused_request_costs_nothing():
    meter = Meter(Limits(requests_per_minute=2, max_concurrency=1), 0)
    assert [admitted(meter, 0) for _ in range(5)] == [True, False, False, False, False]
    meter.end(0, 0)
    assert admitted(meter, 0)


def create(*words: str, stdin: str | None = None):
    return CliRunner().invoke(command, ["create", *words], input=stdin)


def test_the_command_shows_the_key_once_and_keeps_only_its_hash():
    result = create(
        "team-a", "--for-namespace", "a", "--for-namespace", "b", "--alias", "chat", "--max-concurrency", "3"
    )
    assert result.exit_code == 0
    text = result.stderr.split()[-1]
    assert text.startswith(PREFIX)
    assert text not in result.stdout
    made = yaml.safe_load(result.stdout)
    assert (made["metadata"]["name"], made["metadata"]["namespace"]) == ("team-a", "moorage-system")
    assert made["metadata"]["labels"] == {names.KEY_LABEL: "true"}
    assert key_of(stored(made)) == Key(
        "team-a", (digest(text),), frozenset({"chat"}), ("a", "b"), Limits(max_concurrency=3)
    )


def test_a_key_for_some_days_says_when_it_ends_and_a_time_before_all_time_is_over():
    made = yaml.safe_load(create("guest", "--expires-in", "30").stdout)
    assert abs(key_of(stored(made)).expires - time.time() - 30 * 24 * 3600) < 60
    assert key_of(secret(expires_at="1970-01-01T00:00:00Z")).expires == 1, "0 would be never"
    assert key_of(secret(expires_at="2027-01-01T01:00:00+01:00")).expires == 1798761600


def test_a_key_of_ones_own_is_taken_from_stdin_and_not_shown():
    own = "o" * 40
    result = create("old", "--stdin", "-o", "json", stdin=own + "\n")
    assert key_of(stored(json.loads(result.stdout))).digests == (digest(own),)
    assert own not in result.stdout + result.stderr


@pytest.mark.parametrize(
    ("words", "noted"),
    [
        (("--alias", "chat"), True),
        (("--alias", "team-a/chat"), False),
        (("--alias", "chat", "--for-namespace", "team-a"), False),
        (("--alias", "*"), False),
        ((), False),
    ],
)
def test_a_bare_name_opens_more_than_one_may_think_and_the_command_says_so(words, noted):
    assert ("opens chat of every namespace" in create("app", *words).stderr) is noted


@pytest.mark.parametrize(
    "words",
    [
        ("Team_A",),
        ("",),
        ("a", "--alias", "x,y"),
        ("a", "--alias", " "),
        ("a", "--requests-per-minute", "0"),
        ("a", "--stdin"),
    ],
)
def test_what_makes_no_sense_is_wrong_usage(words):
    assert create(*words, stdin="short").exit_code == 2


def test_two_keys_are_never_the_same():
    assert len({new_secret() for _ in range(100)}) == 100
    assert len(new_secret()) >= 50
