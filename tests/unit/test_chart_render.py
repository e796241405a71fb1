"""What the chart renders: golden files for the defaults and for every value set, and what must hold for both.

After a change that is meant: `UPDATE_GOLDEN=1 pytest tests/unit/test_chart_render.py`, and read the difference.
"""

import os
import re
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from charts.dashboard import dashboard
from moorage import names
from moorage.agent.main import command as agent
from moorage.api.crd import crd_files
from moorage.control.main import command as operate
from moorage.control.settings import Settings
from moorage.gateway.main import command
from tests.support import helm

GOLDEN = Path(__file__).resolve().parents[1] / "golden/chart"
FULL: dict[str, Any] = yaml.safe_load((GOLDEN / "full.values.yaml").read_text())
VALUES = {"default": {}, "full": FULL}


def without_files(text: str) -> str:
    """The rendering without what has a test of its own (CRDs, the dashboard) and Helm's differences in blank lines."""
    text = re.sub(r"(?m)^  moorage.json: \|\n(    .*\n)+", "  moorage.json: (the dashboard)\n", text)
    documents = [part.strip() for part in re.split(r"(?m)^---$", text)]
    kept = [part for part in documents if part and "\nkind: CustomResourceDefinition\n" not in part]
    return "\n---\n".join(kept) + "\n"


@pytest.mark.parametrize("case", VALUES)
def test_rendering_is_the_golden_one(case):
    rendered = without_files(helm.template(VALUES[case]))
    path = GOLDEN / f"{case}.yaml"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(rendered)
    assert rendered == path.read_text()


def test_alerts_and_dashboard_are_the_files():
    found = helm.objects(FULL)
    rules = helm.only(found, "PrometheusRule")["spec"]
    assert rules == yaml.safe_load((helm.CHART / "rules/alerts.yaml").read_text())
    assert helm.only(found, "ConfigMap", "-dashboard")["data"]["moorage.json"].strip() == dashboard().strip()


@pytest.mark.parametrize("case", VALUES)
def test_lint_has_nothing_to_say(case):
    assert "0 chart(s) failed" in helm.helm("lint", "--strict", str(helm.CHART), values=VALUES[case])


@pytest.mark.parametrize("case", VALUES)
def test_every_namespaced_object_is_in_the_release_or_a_named_namespace(case):
    policies = {"ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"}
    cluster_wide = {"ClusterRole", "ClusterRoleBinding", "CustomResourceDefinition", *policies}
    allowed = {helm.NAMESPACE, *FULL["networkPolicy"]["namespaces"]}
    for obj in helm.objects(VALUES[case]):
        if obj["kind"] not in cluster_wide:
            assert obj["metadata"]["namespace"] in allowed, obj["kind"]


def test_the_operator_reads_the_settings_that_the_chart_writes():
    settings = Settings.model_validate(helm.config(helm.objects(FULL)))
    assert settings.images.moorage == FULL["images"]["moorage"]
    assert settings.images.llama_cpp.startswith("registry.example.com/mirror/llamacpp-cpu:")
    assert settings.images.pull_secrets == ("pull", "pull-too")
    assert settings.sources.hugging_face_endpoint == "http://hub.models.svc:8090"
    assert settings.sources.allow_private_hosts is True
    assert (settings.workers, settings.resync_seconds) == (4, 60)


def test_the_chart_writes_every_setting_with_the_operators_own_default():
    rendered = helm.config(helm.objects())
    assert rendered == Settings().model_dump(mode="json", by_alias=True), (
        "a setting without a value, or another default"
    )


def test_a_changed_setting_restarts_the_operator_and_nothing_else_does():
    def checksum(values: dict[str, Any]) -> str:
        deployment = helm.only(helm.objects(values), "Deployment", "-operator")
        return str(deployment["spec"]["template"]["metadata"]["annotations"]["checksum/config"])

    assert checksum({"operator": {"workers": 5}}) != checksum({})
    assert checksum({"metrics": {"serviceMonitor": {"enabled": True}}}) == checksum({})


