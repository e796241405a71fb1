"""A cluster's objects as a routing table: names, endpoints, parameters, and what points at nothing."""

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moorage.api.alias import ModelAlias, Requires
from moorage.api.naming import AllowedNamespaces
from moorage.errors import InvalidSpec
from moorage.gateway.cluster_facts import AliasFacts, ModelFacts, SliceFacts, alias_facts, model_facts, slice_facts
from moorage.gateway.cluster_table import Table
from moorage.gateway.keys import Key
from moorage.gateway.rewrite import Kind
from moorage.gateway.routes import Hold, Snapshot
from moorage.names import dns_label
from moorage.planning.requirements import Offer

OWN = Hold(7, 8.0)


def model(made: str = "", **spec: Any) -> ModelFacts:
    meta = {"creationTimestamp": made} if made else {}
    return model_facts({"metadata": meta, "spec": {"source": {"downloadRef": {"name": "d"}}, **spec}})


def ref(name: str) -> dict[str, Any]:
    namespace, slash, rest = name.partition("/")
    return {"modelRef": {"namespace": namespace, "name": rest} if slash else {"name": name}}


def alias(*targets: str, fallbacks: tuple[str, ...] = (), namespace: str = "default", **spec: Any) -> AliasFacts:
    meta = {"namespace": namespace, "creationTimestamp": spec.pop("made", "")}
    spec = {"targets": [ref(name) for name in targets], "fallbacks": [ref(name) for name in fallbacks], **spec}
    return alias_facts({"metadata": meta, "spec": spec})


def build(
    models: dict,
    aliases: dict | None = None,
    slices: dict | None = None,
    namespace: str = "default",
    labels: dict[str, dict[str, str]] | None = None,
) -> Snapshot:
    def full(objects: dict | None) -> dict:
        return {key if isinstance(key, tuple) else ("default", key): facts for key, facts in (objects or {}).items()}

    namespaces = {("", name): found for name, found in (labels or {}).items()}
    return Table(
        full(models), full(aliases), full(slices), namespaces, default_namespace=namespace, own_hold=OWN
    ).snapshot()


def reached(table: Snapshot, name: str) -> list[str]:
    return [target.model.name for target in table.routes[name].targets]


def endpoint(address: str, ready: bool | None = True) -> dict[str, Any]:
    return {"addresses": [address], "conditions": {} if ready is None else {"ready": ready}}


SLICE = {
    "metadata": {"labels": {"moorage.dev/model": "a", "kubernetes.io/service-name": "a"}},
    "addressType": "IPv4",
    "ports": [{"name": "metrics", "port": 9}, {"name": "http", "port": 8080}],
    "endpoints": [endpoint("10.0.0.1"), endpoint("10.0.0.2", ready=False), endpoint("10.0.0.3", ready=None)],
}


def test_the_bare_name_is_the_default_namespaces_and_the_long_one_always_works():
    table = build({"m": model(), ("team", "m"): model(), ("team", "n"): model()})
    assert set(table.routes) == {"m", "default/m", "team/m", "team/n"}
    assert reached(table, "default/m") == reached(table, "m") == ["m"]
    assert reached(table, "team/m") == ["team/m"]
    assert table.listed == ("m", "team/m", "team/n")
    assert {name: m.served_name for name, m in table.models.items()} == {"m": "m", "team/m": "m", "team/n": "n"}


def test_an_alias_hides_a_model_of_its_name_under_both_names():
    table = build({"a": model(), "b": model()}, {"a": alias("b")})
    assert reached(table, "a") == reached(table, "default/a") == ["b"]
    assert table.listed == ("a", "b")


def test_an_alias_points_at_the_models_of_its_own_namespace():
    table = build({"m": model(), ("team", "m"): model()}, {("team", "chat"): alias("m", namespace="team")})
    assert reached(table, "team/chat") == ["team/m"]
    assert "chat" not in table.routes


def test_missing_models_are_left_out():
    facts = alias("gone", "m", fallbacks=("gone-too", "n"))
    route = build({"m": model(), "n": model()}, {"chat": facts}).routes["chat"]
    assert [t.model.name for t in route.targets] == ["m"]
    assert [t.model.name for t in route.fallbacks] == ["n"]


