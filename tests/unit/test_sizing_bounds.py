"""No number of a header sizes an allocation or outgrows what Kubernetes stores: whatever it says, it gets an answer."""

import json
import subprocess
import sys
from dataclasses import replace
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moorage.sizing.errors import HeaderError
from moorage.sizing.facts import HEADER_LIMIT, kept
from moorage.sizing.gguf import join_parts, read_gguf_header
from moorage.sizing.gguf_model import model_of
from moorage.sizing.llamacpp import LlamaSettings, llama_need
from moorage.sizing.model import Confidence, LlamaModel
from tests.support.world import World, gpu_node, model
from tests.unit.gguf_bytes import header
from tests.unit.lying_headers import folders, told
from tests.unit.model_shapes import MODELS

GIB = 1 << 30
INT64 = 1 << 63


def test_a_number_of_parts_is_compared_before_it_is_counted_out():
    """Seventy bytes that once ended the operator with a MemoryError."""
    lie = read_gguf_header(header({"split.count": 1 << 40}))
    with pytest.raises(HeaderError, match="split into 1099511627776 files, but 1 are here"):
        join_parts([lie])


def test_no_number_sizes_an_allocation():
    run = subprocess.run(
        [sys.executable, "-m", "tests.unit.lying_headers"], capture_output=True, text=True, timeout=600, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr


def test_tensors_add_up_to_what_exists_or_are_refused():
    tensors = [(f"blk.0.{at}", (1 << 32, 1 << 17), "Q4_0") for at in range(3)]
    with pytest.raises(HeaderError, match="the tensors would have 1,688,849,860,263,936 parameters"):
        join_parts([read_gguf_header(header({}, tensors))])


def numbers(value: Any) -> list[int]:
    if isinstance(value, dict | list):
        return [n for item in (value.values() if isinstance(value, dict) else value) for n in numbers(item)]
    return [value] if isinstance(value, int) else []


def ends_well(world: World) -> None:
    """The status can be stored, and says in words where the Model stands."""
    status = world.model["status"]
    orjson.dumps(status)
    assert all(-INT64 <= number < INT64 for number in numbers(status))
    assert world.message
    assert all(condition["reason"] for condition in status["conditions"])


def resolved(world: World, files: dict[str, bytes]) -> World:
    """The hub answers with what these files say, or with the reason that the operator would give."""
    try:
        facts = told(files)
    except HeaderError as error:
        return world.answer_resolve(reason="UnexpectedContent", message=str(error))
    found = [{"path": name, "sizeBytes": 40 * GIB if len(raw) > 9 else 1} for name, raw in files.items()]
    return world.answer_resolve({"commit": "c" * 40, "files": found, "selected": True, "facts": facts})


LARGEST: dict[str, Any] = {"contextLength": 16777216, "maxSequences": 16}
SPECS: list[dict[str, Any]] = [{"accelerator": {}}, {"accelerator": {}, **LARGEST}, {"llamaCpp": {"ubatchSize": 65536}}]


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(folders, st.sampled_from(SPECS))
def test_any_header_ends_in_a_status_with_a_reason(files, spec):
    """However it lies: on GPUs and on CPUs, at the largest context that the API takes."""
    world = World(model(source={"huggingFace": {"repo": "org/liar"}}, **spec))
    world.nodes = [gpu_node("gpu-1", 24564), gpu_node("gpu-8", 81559, 8)]
    ends_well(resolved(world, files))


# -- layers that do not fit into the status ---------------------------------------------------------------------------


def of_layers(weights: list[int], **changes: list[int]) -> LlamaModel:
    llama = model_of(read_gguf_header(MODELS["llama31-8b Q4_K_M"].header))
    layers = [replace(llama.layers[0], weight_bytes=size) for size in weights]
    for name, values in changes.items():
        layers = [replace(layer, **{name: item}) for layer, item in zip(layers, values, strict=True)]
    return replace(llama, layers=tuple(layers))


UNLIKE = {
    "weights": of_layers([300 * 2**20 + 2741 * at * at for at in range(256)]),
    "weights and caches": of_layers([GIB + 7919 * at for at in range(512)], key_width=list(range(1, 513))),
    "everything": of_layers(
        [GIB + 7919 * at for at in range(512)], key_width=list(range(1, 513)), value_width=list(range(70_000, 70_512)),
        window=[10_000 + at for at in range(512)], state=[2**30 + at for at in range(512)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", UNLIKE)
@pytest.mark.parametrize("gpus", [1, 8])
def test_layers_that_all_differ_are_rounded_up_and_never_dropped(case, gpus):
    model_ = UNLIKE[case]
    text = kept(model_)
    assert len(text) <= HEADER_LIMIT
    found = LlamaModel.from_json(json.loads(text))
    settings_ = LlamaSettings(8192, 1, gpus=gpus)
    exact, bound = llama_need(model_, settings_), llama_need(found, settings_)
    assert (bound.confidence, "differ too much" in bound.reasons[-1]) == (Confidence.BOUNDED, True)
    assert exact.weights_mib <= bound.weights_mib <= 1.07 * exact.weights_mib + 1
    assert all(ours >= theirs for ours, theirs in zip(bound.per_gpu_mib, exact.per_gpu_mib, strict=True))


def test_layers_of_published_models_are_kept_exactly():
    for shape in MODELS.values():
        found = model_of(read_gguf_header(shape.header))
        assert LlamaModel.from_json(json.loads(kept(found))) == found
