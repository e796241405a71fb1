"""What a person's own arguments do to the estimate: followed, trusted less with the reason, or refused by a field.

No argument of either engine whose help speaks of memory is in none of these tables.
"""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from moorage.api.managed_args import (
    LLAMA_CPP_ARGS_BY_OWNER,
    LLAMA_CPP_ENV_BY_OWNER,
    VLLM_ARGS_BY_OWNER,
)
from moorage.api.model import ModelSpec
from moorage.engines.base import Asked, Serving
from moorage.engines.llamacpp import LlamaCppEngine
from moorage.engines.memory_args import LLAMA_CPP, VLLM, Effect, MemoryArg, given
from moorage.engines.vllm import VllmEngine
from moorage.sizing.facts import header_facts
from moorage.sizing.gguf import read_gguf_header
from moorage.sizing.model import Confidence
from moorage.sizing.need import MemoryNeed
from moorage.sizing.projector import projector_of
from tests.support.world import GGUF, SAFETENSORS, World, gpu_node, model
from tests.unit.model_shapes import MODELS
from tests.unit.projector_shapes import ENCODERS

IMAGES = Path(__file__).resolve().parents[2] / "images"
SOURCE = {"huggingFace": {"repo": "org/name"}}
MEMORY = re.compile(
    r"memory|offload|cache|lora|draft|\bv?ram\b|\bgpu|\bcpu|device|buffer|\bswa|ctx|batch|\btensor|layers|weights|"
    r"mmproj|vector|\bkv\b|checkpoint|embedding|image tokens|model metadata|slots",
    re.IGNORECASE,
)
VLLM_MEMORY = re.compile(
    r"mem|offload|cache|lora|spec-|speculative|quant|parallel|gpu|cuda|graph|batch|block|kv|mm-|dtype|load|shm|cpu|"
    r"config|overrid|rank|node|backend|model|shared|pool|optim|convert|runner|sleep|sliding|worker|transfer|expert|"
    r"logits|logprob|count|perform|mamba"
)


def help_entries() -> list[tuple[list[str], str]]:
    """Spellings and help text of every argument of llama-server."""
    entries: list[tuple[list[str], str]] = []
    for line in (IMAGES / "llamacpp-cpu/help.txt").read_text().splitlines():
        if found := re.match(r"-[^ ,]+(?:, +-[^ ,]+)*", line):
            entries.append((re.findall(r"-[^ ,]+", found[0]), line))
        elif entries and line.startswith(" "):
            entries[-1] = (entries[-1][0], f"{entries[-1][1]} {line.strip()}")
    return entries


ENTRIES = help_entries()
MANAGED = {name for names in LLAMA_CPP_ARGS_BY_OWNER.values() for name in names}
VLLM_OPTIONS = json.loads((IMAGES / "vllm-cpu/arguments.json").read_text())["options"]
VLLM_MANAGED = {name for names in VLLM_ARGS_BY_OWNER.values() for name in names}


def test_every_argument_of_llama_server_that_speaks_of_memory_has_its_place():
    free = {"--kv-unified-per-slot"}
    speaks = [names for names, text in ENTRIES if MEMORY.search(text)]
    assert len(speaks) > 80
    lost = [n for names in speaks for n in names if not (n in MANAGED | free or any(a.named(n) for a in LLAMA_CPP))]
    assert lost == []


def test_every_argument_of_vllm_that_may_touch_memory_has_its_place():
    speaks = [name for name in VLLM_OPTIONS if VLLM_MEMORY.search(name) and not name.startswith("--no-")]
    assert len(speaks) > 120
    assert [n for n in speaks if not (n in VLLM_MANAGED or any(a.named(n) for a in VLLM))] == []


@pytest.mark.parametrize("table", [LLAMA_CPP, VLLM])
def test_the_tables_name_what_there_is(table: tuple[MemoryArg, ...]):
    known = [n for names, _ in ENTRIES for n in names] if table is LLAMA_CPP else VLLM_OPTIONS
    for arg in table:
        for name in arg.names:
            assert any(replace(arg, names=(name,)).named(option) for option in known), name


def test_the_variables_are_those_of_the_help():
    said = {name: env for names, text in ENTRIES for env in re.findall(r"env: (\w+)", text) for name in names}
    counting = [arg for arg in LLAMA_CPP if arg.effect != Effect.NONE]
    assert {arg.key: arg.env for arg in counting} == {arg.key: said.get(arg.key, "") for arg in counting}
    refused = {name for names in LLAMA_CPP_ENV_BY_OWNER.values() for name in names}
    assert {said[name] for name in MANAGED if name in said} - refused <= {"LLAMA_ARG_KEEP", "HF_TOKEN"}


