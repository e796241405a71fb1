"""Parts that are killed or away: who is left goes on serving, what was wanted is not forgotten, and nothing hangs."""

import concurrent.futures
import http.client
import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from e2e.demo import SYSTEM
from tests.e2e.conftest import Machine
from tests.e2e.test_gateway import Address, LongAnswer, alias, answered_by, error_of, gateway, soon
from tests.e2e.test_sleep import asleep, sleeper

__all__ = ["gateway"]  # the fixture

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


@dataclass
class Answer:
    """Status 0: the connection broke before there was an answer."""

    status: int
    model: str
    cold_start: bool


def ask(gateway: Address, model: str) -> Answer:
    question = {"model": model, "max_tokens": 4, "messages": [{"role": "user", "content": "Hi"}]}
    request = urllib.request.Request(f"{gateway.url}/v1/chat/completions", json.dumps(question).encode())
    try:
        with urllib.request.urlopen(request, timeout=120) as found:
            told: dict[str, Any] = json.loads(found.read())
            return Answer(found.status, told["model"], found.headers["x-moorage-cold-start"] == "true")
    except urllib.error.HTTPError as error:
        return Answer(error.code, error.read().decode(), False)
    except (OSError, http.client.HTTPException) as error:
        return Answer(0, repr(error), False)


def labelled(component: str) -> tuple[str, ...]:
    return ("-n", SYSTEM, "-l", f"app.kubernetes.io/component={component}")


def gateways(machine: Machine) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(machine.kubectl("get", "pods", *labelled("gateway"), "-o", "json"))[
        "items"
    ]
    return found


def kill(machine: Machine, component: str) -> None:
    """As a node that fails does it: no drain, no last words."""
    machine.kubectl("delete", "pods", *labelled(component), "--force", "--grace-period=0")


@contextmanager
def without_operator(machine: Machine) -> Iterator[None]:
    deployment = ("-n", SYSTEM, "scale", "deployment/moorage-operator")
    machine.kubectl(*deployment, "--replicas=0")
    try:
        kill(machine, "operator")
        yield
    finally:
        machine.kubectl(*deployment, "--replicas=1")


def page(pod: dict[str, Any], path: str) -> str:
    """A page of a gateway's admin port; empty where nobody answers."""
    try:
        with urllib.request.urlopen(f"http://{pod['status']['podIP']}:8001{path}", timeout=5) as answer:
            return str(answer.read().decode())
    except (OSError, KeyError):
        return ""


def ready(machine: Machine) -> int:
    return [page(pod, "/readyz") for pod in gateways(machine)].count("ok\n")


def held(machine: Machine) -> int:
    shown = [page(pod, "/metrics") for pod in gateways(machine)]
    return sum(int(float(n)) for text in shown for n in re.findall(r"^moorage_gateway_held\S* (\S+)$", text, re.M))


def test_who_waits_is_answered_whoever_is_killed_meanwhile(machine: Machine, gateway: Address):
    for name in ("dozer", "napper"):
        sleeper(machine, name)
    for name in ("dozer", "napper"):
        asleep(machine, name)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:

        def four_wait_for(name: str) -> list[concurrent.futures.Future[Answer]]:
            waiting = [pool.submit(ask, gateway, name) for _ in range(4)]
            soon(lambda: held(machine) == 4, lambda: (held(machine), [one for one in waiting if one.done()]))
            return waiting

        with without_operator(machine):
            waiting = four_wait_for("dozer")
        assert [one.result(120) for one in waiting] == [Answer(200, "dozer", cold_start=True)] * 4

        with without_operator(machine):
            waiting = four_wait_for("napper")
            kill(machine, "gateway")
            assert {one.result(30).status for one in waiting} == {0}, "the clients are not left hanging"
            soon(lambda: ready(machine) == 2 and ask(gateway, "tiny-llama").status == 200, lambda: ready(machine))
            waiting = four_wait_for("napper")  # OpenAI's clients try again by themselves
        machine.until("model", "napper", lambda m: m["status"]["phase"] != "ScaledToZero")
        kill(machine, "operator")  # in the middle of the wake
        assert [one.result(120) for one in waiting] == [Answer(200, "napper", cold_start=True)] * 4
    machine.until_condition("napper", "Ready", "True", timeout=120)


@contextmanager
def without_api_server(machine: Machine) -> Iterator[None]:
    cluster = machine.demo.cluster
    assert cluster is not None
    cluster.stop("kube-apiserver")
    try:
        yield
    finally:
        cluster.restart("kube-apiserver")
        soon(lambda: "ok" in machine.kubectl("get", "--raw", "/readyz", check=False), cluster.status)


def test_serving_goes_on_while_the_api_server_is_away(machine: Machine, gateway: Address):
    sleeper(machine, "drowsy")
    asleep(machine, "drowsy")
    alias(machine, "constant", "tiny-llama")
    gateway.until("constant", 200)
    both = gateways(machine)
    assert len(both) == 2
    running = LongAnswer(gateway, "harbor-llama", "harbor-llama", most=1900)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        with without_api_server(machine):
            waiting = pool.submit(ask, gateway, "drowsy")
            began = time.monotonic()
            while time.monotonic() < began + 5:  # watches have failed, and failed again, by then
                assert gateway.chat("constant")[1]["model"] == "tiny-llama"
                assert [page(pod, "/readyz") for pod in both] == ["ok\n", "ok\n"]
            assert error_of(gateway.chat("no-such-model")) == (404, "model_not_found")
            assert not waiting.done()
        assert running.end(at_least=0) == {"harbor-llama"}
        assert waiting.result(120) == Answer(200, "drowsy", cold_start=True), "who waited all the time"
    alias(machine, "constant", "drowsy")
    answered_by(gateway, "constant", "drowsy")
