"""The gateway as an application meets it: the chart's own pods, real llama-server behind."""

import concurrent.futures
import json
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from typing import Any

import pytest

from e2e.demo import GATEWAY, SYSTEM
from tests.e2e.conftest import Machine

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


@dataclass
class Address:
    """The gateway's Service, asked as a pod would ask it."""

    url: str

    def ask(self, path: str, body: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        data = json.dumps(body).encode() if body is not None else None
        try:
            with urllib.request.urlopen(urllib.request.Request(self.url + path, data), timeout=60) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    def chat(self, model: str, **more: Any) -> tuple[int, dict[str, Any]]:
        question = {"model": model, "max_tokens": 4, "messages": [{"role": "user", "content": "Hi"}], **more}
        return self.ask("/v1/chat/completions", question)

    def until(self, model: str, status: int, timeout: float = 120) -> None:
        deadline = time.monotonic() + timeout
        while (found := self.chat(model))[0] != status:
            assert time.monotonic() < deadline, f"{model}: {found}"
            time.sleep(0.2)


@pytest.fixture
def gateway(machine: Machine) -> Address:
    service = json.loads(machine.kubectl("-n", SYSTEM, "get", "service", "moorage-gateway", "-o", "json"))
    return Address(f"http://{service['spec']['clusterIP']}")


def error_of(answer: tuple[int, dict[str, Any]]) -> tuple[int, str]:
    status, body = answer
    assert set(body["error"]) == {"message", "type", "param", "code"}
    return status, body["error"]["code"]


def alias(machine: Machine, name: str, *models: str, **more: Any) -> None:
    machine.apply("ModelAlias", name, {"targets": [{"modelRef": {"name": model}} for model in models], **more})


def test_the_demos_chat_goes_through_the_alias(machine: Machine):
    """The Kubernetes API's own proxy, as the demo and a person with nothing but kubectl use it."""
    question = {"model": "chat", "messages": [{"role": "user", "content": "Hello!"}]}
    answer = json.loads(machine.kubectl("create", "--raw", GATEWAY, "-f", "-", input=json.dumps(question)))
    assert answer["usage"]["completion_tokens"] <= 16, "the alias' max_tokens"
    plain = machine.chat("tiny-llama")
    assert answer["usage"]["prompt_tokens"] > plain["usage"]["prompt_tokens"] + 20, "the alias' system prompt"


def test_what_is_listed_and_what_is_not_there(machine: Machine, gateway: Address):
    status, listed = gateway.ask("/v1/models")
    names = {entry["id"] for entry in listed["data"]}
    assert (status, names) == (200, names | {"chat", "tiny-llama", "harbor-llama"})
    assert error_of(gateway.chat("no-such-model")) == (404, "model_not_found")
    for name in ("tiny-llama", "default/tiny-llama", "default/chat"):
        assert gateway.chat(name)[0] == 200, name
    assert error_of(gateway.ask("/metrics"))[0] == 404, "the admin port is not behind the Service"


@dataclass
class Loop:
    """Requests one after another in several threads until told to stop; `models` is who answered, in order."""

    gateway: Address
    name: str
    stop: threading.Event = field(default_factory=threading.Event)
    models: list[str] = field(default_factory=list)
    asked: list[float] = field(default_factory=list)  # monotonic, when each of these was sent
    failed: list[Any] = field(default_factory=list)

    def after(self, when: float) -> list[str]:
        """Who answered the requests sent after `when`."""
        return [model for model, asked in zip(self.models, self.asked, strict=False) if asked > when]

    def run(self) -> None:
        while not self.stop.is_set():
            sent = time.monotonic()
            status, body = self.gateway.chat(self.name)
            if status == 200:
                self.models.append(body["model"])
                self.asked.append(sent)
            else:
                self.failed.append((status, body))


def test_an_alias_is_retargeted_under_load_without_a_failed_request(machine: Machine, gateway: Address):
    alias(machine, "moving", "tiny-llama")
    gateway.until("moving", 200)
    loop = Loop(gateway, "moving")
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        running = [pool.submit(loop.run) for _ in range(4)]
        try:
            for target in ("harbor-llama", "tiny-llama", "harbor-llama"):
                change = {"spec": {"targets": [{"modelRef": {"name": target}}]}}
                machine.kubectl("patch", "modelalias", "moving", "--type=merge", "-p", json.dumps(change))
                patched = time.monotonic()
                while loop.after(patched + 1).count(target) < 20:
                    assert time.monotonic() - patched < 120, (target, loop.after(patched), loop.failed)
                    time.sleep(0.01)
                late = [
                    a - patched for m, a in zip(loop.models, loop.asked, strict=False) if a > patched and m != target
                ]
                print(f"\nto {target}: the last one for the old target was sent {max(late, default=0):.3f} s later")
                assert max(late, default=0) < 5, "soon nobody asks the old one"
        finally:
            loop.stop.set()
        for done in running:
            done.result(60)
    print(f"\n{len(loop.models)} requests while the alias moved three times, {len(loop.failed)} failed")
    assert loop.failed == []


def test_a_model_that_is_unloaded_is_waited_for_as_long_as_its_alias_says(machine: Machine, gateway: Address):
    machine.model("asleep", replicas=0)
    machine.until("model", "asleep", lambda m: (m.get("status") or {}).get("phase") == "ScaledToZero")
    alias(machine, "patient", "asleep", hold={"timeout": "1s"})
    alias(machine, "hasty", "asleep", hold={"maxPending": 0})
    alias(machine, "covered", "asleep", fallbacks=[{"modelRef": {"name": "tiny-llama"}}])
    for name, status in (("patient", 504), ("hasty", 503), ("covered", 200)):
        gateway.until(name, status)
    began = time.monotonic()
    assert error_of(gateway.chat("patient")) == (504, "hold_timeout")
    assert 0.9 < time.monotonic() - began < 60
    assert error_of(gateway.chat("hasty")) == (503, "model_loading")
    assert gateway.chat("covered")[1]["model"] == "tiny-llama"


def test_a_request_that_waits_is_answered_when_the_model_is_loaded(machine: Machine, gateway: Address):
    machine.model("rising", replicas=0)
    machine.until("model", "rising", lambda m: (m.get("status") or {}).get("phase") == "ScaledToZero")
    alias(machine, "early", "rising", hold={"timeout": "2m"})
    gateway_knows = time.monotonic() + 120
    while "early" not in {entry["id"] for entry in gateway.ask("/v1/models")[1]["data"]}:
        assert time.monotonic() < gateway_knows
        time.sleep(0.1)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(gateway.chat, "early")
        with pytest.raises(concurrent.futures.TimeoutError):
            waiting.result(1)
        machine.kubectl("scale", "model", "rising", "--replicas=1")
        status, answer = waiting.result(60)
    assert (status, answer["model"]) == (200, "rising")


def test_a_gateway_pod_that_goes_takes_no_request_with_it(machine: Machine, gateway: Address):
    """An update of the chart, or a drained node: the pod drains, the other one serves."""
    gateway.until("tiny-llama", 200)
    loop = Loop(gateway, "tiny-llama")
    pods = ("-n", SYSTEM, "get", "pods", "-l", "app.kubernetes.io/component=gateway", "-o", "name")
    old = machine.kubectl(*pods).split()
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        running = [pool.submit(loop.run) for _ in range(4)]
        try:
            machine.kubectl("-n", SYSTEM, "rollout", "restart", "deployment/moorage-gateway")
            machine.kubectl("-n", SYSTEM, "rollout", "status", "deployment/moorage-gateway", "--timeout=120s")
            machine.kubectl("-n", SYSTEM, "wait", "--for=delete", *old, "--timeout=120s")
        finally:
            loop.stop.set()
        for done in running:
            done.result(60)
    print(f"\n{len(loop.models)} requests while both gateway pods were replaced, {len(loop.failed)} failed")
    assert loop.models
    assert loop.failed == []


def test_a_switch_under_load_fails_no_request(machine: Machine, gateway: Address):
    """`moorage switch`: the new one loads, the alias moves, the old one drains and sleeps, and nobody notices."""
    machine.model("before")
    machine.model("after", replicas=0)
    machine.until_condition("before", "Ready", "True")
    alias(machine, "swapped", "before")
    gateway.until("swapped", 200)
    loop = Loop(gateway, "swapped")
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        running = [pool.submit(loop.run) for _ in range(4)]
        try:
            command = [sys.executable, "-m", "moorage", "switch", "swapped", "after", "-o", "json"]
            kubeconfig = ["--kubeconfig", str(machine.demo.cluster.kubeconfig)]
            done = subprocess.run([*command, *kubeconfig], capture_output=True, text=True, timeout=300)
            moved = time.monotonic()
            assert done.returncode == 0, done.stderr
            assert json.loads(done.stdout)["toSleep"] == ["before"]
            machine.until("model", "before", lambda m: not m["status"].get("replicas"), timeout=120)
        finally:
            loop.stop.set()
        for one in running:
            one.result(60)
    slept = machine.get("model", "before")
    assert (slept["spec"]["replicas"], slept["status"]["desiredReplicas"]) == (1, 0), "asleep, not unloaded"
    assert set(loop.after(moved + 5)) == {"after"}
    print(f"\n{len(loop.models)} requests while the alias was switched, {len(loop.failed)} failed")
    assert "before" in loop.models
    assert loop.failed == []


def test_an_answer_that_runs_is_not_cut_when_its_server_stops(machine: Machine, gateway: Address):
    """Unloading, sleep, a smaller number of servers and rollouts all end like this: the pod is deleted."""
    machine.model("leaving", "moorage/harbor-llama-GGUF")
    machine.until_condition("leaving", "Ready", "True", timeout=120)
    gateway.until("leaving", 200)
    began = time.monotonic()
    assert gateway.chat("leaving", max_tokens=50, ignore_eos=True)[0] == 200
    tokens = min(int(50 / (time.monotonic() - began) * 20), 3900)  # for twenty seconds, as far as its context goes
    question = {"model": "leaving", "max_tokens": tokens, "ignore_eos": True, "stream": True}
    body = json.dumps(question | {"messages": [{"role": "user", "content": "Hi"}]}).encode()
    with urllib.request.urlopen(
        urllib.request.Request(gateway.url + "/v1/chat/completions", body), timeout=120
    ) as told:
        chunks = iter(told)
        next(chunks)
        machine.kubectl("scale", "model", "leaving", "--replicas=0")
        machine.until("model", "leaving", lambda m: m["status"].get("phase") == "ScaledToZero", timeout=30)
        stopped = time.monotonic()
        rest = list(chunks)
        longer = time.monotonic() - stopped
    assert rest[-2] == b"data: [DONE]\n", rest[-2:]
    assert longer > 5, f"the answer took only {longer:.1f} s more, so this proves nothing"
    print(f"\nthe answer went on for {longer:.1f} s after the pod was to stop, {len(rest) // 2} chunks in all")
    machine.until("model", "leaving", lambda m: not m["status"].get("replicas"), timeout=30)


FAILURES = {
    "an image that cannot be pulled": {"image": "registry.invalid/no/such-image:1"},
    "a server that crashes": {"args": ["--no-such-option"]},
}


@pytest.mark.parametrize("what", FAILURES)
def test_a_switch_to_a_model_that_fails_stays_on_the_old_one_and_says_so(machine: Machine, gateway: Address, what: str):
    machine.model("good")
    machine.model("broken", replicas=0, **FAILURES[what])
    machine.until_condition("good", "Ready", "True", timeout=120)
    alias(machine, "steadfast", "good")
    gateway.until("steadfast", 200)
    loop = Loop(gateway, "steadfast")
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        running = [pool.submit(loop.run) for _ in range(2)]
        try:
            command = [sys.executable, "-m", "moorage", "switch", "steadfast", "broken", "--timeout", "4m"]
            kubeconfig = ["--kubeconfig", str(machine.demo.cluster.kubeconfig)]
            done = subprocess.run([*command, *kubeconfig], capture_output=True, text=True, timeout=300)
        finally:
            loop.stop.set()
        for one in running:
            one.result(60)
    print(f"\n{done.stderr}{len(loop.models)} requests meanwhile, {len(loop.failed)} failed")
    assert done.returncode == 4, "it failed, and nobody had to wait for the end of --timeout"
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: Model broken does not become ready")
    assert last.endswith("broken is unloaded again. steadfast still points at good")
    assert [t["modelRef"]["name"] for t in machine.get("modelalias", "steadfast")["spec"]["targets"]] == ["good"]
    machine.until("model", "broken", lambda m: m["status"]["phase"] == "ScaledToZero")
    assert (set(loop.models), loop.failed) == ({"good"}, [])
