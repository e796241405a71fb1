"""The routing table: weights, names, keys, and the document it is read from."""

import hashlib
import time
from collections import Counter
from dataclasses import FrozenInstanceError

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from moorage.errors import InvalidSpec
from moorage.gateway.keys import Key, digest
from moorage.gateway.routes import Alias, Hold, Model, Parameters, Snapshot
from moorage.gateway.routes_document import read_routes


def alias_route(**targets: int):
    models = [Model(name) for name in targets]
    return Snapshot.build(models, [Alias("chat", tuple(targets.items()))]).routes["chat"]


def picks(route, count=4000) -> list[str]:
    return [route.pick(b"request-%d" % n).model.name for n in range(count)]


@pytest.mark.parametrize(
    "weights", [{"a": 90, "b": 10}, {"a": 1, "b": 1, "c": 2}, {"a": 1, "b": 999}, {"a": 0, "b": 5}]
)
def test_weights_are_kept(weights):
    counts = Counter(picks(alias_route(**weights)))
    for name, weight in weights.items():
        share = weight / sum(weights.values())
        assert abs(counts[name] / 4000 - share) < 0.03
        assert (counts[name] == 0) == (weight == 0)


def test_moving_some_weight_moves_only_that_many_requests():
    before, after = picks(alias_route(a=90, b=10)), picks(alias_route(a=80, b=20))
    moved = sum(one != two for one, two in zip(before, after, strict=True))
    assert abs(moved / 4000 - 0.1) < 0.03
    assert all(two == "b" for one, two in zip(before, after, strict=True) if one != two)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 10**6), min_size=1), st.binary(max_size=40))
def test_every_token_has_one_target(weights, token):
    route = alias_route(**weights)
    assert route.pick(token) is route.pick(token)
    assert route.pick(token).model.name in weights


def test_an_alias_hides_a_model_of_its_name_and_models_answer_to_their_own():
    table = Snapshot.build([Model("a", served_name="A"), Model("b")], [Alias("a", (("b", 1),))], own=Hold(7, 8.0))
    assert table.routes["a"].targets[0].model.name == "b"
    assert (table.routes["a"].alias, table.routes["b"].alias) == ("a", "")
    assert (table.routes["b"].hold, table.routes["a"].hold) == (Hold(7, 8.0), Hold(100, 300.0))


def test_defaults_of_the_model_stand_behind_those_of_the_alias():
    models = [Model("m", defaults={"a": 1, "b": 1})]
    table = Snapshot.build(models, [Alias("chat", (("m", 1),), parameters=Parameters({"b": 2}))])
    assert dict(table.routes["chat"].targets[0].rewrite.defaults) == {"a": 1, "b": 2}
    assert dict(table.routes["m"].targets[0].rewrite.defaults) == {"a": 1, "b": 1}


def test_a_table_cannot_be_changed():
    table = Snapshot.build([Model("m")])
    with pytest.raises(TypeError):
        table.routes["x"] = table.routes["m"]  # type: ignore[index]
    with pytest.raises(FrozenInstanceError):
        table.routes["m"].name = "x"  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        table.models["m"].name = "x"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("models", "aliases", "says"),
    [
        ([Model("m"), Model("m")], [], "two entries for the model 'm'"),
        ([Model("m")], [Alias("a", (("m", 1),)), Alias("a", (("m", 1),))], "two entries for the alias 'a'"),
        ([Model("m")], [Alias("a", (("n", 1),))], "points at 'n'"),
        ([Model("m")], [Alias("a", (("m", 1),), fallbacks=("n",))], "points at 'n'"),
        ([Model("m")], [Alias("a", (("m", 0),))], "weight above 0"),
        ([Model("m")], [Alias("a", ())], "weight above 0"),
    ],
)
def test_a_table_that_makes_no_sense_is_refused(models, aliases, says):
    with pytest.raises(InvalidSpec, match=says):
        Snapshot.build(models, aliases)


def test_keys_are_found_by_their_text_and_allow_what_they_say():
    keys = [Key("all", (digest("one"),)), Key("few", (digest("two"),), frozenset({"a"}))]
    table = Snapshot.build([Model("m")], [], keys)
    assert table.closed
    assert not Snapshot.build([]).closed
    found = [table.find_key(secret) for secret in (b"one", b"two", b"three", b"", hashlib.sha256(b"one").digest())]
    assert [key and key.name for key in found] == ["all", "few", None, None, None]
    routes = Snapshot.build([Model("a"), Model("b")]).routes
    assert [routes["a"].allowed(key, "a") for key in keys] == [True, True]
    assert [routes["b"].allowed(key, "b") for key in keys] == [True, False]


