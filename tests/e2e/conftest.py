"""One whole machine for all scenarios: the demo's own steps, up to the installed chart and the hub."""

import json
import time
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from e2e.cluster import Cluster
from e2e.demo import Demo, DemoError
from tests.conftest import PREFIX


class Machine:
    """The demo's cluster under a test's hands. Everything a scenario applies is deleted when it ends."""

    def __init__(self, demo: Demo) -> None:
        self.demo = demo
        self.kubectl = demo.kubectl
        self._applied: list[tuple[str, str]] = []

    def apply(self, kind: str, name: str, spec: dict[str, Any], **meta: Any) -> None:
        body = {"apiVersion": "moorage.dev/v1alpha1", "kind": kind, "metadata": {"name": name, **meta}, "spec": spec}
        self.kubectl("apply", "-f", "-", input=json.dumps(body))
        self._applied.append((kind.lower(), name))

    def model(self, name: str, repo: str = "moorage/tiny-llama-GGUF", **spec: Any) -> None:
        """A Model of the local hub on the CPU, without a benchmark."""
        spec.setdefault("source", {"huggingFace": {"repo": repo}})
        spec.setdefault("accelerator", {"vendor": "None"})
        spec.setdefault("benchmark", {"enabled": False})
        annotations = spec.pop("annotations", {})
        self.apply("Model", name, spec, annotations=annotations)

    def patch(self, name: str, spec: dict[str, Any]) -> None:
        self.kubectl("patch", "model", name, "--type=merge", "-p", json.dumps({"spec": spec}))

    def get(self, kind: str, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.kubectl("get", kind, name, "-o", "json"))
        return found

    def until(
        self, kind: str, name: str, good: Callable[[dict[str, Any]], object], timeout: float = 180
    ) -> dict[str, Any]:
        """The object as soon as `good` is true of it; fails with its status and pods after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while not good(obj := self.get(kind, name)):
            if time.monotonic() > deadline:
                pods = self.kubectl("get", "pods", "-A", "-o", "wide")
                raise AssertionError(f"{kind} {name}: {json.dumps(obj.get('status'), indent=1)}\n{pods}")
            time.sleep(0.2)
        return obj

    def until_condition(
        self, name: str, kind: str, status: str, reason: str = "", *, of: str = "model", timeout: float = 180
    ) -> dict[str, Any]:
        def good(obj: dict[str, Any]) -> bool:
            found = condition(obj, kind)
            return found.get("status") == status and reason in ("", found.get("reason"))

        return self.until(of, name, good, timeout)

    def chat(self, service: str) -> dict[str, Any]:
        """One chat completion of four tokens through the Model's Service."""
        question = {"model": service, "max_tokens": 4, "messages": [{"role": "user", "content": "Hi"}]}
        path = f"/api/v1/namespaces/default/services/{service}:http/proxy/v1/chat/completions"
        answer: dict[str, Any] = json.loads(
            self.kubectl("create", "--raw", path, "-f", "-", input=json.dumps(question))
        )
        return answer

    def hub(self, path: str, method: str = "GET", body: Any = None) -> Any:
        """One request to the hub's own endpoints (`_log`, `_rules`, `_limits`)."""
        service = json.loads(self.kubectl("-n", "hub", "get", "service", "hub", "-o", "json"))
        data = json.dumps(body).encode() if body is not None else None
        url = f"http://{service['spec']['clusterIP']}:8090/{path}"
        with urllib.request.urlopen(urllib.request.Request(url, data, method=method), timeout=180) as answer:
            text = answer.read()
        return json.loads(text) if text.strip().startswith((b"{", b"[")) else text

    def told(self, name: str, reason: str) -> None:
        """Until an event of this reason is told of the object."""
        deadline = time.monotonic() + 120
        while reason not in (found := self.kubectl("get", "events", "--field-selector", f"involvedObject.name={name}")):
            assert time.monotonic() < deadline, f"{reason} is not among the events of {name}:\n{found}"
            time.sleep(0.5)

    def clear(self) -> None:
        for kind, name in reversed(self._applied):
            self._delete(kind, name)
        self._applied.clear()

    def _delete(self, kind: str, name: str) -> None:
        """A Model that an alias points at is protected, until the API server has noticed that the alias is gone."""
        deadline = time.monotonic() + 60
        while True:
            try:
                self.kubectl("delete", kind, name, "--ignore-not-found", "--wait=false")
                return
            except DemoError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)


def condition(obj: dict[str, Any], kind: str) -> dict[str, Any]:
    found = (obj.get("status") or {}).get("conditions", ())
    return next((c for c in found if c["type"] == kind), {})


@pytest.fixture(scope="session")
def demo() -> Iterator[Demo]:
    """The demo on a cluster of the tests' own, up to and with its Models Ready."""
    demo = Demo(name=f"{PREFIX}-e2e")
    try:
        for step in (demo.up, demo.load_images, demo.install, demo.hub, demo.models):
            step()
        yield demo
    finally:
        Cluster(demo.name).down()


@pytest.fixture
def machine(demo: Demo) -> Iterator[Machine]:
    made = Machine(demo)
    yield made
    made.clear()
