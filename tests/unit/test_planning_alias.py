"""What a ModelAlias says of its targets."""

from datetime import UTC, datetime
from typing import Any

from moorage import names
from moorage.planning.alias import plan_alias
from moorage.planning.types import ObservedAlias, Plan

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def alias(**spec: Any) -> dict[str, Any]:
    meta = {"name": "chat", "namespace": "ns", "uid": "u", "generation": 3}
    return {"apiVersion": names.API_VERSION, "kind": "ModelAlias", "metadata": meta, "spec": spec}


def condition(plan: Plan, kind: str) -> tuple[str, str]:
    assert plan.status is not None
    found = next(c for c in plan.status["conditions"] if c["type"] == kind)
    return found["status"], found["reason"]


def test_a_spec_that_does_not_parse_is_told():
    plan = plan_alias(ObservedAlias(alias(targets=[{"modelRef": {}}]), NOW))
    assert condition(plan, "Ready") == ("False", "InvalidSpec")


def test_a_status_of_another_version_is_no_obstacle():
    obj = alias(targets=[{"modelRef": {"name": "m"}}])
    obj["status"] = {"conditions": [{"type": "Ready", "status": "Perhaps"}, {"status": "True"}], "current": 7}
    assert condition(plan_alias(ObservedAlias(obj, NOW)), "Resolved") == ("False", "TargetNotFound")


def test_an_invalid_spec_over_a_status_of_another_version_is_told():
    obj = alias(targets=[{"modelRef": {}}])
    obj["status"] = {"conditions": [{"type": "Ready", "status": "Perhaps"}]}
    assert condition(plan_alias(ObservedAlias(obj, NOW)), "Ready") == ("False", "InvalidSpec")
