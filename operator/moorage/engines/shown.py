"""Which capabilities a model's files show: header, configuration and chat template, as far as they were read.

What an engine makes of them is another question (`moorage.engines.capabilities`); where the files say nothing, nothing
is claimed. The markers of reasoning open a thought in the template, or switch it on: templates of models that do not
reason at most strip a closing one from what others wrote.
"""

import re
from collections.abc import Mapping
from typing import Any, Final

from moorage.api.capabilities import Capability
from moorage.sizing.architectures import ENCODERS, NO_CACHE
from moorage.sizing.errors import HeaderError
from moorage.sizing.gguf import GgufHeader
from moorage.sizing.safetensors import parse_object

# What tells code from text, comments and string literals in Jinja, and the variable that holds a request's tools.
_JINJA: Final = re.compile(r"\{[{%#]|[}%#]\}|\\.|['\"]|\b(?:custom_)?tools\b", re.DOTALL)
_THOUGHTS: Final = (
    "<think>", "<|think|>", "◁think▷", "[THINK]", "<seed:think>", "<|START_THINKING|>", "<|begin_of_thought|>",
    "<|channel|>analysis", "enable_thinking",
)  # fmt: skip

_LONGEST: Final = 256 << 10
"""Characters of a template that are looked at; of seventy real ones the longest has 20,000."""

_POOLING_NONE, _POOLING_RANK = 0, 4  # enum llama_pooling_type of llama.cpp's include/llama.h
_EMBEDDERS: Final = ENCODERS | {"llama-embed", "t5encoder"}
_UNSERVED: Final = (NO_CACHE - ENCODERS) | {"clip"}  # diffusion models and projectors: no text comes of them

_GENERATES: Final = re.compile(r"(?:ForCausalLM|ForConditionalGeneration|LMHeadModel|ChatModel)$")
_TRANSCRIBES: Final = re.compile(r"^(?:Whisper|Voxtral|Moonshine)")
_EMBEDS: Final = re.compile(r"(?:Bert|BERT|Roberta|Gte|GteNew)\w*Model$|(?:EmbeddingModel|ForTextEncoding)$")
_SCORES: Final = "ForSequenceClassification"
SENTENCE_TRANSFORMERS: Final = "modules.json"
"""Beside a configuration it makes vLLM start any architecture as a server of embeddings."""


def in_template(template: str) -> set[Capability]:
    """What a chat template shows: that there is one, whether it takes tools, whether it opens thoughts."""
    template = template[:_LONGEST]
    if not template.strip():
        return set()
    found = {Capability.CHAT}
    if _takes_tools(template):
        found.add(Capability.TOOLS)
    if any(mark in template for mark in _THOUGHTS):
        found.add(Capability.REASONING)
    return found


def _takes_tools(template: str) -> bool:
    """Whether the code of a Jinja template speaks of the variable `tools`; one pass, whatever strangers wrote."""
    inside = quote = ""
    for match in _JINJA.finditer(template):
        token = match[0]
        if not inside:
            inside = token if token in ("{{", "{%", "{#") else ""
        elif inside == "{#":
            inside = "" if token == "#}" else inside
        elif quote:
            quote = "" if token == quote else quote
        elif token in ("'", '"'):
            quote = token
        elif token in ("}}", "%}"):
            inside = ""
        elif token.endswith("tools"):
            return True
    return False


def in_gguf(header: GgufHeader) -> set[Capability]:
    """What a GGUF file's header shows."""
    pooling = header.metadata.get(f"{header.architecture}.pooling_type")
    if pooling == _POOLING_RANK:
        return {Capability.RERANK}
    if header.architecture in _EMBEDDERS or (isinstance(pooling, int) and pooling > _POOLING_NONE):
        return {Capability.EMBEDDINGS}
    if not header.architecture or header.architecture in _UNSERVED:
        return set()
    found = _generating()
    for key, value in header.metadata.items():
        if key == "tokenizer.chat_template":  # one that was too long to keep is there all the same
            found |= in_template(value) if isinstance(value, str) else {Capability.CHAT}
        elif key == "tokenizer.chat_template.tool_use":  # llama.cpp takes this one for requests with tools
            found.add(Capability.TOOLS)
    return found


def in_projector(header: GgufHeader) -> set[Capability]:
    """What a multimodal projector adds to the model it is served with."""
    flags = {"clip.has_vision_encoder": Capability.VISION, "clip.has_audio_encoder": Capability.AUDIO}
    return {capability for key, capability in flags.items() if header.metadata.get(key) is True}


def in_transformer(config: Mapping[str, Any], template: str, *, sentences: bool) -> set[Capability]:
    """What the config.json of a safetensors model shows, and its chat template.

    `sentences`: files of Sentence Transformers lie beside it.
    """
    names = config.get("architectures")
    architecture = names[0] if isinstance(names, list) and names and isinstance(names[0], str) else ""
    if architecture.endswith(_SCORES):
        return {Capability.RERANK} if _labels(config) == 1 else set()
    if sentences or _EMBEDS.search(architecture):
        return {Capability.EMBEDDINGS}
    if not _GENERATES.search(architecture) or _TRANSCRIBES.search(architecture):
        return set()
    found = _generating() | in_template(template)
    if isinstance(config.get("vision_config"), dict):
        found.add(Capability.VISION)
    if isinstance(config.get("audio_config"), dict):
        found.add(Capability.AUDIO)
    return found


def _generating() -> set[Capability]:
    """Both engines hold whatever generates text to a grammar or schema, token by token."""
    return {Capability.COMPLETION, Capability.STRUCTURED_OUTPUTS}


def _labels(config: Mapping[str, Any]) -> int:
    """How many classes a classifier has; transformers' default is two. One is a score, as rerankers give it."""
    for found in (config.get("num_labels"), config.get("id2label")):
        if isinstance(found, dict):
            return len(found)
        if isinstance(found, int):
            return found
    return 2


def template_in(path: str, data: bytes) -> str:
    """The chat templates in the file `path` as one text; empty where there is none, or the file makes no sense."""
    if not path.endswith(".json"):
        return data.decode("utf-8", "replace")
    try:
        given = parse_object(data, path).get("chat_template")
    except HeaderError:
        return ""
    several = given if isinstance(given, list) else [given]
    plain = (one.get("template") if isinstance(one, dict) else one for one in several)
    return "\n".join(one for one in plain if isinstance(one, str))
