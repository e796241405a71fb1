"""What a Model can do: by the shapes of real headers, configurations and templates, and by what the spec says."""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from moorage.api.capabilities import CAPABILITY_HELP, EVIDENCE_HELP, Capability, Evidence
from moorage.api.model import ModelSpec
from moorage.engines import llamacpp, shown
from moorage.engines.base import Asked, Serving, Start, option
from moorage.engines.capabilities import Known, capabilities, known_of, pooled, sure
from moorage.engines.llamacpp import LlamaCppEngine
from moorage.engines.vllm import arguments as vllm_arguments
from moorage.sizing.gguf import GgufHeader, Skipped, Value, read_gguf_header
from moorage.sizing.gguf_model import model_of
from moorage.sizing.llamacpp import LlamaSettings, llama_need
from tests.unit.hybrid_shapes import POOLED

ROOT = Path(__file__).resolve().parents[2]

# Templates in the manner of the models they are called after, as short as they can be.
PLAIN = "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}{% endfor %}"
QWEN25 = "{%- if tools %}\n{{- '<tools>' }}\n{%- for tool in tools %}{{ tool | tojson }}{% endfor %}{% endif %}"
QWEN3 = QWEN25 + "{%- if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>{%- endif %}"
LLAMA31 = "{%- if custom_tools is defined %}{%- set tools = custom_tools %}{%- endif %}" + PLAIN
R1_DISTILL = PLAIN + "{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\\n' }}{% endif %}"
STRIPS = PLAIN + "{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}"
GPT_OSS = PLAIN + "{{- '<|start|>assistant<|channel|>analysis<|message|>' }}"
PHI = "{% if 'tools' in message and message['tools'] is not none %}{{ '<|tool|>' + message['tools'] }}{% endif %}"
SPEAKS_OF = "{# give it tools #}You have tools: if tools help, use them.{{ 'no tools' + \"or tools\" }}" + PLAIN

C = Capability
GENERATED = {C.COMPLETION, C.STRUCTURED_OUTPUTS}


@pytest.mark.parametrize(
    ("template", "found"),
    [
        (PLAIN, {C.CHAT}),
        (QWEN25, {C.CHAT, C.TOOLS}),
        (QWEN3, {C.CHAT, C.TOOLS, C.REASONING}),
        (LLAMA31, {C.CHAT, C.TOOLS}),
        (R1_DISTILL, {C.CHAT, C.REASONING}),
        (STRIPS, {C.CHAT}),
        (GPT_OSS, {C.CHAT, C.REASONING}),
        (PHI, {C.CHAT}),  # tools in the system message, where no client of OpenAI's API puts them
        (SPEAKS_OF, {C.CHAT}),
        ("{{ '}}' + tools }}", {C.CHAT, C.TOOLS}),
        ("{{ 'it\\'s' }} tools", {C.CHAT}),
        (" \n", set()),
        ("", set()),
    ],
)
def test_what_a_template_shows(template: str, found: set[Capability]):
    assert shown.in_template(template) == found