def test_with_no_target_left_the_first_fallback_is_one():
    route = build({"m": model(), "n": model()}, {"chat": alias("gone", fallbacks=("n", "m"))}).routes["chat"]
    assert [t.model.name for t in route.targets] == ["n"]
    assert [t.model.name for t in route.fallbacks] == ["m"]


def found(*names: str, evidence: str = "Metadata", context: int = 8192, **spec: Any) -> ModelFacts:
    """A Model of which the operator has found out what it can do."""
    able = [{"name": name, "evidence": evidence} for name in names]
    status = {"source": {"mainFile": "m.gguf", "contextLength": context}, "capabilities": able}
    return model_facts({"metadata": {}, "spec": spec, "status": status})


TOOLS = {"requires": {"capabilities": ["tools"]}}


@pytest.mark.parametrize(
    ("facts", "suffices"),
    [
        (found("chat", "tools"), True),
        (found("tools", evidence="Probe"), True),
        (found(capabilities=["tools"]), True),  # declared, whatever the operator has written so far
        (model(), True),  # nothing is known yet: requests wait for it
        (found("chat"), False),
        (found(), False),
        (found("tools", evidence="Name"), False),
        (found("tools", capabilities=["chat"]), False),
    ],
)
def test_models_without_a_required_capability_are_gone_past(facts: ModelFacts, suffices: bool):
    models = {"m": facts, "n": found("tools"), "o": found("tools")}
    table = build(
        models, {"chat": alias("m", "n", fallbacks=("o",), **TOOLS), "back": alias("o", fallbacks=("m",), **TOOLS)}
    )
    assert reached(table, "chat") == (["m", "n"] if suffices else ["n"])
    assert [t.model.name for t in table.routes["back"].fallbacks] == (["m"] if suffices else [])
    assert reached(build(models, {"chat": alias("m", fallbacks=("o",), **TOOLS)}), "chat") == ["m" if suffices else "o"]


@pytest.mark.parametrize(
    ("facts", "suffices"),
    [
        (found(context=8192), True),
        (found(context=4096), False),
        (found(context=65536), True),
        (found(context=65536, contextLength=4096), False),
        (model(), True),
    ],
)
def test_models_that_take_too_few_tokens_are_gone_past(facts: ModelFacts, suffices: bool):
    table = build({"m": facts, "n": found()}, {"chat": alias("m", "n", requires={"contextLength": 8192})})
    assert reached(table, "chat") == (["m", "n"] if suffices else ["n"])


def test_an_alias_that_nothing_suffices_for_stays_a_name_and_says_what_is_lacking():
    needs = {"requires": {"contextLength": 8192, "capabilities": ["tools", "vision"]}}
    models = {"m": found("chat", "vision"), "n": found("tools", context=4096)}
    table = build(models, {"chat": alias("m", "gone", fallbacks=("n",), **needs), "lost": alias("gone", **needs)})
    assert table.listed == ("chat", "m", "n")
    assert table.routes["chat"].targets == ()
    assert table.routes["chat"].lacking == ("contextLength", "tools", "vision")


def test_what_a_model_offers_is_followed():
    mirrors: tuple[dict, dict, dict, dict] = (
        {("default", "m"): found("chat")},
        {("default", "chat"): alias("m", **TOOLS)},
        {},
        {},
    )
    table = Table(*mirrors, default_namespace="default", own_hold=OWN)
    assert table.snapshot().routes["chat"].targets == ()
    for able in (("chat", "tools"), ("chat",), ("tools",)):
        old, new = mirrors[0]["default", "m"], found(*able)
        mirrors[0]["default", "m"] = new
        table.note_model(("default", "m"), old, new)
        assert bool(table.snapshot().routes["chat"].targets) is ("tools" in able)


def test_an_alias_that_points_at_nothing_leads_nowhere_and_still_hides_its_model():
    table = build({"chat": model(), "m": model()}, {"chat": alias("gone"), "good": alias("m")})
    assert set(table.routes) == {"m", "default/m", "good", "default/good"}


