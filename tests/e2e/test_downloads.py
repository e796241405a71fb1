"""Downloads on a real kubelet: paused, shared, gated, verified again, in turns, and on a volume that is too small."""

import json

import pytest

from tests.e2e.conftest import Machine, condition

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

HARBOR = {"huggingFace": {"repo": "moorage/harbor-llama-GGUF"}}
MIB = 1 << 20


@pytest.fixture
def slow_hub(machine: Machine):
    """The hub at 8 MiB/s, so that a download lasts long enough to be looked at."""
    machine.hub("_limits", "PUT", {"rate": 8 * MIB})
    yield machine
    machine.hub("_limits", "PUT", {"rate": None})


def patch(machine: Machine, name: str, spec: dict) -> None:
    machine.kubectl("patch", "modeldownload", name, "--type=merge", "-p", json.dumps({"spec": spec}))


def percent(download: dict) -> int:
    return (download.get("status") or {}).get("percent") or 0


def test_progress_is_seen_and_a_pause_keeps_what_was_fetched(slow_hub: Machine):
    machine = slow_hub
    machine.hub("_log", "DELETE")
    machine.apply("ModelDownload", "story-pause", {"source": HARBOR})
    seen = machine.until("modeldownload", "story-pause", lambda d: percent(d) >= 30)
    summary = seen["status"]["summary"]
    assert summary["speed"].endswith("MiB/s")
    assert summary["eta"].endswith("s")
    assert summary["done"].endswith("/64.0Mi")
    patch(machine, "story-pause", {"state": "Paused"})
    machine.until("modeldownload", "story-pause", lambda d: d["status"]["phase"] == "Paused")
    machine.kubectl("wait", "--for=delete", "job/story-pause", "--timeout=30s")
    before = percent(machine.get("modeldownload", "story-pause"))
    patch(machine, "story-pause", {"state": "Active"})
    machine.until("modeldownload", "story-pause", lambda d: percent(d) >= before)
    machine.until("modeldownload", "story-pause", lambda d: d["status"]["phase"] == "Ready")
    sent = sum(r.get("sent", 0) for r in machine.hub("_log") if "harbor" in r.get("path", ""))
    assert 63 * MIB < sent < 1.25 * 64 * MIB, f"{sent / MIB:.1f} MiB fetched for 64"


def test_two_models_of_one_content_share_one_download(machine: Machine):
    machine.hub("_log", "DELETE")
    repo = "moorage/fleet-llama-GGUF"
    storage = {"deleteAfterUnused": "1s"}
    machine.model("story-one", repo=repo, storage=storage)
    machine.model("story-two", repo=repo, storage=storage, contextLength=1024)
    one = machine.until_condition("story-one", "Ready", "True")
    two = machine.until_condition("story-two", "Ready", "True")
    name = one["status"]["source"]["downloadName"]
    assert two["status"]["source"]["downloadName"] == name
    machine.until("modeldownload", name, lambda d: d["status"].get("usedBy") == ["story-one", "story-two"])
    bodies = [r for r in machine.hub("_log") if r.get("method") == "GET" and "fleet" in r.get("path", "")]
    assert 24 * MIB <= sum(r["sent"] for r in bodies) < 2 * 24 * MIB
    machine.kubectl("delete", "model", "story-one", "story-two")
    machine.kubectl("wait", "--for=delete", f"modeldownload/{name}", f"pvc/{name}", "--timeout=60s")


def test_a_gated_repository_needs_a_token_and_takes_it_when_it_comes(machine: Machine):
    source = {"repo": "moorage/gated-llama-GGUF", "tokenSecretRef": {"name": "story-token"}}
    machine.model("story-gated", source={"huggingFace": source})
    model = machine.until_condition("story-gated", "Accepted", "False")
    assert condition(model, "Accepted")["reason"] == "SecretNotFound"
    assert "story-token" in model["status"]["summary"]["message"]
    machine.kubectl("create", "secret", "generic", "story-token", "--from-literal=token=hf_harbor")
    try:
        machine.until_condition("story-gated", "Ready", "True", timeout=90)
        leaks = machine.kubectl("get", "models,modeldownloads,jobs,pods,events", "-o", "json")
        assert "hf_harbor" not in leaks
    finally:
        machine.kubectl("delete", "secret", "story-token")


def test_a_gated_repository_without_a_token_says_what_to_do(machine: Machine):
    machine.model("story-nogate", repo="moorage/gated-llama-GGUF")
    model = machine.until_condition("story-nogate", "Accepted", "False", "GatedAccessDenied", timeout=20)
    assert model["status"]["phase"] == "Blocked"


def test_a_volume_that_is_too_small_is_found_before_the_first_byte(machine: Machine):
    storage = {"size": "20Mi", "storageClassName": "local-sized"}
    machine.apply("ModelDownload", "story-small", {"source": HARBOR, "storage": storage})
    small = machine.until("modeldownload", "story-small", lambda d: d.get("status", {}).get("phase") == "Failed")
    found = condition(small, "SpaceAvailable")
    assert (found["status"], found["reason"]) == ("False", "InsufficientStorage")
    assert "64" in found["message"], f"both numbers are told: {found['message']}"
    assert not small["status"].get("percent")


def test_files_are_verified_again_on_request(machine: Machine):
    machine.model("story-verify")
    model = machine.until_condition("story-verify", "Ready", "True")
    name = model["status"]["source"]["downloadName"]
    machine.kubectl("annotate", "modeldownload", name, "--overwrite", "moorage.dev/verify-at=2026-01-01T00:00:00Z")

    def verified(download: dict) -> bool:
        asked = download["status"].get("verifyRequest") == "2026-01-01T00:00:00Z"
        return asked and condition(download, "Verified")["status"] == "True"

    machine.until("modeldownload", name, verified)
    assert condition(machine.get("model", "story-verify"), "Ready")["status"] == "True"


def test_a_storage_class_that_does_not_exist_is_named(machine: Machine):
    storage = {"storageClassName": "no-such-class"}
    machine.apply("ModelDownload", "story-class", {"source": HARBOR, "storage": storage})
    found = machine.until_condition("story-class", "SpaceAvailable", "False", of="modeldownload")
    assert "no-such-class" in found["status"]["summary"]["message"]
    assert "local" in found["status"]["summary"]["message"], "it says which classes there are"


def test_a_download_that_is_deleted_in_the_middle_leaves_nothing(slow_hub: Machine):
    machine = slow_hub
    machine.apply("ModelDownload", "story-delete", {"source": HARBOR})
    machine.until("modeldownload", "story-delete", lambda d: percent(d) >= 10)
    machine.kubectl("delete", "modeldownload", "story-delete")
    machine.kubectl("wait", "--for=delete", "pvc/story-delete", "job/story-delete", "--timeout=60s")
