"""The image is of the engine and for the accelerators that the pod asks for, whatever was known when it was chosen."""

import copy
from dataclasses import replace
from typing import Any

import pytest

from moorage import names
from moorage.placement.vendors import AMD_GPU
from moorage.planning.types import Answer, Resolve
from tests.support.world import SAFETENSORS, World, gpu_node, model
from tests.unit.test_planning_upgrade import LLAMA, live, running

ROCM, CUDA = "llamacpp-rocm:1", "llamacpp-cuda:1"
STRANGER = {"namespace": "x", "name": "other", "node": "gpu-1", "phase": "Running", "labels": {}, "gpus": {AMD_GPU: 1}}
DONE = '{"reason": "Complete", "message": "done", "bytes": 4294967296, "commit": "%s", "manifestDigest": "d2"}'


def amd_node(name: str) -> dict[str, Any]:
    labels = {"kubernetes.io/hostname": name, "amd.com/gpu.vram": "24G"}
    return gpu_node(name, 24_564) | {"gpus": {AMD_GPU: 1}, "labels": labels}


def on_amd(**spec: Any) -> World:
    """A Model that is Ready on the only GPU there is, an AMD one that placement found by itself."""
    world = World(model(accelerator={"vendor": "Auto"}, **spec))
    world.nodes = [amd_node("gpu-1")]
    world.answer_resolve(LLAMA).download_done()
    world.pod_is("p1", ready=True, node="gpu-1", gpus={AMD_GPU: 1})
    world.settle().token()
    assert (world.phase, live(world)["image"]) == ("Ready", ROCM)
    return world


def made_by_an_older_version(world: World) -> None:
    live(world)["imageFor"] = ""


def template(world: World) -> dict[str, Any]:
    pod: dict[str, Any] = world.manifests[("Deployment", "tiny")]["spec"]["template"]["spec"]
    return pod


def gpus(world: World) -> dict[str, Any]:
    limits = template(world)["containers"][0]["resources"].get("limits", {})
    return {resource: count for resource, count in limits.items() if "/" in resource}


@pytest.mark.parametrize("older", [False, True])
def test_who_sleeps_while_the_gpu_is_taken_keeps_its_image_and_what_it_learned(older):
    world = on_amd()
    if older:
        made_by_an_older_version(world)
    world.model["status"]["memory"]["learned"] |= {"observedGpuMiB": 9000, "gpus": 1}
    world.change(replicas=0).settle().pods_go()
    learned = world.model["status"]["memory"]["learned"]
    world.defaults = replace(world.defaults, llamacpp_nvidia_image="cuda:2", llamacpp_amd_image="rocm:2")
    world.strangers = [STRANGER]
    world.settle()
    assert "vendor" not in world.model["status"]["placement"], "nothing is decided"
    assert (live(world)["image"], gpus(world)) == (ROCM, {})
    world.strangers = []
    world.settle()
    assert (live(world)["image"], gpus(world)) == (ROCM, {AMD_GPU: "1"})
    assert world.model["status"]["memory"]["learned"]["inputsHash"] == learned["inputsHash"]
    assert world.change(replicas=1).settle().model["status"]["memory"]["learned"]["inputsHash"] == learned["inputsHash"]
    assert live(world)["wanted"] == 1


def test_a_newer_image_for_the_right_accelerators_is_told_of_while_no_gpu_is_free():
    world = on_amd()
    world.change(replicas=0).settle().pods_go()
    world.strangers = [STRANGER]
    world.defaults = replace(world.defaults, llamacpp_nvidia_image="cuda:2", llamacpp_amd_image="rocm:2")
    world.settle()
    assert world.condition("UpToDate")[2].startswith("image rocm:2 is available")


def test_an_image_that_was_guessed_before_there_was_a_gpu_gives_way():
    """Made asleep while no GPU is free: nobody knows yet whose it will be."""
    world = World(model(accelerator={"vendor": "Auto"}, replicas=0))
    world.nodes, world.strangers = [amd_node("gpu-1")], [STRANGER]
    world.answer_resolve(LLAMA).download_done()
    assert live(world)["image"] == CUDA
    world.strangers = []
    world.settle()
    assert (live(world)["image"], gpus(world)) == (ROCM, {AMD_GPU: "1"})


