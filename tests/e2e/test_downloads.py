"""Downloads on a real kubelet: paused, killed, shared, gated, verified again, and on volumes that are too small."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import Machine, condition

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1200)]

HARBOR = {"huggingFace": {"repo": "moorage/harbor-llama-GGUF"}}
MIB = 1 << 20


@pytest.fixture
def slow_hub(machine: Machine):
    """The hub at 3 MiB/s, so that a download lasts long enough to be looked at; `hurry` when it was."""
    machine.hub("_limits", "PUT", {"rate": 3 * MIB})
    yield machine
    hurry(machine)


def hurry(machine: Machine) -> None:
    machine.hub("_limits", "PUT", {"rate": None})


def patch(machine: Machine, name: str, spec: dict) -> None:
    machine.kubectl("patch", "modeldownload", name, "--type=merge", "-p", json.dumps({"spec": spec}))


def sent(machine: Machine, repo: str) -> int:
    """Bytes of the repository's files that the hub has sent, bodies alone."""
    return sum(r.get("sent", 0) for r in machine.hub("_log") if r.get("method") == "GET" and repo in r.get("path", ""))


def processes_of(download: str) -> list[int]:
    """Process ids of `moorage download` into the folder of `download`: the node's processes are this machine's."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue  # it ended meanwhile
        if b"--dest" in words and f"/models/{download}".encode() in words:
            found.append(int(folder.name))
    return found


def reason(download: dict, kind: str) -> str:
    return str(condition(download, kind).get("reason"))


@pytest.fixture
def box(machine: Machine) -> Iterator[str]:
    """A claim of a person's own with exactly 100 MiB."""
    spec = {"accessModes": ["ReadWriteOnce"], "storageClassName": "local-sized"}
    spec |= {"resources": {"requests": {"storage": "100Mi"}}}
    body = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "story-box"}, "spec": spec}
    machine.kubectl("apply", "-f", "-", input=json.dumps(body))
    yield "story-box"
    machine.clear()
    machine.kubectl("delete", "pvc", "story-box", "--timeout=240s")


def python(machine: Machine, name: str, code: str, *args: str) -> None:
    """Run `code` as a stranger's pod with the claim `story-box` at /box, to its end."""
    image = machine.demo.images["moorage"]["ref"]
    security = {
        "runAsNonRoot": True,
        "runAsUser": 65532,
        "fsGroup": 65532,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    container = {
        "name": "main", "image": image, "imagePullPolicy": "IfNotPresent",
        "command": ["python3", "-c", code, *args], "volumeMounts": [{"name": "box", "mountPath": "/box"}],
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }  # fmt: skip
    spec = {
        "restartPolicy": "Never", "containers": [container], "securityContext": security,
        "terminationGracePeriodSeconds": 0,
        "volumes": [{"name": "box", "persistentVolumeClaim": {"claimName": "story-box"}}],
    }  # fmt: skip
    body = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}
    machine.kubectl("apply", "-f", "-", input=json.dumps(body))
    try:
        machine.kubectl("wait", "--for=jsonpath={.status.phase}=Succeeded", f"pod/{name}", "--timeout=240s")
    finally:
        machine.kubectl("delete", "pod", name, "--now")


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
    machine.kubectl("wait", "--for=delete", "job/story-pause", "--timeout=240s")
    before = percent(machine.get("modeldownload", "story-pause"))
    hurry(machine)
    patch(machine, "story-pause", {"state": "Active"})
    machine.until("modeldownload", "story-pause", lambda d: percent(d) >= before)
    machine.until("modeldownload", "story-pause", lambda d: d["status"]["phase"] == "Ready")
    assert 63 * MIB < (fetched := sent(machine, "harbor")) < 1.25 * 64 * MIB, f"{fetched / MIB:.1f} MiB fetched for 64"


