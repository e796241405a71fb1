"""The images on a real kubelet: no root, read-only root file system, nothing but what `restricted` allows."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from string import Template

import pytest

from e2e.cluster import Cluster, ClusterError
from e2e.tinymodels.vocabulary import build_vocabulary
from tests.conftest import PREFIX

ROOT = Path(__file__).resolve().parents[2]
NAMESPACE = "images"
Kubectl = Callable[..., str]

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def kubectl() -> Iterator[Kubectl]:
    """kubectl in a fresh namespace of a cluster of its own, with the scenario's pods applied."""
    command = [sys.executable, str(ROOT / "images/build.py"), "--print-json"]
    images = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    cluster = Cluster(f"{PREFIX}-images")
    cluster.up()
    try:
        cluster.load(*(Path(image["archive"]) for image in images.values()))
        cluster.kubectl("create", "namespace", NAMESPACE)
        cluster.kubectl("label", "namespace", NAMESPACE, "pod-security.kubernetes.io/enforce=restricted")
        manifest = cluster.folder / "pods.yaml"
        manifest.write_text(
            Template((ROOT / "e2e/scenarios/images/pods.yaml").read_text()).substitute(
                moorage=images["moorage"]["ref"],
                llamacpp=images["llamacpp-cpu"]["ref"],
                localhub=images["localhub"]["ref"],
            )
        )
        cluster.kubectl("apply", "--namespace", NAMESPACE, "--filename", str(manifest))
        yield lambda *arguments: cluster.kubectl("--namespace", NAMESPACE, *arguments)
    finally:
        cluster.down()


def available(kubectl: Kubectl, deployment: str) -> None:
    kubectl("wait", f"deployment/{deployment}", "--for=condition=Available", "--timeout=240s")


def logs_at_the_end(kubectl: Kubectl, pod: str) -> str:
    kubectl("wait", f"pod/{pod}", "--for=jsonpath={.status.phase}=Succeeded", "--timeout=240s")
    return kubectl("logs", pod)


def test_llama_server_answers_through_its_service(kubectl):
    available(kubectl, "llama")
    reply = json.loads(logs_at_the_end(kubectl, "client"))
    words = {token.removeprefix("Ġ") for token in build_vocabulary().tokens}
    said = reply["choices"][0]["message"]["content"].split()
    assert said
    assert set(said) <= words
    assert reply["model"] == "tiny"


def test_llama_server_is_the_recorded_build(kubectl):
    available(kubectl, "llama")
    reply = json.loads(logs_at_the_end(kubectl, "client"))
    build = (ROOT / "images/llamacpp-cpu/BUILD").read_text().strip()
    assert reply["system_fingerprint"].startswith(f"b{build}-")


def test_the_operator_image_runs_the_code_of_this_tree(kubectl):
    version = (ROOT / "operator/moorage/__init__.py").read_text().split('"')[-2]
    assert logs_at_the_end(kubectl, "version") == f"moorage, version {version}\n"


def test_the_hub_serves_the_models_in_its_image(kubectl):
    available(kubectl, "hub")
    path = f"/api/v1/namespaces/{NAMESPACE}/services/hub:8090/proxy/api/models/moorage/harbor-llama-GGUF"
    files = {file["rfilename"] for file in json.loads(kubectl("get", "--raw", path))["siblings"]}
    assert "harbor-llama-F16.gguf" in files


@pytest.mark.parametrize("pod", ["deployment/hub"])
def test_no_image_holds_a_shell(kubectl, pod):
    available(kubectl, pod.partition("/")[2])
    for shell in ("/bin/sh", "/bin/bash", "/usr/bin/dash"):
        with pytest.raises(ClusterError, match="no such file"):
            kubectl("exec", pod, "--", shell, "-c", "true")
