"""The life of a ModelDownload as the planner decides it."""

import json

import pytest

from moorage import names
from moorage.api.common import quantity_bytes
from moorage.planning.download_job import claim_bytes
from moorage.planning.types import Answer, Resolve, Window
from tests.support.world import GGUF, World, claim, model


def fetching() -> World:
    return World(model()).answer_resolve(GGUF)


def test_a_claim_and_a_job_are_made_for_the_resolved_commit():
    world = fetching()
    name = world.download["metadata"]["name"]
    wanted = world.manifests[("PersistentVolumeClaim", name)]["spec"]["resources"]["requests"]["storage"]
    assert quantity_bytes(wanted) == claim_bytes(4 * 2**30)
    assert wanted == "5Gi", "as people write it: quotas repeat it"
    job = world.manifests[("Job", name)]
    args = job["spec"]["template"]["spec"]["containers"][0]["args"]
    assert args[0] == "download"
    assert args[args.index("--revision") + 1] == "c" * 40
    assert args[args.index("--file") + 1] == "tiny-Q4_K_M.gguf"
    assert args[args.index("--dest") + 1] == f"/models/{name}"
    assert job["spec"]["template"]["spec"]["automountServiceAccountToken"] is False


def running() -> World:
    """A download whose pod runs."""
    world = fetching()
    job = world.job()
    world.pods["d"] = {
        "name": "d", "uid": "d", "owner": job["uid"], "labels": job["labels"], "phase": "Running", "node": "n1",
        "ip": "10.0.0.7", "ready": True, "gpus": {}, "created": "2026", "unschedulable": "", "deleting": False,
        "containers": [],
    }  # fmt: skip
    return world


def test_progress_is_shown_and_never_goes_back():
    world = running()

    def tell(done: int) -> None:
        world.progress = {
            "phase": "Downloading", "files": {"total": 1, "done": 0}, "bytes": {"total": 4 * 2**30, "done": done},
            "bytesPerSecond": 212 * 2**20, "remainingSeconds": 110, "retries": 2, "lastError": None,
        }  # fmt: skip
        world.settle()

    tell(2 * 2**30)
    summary = world.download["status"]["summary"]
    assert summary["progress"] == "50%"
    assert summary["done"] == "2.0/4.0Gi"
    assert summary["speed"] == "212 MiB/s"
    assert summary["eta"] == "1m50s"
    assert world.message == "50% of 4.0Gi, 212 MiB/s, 1m50s left"
    assert world.phase == "Downloading"
    tell(2**30)
    assert world.download["status"]["percent"] == 50
    assert world.download["status"]["bytes"]["done"] == 2 * 2**30


def test_a_finished_job_leaves_a_ready_download_and_is_cleared_away():
    world = fetching().download_done()
    status = world.download["status"]
    assert status["phase"] == "Ready"
    assert status["manifestDigest"] == "d1"
    assert status["path"] == f"{world.download['metadata']['name']}/{'c' * 40}"
    for kind in ("Resolved", "SpaceAvailable", "Downloaded", "Verified", "Ready"):
        assert world.of_download(kind)[0] == "True", kind
    assert not [k for k, _ in world.children if k == "Job" and names.DOWNLOAD_LABEL in world.children[(k, _)]["labels"]]


def test_faults_on_the_way_are_kept_in_status():
    """From progress and from the report of a failed attempt; whoever has the pod's address may send anything."""
    world = running()
    progress = {"phase": "Downloading", "bytes": {"total": 2**32, "done": 1}, "retries": 3}
    for faults in ({"stalls": 2, "wrongBytes": 0, "changedOnDisk": 0}, {"stalls": "many"}, "none", None):
        world.progress = {**progress, "faults": faults}
        world.settle()
        assert world.download["status"]["faults"] == {"stalls": 2}
    report = {"reason": "ChecksumMismatch", "message": "m", "faults": {"stalls": 2, "wrongBytes": 2}}
    world.job_ends(22, json.dumps(report), complete=False)
    assert world.download["status"]["faults"] == {"stalls": 2, "wrongBytes": 2}


def test_a_permanent_error_ends_it_until_the_spec_changes():
    world = fetching().job_ends(
        21, json.dumps({"reason": "InsufficientStorage", "message": "needs 4.0Gi, 1.0Gi free"}), complete=False
    )
    assert world.download["status"]["phase"] == "Failed"
    status, reason, message = world.of_download("SpaceAvailable")
    assert (status, reason) == ("False", "InsufficientStorage")
    assert message.startswith("needs 4.0Gi, 1.0Gi free; claim ")
    assert world.of_download("Stalled")[0] == "True"
    assert world.condition("Downloaded")[:2] == ("False", "InsufficientStorage")
    assert world.phase == "Blocked"
    before = world.writes
    world.later(3600).settle()
    assert world.writes == before, "a permanent error is not tried again"


