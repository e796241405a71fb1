"""The objects Moorage makes, as YAML beside the code: an upgrade that renders a pod otherwise is seen in review.

`UPDATE_GOLDEN=1 pytest tests/unit/test_manifests_golden.py` writes them anew.
"""

import os
from pathlib import Path

import pytest
import yaml

from moorage import names
from tests.support.world import GGUF, World, gpu_node, model

GOLDEN = Path(__file__).resolve().parents[1] / "golden/manifests"

FULL = {
    "imagePullSecrets": [{"name": "pull"}],
    "contextLength": 4096,
    "maxSequences": 2,
    "kvCacheType": "q8_0",
    "llamaCpp": {
        "threads": 8,
        "batchSize": 1024,
        "ubatchSize": 256,
        "keep": 64,
        "predict": 512,
        "unifiedKVCache": True,
    },
    "nodeSelector": {"zone": "a"},
    "tolerations": [{"key": "models", "operator": "Exists"}],
    "priorityClassName": "models",
    "podMetadata": {"labels": {"team": "a"}, "annotations": {"note": "b"}},
    "resources": {"requests": {"cpu": "2"}, "limits": {"memory": "64Gi"}},
    "args": ["--verbosity", "1"],
    "env": [{"name": "LOG", "value": "1"}],
    "envFrom": [{"configMapRef": {"name": "more"}}],
    "rollout": {"strategy": "Recreate"},
    "replicas": 2,
}


def cpu() -> World:
    return World(model()).ready()


def gpu() -> World:
    world = World(model(accelerator={"vendor": "Nvidia", "count": 2, "memoryPerGPUOverride": "20Gi"}, **FULL))
    world.nodes = [gpu_node("gpu-1", 24564, 4) | {"labels": {**gpu_node("gpu-1", 24564, 4)["labels"], "zone": "a"}}]
    return world.ready()


CASES = {
    "model-cpu-deployment": (cpu, "Deployment", "tiny"),
    "model-cpu-service": (cpu, "Service", "tiny"),
    "model-cpu-disruption-budget": (cpu, "PodDisruptionBudget", "tiny"),
    "model-gpu-deployment": (gpu, "Deployment", "tiny"),
    "download-job": (cpu, "Job", None),
    "download-claim": (cpu, "PersistentVolumeClaim", None),
    "benchmark-job": (cpu, "Job", "bench"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_made_is_what_stands_beside_the_code(case: str):
    make, kind, name = CASES[case]
    world = make()
    wanted = world.download["metadata"]["name"] if name is None else name
    if name == "bench":
        wanted = next(n for k, n in world.manifests if k == "Job" and "bench" in n)
    manifest = world.manifests[(kind, wanted)]
    text = yaml.safe_dump(manifest, sort_keys=False, width=120)
    path = GOLDEN / f"{case}.yaml"
    if os.environ.get("UPDATE_GOLDEN"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert text == path.read_text(), f"{path.name} differs; if that is meant, UPDATE_GOLDEN=1 and say why in the commit"


def test_every_argument_is_one_that_the_pinned_server_knows():
    """The help of the pinned build stands beside its image; the real program is asked in the e2e floor."""
    text = (Path(__file__).resolve().parents[2] / "images/llamacpp-cpu/help.txt").read_text()
    known = {word.rstrip(",") for line in text.splitlines() if line.startswith("-") for word in line.split()}
    for world in (cpu(), gpu()):
        args = world.manifests[("Deployment", "tiny")]["spec"]["template"]["spec"]["containers"][0]["args"]
        assert {a for a in args if a.startswith("--")} <= known


def test_a_change_of_what_shapes_the_pod_changes_the_hash_and_nothing_else_does():
    before = cpu().manifests[("Deployment", "tiny")]["metadata"]["annotations"][names.INPUTS_HASH]
    same = World(model(description="other", purpose="Speed", benchmark={"enabled": False})).ready()
    assert same.manifests[("Deployment", "tiny")]["metadata"]["annotations"][names.INPUTS_HASH] == before
    other = World(model(contextLength=1024)).answer_resolve(GGUF).download_done()
    assert other.manifests[("Deployment", "tiny")]["metadata"]["annotations"][names.INPUTS_HASH] != before