@pytest.mark.parametrize("how", ["the process is killed", "the pod is deleted by force"])
def test_a_download_that_dies_on_its_node_goes_on_where_it_was(slow_hub: Machine, how: str):
    machine = slow_hub
    name = f"story-{'kill' if 'killed' in how else 'force'}"
    machine.hub("_log", "DELETE")
    machine.apply("ModelDownload", name, {"source": HARBOR})
    machine.until("modeldownload", name, lambda d: percent(d) >= 40)
    pods = machine.kubectl("get", "pods", "-l", f"moorage.dev/download={name}", "-o", "name").split()
    [process] = processes_of(name)
    if "killed" in how:
        os.kill(process, signal.SIGKILL)
    else:
        machine.kubectl("delete", *pods, "--force", "--grace-period=0")
    machine.until("modeldownload", name, lambda _: process not in processes_of(name))
    hurry(machine)  # the next one, and not the one that dies
    seen = []

    def over(download: dict) -> bool:
        seen.append(percent(download))
        return download["status"]["phase"] == "Ready"

    ready = machine.until("modeldownload", name, over)
    assert seen == sorted(seen), "percent never goes back"
    assert reason(ready, "Verified") == "Verified"
    assert 63 * MIB < (fetched := sent(machine, "harbor")) < 1.25 * 64 * MIB, f"{fetched / MIB:.1f} MiB fetched for 64"


def test_a_cancelled_download_gives_its_volume_back_and_starts_again_when_asked(slow_hub: Machine):
    machine = slow_hub
    machine.apply("ModelDownload", "story-cancel", {"source": HARBOR})
    machine.until("modeldownload", "story-cancel", lambda d: percent(d) >= 10)
    patch(machine, "story-cancel", {"state": "Cancelled"})
    machine.kubectl("wait", "--for=delete", "job/story-cancel", "pvc/story-cancel", "--timeout=240s")
    cancelled = machine.get("modeldownload", "story-cancel")
    assert cancelled["status"]["phase"] == "Cancelled"
    assert percent(cancelled) == 0
    hurry(machine)
    patch(machine, "story-cancel", {"state": "Active"})
    machine.until("modeldownload", "story-cancel", lambda d: d["status"]["phase"] == "Ready")


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
    assert 24 * MIB <= (fetched := sent(machine, "fleet")) < 1.25 * 24 * MIB, f"{fetched / MIB:.1f} MiB fetched for 24"
    machine.kubectl("delete", "model", "story-one", "story-two")
    machine.kubectl("wait", "--for=delete", f"modeldownload/{name}", f"pvc/{name}", "--timeout=240s")


def test_a_gated_repository_needs_a_token_and_takes_it_when_it_comes(machine: Machine):
    source = {"repo": "moorage/gated-llama-GGUF", "tokenSecretRef": {"name": "story-token"}}
    machine.model("story-gated", source={"huggingFace": source})
    model = machine.until_condition("story-gated", "Accepted", "False", "SecretNotFound")
    assert "story-token" in model["status"]["summary"]["message"]
    machine.kubectl("create", "secret", "generic", "story-token", "--from-literal=token=hf_harbor")
    try:
        machine.until_condition("story-gated", "Ready", "True")
        leaks = machine.kubectl("get", "models,modeldownloads,jobs,pods,events", "-o", "json")
        assert "hf_harbor" not in leaks
    finally:
        machine.kubectl("delete", "secret", "story-token")


def test_a_gated_repository_without_a_token_says_what_to_do(machine: Machine):
    machine.model("story-nogate", repo="moorage/gated-llama-GGUF")
    model = machine.until_condition("story-nogate", "Accepted", "False", "GatedAccessDenied")
    assert model["status"]["phase"] == "Blocked"


def test_a_volume_that_is_too_small_is_found_before_the_first_byte(machine: Machine):
    storage = {"size": "20Mi", "storageClassName": "local-sized"}
    machine.apply("ModelDownload", "story-small", {"source": HARBOR, "storage": storage})
    small = machine.until("modeldownload", "story-small", lambda d: d.get("status", {}).get("phase") == "Failed")
    found = condition(small, "SpaceAvailable")
    assert (found["status"], found["reason"]) == ("False", "InsufficientStorage")
    assert "20.0Mi free" in found["message"], f"both numbers are told: {found['message']}"
    assert "StorageClass local-sized does not let it grow" in found["message"]
    assert not small["status"].get("percent")