CONTRACT = """
apiKeys: [{name: team-a, sha256: %s, aliases: ["*"]}]
models:  [{name: qwen3-8b, engine: LlamaCpp, servedName: qwen, endpoints: ["127.0.0.1:9001", "[::1]:9002"],
           maxInFlight: 4, request: {defaults: {temperature: 0.5, x_any: [1, {y: null}]}}}]
aliases: [{name: chat, targets: [{model: qwen3-8b, weight: 7}], fallbacks: [qwen3-8b], stickyHeader: "X-User",
           request: {defaults: {top_p: 1}, overrides: {seed: 1}, drop: [user], systemPrompt: "be kind"},
           hold: {maxPending: 3, timeoutSeconds: 9}}]
""" % ("ab" * 32)


def test_the_document_of_the_contract_is_read_whole():
    table, unknown = read_routes(CONTRACT, Hold(1, 2.0))
    assert unknown == []
    model = table.models["qwen3-8b"]
    assert model == Model(
        "qwen3-8b",
        "LlamaCpp",
        "qwen",
        ("127.0.0.1:9001", "[::1]:9002"),
        4,
        {"temperature": 0.5, "x_any": [1, {"y": None}]},
    )
    route = table.routes["chat"]
    assert (route.hold, route.sticky_header, table.routes["qwen3-8b"].hold) == (Hold(3, 9.0), b"x-user", Hold(1, 2.0))
    assert [target.model for target in (*route.targets, *route.fallbacks)] == [model, model]
    rewrite = route.targets[0].rewrite
    assert (rewrite.served_name, rewrite.drop, rewrite.overrides) == ("qwen", ("user",), {"seed": 1})
    assert (rewrite.system_prompt, dict(rewrite.defaults)["top_p"]) == ("be kind", 1)
    assert table.closed


def test_all_but_name_endpoints_and_targets_may_be_left_out():
    table, _ = read_routes("models: [{name: m, endpoints: []}]\naliases: [{name: a, targets: [{model: m}]}]", Hold())
    assert (table.models["m"].served_name, table.models["m"].max_in_flight, table.closed) == ("m", 0, False)
    assert (table.routes["a"].bounds, table.routes["a"].hold) == ((100,), Hold(100, 300.0))


def test_a_key_without_a_value_counts_as_left_out():
    aliases = "aliases: [{name: a, targets: [{model: m}], fallbacks: }]"
    text = f"models: [{{name: m, endpoints: [], request: }}]\n{aliases}\napiKeys:"
    assert set(read_routes(text, Hold())[0].routes) == {"m", "a"}


def test_keys_that_mean_nothing_are_told_about_and_not_fatal():
    aliases = "aliases: [{name: a, targets: [{model: m, wieght: 1}]}]"
    text = f"models: [{{name: m, endpoints: [], endpoint: x}}]\n{aliases}\nmore: 1"
    assert sorted(read_routes(text, Hold())[1]) == ["endpoint", "more", "wieght"]


def test_a_null_inside_defaults_is_a_value():
    text = "models: [{name: m, endpoints: [], request: {defaults: {stop: null}}}]"
    assert read_routes(text, Hold())[0].models["m"].defaults == {"stop": None}


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60) | st.binary(max_size=60))
def test_any_text_is_a_table_or_refused(text):
    with pytest.raises(InvalidSpec):
        read_routes(text, Hold())


def test_a_thousand_models_are_read_fast_enough_for_an_event_loop():
    models = [{"name": f"m-{n}", "endpoints": [f"10.0.0.1:{9000 + n}"]} for n in range(1000)]
    text = yaml.safe_dump(
        {"models": models, "aliases": [{"name": f"a-{n}", "targets": [{"model": f"m-{n}"}]} for n in range(1000)]}
    )
    began = time.process_time()
    assert len(read_routes(text, Hold())[0].routes) == 2000
    assert time.process_time() - began < 2.0, "seconds of CPU; the pure Python loader takes several times that"
