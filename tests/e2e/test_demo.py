"""The demo itself, and the stories a person would try next, on a real kubelet with a real llama-server."""

import json

import pytest

from e2e.demo import Demo, unmet
from tests.e2e.conftest import Machine, condition

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1200)]


def test_every_model_of_the_demo_is_ready_with_all_conditions_true(demo: Demo):
    models = json.loads(demo.kubectl("get", "models", "-o", "json"))["items"]
    assert {m["metadata"]["name"] for m in models} >= {"tiny-llama", "harbor-llama"}
    for model in models:
        assert unmet(model) == {}
        assert model["status"]["benchmark"]["requests"] == {"total": 20, "failed": 0}
        assert int(model["status"]["summary"]["tokensPerSecond"]) > 0
    table = demo.kubectl("get", "models")
    assert "serving on CPU" in table
    assert table.split()[:8] == ["NAME", "PHASE", "READY", "ENGINE", "VRAM", "NODE", "TOK/S", "AGE"]


def test_the_alias_of_the_demo_is_true_to_its_target(demo: Demo):
    alias = json.loads(demo.kubectl("get", "modelalias", "chat", "-o", "json"))
    assert condition(alias, "Ready")["status"] == "True"


def test_a_chat_is_answered_under_the_models_name(machine: Machine):
    answer = machine.chat("tiny-llama")
    assert answer["model"] == "tiny-llama"
    assert answer["usage"]["completion_tokens"] == 4


def test_kubectl_wait_works_and_a_person_can_unload_and_load(machine: Machine):
    machine.model("story-scale")
    machine.kubectl("wait", "--for=condition=Ready", "model/story-scale", "--timeout=240s")
    machine.kubectl("scale", "model", "story-scale", "--replicas=0")
    machine.until("model", "story-scale", lambda m: m["status"]["phase"] == "ScaledToZero")
    machine.kubectl("scale", "model", "story-scale", "--replicas=1")
    machine.until("model", "story-scale", lambda m: m["status"]["phase"] == "Ready")
    assert machine.chat("story-scale")["choices"]


def test_a_killed_server_comes_back_by_itself(machine: Machine):
    machine.model("story-kill")
    machine.until_condition("story-kill", "Ready", "True")

    def pods() -> dict[str, str]:
        """By uid, whether a server is ready."""
        found = json.loads(machine.kubectl("get", "pods", "-l", "moorage.dev/model=story-kill", "-o", "json"))["items"]
        return {p["metadata"]["uid"]: condition(p, "Ready").get("status", "") for p in found}

    [killed] = pods()
    machine.kubectl("delete", "pod", "-l", "moorage.dev/model=story-kill")
    machine.until("model", "story-kill", lambda _: list(pods().values()) == ["True"] and killed not in pods())
    machine.until_condition("story-kill", "Ready", "True")
    assert machine.chat("story-kill")["choices"]


def test_a_url_with_its_checksum_is_served_and_a_wrong_checksum_never_is(machine: Machine):
    files = machine.hub("api/models/moorage/tiny-llama-GGUF/tree/main?recursive=true")
    file = next(f for f in files if f["path"].endswith(".gguf"))
    url = f"http://hub.hub:8090/moorage/tiny-llama-GGUF/resolve/main/{file['path']}"
    sha256 = file["lfs"]["oid"] if "lfs" in file else None
    assert sha256, "the hub tells the checksum of large files"
    machine.model("story-url", source={"http": {"url": url, "sha256": sha256}})
    machine.model("story-wrong", source={"http": {"url": url, "sha256": "0" * 64}})
    machine.until_condition("story-url", "Ready", "True")
    wrong = machine.until_condition("story-wrong", "Downloaded", "False", "ChecksumMismatch")
    assert wrong["status"]["phase"] == "Blocked"
    assert "checksum" in wrong["status"]["summary"]["message"]
    assert not json.loads(machine.kubectl("get", "pods", "-l", "moorage.dev/model=story-wrong", "-o", "json"))["items"]


def test_a_filled_volume_is_served_without_a_download(machine: Machine):
    harbor = machine.get("model", "tiny-llama")["status"]["source"]
    source = {"persistentVolumeClaim": {"claimName": harbor["claimName"], "path": harbor["path"]}}
    machine.model("story-volume", source=source)
    model = machine.until_condition("story-volume", "Ready", "True")
    assert model["status"]["source"]["mainFile"] == harbor["mainFile"]
    assert machine.chat("story-volume")["choices"]


def test_a_persons_own_download_is_served(machine: Machine):
    machine.apply("ModelDownload", "story-files", {"source": {"huggingFace": {"repo": "moorage/fleet-llama-GGUF"}}})
    machine.model("story-ref", source={"downloadRef": {"name": "story-files"}})
    model = machine.until_condition("story-ref", "Ready", "True")
    assert model["status"]["source"]["mainFile"].endswith("-00001-of-00003.gguf"), "a split file is served whole"
    download = machine.get("modeldownload", "story-files")
    assert download["status"]["usedBy"] == ["story-ref"]
    assert download["status"]["files"]["total"] == 3


