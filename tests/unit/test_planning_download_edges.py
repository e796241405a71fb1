"""What is rare and still happens to a ModelDownload."""

import json
from typing import Any

import pytest

from moorage import names
from moorage.planning.types import Answer, Progress, Resolve
from tests.support.world import GGUF, World, claim, model


def fetching() -> World:
    return World(model()).answer_resolve(GGUF)


def running(world: World, **state: Any) -> None:
    """The download's pod runs."""
    job = world.job()
    world.pods["d"] = {
        "name": "d", "uid": "d", "owner": job["uid"], "labels": job["labels"], "phase": "Running", "node": "n1",
        "ip": "10.0.0.3", "ready": True, "gpus": {}, "created": "", "unschedulable": "", "deleting": False,
        "templateHash": "", "containers": [], **state,
    }  # fmt: skip


def former(child: dict[str, Any]) -> None:
    """Make `child` one that a ModelDownload of the same name left behind."""
    child["owner"] = "uid-former"


def test_a_former_downloads_job_is_waited_for():
    world = fetching()
    former(world.job())
    world.settle()
    assert world.download["status"]["phase"] == "Pending"
    assert world.of_download("Stalled")[0] == "False"
    del world.children[("Job", world.download["metadata"]["name"])]
    world.settle().download_done()
    assert world.download["status"]["phase"] == "Ready"


def test_a_strangers_job_is_named_and_nothing_ends_for_good():
    world = fetching()
    name = world.download["metadata"]["name"]
    world.children[("Job", name)] = {"stranger": True, "uid": "x", "labels": {}}
    world.settle()
    assert world.condition("Downloaded")[:2] == ("False", "NameTaken")
    assert world.phase == "Blocked"
    del world.children[("Job", name)]
    world.settle().download_done()
    assert world.phase == "Loading"


def test_a_former_downloads_claim_is_waited_for():
    world = fetching()
    former(world.children[("PersistentVolumeClaim", world.download["metadata"]["name"])])
    world.settle()
    status, reason, message = world.of_download("SpaceAvailable")
    assert (status, reason) == ("False", "WaitingForVolume")
    assert "earlier claim" in message


def test_cancelled_and_active_again_makes_a_claim_with_room_for_the_files():
    world = fetching()
    name = world.download["metadata"]["name"]
    before = world.manifests[("PersistentVolumeClaim", name)]["spec"]["resources"]
    world.download["spec"]["state"] = "Cancelled"
    world.settle()
    assert world.download["status"]["bytes"] == {"total": 4 * 2**30, "done": 0}
    world.download["spec"]["state"] = "Active"
    world.settle()
    assert world.manifests[("PersistentVolumeClaim", name)]["spec"]["resources"] == before


def test_a_claim_that_is_deleted_takes_the_files_with_it():
    world = fetching().download_done()
    name = world.download["metadata"]["name"]
    del world.children[("PersistentVolumeClaim", name)]
    world.settle()
    assert world.download["status"]["percent"] == 0, "nothing of it is there"
    assert world.of_download("Ready")[0] == "False"
    assert world.job(), "they are fetched again"
    world.download_done()
    assert world.of_download("Ready")[0] == "True"


def test_a_missing_claim_no_longer_matters_once_it_is_there():
    source = {"persistentVolumeClaim": {"claimName": "mine"}}
    world = World(model(source=source)).settle()
    assert world.condition("Downloaded")[:2] == ("False", "ClaimNotFound")
    assert world.phase == "Blocked"
    world.children[("PersistentVolumeClaim", "mine")] = claim("mine")
    world.settle()
    assert world.of_download("Ready")[1] == "Downloading"
    assert world.phase == "Downloading"


def test_one_failure_counts_once_however_often_it_is_seen():
    world = fetching()
    job = dict(world.job())
    world.job_ends(33, json.dumps({"reason": "Network", "message": "reset"}), complete=False)
    key = ("Job", world.download["metadata"]["name"])
    for _ in range(3):
        world.children[key] = {**job, "failed": True}
        world.settle()
    assert world.download["status"]["attempts"] == 1


def test_a_verification_that_fails_for_good_is_not_begun_again():
    world = fetching().download_done()
    world.download["metadata"]["annotations"] = {names.VERIFY_AT: "2026-01-02T00:00:00Z"}
    world.settle()
    world.job_ends(20, json.dumps({"reason": "ChecksumMismatch", "message": "bits rot"}), complete=False)
    assert world.download["status"]["phase"] == "Failed"
    assert not [k for k, _ in world.children if k == "Job"]
    world.later(3600).settle()
    assert not [k for k, _ in world.children if k == "Job"]


def test_any_failure_for_good_blocks_the_model():
    world = fetching().job_ends(20, json.dumps({"reason": "NobodyHeardOf", "message": "odd"}), complete=False)
    assert world.download["status"]["phase"] == "Failed"
    assert world.phase == "Blocked"
    assert world.condition("Stalled")[0] == "True"


def test_a_cancelled_download_is_told_as_such():
    world = fetching()
    world.download["spec"]["state"] = "Cancelled"
    world.settle()
    assert world.condition("Downloaded")[:2] == ("False", "Cancelled")


