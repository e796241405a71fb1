"""What the API server itself accepts, fills in, refuses and prints, on a real kube-apiserver with the committed CRDs.

The cases are in `cases/`, one file per kind; the messages are what a person reads after `kubectl apply`.
"""

import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any, Protocol

import pytest
import yaml

from moorage.api.managed_args import ARG_RULES, ARGS_BY_OWNER, ENV_BY_OWNER, ENV_RULES

pytestmark = pytest.mark.api

ROOT = Path(__file__).resolve().parents[2]
KINDS = {"model": "Model", "modeldownload": "ModelDownload", "modelalias": "ModelAlias"}
CASES = [
    (KINDS[path.stem], case)
    for path in sorted((ROOT / "tests/api/cases").glob("*.yaml"))
    for case in yaml.safe_load(path.read_text())
]
NAMESPACE = "crd-validation"
SOURCE = {"huggingFace": {"repo": "acme/tiny"}}


class Completed(Protocol):
    returncode: int
    stdout: str
    stderr: str


class Kubectl(Protocol):
    def __call__(self, *args: str, input: str | None = None) -> Completed: ...


@pytest.fixture(scope="module")
def kubectl(api_cluster: Any) -> Kubectl:
    """kubectl in a namespace of its own; most of these tests want its complaints, so a failure is not raised."""
    api_cluster.kubectl("create", "namespace", NAMESPACE)

    def run(*args: str, input: str | None = None) -> Completed:
        done: Completed = api_cluster.kubectl("--namespace", NAMESPACE, *args, input=input, check=False)
        return done

    return run


