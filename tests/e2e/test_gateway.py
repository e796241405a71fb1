"""The gateway as an application meets it: the chart's own pods, real llama-server behind."""

import concurrent.futures
import json
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pytest

from e2e.demo import GATEWAY, SYSTEM
from tests.e2e.conftest import Machine

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1200)]


@dataclass
class Address:
    """The gateway's Service, asked as a pod would ask it."""

    url: str

    def ask(self, path: str, body: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        data = json.dumps(body).encode() if body is not None else None
        try:
            with urllib.request.urlopen(urllib.request.Request(self.url + path, data), timeout=180) as answer:
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
class Load:
    """What came of requests that are sent one after another in several threads."""

    answers: list[tuple[float, str]] = field(default_factory=list)  # monotonic, when it was sent; who answered
    failed: list[Any] = field(default_factory=list)

    @property
    def models(self) -> set[str]:
        return {model for _, model in self.answers}

    def after(self, when: float) -> list[str]:
        """Who answered the requests sent after `when`."""
        return [model for sent, model in self.answers if sent > when]


@contextmanager
def load(gateway: Address, name: str, threads: int = 4) -> Iterator[Load]:
    """Asks for `name` in so many threads until the block ends; what is on its way then is waited for."""
    made, stop = Load(), threading.Event()

    def run() -> None:
        while not stop.is_set():
            sent = time.monotonic()
            status, body = gateway.chat(name)
            if status == 200:
                made.answers.append((sent, body["model"]))
            else:
                made.failed.append((status, body))

    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        running = [pool.submit(run) for _ in range(threads)]
        try:
            yield made
        finally:
            stop.set()
        for one in running:
            one.result(120)


def soon(good: Callable[[], object], what: Callable[[], object], timeout: float = 120) -> None:
    """Until `good()`; fails with `what()`."""
    deadline = time.monotonic() + timeout
    while not good():
        assert time.monotonic() < deadline, what()
        time.sleep(0.01)


def answered_by(gateway: Address, name: str, model: str) -> None:
    """Ask until `model` answers to `name`; whoever does before, every request is answered."""
    deadline = time.monotonic() + 120
    while (found := gateway.chat(name))[1].get("model") != model:
        assert (found[0], time.monotonic() < deadline) == (200, True), found


def retarget(machine: Machine, seen: Load, target: str) -> None:
    """Point the alias `moving` elsewhere, and wait until nobody but `target` answers."""
    change = {"spec": {"targets": [{"modelRef": {"name": target}}]}}
    machine.kubectl("patch", "modelalias", "moving", "--type=merge", "-p", json.dumps(change))
    patched = time.monotonic()
    soon(lambda: seen.after(patched)[-20:] == [target] * 20, lambda: (target, seen.after(patched), seen.failed))
    late = [sent - patched for sent, model in seen.answers if sent > patched and model != target]
    print(f"\nto {target}: the last one for the old target was sent {max(late, default=0):.3f} s later")
    assert max(late, default=0) < 30, "soon nobody asks the old one"


def test_an_alias_is_retargeted_under_load_without_a_failed_request(machine: Machine, gateway: Address):
    alias(machine, "moving", "tiny-llama")
    gateway.until("moving", 200)
    with load(gateway, "moving") as seen:
        for target in ("harbor-llama", "tiny-llama", "harbor-llama"):
            retarget(machine, seen, target)
    print(f"\n{len(seen.answers)} requests while the alias moved three times, {len(seen.failed)} failed")
    assert seen.failed == []


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
        status, answer = waiting.result(180)
    assert (status, answer["model"]) == (200, "rising")


def test_a_gateway_pod_that_goes_takes_no_request_with_it(machine: Machine, gateway: Address):
    """An update of the chart, or a drained node: the pod drains, the other one serves."""
    gateway.until("tiny-llama", 200)
    pods = ("-n", SYSTEM, "get", "pods", "-l", "app.kubernetes.io/component=gateway", "-o", "name")
    old = machine.kubectl(*pods).split()
    with load(gateway, "tiny-llama") as seen:
        machine.kubectl("-n", SYSTEM, "rollout", "restart", "deployment/moorage-gateway")
        machine.kubectl("-n", SYSTEM, "rollout", "status", "deployment/moorage-gateway", "--timeout=240s")
        machine.kubectl("-n", SYSTEM, "wait", "--for=delete", *old, "--timeout=240s")
    print(f"\n{len(seen.answers)} requests while both gateway pods were replaced, {len(seen.failed)} failed")
    assert seen.answers
    assert seen.failed == []


def moorage(machine: Machine, *words: str) -> subprocess.CompletedProcess[str]:
    """A command as a person types it, to its end."""
    command = [sys.executable, "-m", "moorage", *words, "--kubeconfig", str(machine.demo.cluster.kubeconfig)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_a_switch_under_load_fails_no_request(machine: Machine, gateway: Address):
    """`moorage switch`: the new one loads, the alias moves, the old one drains and sleeps, and nobody notices."""
    machine.model("before")
    machine.model("after", replicas=0)
    machine.until_condition("before", "Ready", "True")
    alias(machine, "swapped", "before")
    gateway.until("swapped", 200)
    with load(gateway, "swapped") as seen:
        soon(lambda: seen.answers, lambda: seen.failed)
        done = moorage(machine, "switch", "swapped", "after", "-o", "json")
        moved = time.monotonic()
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["toSleep"] == ["before"]
        machine.until("model", "before", lambda m: not m["status"].get("replicas"))
        soon(lambda: seen.after(moved + 5), lambda: seen.failed)
    slept = machine.get("model", "before")
    assert (slept["spec"]["replicas"], slept["status"]["desiredReplicas"]) == (1, 0), "asleep, not unloaded"
    assert set(seen.after(moved + 5)) == {"after"}
    print(f"\n{len(seen.answers)} requests while the alias was switched, {len(seen.failed)} failed")
    assert "before" in seen.models
    assert seen.failed == []


class LongAnswer:
    """A streamed answer of `name`, served by `model`, that takes about twenty seconds if a context is long enough."""

    def __init__(self, gateway: Address, name: str, model: str, most: int = 3900) -> None:
        began = time.monotonic()
        assert gateway.chat(model, max_tokens=50, ignore_eos=True)[0] == 200
        self.tokens = min(int(50 / (time.monotonic() - began) * 20), most)
        question = {"model": name, "max_tokens": self.tokens, "ignore_eos": True, "stream": True}
        question |= {"messages": [{"role": "user", "content": "Hi"}], "stream_options": {"include_usage": True}}
        request = urllib.request.Request(gateway.url + "/v1/chat/completions", json.dumps(question).encode())
        self._told = urllib.request.urlopen(request, timeout=120)
        self._lines = [next(self._told)]

    def end(self, at_least: float = 2) -> set[str]:
        """Read on to the end, which has to be whole and to take so many seconds more; who answered."""
        began = time.monotonic()
        with self._told:
            self._lines += self._told
        longer = time.monotonic() - began
        assert self._lines[-2] == b"data: [DONE]\n", self._lines[-2:]
        assert longer > at_least, f"the answer took only {longer:.1f} s more, so this proves nothing"
        chunks = [json.loads(line[6:]) for line in self._lines if line.startswith(b"data: {")]
        assert chunks[-1]["usage"]["completion_tokens"] == self.tokens
        print(f"\nthe answer went on for {longer:.1f} s, {len(chunks)} chunks in all")
        return {chunk["model"] for chunk in chunks}


def test_an_answer_that_runs_is_not_cut_when_its_server_stops(machine: Machine, gateway: Address):
    """Unloading, sleep, a smaller number of servers and rollouts all end like this: the pod is deleted."""
    machine.model("leaving", "moorage/harbor-llama-GGUF")
    machine.until_condition("leaving", "Ready", "True")
    gateway.until("leaving", 200)
    deleted = ("get", "pods", "-l", "moorage.dev/model=leaving")
    moment = ("-o", "jsonpath={.items[*].metadata.deletionTimestamp}")
    answer = LongAnswer(gateway, "leaving", "leaving")
    machine.kubectl("scale", "model", "leaving", "--replicas=0")
    machine.until("model", "leaving", lambda m: m["status"].get("phase") == "ScaledToZero")
    soon(lambda: machine.kubectl(*deleted, *moment), lambda: machine.get("model", "leaving")["status"])
    answer.end()
    machine.until("model", "leaving", lambda m: not m["status"].get("replicas"))


def test_a_long_answer_ends_where_it_began_though_its_alias_is_switched_and_a_rollback_wakes_its_model(
    machine: Machine, gateway: Address
):
    machine.model("verbose", "moorage/harbor-llama-GGUF")
    machine.model("brief")
    for name in ("verbose", "brief"):
        machine.until_condition(name, "Ready", "True")
    alias(machine, "talk", "verbose")
    gateway.until("talk", 200)
    answer = LongAnswer(gateway, "talk", "verbose")
    done = moorage(machine, "switch", "talk", "brief", "-o", "json")
    assert json.loads(done.stdout)["toSleep"] == ["verbose"], done.stderr
    assert {gateway.chat("talk")[1]["model"] for _ in range(10)} == {"brief"}
    assert answer.end() == {"verbose"}
    ended = datetime.now(UTC).replace(microsecond=0)
    slept = machine.until("model", "verbose", lambda m: m["status"]["phase"] == "ScaledToZero")
    assert datetime.fromisoformat(slept["status"]["scaling"]["asleepSince"]) >= ended, "it had an answer to end"
    machine.until("model", "verbose", lambda m: not m["status"].get("replicas"))

    past = machine.until("modelalias", "talk", lambda a: a["status"]["revision"] == 2)["status"]["history"]
    assert [[t["modelRef"]["name"] for t in revision["targets"]] for revision in past] == [["brief"], ["verbose"]]
    assert past[0]["reason"].startswith("moorage switch talk brief")
    done = moorage(machine, "rollback", "talk", "-o", "json")
    assert json.loads(done.stdout)["to"] == 1, done.stderr
    answered_by(gateway, "talk", "verbose")
    machine.until_condition("verbose", "Ready", "True")


FAILURES = {
    "an image that cannot be pulled": {"image": "registry.invalid/no/such-image:1"},
    "a server that crashes": {"args": ["--no-such-option"]},
}


@pytest.mark.parametrize("what", FAILURES)
def test_a_switch_to_a_model_that_fails_stays_on_the_old_one_and_says_so(machine: Machine, gateway: Address, what: str):
    machine.model("good")
    machine.model("broken", replicas=0, **FAILURES[what])
    machine.until_condition("good", "Ready", "True")
    alias(machine, "steadfast", "good")
    gateway.until("steadfast", 200)
    with load(gateway, "steadfast", threads=2) as seen:
        done = moorage(machine, "switch", "steadfast", "broken", "--timeout", "4m")
    print(f"\n{done.stderr}{len(seen.answers)} requests meanwhile, {len(seen.failed)} failed")
    assert done.returncode == 4, "it failed, and nobody had to wait for the end of --timeout"
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: Model broken does not become ready")
    assert last.endswith("broken is unloaded again. steadfast still points at good")
    assert [t["modelRef"]["name"] for t in machine.get("modelalias", "steadfast")["spec"]["targets"]] == ["good"]
    machine.until("model", "broken", lambda m: m["status"]["phase"] == "ScaledToZero")
    assert (seen.models, seen.failed) == ({"good"}, [])
