"""What a ModelAlias says of its targets, its names and its past."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from moorage import names
from moorage.planning.alias import plan_alias
from moorage.planning.alias_history import CHANGE_CAUSE
from moorage.planning.served_names import Claim, lost_to
from moorage.planning.types import ObservedAlias, Plan
from moorage.planning.usage import GonePast, Hearing, Usage

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def alias(**spec: Any) -> dict[str, Any]:
    meta = {"name": "chat", "namespace": "ns", "uid": "u", "generation": 3}
    return {"apiVersion": names.API_VERSION, "kind": "ModelAlias", "metadata": meta, "spec": spec}


def pointing_at(*refs: str, **spec: Any) -> dict[str, Any]:
    """An alias with targets such as `a`, `shared/a` or `a=90`."""
    return alias(targets=[_target(text) for text in refs], **spec)


def _target(text: str) -> dict[str, Any]:
    where, _, weight = text.partition("=")
    namespace, slash, name = where.rpartition("/")
    ref = {"name": name} | ({"namespace": namespace} if slash else {})
    return {"modelRef": ref} | ({"weight": int(weight)} if weight else {})


def model(*, ready: bool = True, phase: str = "Ready", trained: int = 32768, **spec: Any) -> dict[str, Any]:
    meta = {"name": "m", "namespace": "ns", "uid": "m"}
    condition = {"type": "Ready", "status": "True" if ready else "False", "reason": "Ready"}
    status = {"phase": phase, "conditions": [condition], "source": {"contextLength": trained}}
    return {"metadata": meta, "spec": {"source": {"downloadRef": {"name": "d"}}, **spec}, "status": status}


class Desk:
    """An alias and what is around it; `plan` writes the status back, as the operator does."""

    def __init__(self, obj: dict[str, Any], **models: dict[str, Any]) -> None:
        self.alias, self.now = obj, NOW
        self.models: dict[str, Any] = {f"ns/{name}": found for name, found in models.items()}
        self.around: dict[str, Any] = {}

    def plan(self, **around: Any) -> Plan:
        self.around |= around
        plan = plan_alias(ObservedAlias(self.alias, self.now, self.models, **self.around))
        assert plan.status is not None
        self.alias["status"] = plan.status
        return plan

    def retarget(self, *refs: str, cause: str = "") -> Plan:
        self.now += timedelta(minutes=1)
        self.alias["spec"]["targets"] = [_target(text) for text in refs]
        if cause:
            self.alias["metadata"]["annotations"] = {CHANGE_CAUSE: cause}
        return self.plan()

    @property
    def message(self) -> str:
        return str(self.alias["status"]["summary"]["message"])

    def condition(self, kind: str) -> tuple[str, str, str] | None:
        found = [c for c in self.alias["status"]["conditions"] if c["type"] == kind]
        return (found[0]["status"], found[0]["reason"], found[0]["message"]) if found else None

    def says(self, kind: str) -> tuple[str, str] | None:
        found = self.condition(kind)
        return found[:2] if found else None


A, B = ({"modelRef": {"name": name}} for name in "ab")


def test_two_ready_targets():
    desk = Desk(pointing_at("a=90", "b=10"), a=model(), b=model())
    desk.plan()
    assert desk.says("Resolved") == ("True", "Resolved")
    assert desk.condition("Ready") == ("True", "Ready", "a, b answer")
    assert desk.alias["status"]["summary"] == {"targets": "a 90%, b 10%", "ready": "2/2", "message": "a, b answer"}
    assert desk.alias["status"]["current"][1] == {"modelRef": {"name": "b"}, "weight": 10, "ready": True}
    assert desk.says("NameConflict") is desk.says("Shadowing") is None


@pytest.mark.parametrize(
    ("found", "why"),
    [
        (model(ready=False, phase="Downloading"), "a is Downloading"),
        (model(replicas=0, phase="ScaledToZero"), "a is unloaded (replicas 0)"),
        ({"metadata": {}, "spec": {"source": {"downloadRef": {"name": "d"}}}}, "a is new"),
        ({"metadata": {}, "spec": {}}, "a has an invalid spec"),
    ],
)
def test_a_target_that_is_not_ready(found: dict[str, Any], why: str):
    desk = Desk(pointing_at("a"), a=found)
    desk.plan()
    assert desk.condition("Ready") == ("False", "TargetNotReady", why)
    assert desk.says("Resolved") == ("True", "Resolved")
    assert (desk.message, desk.alias["status"]["summary"]["ready"]) == (why, "0/1")


@pytest.mark.parametrize(
    ("spec", "awake", "message", "ready"),
    [
        (pointing_at("a"), (), "a sleeps until asked for", "1/1"),
        (pointing_at("a", fallbacks=[B]), "b", "b stands in as a fallback; a sleeps until asked for", "1/1"),
        (pointing_at("b", fallbacks=[A]), "b", "b answers; a sleeps until asked for", "1/1"),
        (pointing_at("a=1", "b=1"), (), "a, b sleep until asked for", "2/2"),
    ],
)
def test_a_model_that_sleeps_because_it_is_idle_is_ready(spec: dict[str, Any], awake: str, message: str, ready: str):
    models = {name: model(phase="Ready" if name in awake else "ScaledToZero") for name in "ab"}
    desk = Desk(spec, **models)
    desk.plan()
    assert desk.condition("Ready") == ("True", "Ready", message)
    assert (desk.message, desk.alias["status"]["summary"]["ready"]) == (message, ready)


def test_a_fallback_that_stands_in():
    desk = Desk(
        pointing_at("a", fallbacks=[{"modelRef": {"name": "b"}}]), a=model(ready=False, phase="Failed"), b=model()
    )
    desk.plan()
    assert desk.condition("Ready") == ("True", "Ready", "b stands in as a fallback; a is Failed")
    assert desk.alias["status"]["summary"]["ready"] == "0/1"


def test_a_target_that_is_missing():
    desk = Desk(pointing_at("a", "gone"), a=model())
    plan = desk.plan()
    assert desk.condition("Resolved") == ("False", "TargetNotFound", "there is no Model gone in namespace ns")
    assert desk.says("Ready") == ("True", "Ready")
    assert desk.message == "there is no Model gone in namespace ns; a answers"
    assert ("Warning", "TargetNotFound") in [(e.type, e.reason) for e in plan.events]
    alone = Desk(pointing_at("gone"))
    alone.plan()
    assert alone.says("Ready") == ("False", "TargetNotFound")


def test_a_model_of_another_namespace():
    desk = Desk(pointing_at("shared/a"))
    desk.models["shared/a"] = model()
    desk.plan(namespace_labels={"team": "search"})
    assert desk.says("Ready") == ("False", "TargetNotPermitted")
    assert desk.message == "Model shared/a does not permit aliases of namespace ns (its spec.allowedNamespaces)"
    desk.models["shared/a"] = model(
        allowedNamespaces={"from": "Selector", "selector": {"matchLabels": {"team": "search"}}}
    )
    desk.plan()
    assert desk.says("Ready") == ("True", "Ready")
    assert desk.alias["status"]["current"][0]["modelRef"] == {"name": "a", "namespace": "shared"}
    assert desk.alias["status"]["summary"]["targets"] == "shared/a"


def test_a_model_that_is_not_permitted_tells_nothing_of_itself():
    desk = Desk(pointing_at("shared/a"))
    desk.models["shared/a"] = model(ready=False, phase="Blocked")
    desk.plan()
    assert "Blocked" not in str(desk.alias["status"])


@pytest.mark.parametrize(
    ("found", "offers"),
    [
        (model(contextLength=4096), 4096),
        (model(trained=2048), 2048),
        (model(trained=32768), 8192),
        (model(contextLength=16384), None),
    ],
)
def test_a_target_that_falls_short(found: dict[str, Any], offers: int | None):
    desk = Desk(pointing_at("a", requires={"contextLength": 16384}), a=found)
    desk.plan()
    if offers is None:
        assert (desk.says("Resolved"), desk.says("Ready")) == (("True", "Resolved"), ("True", "Ready"))
    else:
        text = f"a takes {offers} tokens, spec.requires.contextLength is 16384"
        assert desk.condition("Resolved") == ("False", "TargetFallsShort", text)
        assert desk.condition("Ready") == ("False", "TargetFallsShort", text), "requests go past it, and there is none"
        assert not desk.alias["status"]["current"][0]["ready"]


def test_requests_go_past_a_target_that_falls_short_to_one_that_does_not():
    desk = Desk(pointing_at("a", "b", requires={"contextLength": 16384}), a=model(), b=model(contextLength=16384))
    desk.plan()
    assert desk.says("Resolved") == ("False", "TargetFallsShort")
    assert desk.condition("Ready") == ("True", "Ready", "b answers")
    assert desk.alias["status"]["summary"]["ready"] == "1/2"


def can(**evidence: str) -> dict[str, Any]:
    """A Ready Model with these capabilities."""
    found = model()
    found["status"]["source"]["mainFile"] = "m.gguf"
    found["status"]["capabilities"] = [{"name": name, "evidence": told} for name, told in evidence.items()]
    return found


TOOLS = {"capabilities": ["tools"]}
LIST = "if it can do that, list all it can do in spec.capabilities of Model a"


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (can(chat="Metadata", tools="Metadata"), None),
        (can(tools="Probe"), None),
        (model(capabilities=["tools"]), None),  # before the operator has written it into the status
        (can(), f"a lacks tools: its files and server show nothing; {LIST}"),
        (
            can(completion="Metadata", chat="Metadata"),
            f"a lacks tools: its files and server show chat, completion; {LIST}",
        ),
        (
            can(chat="Metadata", tools="Name"),
            f"a lacks tools: its files and server show chat, and only its name hints at more; {LIST}",
        ),
        (
            {**can(tools="Metadata"), "spec": {**can()["spec"], "capabilities": ["chat"]}},
            "a lacks tools: its spec.capabilities says chat",
        ),
    ],
)
def test_capabilities_that_are_required(found: dict[str, Any], text: str | None):
    desk = Desk(pointing_at("a", requires=TOOLS), a=found)
    desk.plan()
    if text is None:
        assert (desk.says("Resolved"), desk.says("Ready")) == (("True", "Resolved"), ("True", "Ready"))
    else:
        assert desk.condition("Resolved") == ("False", "TargetFallsShort", text)
        assert desk.condition("Ready") == ("False", "TargetFallsShort", text)


def test_everything_that_a_target_lacks_is_told():
    desk = Desk(pointing_at("a", requires={"contextLength": 16384, "capabilities": ["tools", "vision"]}), a=can())
    desk.plan()
    found = desk.condition("Resolved")
    assert found is not None
    assert found[2].startswith("a takes 8192 tokens, spec.requires.contextLength is 16384; a lacks tools, vision: ")


def test_what_is_not_known_yet_does_not_fall_short():
    desk = Desk(pointing_at("a", requires={"contextLength": 16384, **TOOLS}), a={**model(), "status": {}})
    desk.plan()
    assert desk.says("Resolved") == ("True", "Resolved")


def test_why_a_model_needs_somebody_is_told_to_its_own_namespace():
    desk = Desk(pointing_at("a", "b", "x/c"))
    for key, phase in {"ns/a": "Blocked", "ns/b": "Loading", "x/c": "Blocked"}.items():
        desk.models[key] = model(ready=False, phase=phase, allowedNamespaces={"from": "All"})
        desk.models[key]["status"]["summary"] = {"message": "needs 40.0Gi, largest GPU is 24Gi (gpu-1)"}
    desk.plan()
    assert desk.condition("Ready") == (
        "False",
        "TargetNotReady",
        "a is Blocked: needs 40.0Gi, largest GPU is 24Gi (gpu-1); b is Loading; x/c is Blocked",
    )


def test_an_alias_of_chats_and_vectors_says_how_requests_are_divided():
    embedding = model(capabilities=["embeddings"])
    desk = Desk(pointing_at("a=90", "v=10"), a=can(chat="Metadata"), v=embedding)
    desk.plan()
    points = "points at a 90%, v 10%"
    told = f"{points}; v serves embeddings, chats and completions go past it"
    assert desk.condition("Resolved") == ("True", "Resolved", told)
    desk.models["ns/a"] = model(capabilities=["rerank"])
    desk.plan()
    assert desk.condition("Resolved") == ("True", "Resolved", points), "they are refused: there is nothing to divide"


def test_the_gravest_reason_counts_and_all_are_told():
    desk = Desk(pointing_at("shared/b", "gone", requires={"contextLength": 16384}), a=model())
    desk.models["shared/b"] = model()
    desk.plan()
    found = desk.condition("Resolved")
    assert found is not None
    assert found[1] == "TargetNotFound"
    assert "there is no Model gone" in found[2]
    assert "does not permit" in found[2]


def test_names_that_are_taken_and_a_model_that_is_hidden():
    desk = Desk(pointing_at("a", servedNames=["gpt-4o"]), a=model())
    plan = desk.plan(taken={"gpt-4o": lost_to(Claim("", "Model", "default", "b"))}, shadows=True)
    found = desk.condition("NameConflict")
    assert found is not None
    assert found[:2] == ("True", "NameConflict")
    assert found[2].startswith("gpt-4o is that of Model b, and requests for it go there")
    assert desk.message.startswith("gpt-4o is that of Model b")
    assert ("Warning", "NameConflict") in [(e.type, e.reason) for e in plan.events]
    assert desk.says("Shadowing") == ("True", "Shadowing")
    assert desk.says("Ready") == ("True", "Ready")
    desk.plan(taken={}, shadows=False)
    assert desk.says("NameConflict") is desk.says("Shadowing") is None


def going_past(*whys: str) -> Usage:
    return Usage(gone_past=tuple(GonePast("ns/a", 7, why) for why in whys))


def test_a_target_that_requests_go_past():
    desk = Desk(pointing_at("a", "b", failover={"minSuccessPercent": 90}), a=model(), b=model())
    assert desk.plan().events[-1].reason == "Ready"
    assert desk.says("FailedOver") == ("False", "Settled")
    plan = desk.plan(usage=going_past("9 of 20 requests failed within 60 s"))
    text = "requests go past a: 9 of 20 requests failed within 60 s"
    assert desk.condition("FailedOver") == ("True", "FailedOver", text)
    assert desk.message == text
    assert [(e.type, e.reason) for e in plan.events] == [("Warning", "FailedOver")]
    assert plan.requeue_after == 60, "a gateway that is gone tells nothing"
    assert desk.plan().events == ()
    plan = desk.plan(usage=Usage())
    assert desk.says("FailedOver") == ("False", "Settled")
    assert [(e.type, e.reason) for e in plan.events] == [("Normal", "Recovered")]
    assert plan.requeue_after is None


def test_one_gateway_of_two_goes_past_a_target():
    desk = Desk(pointing_at("a", "b", failover={"minSuccessPercent": 90}), a=model(), b=model())
    past = GonePast("ns/a", 7, "9 of 20 requests failed", gateways=1)
    desk.plan(usage=Usage(gone_past=(past,), gateways=2))
    assert desk.message == "requests through 1 of 2 gateways go past a: 9 of 20 requests failed"
    desk.plan(usage=Usage(gone_past=(past,), gateways=1))
    assert desk.message == "requests go past a: 9 of 20 requests failed"


def test_a_bad_target_without_anybody_ready_beside_it_is_not_said_to_be_gone_past():
    spec = pointing_at("a", fallbacks=[{"modelRef": {"name": "b"}}], failover={"minSuccessPercent": 90})
    desk = Desk(spec, a=model(), b=model(ready=False, phase="Downloading"))
    desk.plan(usage=going_past("9 of 20 requests failed"))
    text = "a does badly, and nobody else is ready: 9 of 20 requests failed"
    assert desk.condition("FailedOver") == ("True", "FailedOver", text)


def test_an_operator_that_has_just_started_tells_of_no_recovery_before_it_has_heard_the_gateways():
    desk = Desk(pointing_at("a", "b", failover={"minSuccessPercent": 90}), a=model(), b=model())
    desk.plan(usage=going_past("9 of 20 requests failed"))
    plan = desk.plan(usage=Usage(hearing=Hearing.LISTENING))
    assert desk.says("FailedOver") == ("True", "FailedOver")
    assert plan.events == ()
    assert plan.requeue_after == 5
    plan = desk.plan(usage=Usage(hearing=Hearing.COMPLETE))
    assert desk.says("FailedOver") == ("False", "Settled")
    assert [e.reason for e in plan.events] == ["Recovered"]


def test_what_a_gateway_tells_of_a_target_that_the_alias_has_left_is_of_yesterday():
    desk = Desk(pointing_at("b", failover={"minSuccessPercent": 90}), b=model())
    desk.plan(usage=going_past("9 of 20 requests failed"))
    assert desk.says("FailedOver") == ("False", "Settled")


def test_without_failover_nothing_is_said_of_it():
    desk = Desk(pointing_at("a", failover={"minSuccessPercent": 90}), a=model())
    desk.plan(usage=going_past("9 of 20 requests failed"))
    del desk.alias["spec"]["failover"]
    desk.plan()
    assert desk.says("FailedOver") is None


def history(desk: Desk) -> list[tuple[int, list[str], str]]:
    return [
        (r["revision"], [t["modelRef"]["name"] for t in r["targets"]], r["reason"])
        for r in desk.alias["status"]["history"]
    ]


def test_each_change_of_the_targets_makes_a_revision():
    desk = Desk(pointing_at("a"), a=model(), b=model())
    desk.plan()
    desk.plan()
    assert history(desk) == [(1, ["a"], "created")]
    plan = desk.retarget("b", cause="ticket 7")
    assert ("Normal", "Switched", "points at b now") in [(e.type, e.reason, e.message) for e in plan.events]
    desk.retarget("a=90", "b=10")
    desk.retarget("a=50", "b=50")
    assert history(desk) == [
        (4, ["a", "b"], "weights changed"),
        (3, ["a", "b"], "targets changed"),
        (2, ["b"], "ticket 7"),
        (1, ["a"], "created"),
    ]
    assert desk.alias["status"]["revision"] == 4
    assert [r["since"] for r in desk.alias["status"]["history"]][-1] == "2026-01-01T00:00:00Z"
    desk.alias["spec"]["request"] = {"defaults": {"temperature": 0}}
    desk.plan()
    assert desk.alias["status"]["revision"] == 4, "parameters are no targets"


def test_the_history_has_a_limit_and_numbers_go_on():
    desk = Desk(pointing_at("a", revisionHistoryLimit=2), a=model(), b=model())
    desk.plan()
    for turn in range(5):
        desk.retarget("ba"[turn % 2])
    assert [number for number, _, _ in history(desk)] == [6, 5, 4]
    desk.alias["spec"]["revisionHistoryLimit"] = 0
    desk.plan()
    assert [number for number, _, _ in history(desk)] == [6]
    desk.retarget("a")
    assert [number for number, _, _ in history(desk)] == [7]


def test_parameters_in_a_line():
    request = {"defaults": {"temperature": 0.7, "max_tokens": 512}, "overrides": {"extra": {"top_k": 5}}}
    desk = Desk(pointing_at("a", request={**request, "systemPrompt": "Be brief."}), a=model())
    desk.plan()
    assert desk.alias["status"]["summary"]["defaults"] == "max_tokens=512, temperature=0.7, top_k!=5, systemPrompt"


def test_a_second_look_at_the_same_says_the_same():
    desk = Desk(pointing_at("a"), a=model())
    desk.plan()
    again = desk.plan()
    assert again.events == ()
    assert again.status == desk.alias["status"]


def test_a_spec_that_does_not_parse_is_told():
    desk = Desk(alias(targets=[{"modelRef": {}}]))
    desk.plan()
    assert desk.says("Ready") == ("False", "InvalidSpec")
    desk.models["ns/a"] = model()
    desk.retarget("a")
    assert desk.says("Ready") == ("True", "Ready")
    assert desk.says("Stalled") is None


def test_a_status_of_another_version_is_no_obstacle():
    obj = alias(targets=[{"modelRef": {"name": "m"}}])
    obj["status"] = {"conditions": [{"type": "Ready", "status": "Perhaps"}, {"status": "True"}], "current": 7}
    desk = Desk(obj)
    desk.plan()
    assert desk.says("Resolved") == ("False", "TargetNotFound")


def test_an_invalid_spec_over_a_status_of_another_version_is_told():
    obj = alias(targets=[{"modelRef": {}}])
    obj["status"] = {"conditions": [{"type": "Ready", "status": "Perhaps"}]}
    desk = Desk(obj)
    desk.plan()
    assert desk.says("Ready") == ("False", "InvalidSpec")