def test_a_new_version_of_the_chart_alone_starts_no_pod_anew(tmp_path: Path):
    """With the same images: who pins them by digest decides himself when pods start anew."""
    digest = f"x@sha256:{64 * chr(97)}"
    values = {"agent": {"enabled": True}, "images": {"moorage": digest, "llamaCpp": digest}}

    def pods(chart: Path) -> dict[str, Any]:
        made = yaml.safe_load_all(helm.helm("template", "moorage", str(chart), values=values))
        return {
            o["metadata"]["name"]: o["spec"]["template"] for o in made if o and o["kind"] in ("Deployment", "DaemonSet")
        }

    chart = shutil.copytree(helm.CHART, tmp_path / "moorage")
    text = (chart / "Chart.yaml").read_text()
    (chart / "Chart.yaml").write_text(re.sub(r"(?m)^(version|appVersion): .*$", r'\1: "99.0.0"', text))
    before, after = pods(helm.CHART), pods(chart)
    assert len(before) == 3
    assert before == after


@pytest.mark.parametrize(
    ("release", "values", "name"),
    [
        ("moorage", {}, "moorage-operator"),
        ("prod", {}, "prod-moorage-operator"),
        ("prod", {"nameOverride": "models"}, "prod-models-operator"),
        ("prod", {"fullnameOverride": "m"}, "m-operator"),
        ("r" * 53, {}, "r" * 52 + "-operator"),
    ],
)
def test_names_follow_the_release(release, values, name):
    found = helm.objects(values, release=release)
    assert helm.only(found, "Deployment", "-operator")["metadata"]["name"] == name
    assert helm.only(found, "ClusterRoleBinding", "-operator")["roleRef"]["name"] == name
    assert all(len(obj["metadata"]["name"]) <= 63 for obj in found)


def test_two_releases_do_not_share_a_name():
    def named(release: str) -> set[tuple[str, str]]:
        found = helm.objects({"crds": {"enabled": False}}, release=release)
        return {(obj["kind"], obj["metadata"]["name"]) for obj in found}

    assert not named("one") & named("two")


def test_selectors_find_the_operators_pod():
    found = helm.objects(FULL)
    labels = helm.only(found, "Deployment", "-operator")["spec"]["template"]["metadata"]["labels"].items()
    assert helm.only(found, "Deployment", "-operator")["spec"]["selector"]["matchLabels"].items() <= labels
    assert helm.only(found, "Service", "-operator")["spec"]["selector"].items() <= labels
    assert helm.only(found, "NetworkPolicy", "-operator")["spec"]["podSelector"]["matchLabels"].items() <= labels
    for policy in ("-downloads", "-servers"):
        for found_policy in (obj for obj in found if obj["metadata"]["name"].endswith(policy)):
            first = found_policy["spec"]["ingress"][0]["from"][0]
            assert first["podSelector"]["matchLabels"].items() <= labels
            assert first["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": helm.NAMESPACE}
    monitored = helm.only(found, "ServiceMonitor", "-operator")["spec"]["selector"]["matchLabels"].items()
    assert monitored <= helm.only(found, "Service", "-operator")["metadata"]["labels"].items()


