"""What the chart renders and the operator makes, before a real API server: known fields, Pod Security restricted."""

import base64
import json
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from moorage import names
from moorage.engines.base import EngineContainer, Probe, Scratch
from moorage.manifests import benchmark, download, model
from tests.conftest import TestCluster
from tests.support import helm

pytestmark = pytest.mark.api

FULL: dict[str, Any] = yaml.safe_load((Path(__file__).parents[1] / "golden/chart/full.values.yaml").read_text())
OWNER = {"apiVersion": names.API_VERSION, "kind": "Model", "metadata": {"name": "m", "namespace": "n", "uid": "u"}}
PROBE = Probe(path="/health", period=1, timeout=1, failures=1)


@pytest.fixture(scope="module")
def restricted(api_cluster: TestCluster) -> Iterator[str]:
    """A namespace at Pod Security `restricted`."""
    name = f"restricted-{uuid.uuid4().hex[:6]}"
    api_cluster.kubectl("create", "namespace", name)
    api_cluster.kubectl("label", "namespace", name, "pod-security.kubernetes.io/enforce=restricted")
    # Without it the API server takes no pod, not even one that is tried only.
    api_cluster.kubectl("wait", "--for=create", "--timeout=110s", "-n", name, "serviceaccount/default")
    yield name
    api_cluster.kubectl("delete", "namespace", name, "--wait=false")


def template(manifest: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = manifest["spec"]["template"]
    return found


def server() -> dict[str, Any]:
    engine = EngineContainer(
        args=(),
        env={},
        drain=("true",),
        port=8080,
        startup=PROBE,
        readiness=PROBE,
        liveness=PROBE,
        scratch=(Scratch("/tmp"),),
    )
    pod = model.ServerPod(image="i:1", engine=engine, claim="c", memory_request_mib=64)
    return model.deployment(OWNER, pod, replicas=1, notes={}, surge=True)


PODS = {
    "operator": lambda: template(helm.only(helm.objects(), "Deployment", "-operator")),
    "operator, every value set": lambda: template(helm.only(helm.objects(FULL), "Deployment", "-operator")),
    "gateway": lambda: template(helm.only(helm.objects(), "Deployment", "-gateway")),
    "gateway, every value set": lambda: template(helm.only(helm.objects(FULL), "Deployment", "-gateway")),
    "server": lambda: template(server()),
    "download": lambda: template(
        download.job(OWNER, "d", download.DownloadJob(image="i:1", args=(), claim="c", inputs="h"))
    ),
    "benchmark": lambda: template(benchmark.job(OWNER, "run", image="i:1", args=())),
}


def create_pod(cluster: TestCluster, namespace: str, found: dict[str, Any]) -> str:
    spec = {**found["spec"], "restartPolicy": "Never"}
    spec.pop("serviceAccountName", None)  # of another namespace
    spec.pop("priorityClassName", None)  # its quota is not what is asked here
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {**found["metadata"], "name": "p"}, "spec": spec}
    options = ("--namespace", namespace, "--dry-run=server", "--validate=strict", "--filename", "-")
    done = cluster.kubectl("create", *options, input=json.dumps(pod), check=False)
    return done.stdout + done.stderr


@pytest.mark.parametrize("which", PODS)
def test_restricted_namespaces_take_our_pods(api_cluster: TestCluster, restricted: str, which: str):
    assert create_pod(api_cluster, restricted, PODS[which]()) == "pod/p created (server dry run)\n"


def test_the_agent_alone_needs_more_and_only_for_its_socket_and_user(api_cluster: TestCluster, restricted: str):
    agent = template(helm.only(helm.objects({"agent": {"enabled": True, "runtimeClassName": ""}}), "DaemonSet"))
    refused = create_pod(api_cluster, restricted, agent)
    assert 'restricted volume types (volume "pod-resources"' in refused
    assert "runAsUser=0" in refused
    for other in ("capabilities", "privileged", "allowPrivilegeEscalation", "hostPort", "seccomp", "namespaces"):
        assert other not in refused


def test_restricted_namespaces_refuse_others(api_cluster: TestCluster, restricted: str):
    loose = PODS["benchmark"]()
    del loose["spec"]["containers"][0]["securityContext"]
    assert 'violates PodSecurity "restricted' in create_pod(api_cluster, restricted, loose)