def test_a_passing_error_is_tried_again_later_and_later():
    world = fetching()
    waits = []
    for _ in range(3):
        world.job_ends(33, json.dumps({"reason": "Network", "message": "connection reset"}), complete=False)
        assert world.download["status"]["phase"] == "Retrying"
        assert not [k for k, _ in world.children if k == "Job"]
        plan = world.plan_download()
        waits.append(plan.requeue_after)
        world.later(plan.requeue_after).settle()
        assert [k for k, _ in world.children if k == "Job"], "the next attempt begins when it was said to"
    assert waits == sorted(waits)
    assert waits[-1] > waits[0]


def test_a_lost_result_runs_the_job_again():
    world = fetching()
    job = world.job()
    job["complete"] = True
    world.settle()
    assert world.job()["complete"] is False, "a new Job finds the files verified"
    world.download_done()
    assert world.download["status"]["phase"] == "Ready"


@pytest.mark.parametrize(("state", "phase"), [("Paused", "Paused"), ("Cancelled", "Cancelled")])
def test_pause_and_cancel_stop_the_job_and_active_goes_on(state: str, phase: str):
    world = fetching()
    world.download["spec"]["state"] = state
    world.settle()
    assert world.download["status"]["phase"] == phase
    assert not [k for k, _ in world.children if k == "Job"]
    name = world.download["metadata"]["name"]
    assert (("PersistentVolumeClaim", name) in world.children) == (state == "Paused")
    world.download["spec"]["state"] = "Active"
    world.settle()
    assert [k for k, _ in world.children if k == "Job"]


def test_an_unused_download_goes_after_its_time_and_not_before():
    world = fetching().download_done()
    world.users = ()
    world._pass_download()
    assert world.download["status"]["unusedSince"]
    world.later(23 * 3600)
    world._pass_download()
    assert world.download is not None
    world.later(3601)
    world._pass_download()
    assert world.download is None


def test_retain_and_a_persons_own_download_are_kept():
    kept = World(model(storage={"reclaimPolicy": "Retain"})).answer_resolve(GGUF)
    made = kept.manifests[("PersistentVolumeClaim", kept.download["metadata"]["name"])]
    assert "ownerReferences" not in made["metadata"]
    own = fetching()
    own.download["metadata"]["labels"] = {}
    for world in (kept, own):
        world.users = ()
        world.later(1)._pass_download()
        world.later(100 * 3600)._pass_download()
        assert world.download is not None


def test_a_missing_storage_class_is_named():
    world = World(model())
    world.storage_class_missing = "there is no StorageClass fast; the cluster has: slow"
    world.answer_resolve(GGUF)
    assert world.of_download("SpaceAvailable") == ("False", "WaitingForVolume", world.storage_class_missing)
    assert "fast" in world.message


def test_a_prefilled_claim_is_inspected_and_nothing_is_fetched():
    source = {"persistentVolumeClaim": {"claimName": "mine", "path": "llama"}}
    world = World(model(source=source)).settle()
    assert world.of_download("SpaceAvailable")[:2] == ("False", "ClaimNotFound")
    world.children[("PersistentVolumeClaim", "mine")] = claim("mine")
    world.settle()
    job = world.manifests[("Job", world.download["metadata"]["name"])]
    container = job["spec"]["template"]["spec"]["containers"][0]
    assert container["args"][:3] == ["download", "--inspect", "/models/llama"]
    assert container["volumeMounts"][0]["readOnly"] is True
    facts = {"format": "GGUF", "mainFile": "m.gguf", "contextLength": 2048}
    report = {"reason": "Complete", "message": "", "bytes": 10, "fileCount": 1, "manifestDigest": "d", "facts": facts}
    world.job_ends(0, json.dumps(report), complete=True)
    assert world.phase == "Loading"
    server = world.manifests[("Deployment", "tiny")]["spec"]["template"]["spec"]["containers"][0]
    assert server["args"][1] == "/models/llama/m.gguf"


def test_outside_its_window_a_download_pauses_and_goes_on_by_itself():
    world = fetching()
    world.download["spec"]["window"] = {"start": "22:00", "end": "06:00", "timeZone": "UTC"}
    world.window = Window(open=False, changes_in=3600)
    world.settle()
    assert world.download["status"]["phase"] == "Paused"
    assert not [k for k, _ in world.children if k == "Job"]
    assert world.of_download("Downloaded")[:2] == ("False", "OutsideWindow")
    assert "22:00 to 06:00 UTC" in world.message
    assert world.plan_download().requeue_after == 3601
    world.window = Window(open=True, changes_in=3600)
    world.settle()
    assert [k for k, _ in world.children if k == "Job"]