# -- llama.cpp --------------------------------------------------------------------------------------------------------

GEMMA = str(header_facts(read_gguf_header(MODELS["gemma3-12b Q4_K_M"].header))["header"])
EYES = json.dumps(projector_of(read_gguf_header(ENCODERS["qwen2.5-vl-7b"].header)).to_json())


def llama(*args: str, gpus: int = 1, projector: str = "", **spec: Any) -> MemoryNeed:
    """Gemma 3 12B with four requests of 8192 tokens."""
    asked = Asked(ModelSpec.model_validate({"source": SOURCE, "args": args, **spec}), GEMMA, projector=projector)
    need = LlamaCppEngine().need(asked, Serving(8192, 4), gpus)
    assert need
    return need


def env(**variables: str) -> dict[str, Any]:
    return {"env": [{"name": name, "value": value} for name, value in variables.items()]}


def test_a_full_window_cache_is_counted_to_the_byte():
    assert (llama().kv_mib, llama("--swa-full").kv_mib) == (3968, 12288)
    assert llama("--swa-full").confidence == Confidence.EXACT
    assert llama(**env(LLAMA_ARG_SWA_FULL="true")) == llama("--swa-full")
    assert llama(**env(LLAMA_ARG_SWA_FULL="0")) == llama()


def test_status_tells_it():
    facts = {**GGUF["facts"], "header": GEMMA, "architecture": "gemma3"}
    told = {}
    for args in ([], ["--swa-full"], ["--lora", "/models/a.gguf"]):
        world = World(model(accelerator={"vendor": "Auto"}, contextLength=8192, maxSequences=4, args=args))
        world.nodes = [gpu_node("one", 81559)]
        memory = world.answer_resolve({**GGUF, "facts": facts}).model["status"]["memory"]
        told["".join(args)] = (memory["kvMiB"], memory["confidence"], memory.get("reasons"))
    assert told[""] == (3968, "Exact", None)
    assert told["--swa-full"] == (12288, "Exact", None)
    assert told["--lora/models/a.gguf"] == (3968, "Guess", ["--lora: adapters are not counted"])


def test_host_memory_for_prompts_is_what_was_asked_for():
    assert llama("--cache-ram", "8192").host_mib == llama().host_mib + 8192 - 256
    for odd in ("inf", "nan", "-inf", "lots"):
        assert llama("--cache-ram", odd).host_mib == llama().host_mib, "the engine does not start with that"
    assert llama("--cache-ram", "9" * 30).host_mib < 1 << 31
    assert llama("-cram", "0") == llama()
    assert llama(**env(LLAMA_ARG_CACHE_RAM="1256")).host_mib == llama().host_mib + 1000
    assert llama("-cram", "512", **env(LLAMA_ARG_CACHE_RAM="9999")).host_mib == llama().host_mib + 256


def test_the_largest_picture_is_what_was_asked_for():
    seeing = llama(projector=EYES)
    smaller = llama("--image-max-tokens", "1024", projector=EYES)
    assert smaller.compute_mib < seeing.compute_mib - 800
    assert llama("--no-mmproj-offload", projector=EYES).total_mib == llama().total_mib


def test_gpu_memory_for_experts_is_added():
    more = llama("--cpu-moe", "--moe-cache-mib", "2048", gpus=2)
    assert more.total_mib == llama("--cpu-moe", gpus=2).total_mib + 2048
    assert abs(more.total_mib - sum(more.per_gpu_mib)) <= 1  # each is rounded


