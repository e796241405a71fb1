"""What stands in a status may be of another version, or of anybody: it is read again or left out, and nothing fails."""

import copy
import json
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moorage.engines.choice import ENGINES
from moorage.planning.download_status import facts_of
from moorage.planning.types import Answer, Resolve
from moorage.sizing.facts import header_facts
from moorage.sizing.gguf import read_gguf_header
from tests.support.world import GGUF, SAFETENSORS, World, claim, gpu_node, model
from tests.unit.model_shapes import MODELS as SHAPES

HEADER = str(header_facts(read_gguf_header(SHAPES["llama31-8b Q4_K_M"].header))["header"])
LLAMA = {**GGUF, "facts": {**GGUF["facts"], "header": HEADER}}
KNOWN: dict[str, Any] = json.loads(HEADER)


def with_header(**changes: Any) -> str:
    return json.dumps({**KNOWN, **changes})


BAD = {
    "empty object": "{}",
    "no JSON": "not json",
    "cut": HEADER[:-20],
    "a list": "[]",
    "a number": "7",
    "deep": "[" * 6000,
    "a number of 6,000 digits": "9" * 6000,
    "NaN": with_header(embedding=float("nan")),
    "a field of a newer version": with_header(state_space=3),
    "lacks a field, as an older one wrote it": json.dumps({k: v for k, v in KNOWN.items() if k != "vocabulary"}),
    "text for a number": with_header(embedding="4096"),
    "negative": with_header(vocabulary=-1),
    "beyond all files": with_header(output_bytes=1 << 60),
    "true for a number": with_header(heads=True),
    "number for a flag": with_header(latent_attention=1),
    "no layers": with_header(layers=[]),
    "layers of no kind": with_header(layers=[99]),
    "kinds that are none": with_header(kinds=[[1, 2]]),
    "kinds of texts": with_header(kinds=[["a", "b", "c", "d", "e"]]),
    "another confidence": with_header(confidence="Certain"),
    "too many layers": with_header(layers=[0] * 513),
    "of another format": str(SAFETENSORS["facts"]["header"]),
}


def running() -> World:
    """A Model that serves on a GPU."""
    world = World(model(accelerator={"vendor": "Nvidia"}))
    world.nodes = [gpu_node("only", 24564)]
    world.answer_resolve(LLAMA).download_done()
    return world.pod(ready=True, node="only", gpus={"nvidia.com/gpu": 1}, namespace="ns").token()


@pytest.mark.parametrize("header", BAD.values(), ids=BAD)
def test_a_header_of_another_version_is_read_again_and_disturbs_nobody(header):
    world = running()
    before = world.children[("Deployment", "tiny")]["inputsHash"], world.model["status"]["memory"]
    world.resolved = world.download_resolved = None
    world.model["status"]["source"]["header"] = world.download["status"]["facts"]["header"] = header
    world.settle()
    assert world.condition("Ready")[0] == "True", "it serves on while nothing is known"
    (asked,), (of_download,) = world.plan().ask, world.plan_download().ask
    assert isinstance(asked, Resolve)
    assert isinstance(of_download, Resolve)
    assert (world.children[("Deployment", "tiny")]["inputsHash"], world.model["status"]["memory"]) == before
    world.resolved, world.download_resolved = Answer(asked.inputs, LLAMA), Answer(of_download.inputs, LLAMA)
    world.settle()
    assert world.model["status"]["source"]["header"] == HEADER
    assert world.download["status"]["facts"]["header"] == HEADER
    assert (world.children[("Deployment", "tiny")]["inputsHash"], world.model["status"]["memory"]) == before
    assert world.condition("Accepted")[:2] == ("True", "Accepted")


def test_a_model_of_a_claim_has_its_files_inspected_again():
    source = {"persistentVolumeClaim": {"claimName": "files", "path": "llama"}}
    world = World(model(source=source, accelerator={"vendor": "Nvidia"}))
    world.nodes = [gpu_node("only", 24564)]
    world.children[("PersistentVolumeClaim", "files")] = claim("files")
    facts = {"format": "GGUF", "mainFile": "llama.gguf", "quantization": "Q4_K_M", "header": HEADER}
    told = {"reason": "Complete", "bytes": 5 << 30, "commit": "prefilled", "manifestDigest": "d1", "facts": facts}
    world.settle().job_ends(0, json.dumps(told), complete=True)
    world.pod(ready=True, node="only", gpus={"nvidia.com/gpu": 1}, namespace="ns").token()
    assert world.model["status"]["source"]["header"] == HEADER
    deployed = world.children[("Deployment", "tiny")]["inputsHash"]
    world.model["status"]["source"]["header"] = world.download["status"]["facts"]["header"] = "{}"
    world.settle()
    assert world.condition("Ready")[0] == "True"
    assert world.condition("Accepted")[0] == "True", "what runs waits for nothing"
    world.job_ends(0, json.dumps(told), complete=True)
    assert world.model["status"]["source"]["header"] == HEADER
    assert world.condition("Accepted")[0] == "True"
    assert world.children[("Deployment", "tiny")]["inputsHash"] == deployed


@pytest.mark.parametrize("header", BAD.values(), ids=BAD)
def test_what_a_job_or_a_hub_tells_in_another_versions_words_is_not_kept(header):
    facts = facts_of({"format": "GGUF", "mainFile": "m.gguf", "header": header})
    assert (facts.main_file, facts.header) == ("m.gguf", None)


