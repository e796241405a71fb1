"""Models of safetensors files: planned for vLLM, from the header to the pod."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from moorage.engines.failures import Ran, out_of_memory
from moorage.planning.types import Resolve
from tests.support.world import GGUF, SAFETENSORS, World, gpu_node, model

SOURCE = {"huggingFace": {"repo": "org/qwen"}}
NVIDIA = {"vendor": "Nvidia"}


def vllm(**spec: Any) -> dict[str, Any]:
    return model(source=SOURCE, **spec)


def on_gpu(mib: int = 24564, gpus: int = 1, **spec: Any) -> World:
    return asked_on_gpu(mib, gpus, **spec).download_done()


def asked_on_gpu(mib: int, gpus: int = 1, **spec: Any) -> World:
    world = World(vllm(accelerator={**NVIDIA, **spec.pop("accelerator", {})}, **spec))
    world.nodes = [gpu_node("gpu-1", mib, gpus)]
    return world.answer_resolve(SAFETENSORS)


def container(world: World) -> dict[str, Any]:
    return world.manifests[("Deployment", "tiny")]["spec"]["template"]["spec"]["containers"][0]


def value(world: World, argument: str) -> str:
    args = container(world)["args"]
    return args[args.index(argument) + 1]


def test_safetensors_are_served_by_vllm_from_their_folder():
    world = on_gpu()
    assert world.model["status"]["engine"]["name"] == "VLLM"
    assert world.model["status"]["engine"]["reason"] == "safetensors files are served by vLLM"
    assert container(world)["image"] == "vllm:v0.32.0"
    assert container(world)["command"] == ["vllm", "serve"]
    folder = container(world)["args"][0]
    source = world.model["status"]["source"]
    assert folder == f"/models/{source['path']}"
    assert value(world, "--served-model-name") == "tiny"
    assert (value(world, "--max-model-len"), value(world, "--max-num-seqs")) == ("8192", "64")


def test_the_plan_is_made_for_four_full_requests_and_vllm_may_use_the_rest_of_the_gpu():
    world = on_gpu()
    memory = world.model["status"]["memory"]
    assert memory["kvMiB"] == 4 * 8192 * 28 * 4 * 256 * 2 // 2**20
    assert memory["perGpuMiB"] == [memory["plannedMiB"]]
    assert value(world, "--gpu-memory-utilization") == "0.920"
    assert "--kv-cache-memory-bytes" not in container(world)["args"]


def test_a_tight_gpu_gives_no_more_than_may_be_planned_of_it():
    world = on_gpu(20480)
    share = float(value(world, "--gpu-memory-utilization"))
    visible = 20480 * 0.99
    claimed = world.model["status"]["memory"]["plannedMiB"] - 0.55 * 1024
    assert claimed <= share * visible + 21  # a thousandth is lost by rounding down
    assert share * visible + 0.55 * 1024 <= visible - 512


def test_a_persons_own_word_on_memory_bounds_vllm():
    world = on_gpu(81559, accelerator={"memoryPerGPUOverride": "20Gi"})
    assert float(value(world, "--gpu-memory-utilization")) * 81559 * 0.99 < 20 * 1024


def test_too_small_a_gpu_is_not_taken():
    world = asked_on_gpu(19456)
    assert world.condition("Placed")[:2] == ("False", "NoGPUFits")
    assert world.model["status"]["remedies"]


def test_two_gpus_share_the_model_out():
    world = on_gpu(16384, 4)
    assert world.model["status"]["placement"]["count"] == 2
    assert value(world, "--tensor-parallel-size") == "2"
    volumes = world.manifests[("Deployment", "tiny")]["spec"]["template"]["spec"]["volumes"]
    shared = next(v for v in volumes if v["name"] == "dev-shm")
    assert shared["emptyDir"] == {"sizeLimit": "2Gi", "medium": "Memory"}


def test_a_number_of_gpus_that_does_not_come_out_even_is_refused_with_the_heads():
    world = asked_on_gpu(81559, 8, accelerator={"count": 8})  # 28 heads
    status, reason, message = world.condition("Accepted")
    assert (status, reason) == ("False", "InvalidSpec")
    assert message == "spec.accelerator.count: 28 attention heads cannot be shared out over 8 GPUs"


def test_on_a_cpu_the_cache_is_what_the_plan_says():
    world = World(vllm(maxSequences=2, contextLength=1024)).answer_resolve(SAFETENSORS).download_done()
    assert container(world)["image"] == "vllm-cpu:v0.32.0"
    assert value(world, "--kv-cache-memory-bytes") == str(2 * 1024 * 28 * 4 * 256 * 2)
    assert "--gpu-memory-utilization" not in container(world)["args"]
    request = container(world)["resources"]["requests"]["memory"]
    assert int(request.removesuffix("Mi")) > 15_231_233_024 / 2**20 + 2048
    assert world.model["status"]["memory"]["hostMiB"] == int(request.removesuffix("Mi"))


REFUSED = [
    ({"llamaCpp": {"threads": 4}}, "spec.llamaCpp has no effect"),
    ({"kvCacheType": "q8_0"}, "set spec.kvCacheType to f16 or fp8"),
    ({"vllm": {"trustRemoteCode": True}}, "vllm.allowRemoteCode"),
    ({"vllm": {"maxBatchedTokens": 32}}, "must be at least spec.maxSequences, which is 64"),
    ({"contextLength": 65536}, "more than the 32768 tokens"),
]


@pytest.mark.parametrize(("spec", "words"), REFUSED)
def test_what_vllm_would_refuse_is_refused_before_the_download(spec: dict[str, Any], words: str):
    world = World(vllm(**spec)).answer_resolve(SAFETENSORS)
    status, reason, message = world.condition("Accepted")
    assert (status, reason) == ("False", "InvalidSpec")
    assert words in message
    assert world.phase == "Blocked"
    assert world.download is None


REFUSED_BY_LLAMA_CPP = [
    ({"vllm": {"enforceEager": True}}, "spec.vllm has no effect"),
    ({"kvCacheType": "fp8"}, "set spec.kvCacheType to f16, q8_0 or q4_0"),
    ({"maxSequences": 64}, "at most 16"),
    ({"reasoningParser": "qwen3"}, "spec.reasoningParser is for vLLM"),
    ({"toolCalling": {"parser": "hermes"}}, "remove spec.toolCalling"),
]


@pytest.mark.parametrize(("spec", "words"), REFUSED_BY_LLAMA_CPP)
def test_what_is_vllms_alone_is_refused_for_gguf(spec: dict[str, Any], words: str):
    world = World(model(**spec)).answer_resolve(GGUF)
    assert world.condition("Accepted")[1] == "InvalidSpec"
    assert words in world.condition("Accepted")[2]


@pytest.mark.parametrize(
    ("engine", "facts", "words"),
    [("LlamaCpp", SAFETENSORS, "Auto or VLLM"), ("VLLM", GGUF, "Auto or LlamaCpp")],
)
def test_an_engine_that_does_not_serve_the_files_is_refused(engine: str, facts: dict[str, Any], words: str):
    world = World(vllm(engine=engine)).answer_resolve(facts)
    assert world.condition("Accepted")[1] == "UnsupportedFormat"
    assert words in world.condition("Accepted")[2]


@pytest.mark.parametrize(("engine", "pattern"), [("VLLM", "*.gguf"), ("LlamaCpp", "*.safetensors")])
def test_of_a_repository_with_both_formats_the_engine_picks_its_own(engine: str, pattern: str):
    world = World(vllm(engine=engine)).settle()
    asked = next(a for a in world.asked if isinstance(a, Resolve))
    assert asked.source["huggingFace"]["exclude"] == [pattern]


def test_tools_are_called_by_what_the_chat_template_shows():
    args = container(on_gpu())["args"]
    assert args[args.index("--enable-auto-tool-choice") + 2] == "hermes"
    assert "--enable-auto-tool-choice" not in container(on_gpu(toolCalling={"enabled": False}))["args"]
    assert value(on_gpu(toolCalling={"parser": "pythonic"}), "--tool-call-parser") == "pythonic"


def test_tools_that_nobody_can_read_are_refused():
    facts = {**SAFETENSORS, "facts": {**SAFETENSORS["facts"], "toolCallParser": ""}}
    world = World(vllm(toolCalling={})).answer_resolve(facts)
    assert "spec.toolCalling.parser" in world.condition("Accepted")[2]


def test_settings_reach_the_command_line():
    world = on_gpu(
        maxSequences=8,
        kvCacheType="fp8",
        reasoningParser="qwen3",
        vllm={"dtype": "bfloat16", "maxBatchedTokens": 4096, "enforceEager": True},
        chatTemplate={"configMapKeyRef": {"name": "chat"}},
        args=["--seed", "1"],
    )
    args = container(world)["args"]
    told = ("--max-num-seqs", "--kv-cache-dtype", "--reasoning-parser", "--dtype", "--max-num-batched-tokens")
    assert [value(world, name) for name in told] == ["8", "fp8", "qwen3", "bfloat16", "4096"]
    assert "--enforce-eager" in args
    assert value(world, "--chat-template") == "/etc/moorage/chat-template/chat-template.jinja"
    assert args[-2:] == ["--seed", "1"]
    volumes = world.manifests[("Deployment", "tiny")]["spec"]["template"]["spec"]["volumes"]
    assert next(v for v in volumes if v["name"] == "chat-template")["configMap"]["name"] == "chat"


def test_remote_code_runs_only_where_the_installation_allows_it():
    from dataclasses import replace

    from tests.support.world import DEFAULTS

    world = World(vllm(vllm={"trustRemoteCode": True}), replace(DEFAULTS, remote_code_allowed=True))
    world.answer_resolve(SAFETENSORS).download_done()
    assert "--trust-remote-code" in container(world)["args"]


def test_the_pod_reports_to_nobody_and_keeps_connections_longer_than_the_gateway():
    from moorage.gateway.settings import Settings

    env = {e["name"]: e["value"] for e in container(on_gpu())["env"]}
    assert {env[k] for k in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "VLLM_NO_USAGE_STATS", "DO_NOT_TRACK")} == {"1"}
    assert float(env["VLLM_HTTP_TIMEOUT_KEEP_ALIVE"]) > Settings.engine_idle_timeout


def test_a_model_in_more_files_than_a_status_names_is_fetched_by_patterns():
    shards = [{"path": f"model-{n:05d}-of-00163.safetensors", "sizeBytes": 4 << 30} for n in range(1, 164)]
    facts = {**SAFETENSORS, "files": [SAFETENSORS["files"][0], *shards], "selected": False}
    world = World(vllm(accelerator={"vendor": "None"})).answer_resolve(facts)
    assert world.download is not None
    assert "files" not in world.download["spec"]
    assert "*.bin" in world.download["spec"]["source"]["huggingFace"]["exclude"]


def test_what_ends_vllm_is_written_where_the_kubelet_keeps_it(tmp_path: Path):
    """vLLM takes the configuration by `logging.config.dictConfig`; its loggers are named after its modules."""
    template = on_gpu().manifests[("Deployment", "tiny")]["spec"]["template"]
    [server] = template["spec"]["containers"]
    path = Path(next(e["value"] for e in server["env"] if e["name"] == "VLLM_LOGGING_CONFIG_PATH"))
    [mount] = (m for m in server["volumeMounts"] if m["mountPath"] == str(path.parent))
    [volume] = (v for v in template["spec"]["volumes"] if v["name"] == mount["name"])
    [item] = volume["downwardAPI"]["items"]
    assert item["path"] == path.name
    annotation = item["fieldRef"]["fieldPath"].removeprefix("metadata.annotations['").removesuffix("']")
    config = json.loads(template["metadata"]["annotations"][annotation])
    assert config["handlers"]["last_words"]["filename"] == "/dev/termination-log"

    config["handlers"]["last_words"]["filename"] = str(tmp_path / "termination-log")
    script = (
        f"import logging, logging.config\nlogging.config.dictConfig({config!r})\n"
        "logging.getLogger('vllm.entrypoints').error('not worth keeping')\n"
        "try: raise ValueError('No available memory for the cache blocks.')\n"
        "except ValueError: logging.getLogger('vllm.v1.engine.core').exception('EngineCore failed to start.')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    kept = (tmp_path / "termination-log").read_text()
    found = out_of_memory(kept)
    assert found is not None
    assert found.ran == Ran.CACHE_MEMORY
    assert "not worth keeping" not in kept
    assert "not worth keeping" in done.stdout
    assert "EngineCore failed to start." in done.stdout, "the log has it too"


# -- versions ---------------------------------------------------------------------------------------------------------


def estimate(**spec: Any) -> tuple[int, str, list[str]]:
    memory = asked_on_gpu(24564, **spec).model["status"]["memory"]
    return memory["computeMiB"], memory["confidence"], memory.get("reasons", [])


def test_the_figures_are_those_of_the_images_version():
    """The sampler's warm-up took 9.75 copies of the logits before 0.17, and 3.75 since."""
    pinned = estimate()
    old = estimate(image="docker.io/vllm/vllm-openai:v0.11.2-x86_64")
    assert (old[0], pinned[0]) == (1386, 1330)
    assert old[1:] == pinned[1:] == ("Bounded", [])
    assert estimate(image="registry:5000/vllm:0.18.1@sha256:" + "a" * 64) == pinned


