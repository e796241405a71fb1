"""The estimate against dry runs of llama.cpp 0c1e57098 (its own allocator, no GPU): MiB on the device.

Micro-batch 512, flash attention, one slot, f16 cache, logits for every token of a micro-batch unless named.
"""

import statistics
from typing import NamedTuple

import pytest

from moorage.sizing.gguf import read_gguf_header
from moorage.sizing.gguf_model import model_of
from moorage.sizing.llamacpp import LlamaSettings, llama_need
from moorage.sizing.model import Confidence, LlamaModel
from moorage.sizing.need import MemoryNeed
from tests.unit.hybrid_shapes import SHAPES
from tests.unit.model_shapes import MODELS

MODELS_READ = {name: model_of(read_gguf_header(model.header)) for name, model in MODELS.items()}


class Reference(NamedTuple):
    """weights on device and host; (KV, compute) at 8k and 32k; KV of 4 slots at 32k, unified and split;
    compute for 4 outputs; KV as q8_0; compute without flash attention at 8k; compute (and KV) with micro-batch 2048.
    """

    weights: int
    host: int
    at_8k: tuple[int, int]
    at_32k: tuple[int, int]
    unified: int
    split: int
    four_outputs: int
    q8_0: int
    plain: int
    wide: int
    wide_kv: int | None = None


REFERENCE = {
    "llama31-8b Q4_K_M": Reference(4403, 281, (1024, 258), (4096, 258), 4096, 4096, 140, 2176, 564, 1034),
    "llama31-8b Q8_0": Reference(7605, 532, (1024, 258), (4096, 258), 4096, 4096, 140, 2176, 564, 1034),
    "llama31-8b F16": Reference(14315, 1002, (1024, 258), (4096, 258), 4096, 4096, 140, 2176, 564, 1034),
    "llama32-1b Q8_0": Reference(1252, 266, (256, 254), (1024, 254), 1024, 1024, 92, 544, 546, 1018),
    "llama32-3b Q4_K_M": Reference(1918, 308, (896, 256), (3584, 256), 3584, 3584, 98, 1904, 428, 1026),
    "llama33-70b Q4_K_M": Reference(39939, 563, (2560, 266), (10240, 266), 10240, 10240, 248, 5440, 1108, 1066),
    "llama2-7b Q4_K_M": Reference(3820, 70, (4096, 96), (16384, 120), 16384, 16384, 120, 8704, 576, 482),
    "mixtral-8x7b Q4_K_M": Reference(26931, 70, (1024, 200), (4096, 224), 4096, 4096, 224, 2176, 564, 896),
    "mistral-small-24b Q4_K_M": Reference(13302, 360, (1280, 266), (5120, 266), 5120, 5120, 252, 2720, 568, 1064),
    "qwen25-7b Q4_K_M": Reference(4168, 292, (448, 304), (1792, 304), 1792, 1792, 164, 952, 494, 1216),
    "qwen25-0.5b Q8_0": Reference(500, 137, (96, 298), (384, 298), 384, 384, 65, 204, 298, 1194),
    "qwen3-4b Q4_K_M": Reference(2375, 304, (1152, 301), (4608, 301), 4608, 4608, 107, 2448, 558, 1207),
    "qwen3-8b Q4_K_M": Reference(4455, 333, (1152, 304), (4608, 304), 4608, 4608, 128, 2448, 564, 1219),
    "qwen3-30b-a3b Q4_K_M": Reference(17524, 166, (768, 300), (3072, 300), 3072, 3072, 116, 1632, 554, 1203),
    "qwen3-30b-a3b F16": Reference(57666, 593, (768, 300), (3072, 300), 3072, 3072, 116, 1632, 554, 1203),
    "gemma2-9b Q4_K_M": Reference(5488, 717, (2100, 507), (6132, 507), 8148, 8400, 154, 3257, 507, 2028, 6384),
    "gemma3-4b Q4_K_M": Reference(2368, 525, (334, 517), (814, 517), 1162, 1336, 110, 432, 517, 2068, 988),
    "gemma3-12b Q4_K_M": Reference(6956, 787, (992, 519), (2528, 519), 3488, 3968, 149, 1343, 519, 2078, 3008),
    "gemma3-27b Q4_K_M": Reference(15773, 1102, (1264, 522), (3184, 522), 4432, 5056, 191, 1691, 584, 2090, 3808),
    "phi4-14b Q4_K_M": Reference(8354, 275, (1600, 234), (6400, 216), 6400, 6400, 157, 3400, 681, 864),
    "gpt-oss-20b MXFP4": Reference(10949, 586, (210, 404), (786, 404), 792, 840, 119, 417, 1072, 1616, 822),
    "gpt-oss-120b MXFP4": Reference(59851, 586, (315, 404), (1179, 404), 1188, 1260, 119, 626, 1072, 1616, 1233),
    "deepseek-v2-lite Q4_K_M": Reference(10705, 112, (243, 236), (972, 232), 972, 972, 108, 516, 326, 929),
    "deepseek-v3 Q4_K_M": Reference(385436, 497, (549, 386), (2196, 410), 2196, 2196, 410, 1166, 2442, 1640),
    "qwen3-next-80b Q4_K_M": Reference(46067, 166, (267, 308), (843, 304), 1069, 1069, 114, 483, 310, 1219),
}
NAMES = list(REFERENCE)


def need(name: str, ctx_size: int, **settings: object) -> MemoryNeed:
    return llama_need(MODELS_READ[name], LlamaSettings(ctx_size, **settings))  # type: ignore[arg-type]


