"""The chart's NetworkPolicies with packets: who reaches a real llama-server and the operator, and who does not."""

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from e2e.demo import ROOT, SYSTEM, Demo, DemoError, unmet
from moorage import names
from moorage.usage import PATH as REPORTS_PATH
from tests.e2e import callers
from tests.e2e.callers import Caller
from tests.e2e.conftest import Machine

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

HOME, SHOP, MONITORING = "default", "policies-shop", "policies-monitoring"  # the first is the Models' own
SCRAPER = {"app": "prometheus"}
BENCHMARK = {names.MANAGED_BY: "moorage", names.COMPONENT: "benchmark"}
GATEWAY = {
    "app.kubernetes.io/name": "moorage",
    "app.kubernetes.io/instance": "moorage",
    "app.kubernetes.io/component": "gateway",
}
PODS = {
    (HOME, "stranger"): {"app": "web"},
    (HOME, "gateway-in-disguise"): GATEWAY,
    (SHOP, "stranger"): {"app": "web"},
    (SHOP, "benchmark-in-disguise"): BENCHMARK,
    (SYSTEM, "stranger"): {"app": "web"},
    (MONITORING, "prometheus"): SCRAPER,
    (MONITORING, "stranger"): {"app": "web"},
}
SCRAPERS = {
    "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": MONITORING}},
    "podSelector": {"matchLabels": SCRAPER},
}
ON = {"enabled": True, "namespaces": [HOME], "scrapersFrom": [SCRAPERS]}
OFF = {"enabled": False, "namespaces": [], "scrapersFrom": []}


class Yard:
    """The demo's Models with callers around them."""

    def __init__(self, demo: Demo, pods: dict[str, Caller]) -> None:
        self.demo, self.pods = demo, pods

    def policies(self, values: dict[str, Any]) -> None:
        """What a person types to close or open it; no pod of Moorage starts anew for it."""
        chart = ("upgrade", "moorage", str(ROOT / "charts/moorage"), "--namespace", SYSTEM, "--reuse-values")
        self.demo.helm(*chart, "--set-json", f"networkPolicy={json.dumps(values)}", "--wait", "--timeout", "4m")

    def listed(self, kind: str, namespace: str, selector: str) -> list[dict[str, Any]]:
        """What stays: not the pods of another test that are on their way out."""
        found = json.loads(self.demo.kubectl("-n", namespace, "get", kind, "-l", selector, "-o", "json"))["items"]
        return [item for item in found if "deletionTimestamp" not in item["metadata"]]

    def server(self, model: str) -> str:
        """HOST:PORT of the Model's only server, past its Service."""
        (pod,) = self.listed("pods", HOME, f"{names.MODEL_LABEL}={model},{names.COMPONENT}=server")
        return f"{pod['status']['podIP']}:{port(pod, 'http')}"

    def operator(self, name: str) -> str:
        (pod,) = self.listed("pods", SYSTEM, "app.kubernetes.io/component=operator")
        return f"{pod['status']['podIP']}:{port(pod, name)}"

    def service(self, namespace: str, name: str) -> str:
        """HOST:PORT of a Service, by address: names are resolved on the node, which policies do not concern."""
        found = json.loads(self.demo.kubectl("-n", namespace, "get", "service", name, "-o", "json"))["spec"]
        return f"{found['clusterIP']}:{found['ports'][0]['port']}"

    def words(self, *addresses: str) -> dict[str, set[str]]:
        """What each caller finds at these addresses, all together."""
        return {name: set(caller.dial(*addresses)) for name, caller in self.pods.items()}

    def admitted(self, *addresses: str) -> set[str]:
        """Who connects to all of these addresses; whoever connects to some of them only fails the test."""
        found = self.words(*addresses)
        assert all(words in ({"open"}, {"refused"}) for words in found.values()), found
        return {name for name, words in found.items() if words == {"open"}}

    def until_admitted(self, who: set[str], *addresses: str) -> None:
        wanted = {name: {"open"} if name in who else {"refused"} for name in self.pods}
        deadline = time.monotonic() + 60
        while (found := self.words(*addresses)) != wanted:
            assert time.monotonic() < deadline, found
            time.sleep(0.2)


def port(pod: dict[str, Any], name: str) -> int:
    (number,) = (p["containerPort"] for c in pod["spec"]["containers"] for p in c.get("ports", ()) if p["name"] == name)
    return int(number)