def test_an_image_without_a_version_is_a_guess_and_says_so():
    compute, confidence, reasons = estimate(image="registry:5000/team/vllm")
    assert (compute, confidence) == (estimate()[0], "Guess")
    assert "registry:5000/team/vllm does not begin with a version" in reasons[0]
    assert "figures of vLLM 0.32" in reasons[0]
    assert estimate(image="vllm:latest")[1] == "Guess"


@pytest.mark.parametrize(("tag", "confidence", "words"), [("v1.4.0", "Bounded", "1.4"), ("v0.8.5", "Guess", "0.11")])
def test_versions_beyond_what_was_seen_say_so(tag, confidence, words):
    _, found, reasons = estimate(image=f"vllm:{tag}")
    assert (found, words in reasons[0]) == (confidence, True)


def test_an_upgrade_of_the_chart_plans_for_the_image_that_runs():
    world = on_gpu()
    before = world.model["status"]["memory"]["computeMiB"]
    world.defaults = replace(world.defaults, vllm_nvidia_image="vllm:v0.11.0")
    assert world.settle().model["status"]["memory"]["computeMiB"] == before


def test_the_pod_asks_for_its_shared_memory_and_a_process_for_each_gpu():
    one, two = (on_gpu(gpus=2, accelerator={"count": count}) for count in (1, 2))
    for world, gpus in ((one, 1), (two, 2)):
        volumes = world.manifests["Deployment", "tiny"]["spec"]["template"]["spec"]["volumes"]
        shared = [v["emptyDir"]["sizeLimit"] for v in volumes if v.get("emptyDir", {}).get("medium") == "Memory"]
        assert shared == [f"{gpus}Gi"]
        assert world.model["status"]["memory"]["hostMiB"] == 2048 + gpus * (2048 + 1024)
        assert container(world)["resources"]["requests"]["memory"] == f"{world.model['status']['memory']['hostMiB']}Mi"