def test_a_target_without_weight_gets_nothing_even_when_it_is_the_only_one_left():
    targets = [{"modelRef": {"name": "gone"}}, {"modelRef": {"name": "m"}, "weight": 0}]
    facts = alias_facts({"metadata": {"namespace": "default"}, "spec": {"targets": targets}})
    assert "chat" not in build({"m": model()}, {"chat": facts}).routes
    both = build({"m": model(), "gone": model()}, {"chat": facts})
    assert reached(both, "chat") == ["gone"]


def to_shared(allowed: dict[str, Any] | None, labels: dict[str, str]) -> Snapshot:
    """Namespace `team` points at Model `m` of namespace `shared`."""
    shared = model(**({"allowedNamespaces": allowed} if allowed else {}))
    pointing = {("team", "chat"): alias("shared/m", namespace="team")}
    return build({("shared", "m"): shared}, pointing, labels={"team": labels})


@pytest.mark.parametrize(
    ("allowed", "permitted"),
    [
        (None, False),
        ({"from": "Same"}, False),
        ({"from": "All"}, True),
        ({"from": "Selector", "selector": {"matchLabels": {"env": "prod"}}}, True),
        ({"from": "Selector", "selector": {"matchLabels": {"env": "test"}}}, False),
        ({"from": "Selector", "selector": {"matchExpressions": [{"key": "env", "operator": "Exists"}]}}, True),
        ({"from": "Selector", "selector": {}}, True),
    ],
)
def test_a_model_of_another_namespace_is_reached_where_it_permits_that(allowed: dict[str, Any] | None, permitted: bool):
    table = to_shared(allowed, {"env": "prod"})
    assert ("team/chat" in table.routes) is permitted
    if permitted:
        assert reached(table, "team/chat") == ["shared/m"]
        assert table.models["shared/m"].served_name == "m"


def test_a_namespace_that_nobody_knows_is_not_selected():
    every = model(allowedNamespaces={"from": "Selector", "selector": {}})
    assert "team/chat" not in build({("s", "m"): every}, {("team", "chat"): alias("s/m", namespace="team")}).routes


def test_served_names_lead_to_whoever_has_them():
    table = build(
        {"a": model(servedNames=["llama3:instruct", "meta/llama-3"]), ("team", "b"): model(servedNames=["llama3:b"])},
        {"chat": alias("a", servedNames=["gpt-4o"])},
    )
    assert table.routes["llama3:instruct"] is table.routes["default/llama3:instruct"] is table.routes["a"]
    assert table.routes["meta/llama-3"] is table.routes["a"]
    assert table.routes["team/llama3:b"] is table.routes["team/b"]
    assert "llama3:b" not in table.routes
    assert table.routes["gpt-4o"] is table.routes["chat"]
    assert table.listed == ("a", "chat", "team/b"), "each Model and alias once"


def test_of_two_claims_the_older_wins_and_own_names_beat_both():
    models = {
        "young": model("2026-01-02T00:00:00Z", servedNames=["x:1", "old"]),
        "old": model("2026-01-01T00:00:00Z", servedNames=["x:1"]),
    }
    table = build(models)
    assert table.routes["x:1"].name == "old"
    assert table.routes["old"].name == "old"
    del models["old"]
    assert build(models).routes["x:1"].name == "young"


def test_a_claim_that_begins_with_a_namespace_is_lost_whether_there_is_such_an_object_or_not():
    table = build({"a": model(servedNames=["team/m"]), ("team", "m"): model()})
    assert table.routes["team/m"].name == "team/m"
    claims = {"a": model(servedNames=["team/m", "meta-llama/x"]), ("other", "b"): model(servedNames=["team/m"])}
    assert build(claims).routes["team/m"].name == "a", "nobody has a namespace of that name"
    table = build(claims, labels={"team": {}})
    assert {name for name in table.routes if "team/" in name} == set()
    assert table.routes["meta-llama/x"].name == "a"
    assert table.route("team/m", Key("k", (), namespaces=("other",))) is None