@pytest.mark.parametrize("source", [{"http": {"url": "https://example.com/a.gguf", "sha256": "a" * 64}}, None])
def test_an_engine_that_cannot_serve_the_files_is_refused_whenever_it_is_asked_for(source):
    """A URL is not resolved again for another engine, so the header that is kept is of files of the first."""
    world = World(model(accelerator={"vendor": "Nvidia"}, **({"source": source} if source else {})))
    world.nodes = [gpu_node("only", 24564)]
    world.answer_resolve(LLAMA).download_done()
    world.pod(ready=True, node="only", gpus={"nvidia.com/gpu": 1}, namespace="ns").token()
    world.change(engine="VLLM").settle()
    if source:
        assert world.condition("Accepted")[:2] == ("False", "UnsupportedFormat")
        assert "set spec.engine to Auto or LlamaCpp" in world.condition("Accepted")[2]
    assert world.condition("Ready")[0] == "True", "what serves goes on"
    world.change(engine="LlamaCpp").settle()
    assert world.condition("Accepted")[0] in ("True", "Unknown")


# -- whatever stands there -------------------------------------------------------------------------------------------

JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 5),
    st.integers(0, 2**63 - 1),
    st.sampled_from(["", "x", "1970-01-01T00:00:00Z", "9999-12-31T23:59:59Z", "0001-01-01T00:00:00Z", "Ready", "{}"]),
    st.text(max_size=8),
    st.sampled_from([[], {}, [[]], [{}], ["x"], {"x": 1}]),
)


@cache
def settled() -> tuple[World, ...]:
    """Models and downloads in several states, with everything in status that they ever have."""
    asleep = running().change(scaling={"scaleToZeroAfter": "10m"}).settle()
    asleep.later(3600).used(last_used=3000)
    waiting = World(model(accelerator={"vendor": "Nvidia"}))
    waiting.nodes = [gpu_node("only", 4096)]
    waiting.answer_resolve(LLAMA)
    vllm = World(model(accelerator={"vendor": "Nvidia"}, source={"huggingFace": {"repo": "org/qwen"}}))
    vllm.nodes = [gpu_node("only", 81559)]
    vllm.answer_resolve(SAFETENSORS)
    return running(), asleep, waiting, vllm


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of everything below `value`."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, below in inner:
        yield (*path, key)
        yield from places(below, (*path, key))


@st.composite
def spoiled(draw: st.DrawFn, of: str) -> World:
    world = copy.deepcopy(draw(st.sampled_from([w for w in settled() if getattr(w, of)])))
    obj = getattr(world, of)
    for _ in range(draw(st.integers(1, 3))):
        found = list(places(obj["status"]))
        *way, last = draw(st.sampled_from(found))
        holder = obj["status"]
        for key in way:
            holder = holder[key]
        holder[last] = copy.deepcopy(draw(JUNK))
    return world


@settings(max_examples=200, deadline=None)
@given(spoiled("model"))
def test_no_junk_in_a_models_status_fails_a_pass(world):
    plan = world.plan()
    assert plan.status is not None


@settings(max_examples=150, deadline=None)
@given(spoiled("download"))
def test_no_junk_in_a_downloads_status_fails_a_pass_of_it_or_of_its_model(world):
    world.plan_download()
    world.plan()


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(ENGINES),
    st.recursive(JUNK, lambda inner: st.dictionaries(st.sampled_from([*KNOWN, "kv_heads"]), inner)),
)
def test_every_engine_says_of_any_text_whether_it_understands_it(engine, value):
    assert engine.understands(json.dumps(value)) is False
    mixed = {**KNOWN, **(value if isinstance(value, dict) else {})}
    assert engine.understands(json.dumps(mixed)) in (True, False)


@pytest.mark.parametrize("failure", ["", "HubUnreachable", "RepoNotFoundOrPrivate"])
def test_the_header_is_read_again_from_the_very_commit_that_was_downloaded(failure):
    """`revision: main` may be another model by now; what runs goes on whatever the hub says."""
    world = running()
    source = world.model["status"]["source"]
    world.resolved = world.download_resolved = None
    source["header"] = world.download["status"]["facts"]["header"] = "{}"
    before = world.children[("Deployment", "tiny")]["inputsHash"], world.model["status"]["memory"]
    world.settle()
    assert world.condition("Accepted")[0] == "True", "what runs waits for nothing"
    (asked,), (of_download,) = world.plan().ask, world.plan_download().ask
    assert asked.source["huggingFace"]["revision"] == of_download.source["huggingFace"]["revision"] == "c" * 40
    assert asked.files == of_download.files == ("tiny-Q4_K_M.gguf",)
    world.resolved = Answer(asked.inputs, None, failure) if failure else Answer(asked.inputs, LLAMA)
    world.settle()
    assert source["downloadName"] == world.model["status"]["source"]["downloadName"]
    assert (world.children[("Deployment", "tiny")]["inputsHash"], world.model["status"]["memory"]) == before
    assert world.condition("Ready")[0] == "True"
    assert world.condition("Accepted")[0] == "True"


def test_who_does_not_run_waits_for_its_header_and_is_told_why_it_cannot_be_read():
    world = running()
    world.change(replicas=0).settle().pods_go()
    world.resolved = None
    world.model["status"]["source"]["header"] = world.download["status"]["facts"]["header"] = "{}"
    world.settle()
    assert world.condition("Accepted")[:2] == ("Unknown", "Progressing")
    asked = next(ask for ask in world.plan().ask if isinstance(ask, Resolve))
    world.resolved = Answer(asked.inputs, None, "HubUnreachable", "no route to the hub")
    assert world.settle().condition("Accepted") == ("False", "HubUnreachable", "no route to the hub")
    world.resolved = Answer(asked.inputs, LLAMA)
    world.settle()
    assert world.model["status"]["source"]["header"] == HEADER
    assert world.condition("Accepted")[:2] == ("True", "Accepted")