@pytest.fixture(scope="module")
def yard(demo: Demo) -> Iterator[Yard]:
    for namespace in (SHOP, MONITORING):
        body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}
        demo.kubectl("apply", "-f", "-", input=json.dumps(body))
    try:
        yield Yard(demo, callers.start(demo, PODS))
    finally:
        for namespace, name in PODS:
            demo.kubectl("-n", namespace, "delete", "pod", name, "--ignore-not-found", "--wait=false")
        demo.kubectl("delete", "namespace", SHOP, MONITORING, "--ignore-not-found", "--wait=false")


@pytest.fixture(scope="module")
def closed(yard: Yard) -> Iterator[Yard]:
    """The policies in force."""
    yard.until_admitted(set(yard.pods), yard.server("tiny-llama"))
    yard.policies(ON)
    try:
        yard.until_admitted({f"{MONITORING}/prometheus"}, yard.server("tiny-llama"))
        yield yard
    finally:
        yard.policies(OFF)


def test_a_server_is_reached_by_the_scraper_and_by_no_stranger(closed: Yard):
    """Same namespace or another, in the labels of a benchmark or a gateway from the wrong place, by pod or Service."""
    server = closed.server("tiny-llama")
    assert closed.admitted(server, closed.service(HOME, "tiny-llama")) == {f"{MONITORING}/prometheus"}
    assert closed.pods[f"{MONITORING}/prometheus"].ask(f"http://{server}/metrics") == 200


def test_the_api_servers_proxy_is_a_stranger_too(closed: Yard, machine: Machine):
    with pytest.raises(DemoError, match="no route to host"):
        machine.chat("tiny-llama")


def test_a_new_model_is_downloaded_warmed_up_probed_and_measured(closed: Yard, machine: Machine):
    """Operator, download, kubelet and benchmark Job all come through; the server never fails a probe for it."""
    machine.model("behind-walls", benchmark={"enabled": True})
    model = machine.until("model", "behind-walls", lambda m: m.get("status") and not unmet(m), timeout=300)
    assert model["status"]["benchmark"]["requests"] == {"total": 20, "failed": 0}
    assert closed.admitted(closed.server("behind-walls")) == {f"{MONITORING}/prometheus"}
    (pod,) = closed.listed("pods", HOME, f"{names.MODEL_LABEL}=behind-walls,{names.COMPONENT}=server")
    assert [c["restartCount"] for c in pod["status"]["containerStatuses"]] == [0]


def test_the_gateway_is_open_to_clients_reaches_the_servers_and_reports_to_the_operator(closed: Yard, machine: Machine):
    for pod in closed.listed("pods", SYSTEM, "app.kubernetes.io/component=gateway"):
        closed.demo.kubectl("-n", SYSTEM, "delete", "pod", pod["metadata"]["name"])  # connections of before are not cut
    closed.demo.kubectl("-n", SYSTEM, "rollout", "status", "deployment/moorage-gateway", "--timeout=120s")
    gateway = closed.service(SYSTEM, "moorage-gateway")
    assert closed.admitted(gateway) == set(closed.pods)
    before = requests(machine)
    question = {"model": "tiny-llama", "max_tokens": 4, "messages": [{"role": "user", "content": "Hi"}]}
    assert closed.pods[f"{SHOP}/stranger"].ask(f"http://{gateway}/v1/chat/completions", json.dumps(question)) == 200
    machine.until("model", "tiny-llama", lambda _: requests(machine) > before)


def requests(machine: Machine) -> int:
    return int(((machine.get("model", "tiny-llama")["status"].get("usage")) or {}).get("requests") or 0)


def test_the_operators_ports_take_policy_and_token(closed: Yard):
    reports, metrics = closed.operator("reports"), closed.operator("metrics")
    assert closed.admitted(reports) == set(), "not from the release's own namespace either, and not the scraper"
    assert closed.admitted(metrics) == {f"{MONITORING}/prometheus"}
    insider = callers.start(closed.demo, {(SYSTEM, "gateway-in-disguise"): GATEWAY})[f"{SYSTEM}/gateway-in-disguise"]
    try:
        deadline = time.monotonic() + 60
        while insider.dial(reports) != ["open"]:
            assert time.monotonic() < deadline
        assert insider.ask(f"http://{reports}{REPORTS_PATH}", "{}") == 401, "labels are not enough"
    finally:
        closed.demo.kubectl("-n", SYSTEM, "delete", "pod", insider.name)


def test_switched_off_everything_is_open_again_and_reports_still_need_the_token(closed: Yard):
    closed.policies(OFF)
    try:
        reports = closed.operator("reports")
        closed.until_admitted(set(closed.pods), closed.server("tiny-llama"), reports, closed.operator("metrics"))
        assert closed.pods[f"{SHOP}/stranger"].ask(f"http://{reports}{REPORTS_PATH}", "{}") == 401
    finally:
        closed.policies(ON)