def second_pass_with_an_old_mirror(world: World) -> tuple[dict[str, Any], dict[str, Any]]:
    """The Deployment after one pass, and as a second one would write it that has not seen that."""
    before = copy.deepcopy(live(world))
    world._pass_model()
    written = world.manifests[("Deployment", "tiny")]
    world.children[("Deployment", "tiny")] = before
    (again,) = [m for m in world.plan().apply if m["kind"] == "Deployment"]
    return written, again


@pytest.mark.parametrize("older", [False, True])
def test_other_accelerators_get_their_image_though_the_mirror_is_a_pass_behind(older):
    world = running(gpu_node("gpu-1", 24_564))
    if older:
        made_by_an_older_version(world)
    world.nodes.append(amd_node("gpu-2"))
    world.change(accelerator={"vendor": "AMD"})
    written, again = second_pass_with_an_old_mirror(world)
    assert written["spec"]["template"]["spec"]["containers"][0]["image"] == ROCM
    assert again == written
    world.settle()
    assert (live(world)["image"], gpus(world)) == (ROCM, {AMD_GPU: "1"})


def test_another_engine_gets_its_image_though_the_mirror_is_a_pass_behind():
    world = running(gpu_node("gpu-1", 81_559))
    world.change(source={"huggingFace": {"repo": "org/qwen"}})
    world.resolved, world.asked, world.download = None, [], None
    world.settle()
    world.resolved = Answer(next(a for a in world.asked if isinstance(a, Resolve)).inputs, SAFETENSORS)
    world.asked = []
    world._pass_model()
    world._pass_model()
    world._pass_download()
    ask = next(a for a in world.asked if isinstance(a, Resolve))
    world.download_resolved = Answer(ask.inputs, SAFETENSORS)
    for _ in range(4):
        world._pass_download()
    job = world.job()
    ended = {"exitCode": 0, "message": DONE % ("d" * 40), "finishedAt": "2026-01-01T00:00:09Z"}
    state = {"terminated": ended, "startedAt": None, "node": "n1", "ready": False}
    world.pod_is("job", **state)
    world.pods["job"] |= {"owner": job["uid"], "labels": job["labels"], "phase": "Succeeded"}
    world.pods["job"]["containers"][0]["name"] = "download"
    job["complete"] = True
    world.pods = {name: world.pods[name] for name in ("p1", "job")}
    world._pass_download()
    world._pass_download()
    assert world.download is not None
    assert world.download["status"]["phase"] == "Ready"
    written, again = second_pass_with_an_old_mirror(world)
    assert written["spec"]["template"]["spec"]["containers"][0]["image"] == "vllm:v0.32.0"
    assert again == written


def test_a_deployment_of_an_older_version_is_not_written_only_to_say_what_its_image_is_for():
    world = running()
    made_by_an_older_version(world)
    before = world.writes
    world.settle()
    assert world.writes == before
    world.change(contextLength=2048).settle()
    assert live(world)["imageFor"] == "LlamaCpp/Nvidia"
    assert world.manifests[("Deployment", "tiny")]["metadata"]["annotations"][names.IMAGE_FOR] == "LlamaCpp/Nvidia"


def test_a_gpu_that_a_person_asks_for_by_hand_is_no_other_accelerator():
    """An older version did not say what the image is for, and the template tells of a GPU that Moorage did not give."""
    limits = {"limits": {"nvidia.com/gpu": 1}}
    world = running(accelerator={"vendor": "None"}, resources=limits)
    made_by_an_older_version(world)
    world.defaults = replace(world.defaults, llamacpp_image="llamacpp:2")
    world.settle()
    assert (live(world)["image"], live(world)["generation"]) == ("llamacpp:1", 1)