def manifest(kind: str, spec: dict[str, Any], name: str = "case") -> str:
    return json.dumps({"apiVersion": "moorage.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec})


def contains(stored: Any, expected: Any) -> bool:
    """Whether `expected` is a part of `stored`: of an object some fields, everything else whole."""
    if isinstance(expected, dict):
        return isinstance(stored, dict) and all(k in stored and contains(stored[k], v) for k, v in expected.items())
    return bool(stored == expected)


@pytest.mark.parametrize(("kind", "case"), CASES, ids=[f"{kind}: {case['case']}" for kind, case in CASES])
def test_case(kubectl: Kubectl, kind: str, case: dict[str, Any]):
    name = case.get("metadata", {}).get("name", "case")
    result = kubectl("create", "--dry-run=server", "-o", "json", "-f", "-", input=manifest(kind, case["spec"], name))
    if "stored" in case:
        assert result.returncode == 0, result.stderr
        spec = json.loads(result.stdout)["spec"]
        assert contains(spec, case["stored"]), json.dumps(spec, indent=1)
        return
    assert result.returncode != 0, "it was accepted"
    missing = [words for words in case["refused"] if words not in result.stderr]
    assert not missing, result.stderr


@pytest.mark.parametrize(
    ("field", "owners", "rules"),
    [
        ("args", ARGS_BY_OWNER, ARG_RULES[1:]),
        ("env", ENV_BY_OWNER, ENV_RULES),
    ],
)
def test_every_managed_name_is_refused(kubectl: Kubectl, field: str, owners: dict[str, tuple[str, ...]], rules):
    names = [name for names in owners.values() for name in names]
    for some in (names[start : start + 32] for start in range(0, len(names), 32)):
        items = some if field == "args" else [{"name": name, "value": "1"} for name in some]
        result = kubectl(
            "create", "--dry-run=server", "-f", "-", input=manifest("Model", {"source": SOURCE, field: items})
        )
        refused = re.findall(r'Invalid value: "([-.\w]+)": (.*)', result.stderr)
        assert [name for name, _ in refused] == some
        assert {message for _, message in refused} <= {rule.message for rule in rules}


def test_every_pair_of_sources_is_named(kubectl: Kubectl):
    http = {"url": "https://example.com/a.gguf", "sha256": "0" * 64}
    sources = {
        "huggingFace": {"repo": "a/b"},
        "http": http,
        "persistentVolumeClaim": {"claimName": "c"},
        "downloadRef": {"name": "d"},
    }
    result = kubectl("create", "--dry-run=server", "-f", "-", input=manifest("Model", {"source": sources}))
    for one, other in combinations(sources, 2):
        assert f"spec.source has both {one} and {other}; keep exactly one of" in result.stderr


@pytest.fixture
def stored(kubectl: Kubectl):
    """A Model, a ModelDownload and a ModelAlias called `kept`, gone after the test."""
    specs = {
        "Model": {"source": SOURCE, "storage": {"size": "1Gi"}},
        "ModelDownload": {"source": SOURCE},
        "ModelAlias": {"targets": [{"modelRef": {"name": "kept"}}]},
    }
    for kind, spec in specs.items():
        created = kubectl("create", "-f", "-", input=manifest(kind, spec, "kept"))
        assert created.returncode == 0, created.stderr
    yield
    for kind in specs:
        kubectl("delete", kind.lower(), "kept")


def patch(kubectl: Kubectl, kind: str, change: dict[str, Any], *options: str) -> Completed:
    return kubectl("patch", kind, "kept", "--type=merge", "-p", json.dumps(change), *options)


@pytest.mark.usefixtures("stored")
class TestAStoredObject:
    @pytest.mark.parametrize(
        ("kind", "change"),
        [
            ("model", {"size": "2Gi"}),
            ("model", {"reclaimPolicy": "Retain"}),
            ("model", None),
            ("modeldownload", {"size": "2Gi"}),
            ("modeldownload", {"deleteAfterUnused": "1h"}),
        ],
    )
    def test_storage_cannot_be_changed(self, kubectl: Kubectl, kind: str, change: dict[str, Any] | None):
        result = patch(kubectl, kind, {"spec": {"storage": change}})
        assert result.returncode != 0
        assert "spec.storage cannot be changed, because the volume exists already" in result.stderr
        assert "create one with another name" in result.stderr

    def test_what_does_not_change_storage_is_allowed(self, kubectl: Kubectl):
        result = patch(
            kubectl, "model", {"spec": {"contextLength": 4096, "source": {"huggingFace": {"revision": "v2"}}}}
        )
        assert result.returncode == 0, result.stderr

    def test_scale_writes_replicas(self, kubectl: Kubectl):
        assert kubectl("scale", "model", "kept", "--replicas=0").returncode == 0
        assert kubectl("get", "mdl", "kept", "-o", "jsonpath={.spec.replicas}").stdout == "0"

    def test_scale_reads_status(self, kubectl: Kubectl):
        status = {"replicas": 2, "selector": "moorage.dev/model=kept"}
        assert patch(kubectl, "model", {"status": status}, "--subresource=status").returncode == 0
        scale = json.loads(kubectl("get", "model", "kept", "--subresource=scale", "-o", "json").stdout)
        assert scale["status"] == status
        assert scale["spec"] == {"replicas": 1}

    def test_status_is_written_apart_from_spec(self, kubectl: Kubectl):
        change = {"spec": {"replicas": 5}, "status": {"phase": "Ready"}}
        assert patch(kubectl, "model", change, "--subresource=status").returncode == 0
        model = json.loads(kubectl("get", "model", "kept", "-o", "json").stdout)
        assert (model["spec"]["replicas"], model["status"]["phase"], model["metadata"]["generation"]) == (1, "Ready", 1)

    def test_columns_of_models(self, kubectl: Kubectl):
        summary = {
            **{"ready": "1/1", "vram": "9.9Gi", "tokensPerSecond": "87", "node": "gpu-2", "message": "serving"},
            **{"ttft": "85ms", "context": "8192", "source": "acme/tiny", "reason": "Ready"},
        }
        used = {"requests": 3, "lastUsed": "2026-01-01T00:00:00Z"}
        status = {"phase": "Ready", "engine": {"name": "LlamaCpp"}, "summary": summary, "usage": used}
        assert patch(kubectl, "model", {"status": status}, "--subresource=status").returncode == 0
        head, row = table(kubectl, "models")
        assert head == ["NAME", "PHASE", "READY", "ENGINE", "VRAM", "NODE", "TOK/S", "AGE", "MESSAGE"]
        assert [*row[:7], row[8]] == ["kept", "Ready", "1/1", "LlamaCpp", "9.9Gi", "gpu-2", "87", "serving"]
        head, row = table(kubectl, "models", "-o", "wide")
        assert head[9:] == ["TTFT", "CONTEXT", "SOURCE", "LAST USED", "REASON"]
        assert [*row[9:12], row[13]] == ["85ms", "8192", "acme/tiny", "Ready"]
        assert row[12].endswith("d"), "how long ago"

    def test_columns_of_downloads(self, kubectl: Kubectl):
        summary = {
            **{"progress": "41%", "done": "16.0/39.1Gi", "speed": "212MiB/s", "eta": "1m50s", "verified": "1/3"},
            **{"message": "downloading", "revision": "abc1234", "files": "1/3"},
        }
        status = {"phase": "Downloading", "summary": summary, "retries": 2, "claimName": "files"}
        assert patch(kubectl, "modeldownload", {"status": status}, "--subresource=status").returncode == 0
        head, row = table(kubectl, "mdd", "-o", "wide")
        assert head == [
            *["NAME", "PHASE", "PROGRESS", "DONE", "SPEED", "ETA", "VERIFIED", "AGE", "MESSAGE"],
            *["REVISION", "FILES", "RETRIES", "CLAIM"],
        ]
        assert row[:7] == ["kept", "Downloading", "41%", "16.0/39.1Gi", "212MiB/s", "1m50s", "1/3"]
        assert row[8:] == ["downloading", "abc1234", "1/3", "2", "files"]

    def test_columns_of_aliases(self, kubectl: Kubectl):
        summary = {"targets": "kept", "ready": "1/1", "message": "serving", "defaults": "temperature=0"}
        used = {"requests": 3, "lastUsed": "2026-01-01T00:00:00Z"}
        status = {"summary": summary, "revision": 2, "usage": used}
        assert patch(kubectl, "modelalias", {"status": status}, "--subresource=status").returncode == 0
        head, row = table(kubectl, "mda")
        assert head == ["NAME", "TARGETS", "READY", "REVISION", "AGE", "MESSAGE"]
        assert [*row[:4], row[5]] == ["kept", "kept", "1/1", "2", "serving"]
        head, row = table(kubectl, "mda", "-o", "wide")
        assert head[6:] == ["DEFAULTS", "REQUESTS", "LAST USED"]
        assert row[6:8] == ["temperature=0", "3"]

    def test_selecting_by_field(self, kubectl: Kubectl):
        status = {"phase": "Ready", "source": {"sizeClass": "Tiny"}}
        assert patch(kubectl, "model", {"status": status}, "--subresource=status").returncode == 0
        for selector, found in {
            "status.phase=Ready,status.source.sizeClass=Tiny,spec.engine=Auto": "model.moorage.dev/kept\n",
            "status.phase=Failed": "",
            "spec.purpose=Speed": "",
        }.items():
            assert kubectl("get", "models", "-o", "name", "--field-selector", selector).stdout == found

    def test_waiting_for_a_condition(self, kubectl: Kubectl):
        condition = {"type": "Ready", "status": "True", "reason": "Ready", "message": "serving"}
        status = {"conditions": [{**condition, "lastTransitionTime": "2026-01-02T03:04:05Z"}]}
        assert patch(kubectl, "model", {"status": status}, "--subresource=status").returncode == 0
        assert kubectl("wait", "--for=condition=Ready", "model/kept", "--timeout=5s").returncode == 0

    def test_the_category_lists_all_kinds(self, kubectl: Kubectl):
        names = kubectl("get", "moorage", "-o", "name").stdout.split()
        assert sorted(names) == [
            "model.moorage.dev/kept",
            "modelalias.moorage.dev/kept",
            "modeldownload.moorage.dev/kept",
        ]


def table(kubectl: Kubectl, *query: str) -> list[list[str]]:
    """Header and first row of `kubectl get`, cell by cell: columns are three spaces apart."""
    lines = kubectl("get", *query).stdout.splitlines()
    return [re.split(r" {2,}", line.strip()) for line in lines[:2]]


@pytest.mark.parametrize("path", ["model.spec", "model.status", "modeldownload.spec", "modelalias.spec"])
def test_explain(kubectl: Kubectl, path: str):
    text = kubectl("explain", path, "--recursive=false").stdout
    assert "FIELDS:" in text
    assert "<empty>" not in text
    assert "no description" not in text.lower()


def test_explain_says_defaults_and_ranges(kubectl: Kubectl):
    text = " ".join(kubectl("explain", "model.spec.benchmark.inputTokens").stdout.split())
    assert "Prompt tokens of each request. Default: 128. From 1 to 131072." in text