def test_a_namespace_that_comes_and_goes_takes_its_names_and_gives_them_back():
    namespaces: dict[tuple[str, str], dict[str, str]] = {}
    models = {("default", "a"): model(servedNames=["team/m"])}
    table = Table(models, {}, {}, namespaces, default_namespace="default", own_hold=OWN)
    assert "team/m" in table.snapshot().routes
    namespaces["", "team"] = {}
    table.note_all()
    assert "team/m" not in table.snapshot().routes
    del namespaces["", "team"]
    table.note_all()
    assert "team/m" in table.snapshot().routes


def test_a_name_in_full_goes_before_a_served_name_that_reads_like_it():
    table = build({"a": model(servedNames=["team/x"]), ("team", "b"): model(servedNames=["x"])})
    assert table.routes["team/x"].name == "team/b"
    assert "default/team/x" not in table.routes, "one rule for the claim, however it is written"


def test_a_served_name_leads_to_its_model_even_where_an_alias_has_the_models_name():
    table = build({"a": model(servedNames=["a:1"]), "b": model()}, {"a": alias("b")})
    assert [t.model.name for t in table.routes["a:1"].targets] == ["a"]
    assert reached(table, "a") == ["b"]


def test_requests_are_rewritten_as_alias_and_model_say():
    facts = alias(
        "m",
        request={
            "defaults": {"max_tokens": 16, "extra": {"top_k": 5}},
            "overrides": {"temperature": 0},
            "drop": ["seed"],
            "systemPrompt": "Be brief.",
        },
    )
    table = build({"m": model(request={"defaults": {"max_tokens": 99, "top_p": 0.5}})}, {"chat": facts})
    body = {"model": "chat", "messages": [{"role": "user", "content": "hi"}], "seed": 1, "temperature": 1.5}
    table.routes["chat"].targets[0].rewrite.apply(body, Kind.CHAT)
    assert body.pop("messages")[0] == {"role": "system", "content": "Be brief."}
    assert body == {"model": "m", "temperature": 0, "max_tokens": 16, "top_k": 5, "top_p": 0.5}


def test_holding_and_stickiness_are_the_alias_own():
    facts = alias("m", hold={"maxPending": 3, "timeout": "1m30s"}, stickyHeader="X-User-Id")
    table = build({"m": model()}, {"chat": facts, "plain": alias("m")})
    assert (table.routes["chat"].hold, table.routes["chat"].sticky_header) == (Hold(3, 90.0), b"x-user-id")
    assert table.routes["plain"].hold == Hold(100, 300.0)
    assert table.routes["m"].hold == OWN


def test_slots_are_the_models_sequences():
    table = build({"m": model(), "n": model(maxSequences=2)})
    assert (table.models["m"].max_in_flight, table.models["n"].max_in_flight) == (4, 2)


def test_how_many_requests_a_server_takes_depends_on_its_engine():
    """The engine that serves is known from the status, where the spec leaves it to the files."""
    chosen = model_facts({"metadata": {}, "spec": {}, "status": {"engine": {"name": "VLLM"}}})
    named = model_facts({"metadata": {}, "spec": {"engine": "VLLM"}})
    assert [(f.engine, f.slots) for f in (chosen, named)] == [("VLLM", 64)] * 2
    assert model_facts({"metadata": {}, "spec": {"engine": "Auto"}}).slots == 4
    assert build({"m": chosen}).models["m"].engine == "VLLM"


def test_ready_addresses_with_the_engines_port():
    assert slice_facts(SLICE) == SliceFacts("a", "IPv4", ("10.0.0.1:8080", "10.0.0.3:8080"))
    table = build(
        {"a": model(), "b": model()}, slices={"a-1": slice_facts(SLICE), "a-2": SliceFacts("a", "IPv4", ("x:1",))}
    )
    assert table.models["a"].endpoints == ("10.0.0.1:8080", "10.0.0.3:8080", "x:1")
    assert table.models["b"].endpoints == ()


def test_slices_of_another_namespace_are_not_a_models():
    table = build({"a": model(), ("team", "a"): model()}, slices={("team", "s"): slice_facts(SLICE)})
    assert table.models["a"].endpoints == ()
    assert table.models["team/a"].endpoints


