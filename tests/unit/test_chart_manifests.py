"""The chart's NetworkPolicies and the pods that the operator makes must agree on labels and ports."""

from typing import Any

import pytest

from moorage import names
from moorage.manifests import benchmark, download, model
from tests.support import helm

OWNER = {"apiVersion": names.API_VERSION, "kind": "Model", "metadata": {"name": "m", "namespace": "team-a", "uid": "u"}}
OPEN = {"networkPolicy": {"enabled": True, "namespaces": ["team-a"]}}
DOWNLOAD = download.job(OWNER, "d", download.DownloadJob(image="i", args=(), claim="c", inputs="h"))
BENCHMARK = benchmark.job(OWNER, "run", image="i", args=())


@pytest.fixture(scope="module")
def policies() -> dict[str, Any]:
    found = [obj for obj in helm.objects(OPEN) if obj["kind"] == "NetworkPolicy"]
    return {obj["metadata"]["name"].removeprefix("moorage-"): obj["spec"] for obj in found}


def test_download_pods_are_selected_and_their_progress_port_is_the_open_one(policies):
    template = DOWNLOAD["spec"]["template"]
    assert policies["downloads"]["podSelector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
    [rule] = policies["downloads"]["ingress"]
    [port] = template["spec"]["containers"][0]["ports"]
    assert rule["ports"] == [{"port": port["name"], "protocol": "TCP"}]
    assert port["containerPort"] == names.PROGRESS_PORT


def test_servers_are_selected_and_the_services_port_is_the_open_one(policies):
    ours = {names.MANAGED_BY: "moorage", **model.labels("m")}
    assert policies["servers"]["podSelector"]["matchLabels"].items() <= ours.items()
    [rule] = policies["servers"]["ingress"]
    [port] = model.service(OWNER)["spec"]["ports"]
    assert rule["ports"] == [{"port": port["targetPort"], "protocol": port["protocol"]}]


def test_servers_let_benchmark_pods_in_and_nobody_unnamed(policies):
    operator, gateway, bench = policies["servers"]["ingress"][0]["from"]
    assert "namespaceSelector" in operator, "the operator"
    assert "namespaceSelector" in gateway
    assert gateway["podSelector"] == policies["gateway"]["podSelector"]
    assert bench["podSelector"]["matchLabels"].items() <= BENCHMARK["spec"]["template"]["metadata"]["labels"].items()
    assert "namespaceSelector" not in bench, "benchmark pods of the Model's own namespace only"


def test_no_policy_selects_every_pod(policies):
    assert set(policies) == {"operator", "gateway", "downloads", "servers"}
    assert all(policy["podSelector"]["matchLabels"] for policy in policies.values())
