"""A model that sees: its projector is chosen, counted, served and told of, from the file list to the pod."""

import json
from typing import Any

from moorage.engines.facts import read_facts
from moorage.sizing.reading import Want, drive
from moorage.sources import RepoFile, Selection, select
from moorage.sources.choice import needed
from tests.support.world import World, gpu_node, model
from tests.unit.gguf_bytes import data_bytes
from tests.unit.model_shapes import MODELS
from tests.unit.projector_shapes import ENCODERS

TEXT, EYES = MODELS["gemma3-12b Q4_K_M"], ENCODERS["gemma3-12b"]
MAIN = "gemma-3-12b-it-Q4_K_M.gguf"
PROJECTORS = ("mmproj-model-bf16.gguf", "mmproj-model-f16.gguf", "mmproj-model-q8_0.gguf")
EYES_MIB = 813


def repository(*projectors: str) -> list[RepoFile]:
    main = RepoFile(MAIN, len(TEXT.header) + data_bytes(TEXT.tensors))
    size = len(EYES.header) + data_bytes(EYES.tensors)
    return [RepoFile("README.md", 9), main, *(RepoFile(name, size) for name in projectors)]


def read(want: Want) -> bytes:
    header = TEXT.header if want.path == MAIN else EYES.header
    return header[want.start : want.start + want.length]


def answer(chosen: list[RepoFile]) -> dict[str, Any]:
    """What the resolver answers for `chosen`."""
    files = [{"path": f.path, "sizeBytes": f.size} for f in chosen]
    return {"commit": "e" * 40, "files": files, "selected": True, "facts": drive(read_facts(chosen, whole=False), read)}


def served(*projectors: str, vendor: str = "Auto") -> World:
    """The Model with its files downloaded and its server asked for."""
    world = World(model(accelerator={"vendor": vendor}, contextLength=8192, maxSequences=1))
    world.nodes = [gpu_node("one", 24564), gpu_node("two", 81559, 8)]
    return world.answer_resolve(answer(needed(repository(*projectors))[0])).download_done()


def arguments(world: World) -> list[str]:
    pod = world.manifests["Deployment", "tiny"]["spec"]["template"]["spec"]
    return list(pod["containers"][0]["args"])


def test_the_server_is_given_the_projector_and_status_says_so():
    world = served(*PROJECTORS)
    source = world.model["status"]["source"]
    args = arguments(world)
    assert args[args.index("--mmproj") + 1].endswith("/mmproj-model-f16.gguf")
    assert args[args.index("--mmproj") + 1].rpartition("/")[0] == args[args.index("--model") + 1].rpartition("/")[0]
    assert source["projectorFile"] == "mmproj-model-f16.gguf"
    assert source["files"] == [MAIN, "mmproj-model-f16.gguf"]
    assert "with mmproj-model-f16.gguf" in world.condition("Accepted")[2]


def test_its_memory_is_counted_and_the_estimate_is_called_bounded():
    blind, seeing = (served(*p).model["status"]["memory"] for p in ((), PROJECTORS))
    assert seeing["weightsMiB"] == blind["weightsMiB"] + EYES_MIB
    assert seeing["estimatedMiB"] > blind["estimatedMiB"] + EYES_MIB + 120
    assert seeing["hostMiB"] > blind["hostMiB"]
    assert (blind["confidence"], seeing["confidence"]) == ("Exact", "Bounded")
    assert "reasons" not in blind
    assert "image encoder" in seeing["reasons"][0]


def test_without_one_nothing_is_served_beside_the_model():
    world = served()
    assert "--mmproj" not in arguments(world)
    assert "projectorFile" not in world.model["status"]["source"]


def test_on_the_cpu_the_host_holds_it():
    blind, seeing = (served(*p, vendor="None").model["status"]["memory"]["hostMiB"] for p in ((), PROJECTORS))
    assert seeing > blind + EYES_MIB + 120


def test_whoever_excludes_it_gets_none():
    files = repository(*PROJECTORS)
    chosen = select(files, Selection(exclude=("*mmproj*",), quantization="Q4_K_M"))
    assert [f.path for f in chosen] == [MAIN]
    assert "projector" not in drive(read_facts(chosen, whole=False), read)
    named = select(files, Selection(include=("*Q4_K_M*", "*mmproj*q8_0*")))
    assert drive(read_facts(named, whole=False), read)["projectorFile"] == "mmproj-model-q8_0.gguf"


def test_the_projector_of_the_models_own_folder_comes_first():
    files = [RepoFile("a/m.gguf", 1), RepoFile("a/mmproj-q8_0.gguf", 1), RepoFile("mmproj-f16.gguf", 1)]
    assert [f.path for f in needed(files)[0]] == ["a/m.gguf", "a/mmproj-q8_0.gguf"]


def test_an_upgrade_of_moorage_leaves_a_model_alone_that_was_resolved_before():
    """Its status has no projector yet; it gets one when a person has the source resolved again."""
    world = served(*PROJECTORS)
    assert world.download
    for key in ("projector", "projectorFile"):
        del world.model["status"]["source"][key]
        del world.download["status"]["facts"][key]
    world.settle()
    assert "projectorFile" not in world.model["status"]["source"]


def test_what_status_keeps_of_it_is_small():
    facts = answer(repository(*PROJECTORS))["facts"]
    assert len(facts["projector"]) < 300
    assert json.loads(facts["projector"])["kind"] == "gemma3"
