"""What a Model can do for an application: a closed list of capabilities, with a line of help for each.

The words are those of OpenAI's API and of who lists open models: `completion`, `tools` and `vision` as Ollama has them,
`reasoning` and `structured_outputs` as OpenRouter does, `embeddings` and `rerank` after the paths that serve them.
"""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from moorage.api.common import Extension, StatusPart


class Capability(StrEnum):
    """One thing that an application may count on. `CAPABILITY_HELP` says what each means."""

    CHAT = "chat"
    COMPLETION = "completion"
    TOOLS = "tools"
    STRUCTURED_OUTPUTS = "structured_outputs"
    REASONING = "reasoning"
    VISION = "vision"
    AUDIO = "audio"
    EMBEDDINGS = "embeddings"
    RERANK = "rerank"


CAPABILITY_HELP: dict[Capability, str] = {
    Capability.CHAT: "Answers `/v1/chat/completions` by a chat template of its own.",
    Capability.COMPLETION: "Continues a text: `/v1/completions`.",
    Capability.TOOLS: "Is shown the `tools` of a request and answers with `tool_calls`.",
    Capability.STRUCTURED_OUTPUTS: "Keeps to a `response_format` of type `json_object` or `json_schema`.",
    Capability.REASONING: "Thinks before it answers, and gives its thoughts apart from the answer.",
    Capability.VISION: "Takes images in messages: parts of type `image_url`.",
    Capability.AUDIO: "Takes sound in messages: parts of type `input_audio`.",
    Capability.EMBEDDINGS: "Turns texts into vectors: `/v1/embeddings`.",
    Capability.RERANK: "Orders documents by how well they answer a query: `/v1/rerank`.",
}


class Evidence(StrEnum):
    """What a capability rests on. `EVIDENCE_HELP` says what each means; only `Name` is no more than a guess."""

    DECLARED = "Declared"
    METADATA = "Metadata"
    PROBE = "Probe"
    NAME = "Name"


EVIDENCE_HELP: dict[Evidence, str] = {
    Evidence.DECLARED: "The spec says so: `spec.capabilities`, or a setting such as `spec.reasoningParser`.",
    Evidence.METADATA: "The files say so: header, configuration and chat template, read before any download.",
    Evidence.PROBE: "The running server says so: what llama.cpp tells of its chat template and its projector.",
    Evidence.NAME: "Nothing but the source's name hints at it. No alias that requires it is served by such a Model.",
}

Capabilities = Annotated[
    list[Capability], Field(max_length=len(Capability)), Extension("x-kubernetes-list-type", "set")
]


class CapabilityStatus(StatusPart):
    """Something that a Model can do, and how Moorage knows."""

    name: Capability = Field(description="The capability.")
    evidence: Evidence = Field(
        description="Declared: by the spec. Metadata: by the files. Probe: by the running server. Name: a guess by the "
        "source's name, on which no alias relies."
    )