@pytest.mark.timeout(120)
@pytest.mark.parametrize("piece", ["{%", "{{'", "'\\", "{#", "{{\"'", "tools", "{{ }}"])
def test_a_hostile_template_takes_no_time(piece: str):
    shown.in_template(piece * (4_000_000 // len(piece)))


def header(architecture: str = "llama", **keys: Value) -> GgufHeader:
    named = {key.replace("__", "."): value for key, value in keys.items()}
    own = {
        f"{architecture}.{key.removeprefix('own.')}" if key.startswith("own.") else key: v for key, v in named.items()
    }
    return GgufHeader({"general.architecture": architecture, **own}, (), 0)


@pytest.mark.parametrize(
    ("read", "found"),
    [
        (header(tokenizer__chat_template=QWEN3), {C.CHAT, C.TOOLS, C.REASONING} | GENERATED),
        (header(tokenizer__chat_template=PLAIN), {C.CHAT} | GENERATED),
        (header(tokenizer__chat_template=Skipped(100_000)), {C.CHAT} | GENERATED),
        (
            header("command-r", tokenizer__chat_template=PLAIN, tokenizer__chat_template__tool_use="x"),
            {C.CHAT, C.TOOLS} | GENERATED,
        ),
        (header(), GENERATED),  # a base model
        (header("bert", own__pooling_type=2), {C.EMBEDDINGS}),
        (header("nomic-bert"), {C.EMBEDDINGS}),
        (header("bert", own__pooling_type=4), {C.RERANK}),  # bge-reranker
        (header("qwen3", own__pooling_type=3, tokenizer__chat_template=QWEN3), {C.EMBEDDINGS}),  # Qwen3-Embedding
        (header("qwen3", own__pooling_type=4), {C.RERANK}),
        (header("qwen3", own__pooling_type=0, tokenizer__chat_template=PLAIN), {C.CHAT} | GENERATED),
        (header("dream", tokenizer__chat_template=PLAIN), set()),  # llama-server does not serve diffusion
        (header(""), set()),
        (header("clip"), set()),
    ],
)
def test_what_a_gguf_header_shows(read: GgufHeader, found: set[Capability]):
    assert shown.in_gguf(read) == found


@pytest.mark.parametrize(
    ("config", "template", "found"),
    [
        ({"architectures": ["Qwen3ForCausalLM"]}, QWEN3, {C.CHAT, C.TOOLS, C.REASONING} | GENERATED),
        ({"architectures": ["LlamaForCausalLM"]}, "", GENERATED),
        ({"architectures": ["GPT2LMHeadModel"]}, "", GENERATED),
        (
            {"architectures": ["Qwen2_5_VLForConditionalGeneration"], "vision_config": {"depth": 32}},
            PLAIN,
            {C.CHAT, C.VISION} | GENERATED,
        ),
        (
            {"architectures": ["Gemma3nForConditionalGeneration"], "vision_config": {}, "audio_config": {}},
            PLAIN,
            {C.CHAT, C.VISION, C.AUDIO} | GENERATED,
        ),
        ({"architectures": ["WhisperForConditionalGeneration"]}, "", set()),
        ({"architectures": ["BertModel"]}, "", {C.EMBEDDINGS}),
        ({"architectures": ["XLMRobertaModel"]}, "", {C.EMBEDDINGS}),
        ({"architectures": ["NomicBertModel"]}, "", {C.EMBEDDINGS}),
        ({"architectures": ["XLMRobertaForSequenceClassification"], "id2label": {"0": "LABEL_0"}}, "", {C.RERANK}),
        ({"architectures": ["ModernBertForSequenceClassification"], "num_labels": 1}, "", {C.RERANK}),
        ({"architectures": ["BertForSequenceClassification"]}, "", set()),
        ({"architectures": ["BertForSequenceClassification"], "id2label": {"0": "a", "1": "b"}}, "", set()),
        ({"architectures": ["SomethingNew"]}, PLAIN, set()),
        ({"architectures": [7]}, PLAIN, set()),
        ({"architectures": "LlamaForCausalLM"}, PLAIN, set()),
        ({}, PLAIN, set()),
    ],
)
def test_what_a_configuration_shows(config: dict[str, Any], template: str, found: set[Capability]):
    assert shown.in_transformer(config, template, sentences=False) == found


@pytest.mark.parametrize(
    ("flags", "found"),
    [
        ({"clip.has_vision_encoder": True}, {C.VISION}),
        ({"clip.has_vision_encoder": True, "clip.has_audio_encoder": True}, {C.VISION, C.AUDIO}),
        ({"clip.has_vision_encoder": False, "clip.has_audio_encoder": 1}, set()),
        ({}, set()),
    ],
)
def test_what_a_projector_adds(flags: dict[str, Value], found: set[Capability]):
    assert shown.in_projector(GgufHeader({"general.architecture": "clip", **flags}, (), 0)) == found


def test_files_of_sentence_transformers_make_a_server_of_embeddings_of_any_architecture():
    config = {"architectures": ["Qwen3ForCausalLM"]}
    assert shown.in_transformer(config, QWEN3, sentences=True) == {C.EMBEDDINGS}


@pytest.mark.parametrize(
    ("path", "data", "template"),
    [
        ("chat_template.jinja", PLAIN, PLAIN),
        ("tokenizer_config.json", json.dumps({"chat_template": QWEN25, "added_tokens_decoder": {}}), QWEN25),
        (
            "tokenizer_config.json",
            json.dumps(
                {"chat_template": [{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}]}
            ),
            "a\nb",
        ),
        ("tokenizer_config.json", json.dumps({"bos_token": "tools"}), ""),
        ("tokenizer_config.json", json.dumps({"chat_template": {"template": 7}}), ""),
        ("tokenizer_config.json", "[1, 2]", ""),
        ("tokenizer_config.json", "{", ""),
        ("", "", ""),
    ],
)
def test_the_template_is_found_in_its_file(path: str, data: str, template: str):
    assert shown.template_in(path, data.encode()) == template


# What the engines make of it


def asked(tool_parser: str = "", **spec: Any) -> Asked:
    spec.setdefault("source", {"downloadRef": {"name": "d"}})
    return Asked(ModelSpec.model_validate(spec), tool_parser=tool_parser)


CHAT = frozenset({C.CHAT, C.TOOLS, C.REASONING} | GENERATED)
M, D, P, N = Evidence.METADATA, Evidence.DECLARED, Evidence.PROBE, Evidence.NAME
TEMPLATE = {"chatTemplate": {"configMapKeyRef": {"name": "t"}}}


def told(found: Mapping[Capability, Evidence]) -> dict[str, Evidence]:
    """Without completion and structured_outputs, which all that generate have."""
    return {str(name): evidence for name, evidence in found.items() if name not in GENERATED}


@pytest.mark.parametrize(
    ("spec", "reported", "found"),
    [
        ({}, {}, {"chat": M, "tools": M, "reasoning": M}),
        ({}, {C.TOOLS: True, C.VISION: True, C.AUDIO: False}, {"chat": M, "tools": P, "reasoning": M, "vision": P}),
        ({}, {C.TOOLS: False}, {"chat": M, "reasoning": M}),
        (TEMPLATE, {}, {"chat": D}),
        (TEMPLATE, {C.TOOLS: True, C.REASONING: True}, {"chat": D, "tools": P, "reasoning": P}),
        ({"args": ["--chat-template", "chatml"]}, {}, {"chat": D}),
        ({"args": ["--skip-chat-parsing"]}, {C.TOOLS: True}, {"chat": M}),
        ({"args": ["--no-jinja"]}, {C.TOOLS: True}, {"chat": M, "reasoning": M}),
        ({"args": ["--reasoning-format", "none"]}, {}, {"chat": M, "tools": M}),
        ({"args": ["--reasoning-budget=0"]}, {}, {"chat": M, "tools": M}),
        ({"args": ["--embeddings"]}, {}, {"embeddings": D}),
        ({"args": ["--pooling", "mean", "--embedding"]}, {}, {"embeddings": D}),
        ({"args": ["--rerank"]}, {}, {"rerank": D}),
        ({"env": [{"name": "LLAMA_ARG_EMBEDDINGS", "value": "1"}]}, {}, {"embeddings": D}),
        ({"env": [{"name": "LLAMA_ARG_EMBEDDINGS", "value": "0"}]}, {}, {"chat": M, "tools": M, "reasoning": M}),
        ({"capabilities": ["vision", "chat"]}, {C.TOOLS: True}, {"chat": D, "vision": D}),
    ],
)
def test_llamacpp(spec: dict[str, Any], reported: dict[Capability, bool], found: dict[str, Evidence]):
    assert told(capabilities(asked(**spec), Known("GGUF", CHAT, reported=reported))) == found


SEES = CHAT | {C.VISION, C.AUDIO}


@pytest.mark.parametrize(
    ("spec", "parser", "shows", "found"),
    [
        ({}, "", CHAT, {"chat": M}),  # a template with tools that no parser is known for
        ({}, "hermes", CHAT, {"chat": M, "tools": M}),
        ({"toolCalling": {"enabled": False}}, "hermes", CHAT, {"chat": M}),
        ({"toolCalling": {"parser": "mistral"}}, "", CHAT, {"chat": M, "tools": D}),
        ({"reasoningParser": "qwen3"}, "hermes", CHAT, {"chat": M, "tools": M, "reasoning": D}),
        (TEMPLATE, "hermes", CHAT, {"chat": D}),
        ({"toolCalling": {"parser": "mistral"}, **TEMPLATE}, "", CHAT, {"chat": D, "tools": D}),
        ({}, "", SEES, {"chat": M, "vision": M, "audio": M}),
        ({"args": ["--limit-mm-per-prompt", '{"image": 0}']}, "", SEES, {"chat": M, "audio": M}),
        ({"args": ["--limit-mm-per-prompt.image=0"]}, "", SEES, {"chat": M, "audio": M}),
        ({"args": ["--limit-mm-per-prompt", "nonsense"]}, "", SEES, {"chat": M, "vision": M, "audio": M}),
        ({"args": ["--language-model-only"]}, "", SEES, {"chat": M}),
        ({"args": ["--runner", "pooling"]}, "hermes", CHAT, {"embeddings": D}),
        ({"args": ["--convert=embed"]}, "hermes", CHAT, {"embeddings": D}),
        ({"args": ["--runner", "pooling"]}, "", frozenset({C.RERANK}), {"rerank": M}),
        ({"reasoningParser": "qwen3"}, "hermes", frozenset({C.EMBEDDINGS}), {"embeddings": M}),
        ({"capabilities": ["tools"]}, "", CHAT, {"tools": D}),
    ],
)
def test_vllm(spec: dict[str, Any], parser: str, shows: frozenset[Capability], found: dict[str, Evidence]):
    assert told(capabilities(asked(parser, **spec), Known("Safetensors", shows))) == found


@pytest.mark.parametrize("shows", [{C.EMBEDDINGS}, {C.RERANK}, GENERATED])
def test_what_a_server_says_of_chats_counts_only_for_what_chats(shows: set[Capability]):
    known = Known("GGUF", frozenset(shows), reported={C.TOOLS: True, C.REASONING: True, C.VISION: False})
    assert capabilities(asked(), known).keys() == shows


def test_a_projector_counts_until_the_server_knows_better():
    shows = CHAT | {C.VISION}
    assert told(capabilities(asked(), Known("GGUF", shows)))["vision"] == M
    assert told(capabilities(asked(), Known("GGUF", shows, reported={C.VISION: True})))["vision"] == P
    assert "vision" not in capabilities(asked(), Known("GGUF", shows, reported={C.VISION: False}))


def test_whatever_generates_can_be_held_to_a_schema():
    for kind in ("GGUF", "Safetensors"):
        assert capabilities(asked(), Known(kind, frozenset(GENERATED))) == dict.fromkeys(
            (C.COMPLETION, C.STRUCTURED_OUTPUTS), M
        )


def test_nothing_is_claimed_before_the_files_are_known():
    assert capabilities(asked(), Known(names=("Qwen3-8B-Instruct",))) == {}


@pytest.mark.parametrize(
    ("name", "hints"),
    [
        ("Qwen3-Embedding-8B-GGUF", {C.EMBEDDINGS}),
        ("nomic-embed-text-v1.5", {C.EMBEDDINGS}),
        ("bge-m3", {C.EMBEDDINGS}),
        ("bge-reranker-v2-m3", {C.RERANK}),
        ("Llama-3.2-1B-Instruct", {C.CHAT}),
        ("gemma-3-4b-it-Q4_K_M.gguf", {C.CHAT}),
        ("DeepSeek-R1-0528", {C.REASONING}),
        ("Qwen3-4B-Thinking-2507", {C.REASONING}),
        ("Qwen2.5-VL-7B", set()),
        ("bitnet-chatty-item", set()),
    ],
)
def test_what_a_name_hints_at_is_a_guess(name: str, hints: set[Capability]):
    found = capabilities(asked(), Known("GGUF", names=(name,)))
    assert found == dict.fromkeys(sorted(hints), N)
    assert sure(found) == frozenset()


def test_a_name_adds_nothing_to_what_is_known():
    found = capabilities(asked(), Known("GGUF", CHAT, ("Qwen3-8B-Instruct-Thinking",)))
    assert set(found.values()) == {M}


def test_words_of_another_version_mean_nothing():
    assert known_of(["chat", "telepathy", "tools"]) == {C.CHAT, C.TOOLS}


# What follows for the server

START = Start("m", "/models/m.gguf", Serving(512, 4))


@pytest.mark.parametrize(
    ("spec", "shows", "argument"),
    [
        ({}, {C.EMBEDDINGS}, "--embeddings"),
        ({}, {C.RERANK}, "--reranking"),
        ({}, CHAT, None),
        ({"capabilities": ["embeddings"]}, CHAT, "--embeddings"),
        ({"capabilities": ["embeddings", "chat"]}, CHAT, None),
        ({"capabilities": ["tools"]}, CHAT, None),
        ({"args": ["--embedding", "--pooling", "mean"]}, CHAT, "--embedding"),
    ],
)
def test_a_server_of_embeddings_is_started_as_one(spec: dict[str, Any], shows: set[Capability], argument: str | None):
    wanted = asked(**spec)
    doing = pooled(sure(capabilities(wanted, Known("GGUF", frozenset(shows)))))
    args = llamacpp.arguments(replace(wanted, pooled=doing), START)
    found = [arg for arg in args if arg in ("--embeddings", "--embedding", "--reranking", "--rerank")]
    assert found == ([argument] if argument else [])


LAST, RANK = "Qwen3-Embedding-0.6B", "Qwen3-Reranker-0.6B"


@pytest.mark.parametrize(
    ("spec", "pooled", "file", "batches"),
    [
        ({}, None, RANK, ("2048", "512")),
        ({}, C.EMBEDDINGS, "all-MiniLM-L6-v2", ("4096", "4096")),
        ({}, C.RERANK, RANK, ("4096", "4096")),
        ({"llamaCpp": {"batchSize": 8192, "ubatchSize": 8192}}, C.RERANK, RANK, ("8192", "8192")),
        ({}, C.EMBEDDINGS, LAST, ("2048", "512")),
        ({}, C.RERANK, LAST, ("4096", "4096")),
        ({"args": ["--pooling", "last"]}, C.EMBEDDINGS, RANK, ("2048", "512")),
        ({"args": ["--pooling", "mean"]}, C.EMBEDDINGS, LAST, ("4096", "4096")),
    ],
)
def test_a_text_that_becomes_one_vector_fits_into_one_micro_batch(
    spec: dict[str, Any], pooled: C | None, file: str, batches: tuple[str, str]
):
    """llama-server answers 500 to a longer one: "input is too large to process"."""
    llama = model_of(read_gguf_header(POOLED[file].header))
    wanted = replace(asked(**spec), pooled=pooled, header=json.dumps(llama.to_json()))
    serving = Serving(4096, 4)
    args = llamacpp.arguments(wanted, replace(START, serving=serving))
    assert (option(args, "--batch-size"), option(args, "--ubatch-size")) == batches
    need = LlamaCppEngine().need(wanted, serving, 1)
    outputs = None if pooled is None else 0
    settings = LlamaSettings(4096 * 4, 4, ubatch_size=int(batches[1]), outputs=outputs)
    assert need == llama_need(llama, settings), "as it is started, so it is counted"


@pytest.mark.parametrize(
    ("spec", "argument"), [({}, ["--runner", "pooling"]), ({"args": ["--runner=pooling"]}, ["--runner=pooling"])]
)
def test_vllm_is_told_to_pool_where_nothing_is_generated(spec: dict[str, Any], argument: list[str]):
    wanted = asked(**spec)
    args = vllm_arguments(replace(wanted, pooled=C.EMBEDDINGS), START)
    assert list(args[-len(argument) :]) == argument
    assert "--runner" not in vllm_arguments(asked(), START)


def test_the_arguments_that_are_looked_at_exist_in_the_pinned_engines():
    known = (ROOT / "images/llamacpp-cpu/help.txt").read_text()
    names = (*llamacpp.POOLED[C.EMBEDDINGS], *llamacpp.POOLED[C.RERANK], "--chat-template", "--chat-template-file")
    for name in (
        *names,
        "--skip-chat-parsing",
        "--no-jinja",
        "--reasoning-format",
        "--reasoning",
        "--reasoning-budget",
    ):
        assert re.search(rf"(?<![\w-]){name}(?![\w-])", known), name
    options = json.loads((ROOT / "images/vllm-cpu/arguments.json").read_text())["options"]
    assert {"--runner", "--convert", "--language-model-only", "--limit-mm-per-prompt", "--chat-template"} <= set(
        options
    )


@pytest.mark.parametrize(
    ("args", "value"),
    [
        (["--reasoning", "off"], "off"),
        (["--reasoning=off"], "off"),
        (["-rea", "on", "-rea", "off"], "off"),
        (["--reasoning"], ""),
        (["--reasoning-format", "x"], None),
        ([], None),
    ],
)
def test_the_last_of_an_option_counts(args: list[str], value: str | None):
    assert option(args, "--reasoning", "-rea") == value


def test_every_word_has_a_line():
    assert set(CAPABILITY_HELP) == set(Capability)
    assert set(EVIDENCE_HELP) == set(Evidence)
