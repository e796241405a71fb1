"""The estimate against the pinned llama.cpp itself: an alarm for the day when the engine changes its mind.

Weights and cache must agree to the MiB; a compute buffer must be above the engine's, and not far above.
"""

from collections.abc import Iterator

import pytest

from moorage.sizing.gguf import read_gguf_header
from moorage.sizing.gguf_model import model_of
from moorage.sizing.llamacpp import LlamaSettings, llama_need
from moorage.sizing.model import LlamaModel
from moorage.sizing.need import MemoryNeed
from tests.oracle.llamacpp import Held, LlamaCpp, running
from tests.unit.gguf_bytes import data_bytes
from tests.unit.hybrid_shapes import SHAPES
from tests.unit.model_shapes import MODELS

pytestmark = pytest.mark.oracle
FILES = {**MODELS, **SHAPES}
SPLIT = ["llama33-70b Q4_K_M", "gemma3-27b Q4_K_M", "deepseek-v3 Q4_K_M", "gpt-oss-20b MXFP4", "qwen3-next-80b Q4_K_M"]
SERVED = ["qwen3-8b Q4_K_M", "gemma3-12b Q4_K_M", "mixtral-8x7b Q4_K_M", "nemotron_h_9b", "gemma4_e4b"]


@pytest.fixture(scope="module")
def llamacpp() -> Iterator[LlamaCpp]:
    with running(devices=4) as found:
        yield found


def put(llamacpp: LlamaCpp, name: str) -> tuple[str, LlamaModel]:
    shape = FILES[name]
    path = llamacpp.model(name, shape.header, data_bytes(shape.tensors))
    return path, model_of(read_gguf_header(shape.header))


def agrees(need: MemoryNeed, gpus: list[Held], *, case: str) -> None:
    weights, cache = sum(gpu.weights for gpu in gpus), sum(gpu.cache for gpu in gpus)
    assert 0 <= need.weights_mib - weights <= len(gpus), (case, need, gpus)
    assert 0 <= need.kv_mib - cache <= len(gpus), (case, need, gpus)
    compute = sum(gpu.compute for gpu in gpus)
    assert compute <= need.compute_mib <= 1.3 * compute + 64 * len(gpus), (case, need, gpus)


def host_agrees(need: MemoryNeed, expected: float, *, case: str) -> None:
    """Not under, and over by a twentieth and 40 MiB at most: what is asked for beyond that lies idle on the node."""
    assert expected <= need.host_mib <= 1.05 * expected + 40, (case, need.host_mib, expected)


CASES = {
    "8k": (["-c", 8192, "-fa", "on"], LlamaSettings(8192)),
    "32k over four slots, q8_0": (
        ["-c", 32768, "-np", 4, "-fa", "on", "-ctk", "q8_0", "-ctv", "q8_0"],
        LlamaSettings(32768, 4, cache_type_k="q8_0", cache_type_v="q8_0"),
    ),
    "no flash attention": (["-c", 8192, "-fa", "off"], LlamaSettings(8192, flash_attention=False)),
    "micro-batch 2048": (["-c", 32768, "-ub", 2048, "-fa", "on"], LlamaSettings(32768, ubatch_size=2048)),
    "an odd context": (["-c", 10_000, "-np", 3, "-fa", "on"], LlamaSettings(10_000, 3)),
}
FAULTS = {("phi4-14b Q4_K_M", "32k over four slots, q8_0"): "ggml-impl.h:330: fatal error"}
"""What the pinned build cannot do at all: a quantized cache over several slots of a model of so few tensors overflows
its table of graph nodes. llama-server ends in the same way."""


@pytest.mark.parametrize("name", FILES)
def test_one_device(llamacpp, name):
    path, model = put(llamacpp, name)
    for case, (arguments, settings) in CASES.items():
        if fault := FAULTS.get((name, case)):
            with pytest.raises(AssertionError, match=fault):
                llamacpp.dry_run(path, *arguments)
            continue
        found = llamacpp.dry_run(path, *arguments)
        need = llama_need(model, settings)
        agrees(need, [found["RPC0"]], case=case)
        host_agrees(need, sum(found["Host"]), case=case)


@pytest.mark.parametrize("name", SPLIT)
@pytest.mark.parametrize("devices", [2, 4])
def test_several_devices(llamacpp, name, devices):
    path, model = put(llamacpp, name)
    for size in (8192, 65536):
        found = llamacpp.dry_run(path, "-c", size, "-fa", "on", devices=devices)
        need = llama_need(model, LlamaSettings(size, gpus=devices))
        gpus = [found[f"RPC{at}"] for at in range(devices)]
        agrees(need, gpus, case=f"{devices} x {size}")
        for mine, theirs in zip(need.per_gpu_mib, gpus, strict=True):
            assert mine > sum(theirs)
        assert sum(found["Host"]) <= need.host_mib <= 1.3 * sum(found["Host"]) + 64, (size, need, found)


@pytest.mark.parametrize("name", ["llama31-8b Q4_K_M", "gemma3-27b Q4_K_M", "nemotron_h_9b", "glm45_air"])
def test_some_layers(llamacpp, name):
    """The row of the host leaves out weights that the CPU keeps in a layout of its own, so the file says how many."""
    path, model = put(llamacpp, name)
    whole = model.file_bytes / (1 << 20)
    for layers in (1, 16, model.units - 1, model.units):
        found = llamacpp.dry_run(path, "-c", 8192, "-fa", "on", "-ngl", layers)
        need = llama_need(model, LlamaSettings(8192, gpu_layers=layers))
        agrees(need, [found["RPC0"]], case=f"{layers} layers")
        host = whole - found["RPC0"].weights + found["Host"].cache + found["Host"].compute
        assert host - 1 <= need.host_mib <= 1.05 * host + need.compute_mib, (layers, need, found)


@pytest.mark.parametrize("name", SERVED)
@pytest.mark.parametrize("unified", [False, True])
def test_the_server_itself(llamacpp, name, unified):
    path, model = put(llamacpp, name)
    pool = ["-c", 32768, "-np", 4, "-fa", "on", *(["--kv-unified"] if unified else [])]
    found = llamacpp.server_dry_run(path, *pool)["RPC0"]
    agrees(llama_need(model, LlamaSettings(32768, 4, unified, outputs=4)), [found], case="outputs known")
    assert llama_need(model, LlamaSettings(32768, 4, unified)).compute_mib >= found.compute


def test_a_changed_engine_would_be_noticed(llamacpp):
    """The alarm itself: a cache of another type, or a window not kept, is no agreement."""
    path, model = put(llamacpp, "gemma3-12b Q4_K_M")
    found = llamacpp.dry_run(path, "-c", 32768, "-fa", "on", "--swa-full")["RPC0"]
    with pytest.raises(AssertionError):
        agrees(llama_need(model, LlamaSettings(32768)), [found], case="window kept")
    agrees(llama_need(model, LlamaSettings(32768, swa_full=True)), [found], case="whole window")
