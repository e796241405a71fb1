"""Who reaches whom once `networkPolicy.enabled` is true: the chart's policies, against the pods that Moorage makes."""

from typing import Any

import pytest

from moorage import names
from tests.support import helm
from tests.support.netpol import Network, Pod
from tests.support.world import SAFETENSORS, World, model

SYSTEM = helm.NAMESPACE
SPACE = "ns"  # of the Models
VALUES = {
    "agent": {"enabled": True},
    "networkPolicy": {
        "enabled": True,
        "namespaces": [SPACE],
        "scrapersFrom": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}],
    },
}
PUSHY = {"labels": {names.COMPONENT: "benchmark", names.MANAGED_BY: "person", "app.kubernetes.io/name": "moorage"}}


def jobs(world: World) -> dict[str, Any]:
    found = [m for (kind, _), m in world.manifests.items() if kind == "Job"]
    return {m["metadata"]["labels"][names.COMPONENT]: m["spec"]["template"] for m in found}


def served(world: World) -> Pod:
    return Pod.of(SPACE, world.manifests["Deployment", "tiny"]["spec"]["template"])


@pytest.fixture(scope="module")
def pods() -> dict[str, Pod]:
    """Every kind of pod that Moorage makes, and strangers that would like to be one of them."""
    chart = {
        o["metadata"]["name"]: o["spec"]["template"] for o in helm.objects(VALUES) if "template" in o.get("spec", {})
    }
    world = World(model(podMetadata=PUSHY)).ready()
    vllm = World(model(engine="VLLM")).answer_resolve(SAFETENSORS).download_done()
    disguise = Pod.of(SYSTEM, chart["moorage-gateway"]).labels
    return {
        "operator": Pod.of(SYSTEM, chart["moorage-operator"]),
        "gateway": Pod.of(SYSTEM, chart["moorage-gateway"]),
        "agent": Pod.of(SYSTEM, chart["moorage-agent"]),
        "llama.cpp": served(world),
        "vllm": served(vllm),
        "download": Pod.of(SPACE, jobs(world)["download"]),
        "benchmark": Pod.of(SPACE, jobs(world)["benchmark"]),
        "prometheus": Pod("monitoring", {}),
        "neighbour": Pod(SPACE, {"app": "web"}),
        "benchmark elsewhere": Pod("other", jobs(world)["benchmark"]["metadata"]["labels"]),
        "gateway in disguise": Pod(SPACE, disguise),
        "pod of the release's namespace": Pod(SYSTEM, {"app": "web"}),
    }


EVERYBODY = None
TABLE: dict[tuple[str, str], set[str] | None] = {
    ("llama.cpp", "http"): {"operator", "gateway", "benchmark", "prometheus"},
    ("vllm", "http"): {"operator", "gateway", "benchmark", "prometheus"},
    ("download", "progress"): {"operator"},
    ("operator", "reports"): {"gateway"},
    ("operator", "metrics"): {"prometheus"},
    ("gateway", "http"): EVERYBODY,  # clients are anywhere; API keys say who may do what
    ("gateway", "metrics"): {"prometheus"},
    ("agent", "http"): {"operator", "prometheus"},
}


def network(**changes: Any) -> Network:
    values = {**VALUES, "networkPolicy": {**VALUES["networkPolicy"], **changes}}
    return Network([o for o in helm.objects(values) if o["kind"] == "NetworkPolicy"])


def admitted(network: Network, pods: dict[str, Pod], target: Pod, port: int) -> set[str]:
    return {name for name, source in pods.items() if network.admits(source, target, port)}


@pytest.mark.parametrize(("to", "port"), TABLE)
def test_each_port_lets_in_whom_it_is_for_and_nobody_else(pods, to: str, port: str):
    wanted = TABLE[to, port]
    number = pods[to].ports[port]  # KeyError: the policy names a port that the pod does not have
    assert admitted(network(), pods, pods[to], number) == (set(pods) if wanted is EVERYBODY else wanted)


@pytest.mark.parametrize("to", ["operator", "gateway", "agent", "llama.cpp", "vllm", "download"])
def test_no_other_port_of_these_pods_lets_anybody_in(pods, to: str):
    named = {port for target, port in TABLE if target == to}
    assert set(pods[to].ports) == named, "a port that the table forgets"
    others = [*(number for name, number in pods[to].ports.items() if name not in named), 22, 65535]
    assert [admitted(network(), pods, pods[to], port) for port in others] == [set()] * len(others)


def test_without_scrapers_nobody_reads_metrics_and_the_servers_keep_their_callers(pods):
    closed = network(scrapersFrom=[])
    assert admitted(closed, pods, pods["gateway"], pods["gateway"].ports["metrics"]) == set()
    assert admitted(closed, pods, pods["vllm"], pods["vllm"].ports["http"]) == {"operator", "gateway", "benchmark"}


def test_who_is_named_as_a_client_of_the_servers_gets_in_and_only_there(pods):
    opened = network(clientsFrom=[{"podSelector": {"matchLabels": {"app": "web"}}}])
    assert "neighbour" in admitted(opened, pods, pods["vllm"], pods["vllm"].ports["http"])
    assert "pod of the release's namespace" not in admitted(opened, pods, pods["vllm"], pods["vllm"].ports["http"])
    assert admitted(opened, pods, pods["download"], pods["download"].ports["progress"]) == {"operator"}


def test_pods_of_namespaces_that_are_not_named_stay_as_open_as_they_were(pods):
    elsewhere = Pod("unnamed", pods["vllm"].labels, pods["vllm"].ports)
    assert admitted(network(), pods, elsewhere, 8080) == set(pods)
