"""`moorage render`: the operator's decisions without a cluster."""

import json
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from e2e.tinymodels import write_gguf
from moorage.cli import main
from tests.conftest import kwok_node

MODEL = {
    "apiVersion": "moorage.dev/v1alpha1",
    "kind": "Model",
    "metadata": {"name": "tiny"},
    "spec": {"source": {"huggingFace": {"repo": "org/tiny"}}},
}


@pytest.fixture
def header(tmp_path: Path) -> Path:
    (path,) = write_gguf(tmp_path / "tiny.gguf")
    return path


def render(tmp_path: Path, model: dict, *args: str):
    path = tmp_path / "model.yaml"
    path.write_text(yaml.safe_dump(model))
    return CliRunner().invoke(main, ["render", "-f", str(path), *args])


def cluster(tmp_path: Path, *mib: int) -> str:
    nodes = []
    for i, memory in enumerate(mib):
        node = kwok_node(f"gpu-{i}", gpus=1, labels={"nvidia.com/gpu.memory": str(memory), "nvidia.com/gpu.count": "1"})
        node["kind"] = "Node"
        node["spec"] = {}
        node["status"]["conditions"] = [{"type": "Ready", "status": "True"}]
        nodes.append(node)
    path = tmp_path / "cluster.yaml"
    path.write_text(yaml.safe_dump({"apiVersion": "v1", "kind": "List", "items": nodes}))
    return str(path)


def with_spec(**spec) -> dict:
    return {**MODEL, "spec": {**MODEL["spec"], **spec}}


def test_all_manifests_of_a_model_on_the_cpu(tmp_path: Path, header: Path):
    done = render(tmp_path, with_spec(accelerator={"vendor": "None"}), "--header", str(header))
    assert done.exit_code == 0, done.output
    kinds = [d["kind"] for d in yaml.safe_load_all(done.stdout)]
    assert kinds[0] == "ModelDownload"
    assert sorted(kinds[1:]) == ["Deployment", "Service"]
    assert "Placed=True NoAcceleratorNeeded" in done.stderr
    assert "Capabilities: chat, completion, structured_outputs (Metadata)\n" in done.stderr


def test_the_decision_on_a_given_cluster(tmp_path: Path, header: Path):
    args = ("--header", str(header), "--cluster", cluster(tmp_path, 8188, 24564), "-o", "json")
    done = render(tmp_path, with_spec(accelerator={"memoryPerGPUOverride": "10Gi"}), *args)
    found = json.loads(done.stdout)
    assert found["placement"]["gpuClass"] == "24Gi"
    assert found["memory"]["confidence"] in ("Exact", "Bounded")
    assert {c["type"]: c["status"] for c in found["conditions"]}["Placed"] == "True"


def test_what_does_not_fit_is_said_with_numbers(tmp_path: Path, header: Path):
    args = ("--header", str(header), "--cluster", cluster(tmp_path, 8188))
    done = render(tmp_path, with_spec(accelerator={"memoryPerGPUOverride": "100Gi"}), *args)
    assert done.exit_code == 0
    assert "Placed=False NoGPUFits: needs 100" in done.stderr
    assert "Deployment" not in done.stdout


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({**MODEL, "kind": "Pod"}, "there is no Model in it"),
        ({**MODEL, "apiVersion": "v1"}, "not a Model of moorage.dev/v1alpha1"),
        ({**MODEL, "metadata": {}}, "metadata.name is missing"),
    ],
)
def test_a_wrong_manifest_is_a_sentence_and_no_traceback(tmp_path: Path, model: dict, words: str):
    done = render(tmp_path, model)
    assert done.exit_code == 1
    assert words in done.stderr


def test_a_file_that_is_no_model_is_named(tmp_path: Path):
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"<html>")
    done = render(tmp_path, MODEL, "--header", str(bad))
    assert done.exit_code == 1
    assert "bad.gguf" in done.stderr


def test_a_cluster_file_of_something_else_is_refused(tmp_path: Path, header: Path):
    odd = tmp_path / "odd.yaml"
    odd.write_text("items: [{kind: Node}]")
    done = render(tmp_path, MODEL, "--header", str(header), "--cluster", str(odd))
    assert done.exit_code == 1
    assert "odd.yaml" in done.stderr


def test_a_folder_of_safetensors_is_rendered_for_vllm(tmp_path: Path):
    from e2e.tinymodels.safetensors_dir import write_safetensors

    write_safetensors(tmp_path / "tiny", shards=2, weight_bytes=1 << 20)
    done = render(tmp_path, with_spec(accelerator={"vendor": "None"}), "--header", str(tmp_path / "tiny"), "-o", "json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    pod = next(m for m in found["manifests"] if m["kind"] == "Deployment")["spec"]["template"]["spec"]
    assert pod["containers"][0]["command"] == ["vllm", "serve"]
    assert found["memory"]["hostMiB"] > 2048


def test_of_what_fits_nowhere_it_says_what_would_help(tmp_path: Path, header: Path):
    """The only GPU is held by a Model, which stands in the same file."""
    path = Path(cluster(tmp_path, 24564))
    items = yaml.safe_load(path.read_text())["items"]
    labels = {"app.kubernetes.io/managed-by": "moorage", "moorage.dev/model": "other"}
    gpu = {"containers": [{"name": "engine", "resources": {"limits": {"nvidia.com/gpu": "1"}}}], "nodeName": "gpu-0"}
    pod = {"kind": "Pod", "metadata": {"name": "other-1", "namespace": "ml", "uid": "u", "labels": labels}, "spec": gpu}
    other = {**MODEL, "metadata": {"name": "other", "namespace": "ml"}, "status": {"desiredReplicas": 1}}
    for more, expected in [([pod, other], ["replicas: 0 of ml/other"]), ([pod], [])]:
        path.write_text(yaml.safe_dump({"kind": "List", "items": [*items, *more]}))
        args = ("--header", str(header), "--cluster", str(path))
        done = render(tmp_path, with_spec(accelerator={"memoryPerGPUOverride": "10Gi"}), *args, "-o", "json")
        assert [r["change"] for r in json.loads(done.stdout)["remedies"]] == expected
    placed = render(tmp_path, with_spec(accelerator={"vendor": "None"}), "--header", str(header), "-o", "json")
    assert json.loads(placed.stdout)["remedies"] == []


def test_models_that_are_none_are_refused(tmp_path: Path, header: Path):
    path = tmp_path / "cluster.yaml"
    path.write_text(yaml.safe_dump({"kind": "Model", "metadata": {"name": "x"}}))
    done = render(tmp_path, MODEL, "--header", str(header), "--cluster", str(path))
    assert done.exit_code == 1
    assert "not Models as the API server has them" in done.stderr
