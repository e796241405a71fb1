"""Sleep and wake as an application meets them: the chart's gateway and operator, real llama-server pods."""

import concurrent.futures
import json
import time
from datetime import UTC, datetime

import pytest

from e2e.demo import SYSTEM
from moorage import names
from tests.e2e.conftest import Machine, condition
from tests.e2e.test_gateway import Address, alias, answered_by, gateway, soon

__all__ = ["gateway"]  # the fixture

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1200)]


def asleep(machine: Machine, name: str) -> dict[str, object]:
    """The Model once it sleeps and its server is gone."""
    found = machine.until("model", name, lambda m: (m.get("status") or {}).get("phase") == "ScaledToZero")
    machine.until("model", name, lambda m: not m["status"].get("replicas"))
    return found


def sleeper(machine: Machine, name: str) -> None:
    """A Model that a person put to sleep before it ever had a server; a request wakes it like any other."""
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    machine.model(name, annotations={names.SLEEP_AT: now})


def test_the_first_request_wakes_a_sleeping_model_and_is_answered(machine: Machine, gateway: Address):
    machine.model("sleeper", scaling={"scaleToZeroAfter": "10s"})
    machine.until_condition("sleeper", "Ready", "True")
    gateway.until("sleeper", 200)
    model = asleep(machine, "sleeper")
    assert condition(model, "Ready")["status"] == "True"
    assert condition(model, "Active")["reason"] == "ScaledToZero"
    assert model["metadata"]["generation"] == 1, "the spec is the person's"

    began = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: gateway.chat("sleeper"), range(8)))
    print(f"\n8 requests that found it asleep were answered {time.monotonic() - began:.1f} s later")
    assert [status for status, _ in answers] == [200] * 8
    model = machine.until("model", "sleeper", lambda m: m["status"].get("phase") == "Ready")
    assert set(model["status"]["startup"]) >= {"scheduleMilliseconds", "loadMilliseconds", "firstTokenMilliseconds"}
    print(f"the split: {json.dumps(model['status']['startup'])}")
    machine.told("sleeper", "Woken")
    machine.told("sleeper", "Unloaded")
    asleep(machine, "sleeper")  # and sleeps again


def test_a_fallback_serves_while_the_sleeping_target_is_woken_by_the_same_request(machine: Machine, gateway: Address):
    sleeper(machine, "regular")
    asleep(machine, "regular")
    alias(machine, "staffed", "regular", fallbacks=[{"modelRef": {"name": "tiny-llama"}}])
    told = "tiny-llama stands in as a fallback; regular sleeps until asked for"
    machine.until("modelalias", "staffed", lambda a: (a.get("status") or {}).get("summary", {}).get("message") == told)
    soon(lambda: gateway.ask("/v1/models/staffed")[0] == 200, lambda: "the gateways do not know the alias")
    began = time.monotonic()
    status, answer = gateway.chat("staffed")
    took = time.monotonic() - began
    assert (status, answer["model"]) == (200, "tiny-llama")
    machine.until("model", "regular", lambda m: m["status"]["phase"] == "Ready")  # and nobody has asked again
    woken = time.monotonic() - began
    print(f"the fallback answered after {took:.2f} s, the target was Ready after {woken:.1f} s")
    assert took < woken
    answered_by(gateway, "staffed", "regular")
    assert {gateway.chat("staffed")[1]["model"] for _ in range(5)} == {"regular"}


def test_totals_outlive_gateways_and_operator(machine: Machine, gateway: Address):
    machine.model("counted")
    machine.until_condition("counted", "Ready", "True")
    gateway.until("counted", 200)

    def requests() -> int:
        return int((machine.get("model", "counted")["status"].get("usage") or {}).get("requests", 0))

    machine.until("model", "counted", lambda m: (m["status"].get("usage") or {}).get("requests", 0) >= 1)
    for what in ("gateway", "operator"):
        machine.kubectl("-n", SYSTEM, "rollout", "restart", f"deployment/moorage-{what}")
        machine.kubectl("-n", SYSTEM, "rollout", "status", f"deployment/moorage-{what}", "--timeout=240s")
    before = requests()
    for _ in range(5):
        assert gateway.chat("counted")[0] == 200
    found = machine.until("model", "counted", lambda m: m["status"]["usage"]["requests"] >= before + 5)
    usage = found["status"]["usage"]
    assert usage["requests"] == before + 5
    assert usage["completionTokens"] >= 5 * 4
    assert usage["lastUsed"]


def models(machine: Machine) -> set[str]:
    return {m["metadata"]["name"] for m in json.loads(machine.kubectl("get", "models", "-o", "json"))["items"]}


def test_an_idle_model_gives_its_place_to_another(machine: Machine, gateway: Address):
    """The limit of the namespace instead of GPUs, which this machine has none of; the rule is the same."""
    for name in ("settler", "newcomer"):
        machine.model(name, preemption={"minResidency": "1s"}, replicas=0)
        machine.until("model", name, lambda m: (m.get("status") or {}).get("phase") == "ScaledToZero")
    others = {"tiny-llama", "harbor-llama"}  # the demo's
    there = others | {"settler", "newcomer"}
    deadline = time.monotonic() + 240
    while (found := models(machine)) != there:  # those of the tests before are on their way out
        assert time.monotonic() < deadline, found
        time.sleep(0.2)
    try:
        machine.kubectl("annotate", "namespace", "default", f"moorage.dev/max-loaded-models={len(others) + 1}")
        for name in others:
            machine.patch(name, {"preemption": {"policy": "Never"}})
        machine.patch("settler", {"replicas": 1})  # takes seconds, in which the operator hears of the limit
        machine.until_condition("settler", "Serving", "True")
        machine.patch("newcomer", {"replicas": 1, "preemption": {"policy": "WhenIdle"}})
        gone = machine.until("model", "settler", lambda m: m["status"].get("phase") == "Preempted")
        assert "default/newcomer" in gone["status"]["summary"]["message"]
        machine.until_condition("newcomer", "Ready", "True")
        assert gateway.chat("newcomer")[0] == 200
    finally:
        machine.kubectl("annotate", "namespace", "default", "moorage.dev/max-loaded-models-")
    machine.until_condition("settler", "Ready", "True")
    gateway.until("settler", 200)