def test_a_model_whose_name_is_no_label_finds_its_slices():
    named = copy.deepcopy(SLICE)
    named["metadata"]["labels"]["moorage.dev/model"] = dns_label("llama3.2")
    table = build({"llama3.2": model()}, slices={"s": slice_facts(named)})
    assert table.models["llama3.2"].endpoints
    assert table.models["llama3.2"].served_name == "llama3.2"


def test_a_pod_with_two_families_counts_once():
    six = slice_facts({**SLICE, "addressType": "IPv6", "endpoints": [endpoint("fd00::1")]})
    assert six is not None
    assert build({"a": model()}, slices={"6": six}).models["a"].endpoints == ("[fd00::1]:8080",)
    both = build({"a": model()}, slices={"6": six, "4": slice_facts(SLICE)})
    assert both.models["a"].endpoints == ("10.0.0.1:8080", "10.0.0.3:8080")


@pytest.mark.parametrize(
    "change",
    [
        {"addressType": "FQDN"},
        {"ports": None},
        {"ports": [{"name": "other", "port": 1}]},
        {"metadata": {}},
    ],
)
def test_slices_without_an_engine_are_nobodys(change: dict[str, Any]):
    assert slice_facts({**SLICE, **change}) is None


def test_a_slice_without_endpoints_means_asleep():
    assert slice_facts({**SLICE, "endpoints": None}) == SliceFacts("a", "IPv4", ())
    assert build({"a": model()}, slices={"s": slice_facts({**SLICE, "endpoints": None})}).models["a"].endpoints == ()


@pytest.mark.parametrize("extra", [{"temperature": 1}, {"model": "other"}, {"stream": True}, {"x": "y" * 20000}])
def test_extra_parameters_that_are_not_extra_are_refused_when_read(extra: dict[str, Any]):
    spec = {"targets": [{"modelRef": {"name": "m"}}], "request": {"overrides": {"extra": extra}}}
    with pytest.raises(ValueError, match="extra"):
        alias_facts({"metadata": {"namespace": "default"}, "spec": spec})
    with pytest.raises(InvalidSpec, match=r"request\.overrides\.extra"):
        ModelAlias.read({"metadata": {"name": "chat"}, "spec": spec})


NAMES = st.sampled_from("abcd")
SERVED = st.lists(st.sampled_from(["a", "x:1", "y", "team/a", "default/x"]), max_size=3, unique=True).map(tuple)
KEYS = st.tuples(st.sampled_from(["default", "team"]), NAMES)
ALIASES = st.builds(
    AliasFacts,
    targets=st.lists(st.tuples(KEYS, st.integers(0, 3)), max_size=4).map(tuple),
    fallbacks=st.lists(KEYS, max_size=3).map(tuple),
    served_names=SERVED,
    made=st.sampled_from(["1", "2"]),
    requires=st.none() | st.sampled_from([Requires(capabilities=["tools"]), Requires(context_length=512)]),
)
OFFERS = [Offer(), Offer(8192, frozenset({"chat"})), Offer(256, frozenset({"tools"}))]
MODELS = st.builds(
    ModelFacts,
    served_names=SERVED,
    allowed=st.sampled_from([AllowedNamespaces(), AllowedNamespaces.model_validate({"from": "All"})]),
    made=st.sampled_from(["1", "2"]),
    offer=st.sampled_from(OFFERS),
)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(KEYS, MODELS), st.dictionaries(KEYS, ALIASES))
def test_whatever_points_where_a_table_is_made_and_every_route_reaches_a_model(models, aliases):
    table = build(models, aliases)
    for name, route in table.routes.items():
        assert {t.model.name for t in (*route.targets, *route.fallbacks)} <= set(table.models), name
        assert bool(route.targets) is not bool(route.lacking), name
        assert not route.targets or route.pick(b"x") in route.targets
    assert set(table.listed) <= set(table.routes)
    assert len(table.models) == len(models)


MESSAGES = {
    "NoGPUFits": "needs 40.0Gi, the largest GPU has 24.0Gi (gpu-1); gpu-7 would do but is cordoned",
    "NoNodeCame": "needs 19.6Gi; no node that it may use offers nvidia.com/gpu; gpu-9 would do but is cordoned",
    "NoGPUFree": "needs 40.0Gi; all 2 GPUs of 48Gi or more are taken (gpu-1: team-b/secret; gpu-2: team-c/other)",
}