@pytest.mark.parametrize(
    ("args", "least", "words"),
    [
        (("--model-draft", "/models/d.gguf"), Confidence.GUESS, "--model-draft: a second model and its cache"),
        (("-md", "/models/d.gguf"), Confidence.GUESS, "-md: a second model"),
        (("--lora", "/models/a.gguf"), Confidence.GUESS, "adapters are not counted"),
        (("-ot", "exps=CPU"), Confidence.GUESS, "host memory"),
        (("--cpu-moe",), Confidence.BOUNDED, "host memory"),
        (("--n-cpu-moe", "8"), Confidence.BOUNDED, "host memory"),
        (("-nkvo",), Confidence.BOUNDED, "-nkvo: the cache lies in host memory"),
        (("--spec-type", "draft-mtp"), Confidence.GUESS, "drafts"),
        (("--rope-scaling", "yarn", "--yarn-orig-ctx", "32768"), Confidence.EXACT, ""),
        (("--seed", "-1", "--temp", "0"), Confidence.EXACT, ""),
    ],
)
def test_what_is_not_computed_is_said(args, least, words):
    need = llama(*args)
    assert need.confidence == least
    assert words in " ".join(need.reasons)
    assert bool(need.reasons) is bool(words)
    assert need.total_mib >= llama().total_mib
    assert (need.total_mib > llama().total_mib) is (least == Confidence.GUESS)  # the larger margin


def test_what_may_lie_in_host_memory_is_counted_there_too():
    assert llama("--cpu-moe").host_mib == llama().host_mib + llama().weights_mib
    assert llama("--no-kv-offload").host_mib == llama().host_mib + llama().kv_mib
    assert llama(**env(LLAMA_ARG_KV_OFFLOAD="0")).host_mib == llama("-nkvo").host_mib
    assert llama(**env(LLAMA_ARG_KV_OFFLOAD="1")) == llama()


def test_variables_that_nobody_sees_are_said():
    need = llama(envFrom=[{"configMapRef": {"name": "settings"}}])
    assert (need.confidence, "spec.envFrom may set LLAMA_ARG_*" in need.reasons[0]) == (Confidence.BOUNDED, True)


# -- vLLM -------------------------------------------------------------------------------------------------------------


def vllm(*args: str, gpus: int = 1, **spec: Any) -> MemoryNeed:
    """Qwen2.5 7B."""
    asked = Asked(ModelSpec.model_validate({"source": SOURCE, "args": args, **spec}), SAFETENSORS["facts"]["header"])
    need = VllmEngine().need(asked, Serving(8192, 64, spec.get("kvCacheType", "f16")), gpus)
    assert need
    return need


def test_weights_that_lie_in_host_memory_are_counted_there():
    plain, moved = vllm(gpus=2), vllm("--cpu-offload-gb", "2", gpus=2)
    assert moved.weights_mib == plain.weights_mib - 2 * 2048
    assert abs(moved.host_mib - plain.host_mib - 2 * 2048) <= 1
    assert vllm("--cpu_offload_gb=2", gpus=2) == moved


def test_a_cache_in_host_memory_is_counted():
    assert vllm("--kv-offloading-size", "10").host_mib == vllm().host_mib + 10240


def test_layers_that_keep_a_16_bit_cache_are_not_counted_as_fp8():
    assert vllm("--kv-cache-dtype-skip-layers", "0", kvCacheType="fp8").kv_mib == vllm().kv_mib


@pytest.mark.parametrize(
    ("args", "least", "words"),
    [
        (("--speculative-config", '{"model": "d", "num_speculative_tokens": 3}'), Confidence.GUESS, "a draft model"),
        (("--speculative-config.model", "d"), Confidence.GUESS, "a draft model"),
        (("--enable-lora", "--max-loras", "4"), Confidence.GUESS, "adapters"),
        (("--quantization", "fp8"), Confidence.BOUNDED, "as they are stored"),
        (("-q=fp8",), Confidence.BOUNDED, "as they are stored"),
        (("--num-gpu-blocks-override", "9"), Confidence.GUESS, "another size"),
        (("-cc.mode", "3"), Confidence.BOUNDED, "CUDA graphs"),
        (("--enable-prefix-caching", "--seed", "1"), Confidence.BOUNDED, ""),
    ],
)
def test_what_is_not_computed_for_vllm_is_said(args, least, words):
    need = vllm(*args)
    assert need.confidence == least
    assert words in " ".join(need.reasons)
    assert bool(need.reasons) is bool(words)
    assert vllm().reasons == ()  # and Bounded in any case


def test_variables_of_vllm_count_too():
    assert "CUDA graphs" in " ".join(vllm(**env(VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS="0")).reasons)
    assert vllm(**env(VLLM_LOGGING_LEVEL="DEBUG")) == vllm()


def test_the_last_of_several_counts():
    spec = ModelSpec.model_validate({"source": SOURCE, "args": ["--cache-ram", "1", "-cram", "2"]})
    assert given(spec, LLAMA_CPP, ()).number("--cache-ram") == 2
