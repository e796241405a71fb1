"""The claim of a ModelDownload: it grows where it can, says why where it cannot, and is waited for with words."""

import json
from typing import Any

import pytest

from tests.support.world import GGUF, World, model

GIB = 2**30
EXPANDABLE = {"name": "fast", "default": True, "expandable": True, "provisioner": "csi.example.com"}
EXPANDABLE |= {"bindingMode": "WaitForFirstConsumer"}
FIXED = {**EXPANDABLE, "name": "local", "expandable": False}


def of(size: int) -> dict[str, Any]:
    """The same repository with a file of another size."""
    return {**GGUF, "commit": "e" * 40, "files": [{**GGUF["files"][0], "sizeBytes": size, "sha256": "b" * 64}]}


def fetched(storage_class: dict[str, Any], **storage: Any) -> World:
    """4 GiB fetched into a claim of 5Gi of `storage_class`."""
    world = World(model(storage=storage)).answer_resolve(GGUF)
    live(world).update(phase="Bound", capacity="5Gi", storageClass=storage_class["name"])
    world.storage_class = storage_class
    return world.download_done()


def live(world: World) -> dict[str, Any]:
    return world.children[("PersistentVolumeClaim", world.download["metadata"]["name"])]


def wants(world: World, size: int) -> World:
    """The download, a person's by now, is to hold a larger file."""
    source = {"huggingFace": {"repo": "org/tiny", "revision": "next"}}
    world.download = {**world.download, "spec": {**world.download["spec"], "source": source}}
    world.download["metadata"]["generation"] += 1
    world._pass_download()
    ask = next(a for a in world.asked if type(a).__name__ == "Resolve")
    world.download_resolved = type(world.download_resolved)(ask.inputs, of(size))
    world._pass_download()
    return world


def no_space(world: World) -> World:
    told = {"reason": "InsufficientStorage", "message": "no space left: needs 9.0Gi, 5.0Gi free"}
    return world.job_ends(21, json.dumps(told), complete=False)


def test_a_claim_grows_where_its_class_allows_that():
    world = wants(fetched(EXPANDABLE), 9 * GIB)
    assert live(world)["request"] == "10Gi"
    live(world).update(growing="Resizing", phase="Bound", capacity="5Gi")
    world._pass_download()
    status, reason, message = world.of_download("SpaceAvailable")
    assert (status, reason) == ("False", "WaitingForVolume")
    assert "from 5.0Gi to 10.0Gi" in message
    assert not [k for k, _ in world.children if k == "Job"]
    live(world)["growing"] = "FileSystemResizePending"  # which waits for a pod that mounts it
    world._pass_download()
    assert world.job()


def test_a_claim_that_cannot_grow_is_named_and_tried_all_the_same():
    world = wants(fetched(FIXED), 9 * GIB)
    assert live(world)["request"] == "5Gi", "the API server would refuse a larger request"
    world._pass_download()
    status, _, message = world.of_download("SpaceAvailable")
    assert status == "Unknown"
    assert "StorageClass local does not let it grow" in message
    assert world.job(), "volumes are often larger than they say"
    no_space(world)
    message = world.of_download("SpaceAvailable")[2]
    assert "needs 9.0Gi, 5.0Gi free" in message
    assert "StorageClass local does not let it grow" in message
    assert "delete this ModelDownload" in message


def test_a_claim_that_a_person_enlarges_is_tried_again_at_once():
    world = no_space(fetched_too_small())
    assert world.download["status"]["phase"] == "Failed"
    assert "kubectl edit pvc" in world.of_download("SpaceAvailable")[2]
    before = world.writes
    world._pass_download()
    assert world.writes == before, "it rests until something changes"
    live(world).update(request="20Gi", capacity="20Gi")
    world.settle()
    assert world.job()
    assert world.download["status"]["phase"] == "Checking"
    assert world.of_download("Stalled")[0] == "False"


def fetched_too_small() -> World:
    world = World(model(storage={"size": "5Gi"})).answer_resolve(GGUF)
    live(world).update(phase="Bound", capacity="5Gi", storageClass="fast")
    world.storage_class = EXPANDABLE
    return world.settle()


@pytest.mark.parametrize(
    ("storage_class", "words"),
    [
        ({**FIXED, "bindingMode": "Immediate"}, ["StorageClass local", "csi.example.com", "kubectl describe pvc"]),
        (
            {**FIXED, "bindingMode": "Immediate", "provisioner": "kubernetes.io/no-provisioner"},
            ["makes none by itself"],
        ),
    ],
)
def test_a_pod_that_waits_for_an_unbound_claim_says_whose_turn_it_is(storage_class: dict[str, Any], words: list[str]):
    world = World(model()).answer_resolve(GGUF)
    world.storage_class = storage_class
    pending(world, unschedulable="pod has unbound immediate PersistentVolumeClaims")
    status, reason, message = world.of_download("Downloaded")
    assert (status, reason) == ("False", "WaitingForVolume")
    for word in words:
        assert word in message
    assert world.condition("Downloaded")[1] == "WaitingForVolume"


def test_a_claim_that_waits_for_its_pod_leaves_the_word_to_the_scheduler():
    world = World(model()).answer_resolve(GGUF)
    world.storage_class = FIXED
    pending(world, unschedulable="0/1 nodes are available: 1 Insufficient cpu.")
    assert world.of_download("Downloaded")[1] == "Unschedulable"
    world.pods["d"]["unschedulable"] = ""
    world.settle()
    assert world.of_download("Downloaded")[1] == "WaitingForVolume"
    world.pods["d"]["created"] = world.now.strftime("%Y-%m-%dT%H:%M:%SZ")
    world.settle()
    assert world.of_download("Downloaded")[1] == "Downloading", "every volume takes a moment"
    assert world.plan_download().requeue_after == 15


def pending(world: World, **state: Any) -> None:
    job = world.job()
    world.pods["d"] = {
        "name": "d", "uid": "d", "owner": job["uid"], "labels": job["labels"], "phase": "Pending", "node": "",
        "ip": "", "ready": False, "gpus": {}, "created": "2025-12-31T00:00:00Z", "deleting": False,
        "containers": [], **state,
    }  # fmt: skip
    world.settle()


def test_the_status_tells_what_the_volume_is_like():
    world = fetched(FIXED)
    world.volume = {"claim": "c", "bound": True, "accessModes": [], "nodes": ["n1"], "mounted": {}}
    world.settle()
    assert world.download["status"]["volume"] == {
        "accessModes": ["ReadWriteOnce"], "capacityBytes": 5 * GIB, "node": "n1",
    }  # fmt: skip


def test_a_storage_class_that_vanished_before_the_claim_was_bound_is_named():
    world = World(model()).answer_resolve(GGUF)
    world.storage_class_missing = "there is no StorageClass fast; the cluster has: local"
    world.settle()
    assert world.of_download("SpaceAvailable") == ("False", "WaitingForVolume", world.storage_class_missing)
    live(world).update(phase="Bound")
    world.settle()
    assert world.of_download("SpaceAvailable")[0] == "Unknown", "a bound claim needs its class no more"