def test_selectors_find_the_gateways_pods_and_only_those():
    found = helm.objects(FULL)
    pod = helm.only(found, "Deployment", "-gateway")["spec"]["template"]
    labels = pod["metadata"]["labels"].items()
    selectors = [
        helm.only(found, "Deployment", "-gateway")["spec"]["selector"]["matchLabels"],
        helm.only(found, "Service", "-gateway")["spec"]["selector"],
        helm.only(found, "Service", "-gateway-metrics")["spec"]["selector"],
        helm.only(found, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        helm.only(found, "NetworkPolicy", "-gateway")["spec"]["podSelector"]["matchLabels"],
    ]
    operator = helm.only(found, "Deployment", "-operator")["spec"]["template"]["metadata"]["labels"].items()
    assert all(selector.items() <= labels and not selector.items() <= operator for selector in selectors)
    monitored = helm.only(found, "ServiceMonitor", "-gateway")["spec"]["selector"]["matchLabels"].items()
    services = [s["metadata"]["name"] for s in found if s["kind"] == "Service"]
    seen = [name for name in services if monitored <= helm.only(found, "Service", name)["metadata"]["labels"].items()]
    assert seen == ["models-gateway-metrics"], "and never the clients' Service"


def test_the_gateway_knows_its_own_grace_period_and_its_ports():
    found = helm.objects(FULL)
    pod = helm.only(found, "Deployment", "-gateway")["spec"]["template"]["spec"]
    [container] = pod["containers"]
    given = dict(pairwise(container["args"]))
    assert given["--grace-period"] == str(pod["terminationGracePeriodSeconds"]) == "600"
    assert given["--default-namespace"] == "team-a"
    ports = {port["name"]: str(port["containerPort"]) for port in container["ports"]}
    assert {given["--listen"].split(":")[1], given["--admin"].split(":")[1]} == {ports["http"], ports["metrics"]}
    assert given["--listen"].endswith(ports["http"]), "clients never get the admin port"
    assert {container[f"{probe}Probe"]["httpGet"]["port"] for probe in ("startup", "liveness", "readiness")} == {
        "metrics"
    }
    command.make_context("gateway", container["args"][1:])  # every option exists and takes its value


@pytest.mark.parametrize("case", VALUES)
def test_gateways_and_operator_share_a_token_and_an_address(case):
    found = helm.objects(VALUES[case])
    secret = "shared-token" if case == "full" else helm.only(found, "Secret", "-reports")["metadata"]["name"]
    args = {}
    for who in ("operator", "gateway"):
        pod = helm.only(found, "Deployment", f"-{who}")["spec"]["template"]["spec"]
        volume = next(v for v in pod["volumes"] if v["name"] == "reports")
        assert volume["secret"]["secretName"] == secret
        mount = next(m for m in pod["containers"][0]["volumeMounts"] if m["name"] == "reports")
        args[who] = pod["containers"][0]["args"]
        file = args[who][
            args[who].index({"operator": "--reports-token-file", "gateway": "--operator-token-file"}[who]) + 1
        ]
        assert file == f"{mount['mountPath']}/token"
    service = helm.only(found, "Service", "-reports")
    assert args["gateway"][args["gateway"].index("--operator") + 1] == (
        f"http://{service['metadata']['name']}.{helm.NAMESPACE}.svc"
    )
    operate.make_context("operator", [a for a in args["operator"][1:] if "config" not in a])


def test_a_single_gateway_does_not_keep_its_node_from_draining():
    kinds = [obj["kind"] for obj in helm.objects({"gateway": {"replicas": 1}})]
    assert "PodDisruptionBudget" not in kinds
    assert "PodDisruptionBudget" in [obj["kind"] for obj in helm.objects()]


def test_selectors_find_the_agents_pods_and_only_the_operator_and_scrapers_may_ask_them():
    found = helm.objects(FULL)
    pod = helm.only(found, "DaemonSet")["spec"]["template"]
    labels = pod["metadata"]["labels"].items()
    policy = helm.only(found, "NetworkPolicy", "-agent")["spec"]
    selectors = [
        helm.only(found, "DaemonSet")["spec"]["selector"]["matchLabels"],
        helm.only(found, "Service", "-agent")["spec"]["selector"],
        policy["podSelector"]["matchLabels"],
    ]
    operator = helm.only(found, "Deployment", "-operator")["spec"]["template"]["metadata"]["labels"].items()
    assert all(selector.items() <= labels and not selector.items() <= operator for selector in selectors)
    first, *others = policy["ingress"][0]["from"]
    assert first["podSelector"]["matchLabels"].items() <= operator
    assert others == FULL["networkPolicy"]["scrapersFrom"]


def test_the_agent_is_root_without_a_capability_and_without_a_token():
    pod = helm.only(helm.objects(FULL), "DaemonSet")["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert pod["automountServiceAccountToken"] is False
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert "privileged" not in container["securityContext"]
    assert not {"hostPID", "hostNetwork", "hostIPC"} & set(pod)
    assert "limits" not in container["resources"] or "nvidia.com/gpu" not in container["resources"]["limits"]
    agent.make_context("agent", container["args"][1:])  # every option exists and takes its value


def test_no_agent_without_being_asked_for():
    assert "agent" not in {o["metadata"]["labels"].get("app.kubernetes.io/component") for o in helm.objects()}
    assert helm.config(helm.objects({"agent": {"enabled": True}}))["agents"]["namespace"] == helm.NAMESPACE


def test_without_a_gateway_nothing_of_it_is_left():
    assert "gateway" not in without_files(helm.template({"gateway": {"enabled": False}}))


def test_network_policies_are_made_for_each_named_namespace():
    made = [
        (o["metadata"]["namespace"], o["metadata"]["name"]) for o in helm.objects(FULL) if o["kind"] == "NetworkPolicy"
    ]
    teams = [(team, f"models-{what}") for team in ("team-a", "team-b") for what in ("downloads", "servers")]
    ours = [(helm.NAMESPACE, f"models-{what}") for what in ("operator", "gateway", "agent")]
    assert sorted(made) == sorted([*ours, *teams])


def test_without_scrapers_the_metrics_port_is_closed_to_all():
    found = helm.objects({"networkPolicy": {"enabled": True}})
    policy = helm.only(found, "NetworkPolicy", "-operator")
    assert policy["spec"]["policyTypes"] == ["Ingress"]
    [reports] = policy["spec"]["ingress"]
    assert reports["ports"] == [{"port": "reports", "protocol": "TCP"}], "for gateways alone"
    gateway = helm.only(found, "Deployment", "-gateway")["spec"]["template"]["metadata"]["labels"].items()
    assert reports["from"][0]["podSelector"]["matchLabels"].items() <= gateway
    alone = helm.objects({"networkPolicy": {"enabled": True}, "gateway": {"enabled": False}})
    assert helm.only(alone, "NetworkPolicy", "-operator")["spec"]["ingress"] == []
    clients = helm.only(found, "NetworkPolicy", "-gateway")["spec"]
    assert clients["policyTypes"] == ["Ingress"]
    assert clients["ingress"] == [{"ports": [{"port": "http", "protocol": "TCP"}]}]


def test_the_notes_show_a_model_that_the_api_has():
    notes = helm.helm("install", "moorage", str(helm.CHART), "--dry-run=client", "--namespace", "x").split("NOTES:")[1]
    text = re.search(r"<<'MODEL'\n(.*?)\n +MODEL", notes, re.S)
    assert text
    model = yaml.safe_load(text[1])
    assert "IT NEEDS NO KEY" in notes
    assert f"deployment/{helm.only(helm.objects(), 'Deployment', '-operator')['metadata']['name']}" in notes
    assert model["apiVersion"] == names.API_VERSION
    asked = re.search(r'"model": "([^"]+)"', notes)
    assert asked
    assert asked[1] == "/".join((model["metadata"]["namespace"], model["metadata"]["name"])), "wherever kubectl looks"
    spec = yaml.safe_load(crd_files()["moorage.dev_models.yaml"])["spec"]["versions"][0]["schema"]
    assert set(model["spec"]) <= set(spec["openAPIV3Schema"]["properties"]["spec"]["properties"])


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"crds": {"keep": False}}, "will delete every Model"),
        ({"networkPolicy": {"enabled": True}}, "networkPolicy.namespaces is empty"),
        ({"gateway": {"enabled": False}}, "port-forward service/qwen3-0-6b"),
        ({"gateway": {"requireKeys": True}}, "moorage key create me --namespace"),
        ({"gateway": {"tls": {"secretName": "t"}}}, "curl https://127.0.0.1:8000/v1/chat/completions --insecure"),
    ],
)
def test_the_notes_warn(values, words):
    plain = helm.helm("install", "moorage", str(helm.CHART), "--dry-run=client", values={})
    warned = helm.helm("install", "moorage", str(helm.CHART), "--dry-run=client", values=values)
    assert words in warned
    assert words not in plain
