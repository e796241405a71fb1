"""A Model's status tells what it can do, and its server is started and asked accordingly."""

from typing import Any

import pytest

from moorage.planning.types import Answer, WarmUp
from tests.support.world import GGUF, SAFETENSORS, World, model

CHAT = ["chat", "completion", "tools", "structured_outputs"]


def source(*shows: str, base: dict[str, Any] = GGUF) -> dict[str, Any]:
    """What the hub answers for files that show this."""
    return {**base, "facts": {**base["facts"], "shows": list(shows)}}


def told(world: World) -> dict[str, str]:
    return {found["name"]: found["evidence"] for found in world.model["status"].get("capabilities", [])}


def arguments(world: World) -> list[str]:
    pod = world.manifests["Deployment", "tiny"]["spec"]["template"]["spec"]
    return list(pod["containers"][0]["args"])


def question(world: World) -> WarmUp:
    return next(ask for ask in world.asked if isinstance(ask, WarmUp))


def reports(world: World, **report: bool) -> World:
    ask = question(world)
    world.warmed = Answer(ask.template, {"firstTokenMilliseconds": 12, "version": "b1", "report": report or None})
    return world.settle()


def test_it_is_known_before_anything_is_downloaded():
    world = World(model()).answer_resolve(source(*CHAT))
    assert world.phase == "Downloading"
    assert told(world) == dict.fromkeys(CHAT, "Metadata")


def test_nothing_is_said_before_the_source_has_answered():
    assert told(World(model()).settle()) == {}


def test_what_the_server_reports_is_kept_while_it_sleeps():
    world = World(model()).answer_resolve(source(*CHAT)).download_done().pod(ready=True)
    assert question(world).reporter == "10.0.0.1:8080", "the pod itself: behind the Service an old one may answer"
    reports(world, tools=False, vision=True, audio=False)
    known = {"chat": "Metadata", "completion": "Metadata", "structured_outputs": "Metadata", "vision": "Probe"}
    assert told(world) == known
    world.change(replicas=0).settle().pods_go()
    assert told(world) == known


def test_a_report_ends_with_the_files_it_was_about():
    world = World(model()).answer_resolve(source(*CHAT)).download_done().pod(ready=True)
    reports(world, vision=True)
    assert "vision" in told(world)
    world.change(source={"huggingFace": {"repo": "org/other", "quantization": "Q4_K_M"}})
    world.answer_resolve(source(*CHAT))
    assert told(world) == dict.fromkeys(CHAT, "Metadata")


def test_a_declared_list_is_all_that_counts_and_restarts_nothing():
    world = World(model()).answer_resolve(source(*CHAT)).download_done().pod(ready=True)
    reports(world, tools=True)
    deployment = world.manifests["Deployment", "tiny"]
    world.change(capabilities=["vision", "chat"], tags=["seen"], description="It sees.").settle()
    assert told(world) == {"chat": "Declared", "vision": "Declared"}
    assert world.manifests["Deployment", "tiny"] == deployment
    assert world.phase == "Ready"


def test_vllm_is_not_asked_what_it_can_do():
    world = World(model(benchmark={"enabled": False})).answer_resolve(source(*CHAT, base=SAFETENSORS))
    assert told(world) == dict.fromkeys(CHAT, "Metadata")
    world.download_done().pod(ready=True)
    assert (question(world).capability, question(world).reporter) == ("chat", "")


@pytest.mark.parametrize(("able", "argument"), [("embeddings", "--embeddings"), ("rerank", "--reranking")])
def test_a_model_that_generates_nothing_serves_what_it_is_for(able: str, argument: str):
    world = World(model()).answer_resolve(source(able)).download_done().pod(ready=True)
    assert arguments(world).count(argument) == 1
    assert question(world).capability == able
    reports(world)
    assert world.phase == "Ready"
    assert told(world) == {able: "Metadata"}
    status, reason, message = world.condition("Benchmarked")
    assert (status, reason) == ("True", "Disabled")
    assert message.endswith(f"this Model serves {able}")


def test_a_chat_model_becomes_a_server_of_embeddings_when_a_person_says_so():
    world = World(model()).answer_resolve(source(*CHAT)).download_done().pod(ready=True).token()
    assert "--embeddings" not in arguments(world)
    world.change(capabilities=["embeddings"], args=["--pooling", "mean"]).settle()
    assert "--embeddings" in arguments(world)
    world.change(capabilities=["embeddings", "chat"]).settle()
    assert "--embeddings" not in arguments(world)


def test_a_name_alone_starts_no_server_of_embeddings():
    named = model(source={"huggingFace": {"repo": "org/Tiny-Embedding", "quantization": "Q4_K_M"}})
    world = World(named).answer_resolve(source("completion", "structured_outputs")).download_done()
    assert told(world) == {"completion": "Metadata", "structured_outputs": "Metadata", "embeddings": "Name"}
    assert "--embeddings" not in arguments(world)