def test_a_volume_that_fills_up_in_the_middle_is_told_and_the_rest_comes_when_there_is_room(
    slow_hub: Machine, box: str
):
    machine = slow_hub
    machine.hub("_log", "DELETE")
    machine.apply("ModelDownload", "story-room", {"source": HARBOR, "storage": {"claimName": box}})
    machine.until("modeldownload", "story-room", lambda d: percent(d) >= 10)
    fill = "f = open('/box/fill', 'wb', 0)\ntry:\n  while True: f.write(bytes(1 << 12))\nexcept OSError: pass"
    python(machine, "story-fill", f"import os\n{fill}\nos._exit(0)")
    full = machine.until("modeldownload", "story-room", lambda d: d["status"]["phase"] == "Failed")
    assert reason(full, "SpaceAvailable") == reason(full, "Stalled") == "InsufficientStorage"
    assert f"claim {box} has 100Mi" in condition(full, "SpaceAvailable")["message"]
    reached = percent(full)
    python(machine, "story-clean", "import os; os.remove('/box/fill')")
    machine.kubectl("annotate", "modeldownload", "story-room", "moorage.dev/refresh-at=2026-01-01T00:00:00Z")
    again = machine.until("modeldownload", "story-room", lambda d: d["status"]["phase"] == "Downloading")
    assert percent(again) >= reached >= 10
    hurry(machine)
    machine.until("modeldownload", "story-room", lambda d: d["status"]["phase"] == "Ready")
    assert (fetched := sent(machine, "harbor")) < 1.25 * 64 * MIB, f"{fetched / MIB:.1f} MiB fetched for 64"


CACHE = """
import os, shutil, sys
commit, repo, found = 'c' * 40, '/box/hub/models--org--tiny', None
for folder, _, names in os.walk('/box/story-fill-cache'):
    found = next((f'{folder}/{n}' for n in names if n.endswith('.gguf')), found)
for name in ('refs', 'blobs', f'snapshots/{commit}'):
    os.makedirs(f'{repo}/{name}')
open(f'{repo}/refs/main', 'w').write(commit)
shutil.copy(found, f'{repo}/blobs/b')
os.symlink('../../blobs/b', f'{repo}/snapshots/{commit}/tiny.gguf')
"""


def test_files_that_lie_in_a_claim_are_served_as_they_are(machine: Machine, box: str):
    tiny = {"huggingFace": {"repo": "moorage/tiny-llama-GGUF"}}
    machine.apply("ModelDownload", "story-fill-cache", {"source": tiny, "storage": {"claimName": box}})
    filled = machine.until("modeldownload", "story-fill-cache", lambda d: d.get("status", {}).get("phase") == "Ready")
    python(machine, "story-cache", CACHE)
    machine.hub("_log", "DELETE")
    plain = {"claimName": box, "path": filled["status"]["path"]}
    cache = {"claimName": box, "path": "hub/models--org--tiny", "layout": "HuggingFaceCache"}
    for name, where in (("story-plain", plain), ("story-hfcache", cache)):
        machine.model(name, source={"persistentVolumeClaim": where})
    for name, verified in (("story-plain", "Verified"), ("story-hfcache", "NotVerified")):
        model = machine.until_condition(name, "Ready", "True")
        assert machine.chat(name)["choices"]
        download = machine.get("modeldownload", model["status"]["source"]["downloadName"])
        assert reason(download, "Verified") == verified, "only a folder with a manifest can be compared with it"
    assert not sent(machine, "tiny-llama")


def test_a_plain_url_is_fetched_with_headers_from_a_secret(machine: Machine):
    gated = {"repo": "moorage/gated-llama-GGUF", "tokenSecretRef": {"name": "story-headers", "key": "token"}}
    headers = "--from-literal=headers=Authorization: Bearer hf_harbor"
    machine.kubectl("create", "secret", "generic", "story-headers", headers, "--from-literal=token=hf_harbor")
    try:
        machine.apply("ModelDownload", "story-hub", {"source": {"huggingFace": gated}})
        hub = machine.until("modeldownload", "story-hub", lambda d: d.get("status", {}).get("items"))
        [file] = hub["status"]["items"]
        url = f"http://hub.hub:8090/moorage/gated-llama-GGUF/resolve/main/{file['path']}"
        http = {"url": url, "sha256": file["sha256"], "headersSecretRef": {"name": "story-headers"}}
        machine.apply("ModelDownload", "story-url", {"source": {"http": http}})
        ready = machine.until("modeldownload", "story-url", lambda d: d.get("status", {}).get("phase") == "Ready")
        assert ready["status"]["resolvedRevision"] == file["sha256"]
        wrong = {**http, "sha256": "0" * 64}
        machine.apply("ModelDownload", "story-wrong", {"source": {"http": wrong}})
        found = machine.until("modeldownload", "story-wrong", lambda d: d.get("status", {}).get("phase") == "Failed")
        assert reason(found, "Downloaded") == "ChecksumMismatch"
    finally:
        machine.kubectl("delete", "secret", "story-headers")


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
    machine.kubectl("wait", "--for=delete", "pvc/story-delete", "job/story-delete", "--timeout=240s")
