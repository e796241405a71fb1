"""An alias goes past a real llama-server whose first tokens come late, says so, and comes back when they do not."""

import json
import statistics
import time
import urllib.request
import uuid

import pytest

from tests.e2e.conftest import Machine, condition
from tests.e2e.test_gateway import Address, gateway

__all__ = ["gateway"]  # the fixture

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1200)]

LONG = 300  # words, each of several tokens: a prompt that takes a CPU a moment to read
SHORT = 2


def stream(gateway: Address, model: str, words: int) -> tuple[str, float]:
    """One streamed answer: who gave it, and seconds until its first text. No prompt begins like another one."""
    text = f"{uuid.uuid4().hex[:8]} " + "harbor tide " * (words // 2)
    question = {"model": model, "max_tokens": 2, "stream": True, "messages": [{"role": "user", "content": text}]}
    request = urllib.request.Request(f"{gateway.url}/v1/chat/completions", json.dumps(question).encode())
    began = time.monotonic()
    name, first = "", 0.0
    with urllib.request.urlopen(request, timeout=180) as answer:
        for line in answer:
            if line.startswith(b"data: {"):
                chunk = json.loads(line[6:])
                name = chunk["model"]
                delta = chunk["choices"][0]["delta"] if chunk["choices"] else {}
                first = first or (time.monotonic() - began if delta.get("content") else 0.0)
    return name, first or time.monotonic() - began


def until_it_says(machine: Machine, gateway: Address, status: str, message: str, words: int) -> list[str]:
    """Ask until the alias' condition FailedOver says this; who answered meanwhile."""
    deadline, names = time.monotonic() + 240, []
    while True:
        alias = machine.get("modelalias", "steady")
        found = condition(alias, "FailedOver")
        if found.get("status") == status and found["message"].startswith(message):
            return names
        assert time.monotonic() < deadline, f"{names}\n{json.dumps(alias['status'], indent=1)}"
        names.append(stream(gateway, "steady", words)[0])


def test_an_alias_goes_past_a_slow_model_and_back(machine: Machine, gateway: Address):
    machine.model("slowed", "moorage/harbor-llama-GGUF", maxSequences=1)
    machine.until_condition("slowed", "Ready", "True")
    gateway.until("slowed", 200)
    for _ in range(10):  # until nothing else on this machine makes all of them slow alike
        late = min(stream(gateway, "slowed", LONG)[1] for _ in range(5))
        soon = statistics.median(stream(gateway, "slowed", SHORT)[1] for _ in range(5))
        if late > 3 * soon:
            break
    limit = int((late * soon) ** 0.5 * 1000)
    print(f"\nfirst tokens after {late * 1000:.0f} ms (long prompts) and {soon * 1000:.0f} ms: the limit is {limit} ms")
    assert late > 2 * soon, "the prompts do not differ enough to tell slow from quick"
    failover = {"maxTtftMilliseconds": limit, "minRequests": 5, "window": "1m", "recoverAfter": "10s"}
    legs = [{"modelRef": {"name": name}} for name in ("slowed", "tiny-llama")]
    machine.apply("ModelAlias", "steady", {"targets": legs[:1], "fallbacks": legs[1:], "failover": failover})
    gateway.until("steady", 200)
    machine.until_condition("steady", "FailedOver", "False", of="modelalias")

    names = until_it_says(machine, gateway, "True", "requests go past slowed: ", LONG)
    print(f"both gateways went past it after {len(names)} streams")
    assert names[0] == "slowed"
    row = machine.kubectl("get", "modelaliases", "steady", "--no-headers")
    assert "requests go past slowed" in row
    assert f"streams began later than {limit} ms" in machine.get("modelalias", "steady")["status"]["summary"]["message"]
    machine.told("steady", "FailedOver")
    asked = [stream(gateway, "slowed", SHORT)[0], stream(gateway, "steady", SHORT)[0]]
    assert asked[0] == "slowed", "by its own name it is still reached"

    until_it_says(machine, gateway, "False", "every target takes its share", SHORT)
    machine.told("steady", "Recovered")
    assert {stream(gateway, "steady", SHORT)[0] for _ in range(3)} == {"slowed"}
