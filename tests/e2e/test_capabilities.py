"""What Models can do, on a real kubelet: real llama-server says so, and serves vectors where that is what it is for."""

import json
from typing import Any

import pytest

from tests.e2e.conftest import Machine
from tests.e2e.test_gateway import Address, alias, error_of, gateway

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1200)]
__all__ = ["gateway"]  # the fixture

WITH_TOOLS = (
    "{%- if tools %}{{- '<tools>' }}{%- for tool in tools %}{{- tool | tojson }}{%- endfor %}{%- endif %}"
    "{%- for message in messages %}{{- message['role'] + ': ' + message['content'] }}{%- endfor %}"
)


def able(model: dict[str, Any]) -> dict[str, str]:
    return {found["name"]: found["evidence"] for found in model["status"]["capabilities"]}


def test_an_alias_waits_for_a_model_that_takes_tools_and_the_server_says_which_does(machine: Machine, gateway: Address):
    machine.model("plain")
    alias(machine, "agent", "plain", requires={"capabilities": ["tools"]})
    plain = machine.until_condition("plain", "Ready", "True")
    assert able(plain) == {"chat": "Metadata", "completion": "Metadata", "structured_outputs": "Metadata"}
    assert plain["status"]["engine"]["report"] == {"tools": False, "vision": False, "audio": False}
    machine.until_condition("agent", "Ready", "False", "TargetFallsShort", of="modelalias")
    gateway.until("agent", 503)
    assert error_of(gateway.chat("agent")) == (503, "requirements_not_met")

    template = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "with-tools"}}
    machine.kubectl("apply", "-f", "-", input=json.dumps({**template, "data": {"chat-template.jinja": WITH_TOOLS}}))
    machine.patch("plain", {"chatTemplate": {"configMapKeyRef": {"name": "with-tools"}}})
    machine.until("model", "plain", lambda m: able(m).get("tools") == "Probe", 180)
    machine.until_condition("agent", "Ready", "True", of="modelalias")
    gateway.until("agent", 200)
    assert "tools" in gateway.ask("/v1/models/agent")[1]["capabilities"]


def test_a_model_of_embeddings_is_ready_and_gives_vectors(machine: Machine, gateway: Address):
    machine.model("vectors", capabilities=["embeddings"], args=["--pooling", "mean"], benchmark={"enabled": True})
    alias(machine, "search", "vectors", requires={"capabilities": ["embeddings"]})
    model = machine.until_condition("vectors", "Ready", "True")
    benchmarked = next(c for c in model["status"]["conditions"] if c["type"] == "Benchmarked")
    assert (benchmarked["status"], benchmarked["reason"]) == ("True", "Disabled")
    machine.until_condition("search", "Ready", "True", of="modelalias")
    status, answer = gateway.ask("/v1/embeddings", {"model": "search", "input": ["harbor", "tide"]})
    assert status == 200
    assert [len(one["embedding"]) for one in answer["data"]] == [64, 64]
    assert gateway.ask("/v1/models/search")[1]["architecture"]["output_modalities"] == ["embeddings"]


def test_a_reranker_is_known_by_its_file_and_takes_documents_as_long_as_its_context(machine: Machine, gateway: Address):
    machine.model("ranks", repo="moorage/tiny-reranker-GGUF")
    model = machine.until_condition("ranks", "Ready", "True", timeout=180)
    assert able(model) == {"rerank": "Metadata"}
    gateway.until("ranks", 400)  # a chat; until the gateway knows the Model it is 404
    assert error_of(gateway.chat("ranks")) == (400, "unsupported_endpoint")
    documents = ["harbor harbor", "harbor " * 1500, "wind and tide"]
    status, answer = gateway.ask("/v1/rerank", {"model": "ranks", "query": "harbor", "documents": documents})
    assert status == 200, answer
    scores = {found["index"]: found["relevance_score"] for found in answer["results"]}
    assert sorted(scores) == [0, 1, 2]
    assert len(set(scores.values())) == 3
    assert gateway.ask("/v1/models/ranks")[1]["architecture"]["output_modalities"] == ["rerank"]