def blocked(phase: str, reason: str, ready: str = "False") -> ModelFacts:
    status = {
        "phase": phase,
        "conditions": [{"type": "Ready", "status": ready, "reason": reason, "message": "long"}],
        "summary": {"message": MESSAGES.get(reason, "the hub says no (403)")},
    }
    return model_facts({"metadata": {}, "spec": {}, "status": status})


@pytest.mark.parametrize(
    ("phase", "reason", "obstacle"),
    [
        ("Blocked", "NoGPUFits", ("insufficient_gpu_memory", "needs 40.0Gi, the largest GPU has 24.0Gi")),
        (
            "Blocked",
            "NoNodeCame",
            ("insufficient_gpu_memory", "needs 19.6Gi; no node that it may use offers nvidia.com/gpu"),
        ),
        ("Placing", "NoGPUFree", ("insufficient_gpu_memory", "needs 40.0Gi; all 2 GPUs of 48Gi or more are taken")),
        ("Blocked", "AccessDenied", ("model_blocked", "the hub says no (403)")),
        ("Placing", "WaitingForRoom", None),
        ("Loading", "Progressing", None),
        ("Failed", "CrashLoop", None),
    ],
)
def test_what_only_a_person_can_mend_is_known_without_names_of_nodes_and_of_others(
    phase: str, reason: str, obstacle: tuple[str, str] | None
):
    found = build({"m": blocked(phase, reason)}).models["m"].obstacle
    assert (found and (found.code, found.message)) == obstacle
    assert blocked(phase, reason, ready="True").obstacle is None, "what serves is not in anybody's way"


SLICES = st.builds(
    SliceFacts,
    st.sampled_from(["a", "b", "m"]),
    st.sampled_from(["IPv4", "IPv6"]),
    st.sampled_from([(), ("h:1",), ("h:1", "h:2")]),
)


def told(kind: str):
    return st.tuples(st.just(kind), KEYS, st.none() | {"model": MODELS, "alias": ALIASES, "slice": SLICES}[kind])


@settings(max_examples=300, deadline=None)
@given(st.lists(st.lists(st.one_of(told("model"), told("alias"), told("slice")), min_size=1, max_size=4), max_size=8))
def test_a_table_kept_up_change_by_change_is_the_table_made_at_once(rounds):
    mirrors: dict[str, dict] = {"model": {}, "alias": {}, "slice": {}}
    objects = (mirrors["model"], mirrors["alias"], mirrors["slice"], {})
    table = Table(*objects, default_namespace="default", own_hold=OWN)
    for changes in rounds:
        for kind, key, new in changes:
            old = mirrors[kind].pop(key, None)
            if new is not None:
                mirrors[kind][key] = new
            if old != new:
                getattr(table, f"note_{kind}")(key, old, new)
        kept, fresh = table.snapshot(), Table(*objects, default_namespace="default", own_hold=OWN).snapshot()
        assert kept.listed == fresh.listed
        assert kept.models == fresh.models
        assert kept.routes == fresh.routes


def test_a_change_among_thousands_costs_what_it_touches():
    models = {("team", f"m{n}"): model() for n in range(5000)}
    slices = {("team", f"m{n}-x"): SliceFacts(f"m{n}", "IPv4", ("10.0.0.1:1",)) for n in range(5000)}
    table = Table(models, {}, slices, {}, default_namespace="default", own_hold=OWN)
    before = table.snapshot()
    old = slices["team", "m7-x"]
    slices["team", "m7-x"] = SliceFacts("m7", "IPv4", ("10.0.0.2:1",))
    table.note_slice(("team", "m7-x"), old, slices["team", "m7-x"])
    after = table.snapshot()
    assert [name for name, route in after.routes.items() if route is not before.routes[name]] == ["team/m7"]
    assert after.models["team/m7"].endpoints == ("10.0.0.2:1",)
    assert before.models["team/m7"].endpoints == ("10.0.0.1:1",), "a table in force never changes"