@pytest.mark.parametrize("values", [{}, FULL], ids=["default", "every value set"])
def test_the_server_knows_every_field_of_the_chart(api_cluster: TestCluster, restricted: str, values: dict[str, Any]):
    here = {**values, "networkPolicy": {**values.get("networkPolicy", {}), "namespaces": [restricted]}}
    # Not installed here, or compared with crds/ elsewhere.
    foreign = {"ServiceMonitor", "PrometheusRule", "CustomResourceDefinition"}
    found = [obj for obj in helm.objects(here, namespace=restricted) if obj["kind"] not in foreign]
    options = ("--server-side", "--force-conflicts", "--dry-run=server", "--validate=strict", "--filename", "-")
    listed = {"apiVersion": "v1", "kind": "List", "items": found}
    done = api_cluster.kubectl("apply", *options, input=json.dumps(listed))
    assert len(done.stdout.splitlines()) == len(found)
    warnings = [line for line in done.stderr.splitlines() if 'container "agent"' not in line]
    assert warnings == [], "the agent alone is more than restricted"


def test_a_release_of_an_older_chart_is_upgraded_with_its_values_and_leaves_nothing_but_crds(
    api_cluster: TestCluster, tmp_path: Path
):
    """An older chart that knew few of the values, and `helm upgrade --reuse-values`, which takes no newer default."""
    release = f"r{uuid.uuid4().hex[:6]}"
    older = tmp_path / "moorage"
    shutil.copytree(helm.CHART, older)
    (older / "values.schema.json").unlink()
    values = {
        "gateway": {"enabled": True, "requireKeys": True},
        "operator": {"workers": 7},
        "fullnameOverride": release,
    }
    (older / "values.yaml").write_text(yaml.safe_dump({**values, "crds": {"enabled": False}}))

    def run(*args: str) -> str:
        return helm.helm(*args, "--namespace", release, kubeconfig=api_cluster.kubeconfig)

    def left() -> set[str]:
        kinds = "all,secrets,configmaps,serviceaccounts,roles,rolebindings,clusterroles,clusterrolebindings,pdb,netpol"
        options = ("--selector", f"app.kubernetes.io/instance={release}", "--all-namespaces", "--output", "name")
        return set(api_cluster.kubectl("get", f"{kinds},validatingadmissionpolicies", *options).stdout.split())

    api_cluster.kubectl("create", "namespace", release)
    try:
        run("install", release, str(older))
        run("upgrade", release, str(helm.CHART), "--reuse-values", "--set", "gateway.replicas=3")
        found = json.loads(
            api_cluster.kubectl("-n", release, "get", "deployment", f"{release}-gateway", "-o", "json").stdout
        )
        args = found["spec"]["template"]["spec"]["containers"][0]["args"]
        assert found["spec"]["replicas"] == 3
        assert args[args.index("--hold-max-pending") + 1] == "100"
        assert "workers: 7" in api_cluster.kubectl("-n", release, "get", "configmap", "-o", "yaml").stdout
        assert left()
    finally:
        run("uninstall", release, "--wait")
        remaining = left()
        api_cluster.kubectl("delete", "namespace", release, "--wait=false")
    assert remaining == set()


def test_the_token_of_usage_reports_outlives_an_upgrade_and_a_deleted_one_is_made_anew(api_cluster: TestCluster):
    release = f"r{uuid.uuid4().hex[:6]}"
    values = {"crds": {"enabled": False}, "fullnameOverride": release}

    def token() -> str:
        options = ("--namespace", release, "--create-namespace")
        helm.helm(
            "upgrade", "--install", release, str(helm.CHART), *options, values=values, kubeconfig=api_cluster.kubeconfig
        )
        secret = json.loads(
            api_cluster.kubectl("-n", release, "get", "secret", f"{release}-reports", "-o", "json").stdout
        )
        return str(secret["data"]["token"])

    try:
        first = token()
        assert len(base64.b64decode(first)) == 48
        assert token() == first
        api_cluster.kubectl("-n", release, "delete", "secret", f"{release}-reports")
        assert token() != first
    finally:
        helm.helm("uninstall", release, "--namespace", release, kubeconfig=api_cluster.kubeconfig)
        api_cluster.kubectl("delete", "namespace", release, "--wait=false")