def test_a_missing_repository_is_told_within_seconds(machine: Machine):
    machine.model("story-404", repo="moorage/no-such-model")
    model = machine.until_condition("story-404", "Accepted", "False", "RepoNotFoundOrPrivate")
    assert model["status"]["phase"] == "Blocked"
    assert "moorage/no-such-model" in model["status"]["summary"]["message"]


def test_a_crashing_server_says_its_last_words(machine: Machine):
    machine.model("story-crash", args=["--no-such-argument"])
    model = machine.until_condition("story-crash", "Serving", "False", "CrashLoop")
    assert "--no-such-argument" in condition(model, "Serving")["message"]
    assert model["status"]["phase"] == "Failed"


def test_an_image_that_cannot_be_pulled_is_named(machine: Machine):
    machine.model("story-pull", image="moorage.local/no-such-image:1")
    model = machine.until_condition("story-pull", "Serving", "False", "ImagePullFailed")
    assert "no-such-image" in condition(model, "Serving")["message"]


def test_a_server_over_its_memory_limit_is_told(machine: Machine):
    limits = {"requests": {"memory": "16Mi"}, "limits": {"memory": "16Mi"}}
    machine.model("story-oom", repo="moorage/harbor-llama-GGUF", resources=limits)
    model = machine.until_condition("story-oom", "Serving", "False", "OutOfMemory")
    assert "memory" in model["status"]["summary"]["message"]


def test_a_failed_rollout_leaves_the_old_server_answering(machine: Machine):
    machine.model("story-roll")
    machine.until_condition("story-roll", "Ready", "True")
    machine.patch("story-roll", {"args": ["--no-such-argument"]})
    model = machine.until_condition("story-roll", "UpToDate", "False", "RolloutFailed")
    assert condition(model, "Ready")["status"] == "True"
    assert model["status"]["phase"] == "Degraded"
    assert machine.chat("story-roll")["choices"]
    machine.patch("story-roll", {"args": []})
    model = machine.until_condition("story-roll", "UpToDate", "True")
    machine.until("model", "story-roll", lambda m: m["status"]["phase"] == "Ready")


def test_a_killed_download_goes_on_where_it_was(machine: Machine):
    machine.hub("_limits", "PUT", {"rate": 12 << 20})
    try:
        machine.hub("_log", "DELETE")
        source = {"huggingFace": {"repo": "moorage/harbor-llama-GGUF"}}
        machine.apply("ModelDownload", "story-resume", {"source": source})
        machine.until("modeldownload", "story-resume", lambda d: (d["status"].get("percent") or 0) >= 40)
        selector = "moorage.dev/download=story-resume"
        machine.kubectl("delete", "pod", "-l", selector, "--grace-period=0", "--force")
        done = machine.until("modeldownload", "story-resume", lambda d: d["status"]["phase"] == "Ready")
        assert condition(done, "Verified")["status"] == "True"
        sent = sum(r.get("sent", 0) for r in machine.hub("_log") if "harbor" in r.get("path", ""))
        assert 63 << 20 < sent < 1.25 * (64 << 20), f"{sent / 2**20:.1f} MiB fetched for 64"
    finally:
        machine.hub("_limits", "PUT", {"rate": None})


def test_the_annotation_asks_for_a_new_benchmark(machine: Machine):
    before = machine.get("model", "tiny-llama")["status"]["benchmark"]["run"]
    machine.kubectl("annotate", "model", "tiny-llama", "--overwrite", "moorage.dev/benchmark-at=2026-01-01T00:00:00Z")

    def measured(model: dict) -> bool:
        found = model["status"]["benchmark"]
        return found["run"] != before and condition(model, "Benchmarked")["status"] == "True"

    model = machine.until("model", "tiny-llama", measured, timeout=240)
    assert condition(model, "Ready")["status"] == "True"


def test_deleting_a_model_while_it_downloads_leaves_nothing_behind(machine: Machine):
    machine.hub("_limits", "PUT", {"rate": 4 << 20})
    try:
        storage = {"size": "1Gi", "deleteAfterUnused": "1s"}
        machine.model("story-gone", repo="moorage/harbor-llama-GGUF", storage=storage)
        model = machine.until("model", "story-gone", lambda m: m["status"].get("phase") == "Downloading")
        name = model["status"]["source"]["downloadName"]
        machine.until("modeldownload", name, lambda d: (d.get("status") or {}).get("phase") == "Downloading")
        machine.kubectl("delete", "model", "story-gone")
        for kind in ("modeldownload", "pvc", "job"):
            machine.kubectl("wait", "--for=delete", f"{kind}/{name}", "--timeout=240s")
    finally:
        machine.hub("_limits", "PUT", {"rate": None})