def near(mine: int, theirs: int) -> bool:
    """Theirs are cut to whole MiB, mine are rounded."""
    return 0 <= mine - theirs <= 1


def test_all_models_of_the_table_are_here():
    assert set(REFERENCE) == set(MODELS)


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_exact(name):
    assert near(need(name, 8192).weights_mib, REFERENCE[name].weights)
    assert MODELS_READ[name].input_bytes >> 20 == REFERENCE[name].host
    assert MODELS_READ[name].confidence == Confidence.EXACT


@pytest.mark.parametrize("name", NAMES)
def test_the_cache_is_exact(name):
    row = REFERENCE[name]
    assert near(need(name, 8192).kv_mib, row.at_8k[0])
    assert near(need(name, 32768).kv_mib, row.at_32k[0])
    assert near(need(name, 32768, parallel=4, kv_unified=True).kv_mib, row.unified)
    assert near(need(name, 32768, parallel=4).kv_mib, row.split)
    assert near(need(name, 32768, cache_type_k="q8_0", cache_type_v="q8_0").kv_mib, row.q8_0)
    assert near(need(name, 32768, ubatch_size=2048).kv_mib, row.wide_kv or row.at_32k[0])


def computed(name: str) -> list[tuple[int, int]]:
    """(estimated, measured) of every compute buffer of a row."""
    row = REFERENCE[name]
    return [
        (need(name, 8192).compute_mib, row.at_8k[1]),
        (need(name, 32768).compute_mib, row.at_32k[1]),
        (need(name, 32768, outputs=4).compute_mib, row.four_outputs),
        (need(name, 8192, flash_attention=False).compute_mib, row.plain),
        (need(name, 32768, ubatch_size=2048).compute_mib, row.wide),
    ]


@pytest.mark.parametrize("name", NAMES)
def test_the_compute_buffer_is_never_underestimated(name):
    assert all(mine >= theirs for mine, theirs in computed(name)), computed(name)


def over(model: LlamaModel, estimate: MemoryNeed, weights: int, cache: int, compute: int) -> float:
    mine = estimate.weights_mib + estimate.kv_mib + estimate.compute_mib
    return mine / (weights + cache + compute) - 1


def test_the_total_is_at_most_two_percent_over_in_the_median():
    excess = [
        over(MODELS_READ[name], need(name, size), row.weights, *pair)
        for name, row in REFERENCE.items()
        for size, pair in ((8192, row.at_8k), (32768, row.at_32k))
    ]
    assert min(excess) >= 0
    assert statistics.median(excess) <= 0.02


class Measured(NamedTuple):
    """Dry runs of llama.cpp build 11669: weights on device and host; (KV, compute) at 8k, at 32k over four slots, at
    32k with a micro-batch of 2048, at 8k without flash attention; compute of llama-server with four slots (it reserves
    one output for each).
    """

    weights: int
    host: int
    at_8k: tuple[int, int]
    slots: tuple[int, int]
    wide: tuple[int, int]
    plain: tuple[int, int]
    server: int


MEASURED = {
    "falcon_h1_7b": Measured(7284, 404, (485, 286), (1943, 286), (1541, 1264), (485, 301), 104),
    "nemotron_h_9b": Measured(8410, 595, (261, 299), (1046, 299), (645, 1292), (261, 705), 184),
    "granite_hybrid_tiny": Measured(7044, 156, (119, 216), (477, 216), (311, 960), (119, 226), 57),
    "mamba2_2_7b": Measured(2744, 130, (163, 123), (655, 123), (163, 492), (163, 123), 81),
    "lfm2_1_2b": Measured(1186, 136, (96, 152), (384, 152), (384, 704), (96, 550), 72),
    "gemma4_e4b": Measured(4763, 3536, (168, 567), (672, 567), (612, 2370), (188, 584), 136),
    "starcoder2_7b": Measured(7273, 229, (512, 140), (2048, 140), (2048, 656), (512, 639), 80),
    "command_r7b": Measured(8135, 1062, (688, 552), (2752, 552), (1600, 2312), (688, 577), 136),
    "glm45_air": Measured(107708, 629, (1472, 336), (5888, 336), (5888, 1440), (1472, 1636), 170),
    "gemma3n_e2b": Measured(2476, 2584, (96, 536), (384, 536), (336, 2080), (96, 548), 108),
    "rwkv7_2_9b": Measured(2821, 170, (20, 148), (82, 148), (20, 592), (20, 148), 97),
    "jamba_mini": Measured(52166, 272, (144, 208), (578, 208), (528, 960), (144, 564), 208),
}


def test_all_hybrids_are_measured():
    assert set(MEASURED) == set(SHAPES)


@pytest.mark.parametrize("name", MEASURED)
def test_hybrids_too(name):
    row, model = MEASURED[name], model_of(read_gguf_header(SHAPES[name].header))
    needs = {
        "at_8k": llama_need(model, LlamaSettings(8192)),
        "slots": llama_need(model, LlamaSettings(32768, parallel=4)),
        "wide": llama_need(model, LlamaSettings(32768, ubatch_size=2048)),
        "plain": llama_need(model, LlamaSettings(8192, flash_attention=False)),
    }
    assert model.confidence == Confidence.EXACT
    assert near(needs["at_8k"].weights_mib, row.weights)
    assert model.input_bytes >> 20 == row.host
    for case, estimate in needs.items():
        cache, compute = getattr(row, case)
        assert near(estimate.kv_mib, cache), case
        assert compute <= estimate.compute_mib <= 1.25 * compute + 48, case
    assert llama_need(model, LlamaSettings(32768, parallel=4, outputs=4)).compute_mib >= row.server