def test_a_changed_spec_gives_a_failed_download_another_chance():
    world = fetching().job_ends(21, json.dumps({"reason": "VolumeError", "message": "read-only"}), complete=False)
    assert world.download["status"]["phase"] == "Failed"
    world.download["spec"]["connections"] = 2
    world.download["metadata"]["generation"] = 2
    world.settle()
    assert world.job()
    assert world.download["status"]["phase"] == "Checking"


def test_a_job_that_gets_no_pod_says_where_to_look():
    world = fetching()
    world.job()["started"] = "2026-01-01T00:00:00Z"
    world.settle()
    plan = world.plan_download()
    assert plan.requeue_after is not None
    world.later(60).settle()
    message = world.of_download("Downloaded")[2]
    assert "no pod" in message
    assert "kubectl describe job" in message


def test_progress_that_makes_no_sense_is_not_believed():
    for odd in ({}, {"phase": "Downloading"}, {"phase": [], "bytes": {"total": -1, "done": "x"}, "files": 3}):
        world = fetching()
        running(world)
        world.progress = odd
        world.settle()
        assert world.download["status"]["phase"] == "Checking"


@pytest.mark.parametrize(
    ("ip", "url"), [("10.0.0.1", "http://10.0.0.1:9400/progress"), ("fd00::1", "http://[fd00::1]:9400/progress")]
)
def test_progress_is_asked_at_addresses_of_both_families(ip: str, url: str):
    world = fetching()
    running(world, ip=ip)
    ask = next(a for a in world.plan_download().ask if isinstance(a, Progress))
    assert ask.url == url


def test_a_persons_download_fetches_the_files_it_counted():
    world = World(model())
    files = [f["path"] for f in GGUF["files"]]
    world.answer_resolve(GGUF)
    world.download["spec"] = {"source": {"huggingFace": {"repo": "org/tiny", "quantization": "Q4_K_M"}}}
    world.download["status"] = {}
    world.children.clear()
    world.settle()
    world.download_resolved = world.resolved.__class__(world.plan_download().ask[0].inputs, GGUF)
    world.settle()
    args = world.manifests[("Job", world.download["metadata"]["name"])]["spec"]["template"]["spec"]["containers"][0][
        "args"
    ]
    assert [args[i + 1] for i, a in enumerate(args) if a == "--file"] == files
    assert "--include" not in args


def test_the_query_of_a_url_is_in_no_name():
    url = "https://files.example/tiny.gguf?token=hush/hush"
    world = World(model(source={"http": {"url": url, "sha256": "a" * 64}})).answer_resolve(GGUF)
    assert "hush" not in world.download["metadata"]["name"]
    assert world.download["metadata"]["name"].startswith("tiny-gguf-")


def test_conditions_of_a_ready_download_are_said_about_its_generation():
    world = fetching().download_done()
    world.download["spec"]["connections"] = 2
    world.download["metadata"]["generation"] = 2
    world.settle()
    said = {c["type"]: c["observedGeneration"] for c in world.download["status"]["conditions"]}
    assert set(said.values()) == {2}, said


def test_a_model_in_more_parts_than_a_status_holds_is_refused_and_not_fetched_in_part():
    parts = [{"path": f"big-{i:05}-of-00070.gguf", "sizeBytes": 10} for i in range(1, 71)]
    world = World(model()).settle()
    world.resolved = Answer(world.asked[0].inputs, {**GGUF, "files": parts})
    world.settle()
    assert world.condition("Accepted")[:2] == ("False", "UnsupportedFormat")
    assert "70 files" in world.condition("Accepted")[2]


def test_the_same_content_looked_up_again_has_lost_no_progress():
    world = fetching()
    running(world)
    world.progress = {"phase": "Downloading", "bytes": {"total": 4 * 2**30, "done": 2**30}}
    world.settle()
    world.download["metadata"]["annotations"] = {names.REFRESH_AT: "2026-01-01T00:00:00Z"}
    world._pass_download()
    ask = next(a for a in world.asked if isinstance(a, Resolve))
    world.download_resolved = Answer(ask.inputs, GGUF)
    world._pass_download()
    assert world.download["status"]["percent"] == 25
    world.download["metadata"]["annotations"] = {names.REFRESH_AT: "2026-01-02T00:00:00Z"}
    world._pass_download()
    ask = next(a for a in world.asked if isinstance(a, Resolve))
    world.download_resolved = Answer(ask.inputs, {**GGUF, "commit": "f" * 40})
    world._pass_download()
    assert world.download["status"]["percent"] == 0, "another content begins at its own first byte"


def test_a_pod_that_has_not_counted_its_files_yet_takes_none_away():
    world = fetching()
    running(world)
    world.progress = {"phase": "Downloading", "bytes": {"total": 0, "done": 0}, "files": {"total": 0, "done": 0}}
    world.settle()
    assert world.download["status"]["files"] == {"total": 1, "done": 0}


def test_a_full_volume_makes_one_event():
    world = fetching().job_ends(21, json.dumps({"reason": "InsufficientStorage", "message": "full"}), complete=False)
    assert world.events.count(("Warning", "InsufficientStorage")) == 2, "the download's, and the Model's"


def test_a_job_that_somebody_suspends_says_so():
    world = fetching()
    world.job()["suspended"] = True
    world.settle()
    assert world.download["status"]["phase"] == "Pending"
    assert "spec.suspend is false" in world.of_download("Ready")[2]