def test_a_time_zone_that_does_not_exist_is_said_and_nothing_starts():
    world = World(model()).settle()
    world.window = Window(open=False, changes_in=0, problem="spec.window.timeZone 'Mars' is not a time zone")
    world.answer_resolve(GGUF)
    world.download["spec"]["window"] = {"start": "22:00", "end": "06:00", "timeZone": "Mars"}
    world.children = {k: v for k, v in world.children.items() if k[0] != "Job"}
    world.settle()
    assert world.of_download("Downloaded") == ("False", "InvalidSpec", world.window.problem)


def test_a_download_waits_for_its_turn():
    world = World(model())
    world.ahead = 3
    world.answer_resolve(GGUF)
    assert not [k for k, _ in world.children if k == "Job"]
    assert world.of_download("Downloaded") == ("False", "Queued", "waits for its turn, 3 downloads go first")
    world.ahead = 0
    world.settle()
    assert [k for k, _ in world.children if k == "Job"]


def test_files_are_verified_again_on_request_and_stay_served_meanwhile():
    world = World(model(benchmark={"enabled": False})).ready()
    world.download["metadata"]["annotations"] = {names.VERIFY_AT: "2026-01-02T00:00:00Z"}
    world.settle()
    assert world.job()
    assert world.of_download("Verified")[:2] == ("Unknown", "Verifying")
    assert world.of_download("Ready")[0] == "True"
    assert world.phase == "Ready"
    world.download_done()
    assert world.of_download("Verified")[0] == "True"
    assert world.download["status"]["verifyRequest"] == "2026-01-02T00:00:00Z"
    assert not [k for k, _ in world.children if k == "Job"]
    before = world.writes
    assert world.settle().writes == before


def test_a_refusal_that_a_token_can_mend_is_asked_about_again():
    world = fetching()
    denied = json.dumps({"reason": "GatedAccessDenied", "message": "access denied: the repository is gated"})
    world.job_ends(11, denied, complete=False)
    assert world.download["status"]["phase"] == "Failed"
    assert world.phase == "Blocked"
    world.asked = []
    world.later(61).settle()
    probe = next(a for a in world.asked if isinstance(a, Resolve))
    world.download_resolved = Answer(probe.inputs, GGUF)
    world.settle()
    assert [k for k, _ in world.children if k == "Job"], "the Secret was mended, so it is tried once more"
    world.job_ends(11, denied, complete=False)
    assert world.plan_download().requeue_after > 61, "and more patiently each time"


def test_a_claim_grows_with_its_content_and_never_shrinks():
    world = fetching()
    name = world.download["metadata"]["name"]
    world.children[("PersistentVolumeClaim", name)]["request"] = "100Gi"
    again = next(m for m in world.plan_download().apply if m["kind"] == "PersistentVolumeClaim")
    assert again["spec"]["resources"]["requests"]["storage"] == "100Gi"


def test_a_claim_that_is_being_deleted_is_waited_for():
    world = fetching()
    name = world.download["metadata"]["name"]
    world.children[("PersistentVolumeClaim", name)]["deleting"] = True
    world.settle()
    assert world.of_download("SpaceAvailable")[:2] == ("False", "WaitingForVolume")
    del world.children[("PersistentVolumeClaim", name)]
    world.settle()
    assert ("PersistentVolumeClaim", name) in world.children


def test_a_deadline_ends_it_and_a_longer_one_goes_on():
    world = fetching()
    spec = world.download["spec"]
    world.download["spec"] = {**spec, "retry": {"deadline": "1h"}}
    world.settle()
    world.later(3595)
    assert world.plan_download().requeue_after == 6, "it looks again when the time is over"
    world.later(6).settle()
    status, reason, message = world.of_download("Downloaded")
    assert (status, reason) == ("False", "DeadlineExceeded")
    assert "within 1h" in message
    assert world.download["status"]["phase"] == "Failed"
    assert world.of_download("Stalled")[0] == "True"
    assert world.phase == "Blocked"
    assert not [k for k, _ in world.children if k == "Job"]
    world.download["spec"] = {**spec, "retry": {"deadline": "3h"}}
    world.download["metadata"]["generation"] += 1
    world.settle()
    assert world.job()
    assert world.of_download("Stalled")[0] == "False"
    world.download_done().later(10**6).settle()
    assert world.download["status"]["phase"] == "Ready", "what is there is there"
