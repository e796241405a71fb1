"""The Model: what a person wants served. What Moorage made of it, its status, is in model_status.py."""

from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import Field

from moorage.api.accelerator import Accelerator
from moorage.api.benchmark import Benchmark
from moorage.api.capabilities import Capabilities
from moorage.api.common import Extension, Resource, Rule, SpecPart, Text
from moorage.api.corev1 import (
    Affinity,
    Annotations,
    Env,
    EnvFrom,
    ImagePullSecrets,
    Labels,
    Resources,
    Tolerations,
)
from moorage.api.engine_settings import VLLM, ChatTemplate, KVCacheType, LlamaCpp, ReasoningParser, ToolCalling
from moorage.api.managed_args import ARG_RULES
from moorage.api.model_status import ModelStatus
from moorage.api.naming import AllowedNamespaces, ServedNames
from moorage.api.request import ModelRequest
from moorage.api.scaling import LARGEST, Preemption, Scaling
from moorage.api.source import STORAGE_IS_IMMUTABLE, ModelSource, Storage


class Engine(StrEnum):
    """Which server runs the model."""

    AUTO = "Auto"
    LLAMA_CPP = "LlamaCpp"
    VLLM = "VLLM"


class RolloutStrategy(StrEnum):
    """How a changed server replaces the running one."""

    AUTO = "Auto"
    RECREATE = "Recreate"
    SURGE = "Surge"


class UpdatePolicy(StrEnum):
    """When a newer engine image of the chart replaces the running one."""

    ON_DEMAND = "OnDemand"
    ROLLING = "Rolling"


class Purpose(StrEnum):
    """What a Model is meant for."""

    SPEED = "Speed"
    BALANCED = "Balanced"
    QUALITY = "Quality"
    SPECIALIZED = "Specialized"


Tag = Annotated[
    str,
    Field(min_length=1, max_length=63),
    Rule(
        "self.matches('^[A-Za-z0-9]([A-Za-z0-9 ._/-]*[A-Za-z0-9])?$')",
        "a tag has only letters, digits, blanks and . _ / -, and begins and ends with a letter or digit",
    ),
]


class PodMetadata(SpecPart):
    """Labels and annotations for the pods."""

    rules: ClassVar = (
        Rule(
            "!has(self.labels) || !self.labels.exists(key, key.startsWith('moorage.dev/') "
            "|| key.startsWith('app.kubernetes.io/'))",
            "spec.podMetadata.labels must not use keys that start with moorage.dev/ or app.kubernetes.io/, "
            "because the Service finds its pods by them",
        ),
        Rule(
            "!has(self.annotations) || !self.annotations.exists(key, key.startsWith('moorage.dev/'))",
            "spec.podMetadata.annotations must not use keys that start with moorage.dev/, because Moorage keeps "
            "its own notes there",
        ),
    )

    labels: Labels = Field(default={}, description="Labels added to the pods.")
    annotations: Annotations = Field(default={}, description="Annotations added to the pods.")


class Rollout(SpecPart):
    """How a change reaches the running server."""

    strategy: RolloutStrategy = Field(
        default=RolloutStrategy.AUTO,
        description="Surge: the new server is ready before the old one stops, which takes room for both. Recreate: the "
        "old one stops first. Auto: Surge where there is room, else Recreate.",
    )


class ModelSpec(SpecPart):
    """What should be served, and how."""

    rules: ClassVar = (
        Rule(
            "!(has(self.source.persistentVolumeClaim) || has(self.source.downloadRef)) "
            "|| !(has(self.storage.claimName) || has(self.storage.size) || has(self.storage.storageClassName))",
            "spec.storage has no effect with source.persistentVolumeClaim or source.downloadRef, because the files lie "
            "in a volume already; remove spec.storage",
        ),
        Rule(
            "!has(self.contextLength) || !self.benchmark.enabled "
            "|| self.benchmark.inputTokens + self.benchmark.outputTokens <= self.contextLength",
            "spec.benchmark.inputTokens and outputTokens together must be at most spec.contextLength",
        ),
        Rule(
            "self.kvCacheType == 'f16' || !has(self.llamaCpp) || self.llamaCpp.flashAttention",
            "a quantized KV cache needs Flash Attention: set spec.kvCacheType to f16 or "
            "spec.llamaCpp.flashAttention to true",
        ),
        Rule(
            "!has(self.llamaCpp) || !has(self.vllm)",
            "spec.llamaCpp and spec.vllm are settings of two engines and one serves a Model; remove one of the two",
        ),
        Rule(
            "self.engine != 'VLLM' || !has(self.llamaCpp)",
            "spec.llamaCpp has no effect with spec.engine VLLM; remove one of the two",
        ),
        Rule(
            "self.engine != 'LlamaCpp' || !has(self.vllm)",
            "spec.vllm has no effect with spec.engine LlamaCpp; remove one of the two",
        ),
        Rule(
            "self.kvCacheType != 'fp8' || (self.engine != 'LlamaCpp' && !has(self.llamaCpp))",
            "llama.cpp has no cache of type fp8; set spec.kvCacheType to f16, q8_0 or q4_0",
        ),
        Rule(
            "self.kvCacheType in ['f16', 'fp8'] || (self.engine != 'VLLM' && !has(self.vllm))",
            "vLLM has no cache of this type; set spec.kvCacheType to f16 or fp8",
        ),
        Rule(
            "!has(self.maxSequences) || self.maxSequences <= 16 || (self.engine != 'LlamaCpp' && !has(self.llamaCpp))",
            "llama.cpp serves at most 16 requests at once; lower spec.maxSequences",
        ),
        Rule(
            "!has(self.reasoningParser) || (self.engine != 'LlamaCpp' && !has(self.llamaCpp))",
            "spec.reasoningParser is for vLLM; llama.cpp finds the reasoning by the chat template",
        ),
        Rule(
            "!has(self.capabilities) || !('tools' in self.capabilities) || !has(self.toolCalling) "
            "|| self.toolCalling.enabled",
            "spec.capabilities names tools, but spec.toolCalling.enabled is false; remove one of the two",
        ),
        Rule(
            "!has(self.chatTemplate) || !has(self.args) || !self.args.exists(arg, arg.startsWith('--chat-template'))",
            "spec.chatTemplate and --chat-template in spec.args say the same; remove one of the two",
        ),
        Rule(
            "self.accelerator.vendor != 'None' || !has(self.llamaCpp) || !has(self.llamaCpp.gpuLayers) "
            "|| self.llamaCpp.gpuLayers == 0",
            "spec.llamaCpp.gpuLayers needs a GPU, but spec.accelerator.vendor is None; remove one of the two",
        ),
    )

    source: ModelSource = Field(description="Where the model's files come from; exactly one of the fields.")
    engine: Engine = Field(
        default=Engine.AUTO,
        description="Server that runs the model. Auto: by the files' format, llama.cpp for GGUF and vLLM for "
        "safetensors.",
    )
    image: (
        Annotated[
            str,
            Field(min_length=1, max_length=512),
            Rule(
                "self.matches('^[^\\\\s]+$')", "write the image as REGISTRY/NAME:TAG or with a digest, without spaces"
            ),
        ]
        | None
    ) = Field(default=None, description="Engine image to use instead of the chart's.")
    image_pull_secrets: ImagePullSecrets = Field(default=[], description="Secrets for pulling the engine image.")
    context_length: int | None = Field(
        default=None,
        ge=512,
        le=16777216,
        description="Tokens that one request may use, prompt and answer together. Absent: what the model was trained "
        "for, 8192 at most.",
    )
    max_sequences: int | None = Field(
        default=None,
        ge=1,
        le=1024,
        description="Requests served at once by one replica. Absent: 4 with llama.cpp (16 at most), 64 with vLLM. "
        "llama.cpp keeps cache for all of them in full length, vLLM for 4 at least.",
    )
    kv_cache_type: KVCacheType = Field(
        default=KVCacheType.F16,
        description="Number format of the KV cache. llama.cpp: q8_0 takes half the memory of f16, q4_0 a quarter. "
        "vLLM: f16 is the model's own 16-bit format, fp8 takes half of it.",
    )
    llama_cpp: LlamaCpp | None = Field(default=None, description="Settings of the llama.cpp server.")
    vllm: VLLM | None = Field(default=None, description="Settings of the vLLM server.")
    tool_calling: ToolCalling | None = Field(
        default=None,
        description="Whether and how tool calls are read. Absent: as the model's chat template shows them.",
    )
    reasoning_parser: ReasoningParser | None = Field(
        default=None,
        description="How vLLM tells reasoning from the answer, such as qwen3 or deepseek_r1. Absent: it does not.",
    )
    chat_template: ChatTemplate | None = Field(
        default=None, description="The chat template to use instead of the model's own."
    )
    accelerator: Accelerator = Field(default=Accelerator(), description="Which accelerators one replica uses.")
    node_selector: Labels = Field(default={}, description="Labels that a node must have, as in core/v1.")
    tolerations: Tolerations = Field(default=[], description="Taints that the pods tolerate, as in core/v1.")
    affinity: Affinity | None = Field(default=None, description="Affinity of the pods, as in core/v1.")
    priority_class_name: Annotated[str, Field(min_length=1, max_length=253)] | None = Field(
        default=None, description="PriorityClass of the pods."
    )
    pod_metadata: PodMetadata | None = Field(default=None, description="Labels and annotations for the pods.")
    resources: Resources | None = Field(
        default=None,
        description="CPU, memory and other requests and limits of the server, as in core/v1. GPUs are requested by "
        "accelerator.",
    )
    args: Annotated[list[Annotated[str, Field(min_length=1, max_length=1024), *ARG_RULES]], Field(max_length=64)] = (
        Field(
            default=[],
            description="Further arguments of the server, after Moorage's own. One that Moorage sets is refused.",
        )
    )
    env: Env = Field(default=[], description="Environment variables of the server, as in core/v1.")
    env_from: EnvFrom = Field(default=[], description="ConfigMaps and Secrets as environment variables, as in core/v1.")
    replicas: int = Field(
        default=1,
        ge=0,
        le=LARGEST,
        description="How many servers run. 0 unloads the model and keeps its files, until a person asks for more.",
    )
    scaling: Scaling = Field(default=Scaling(), description="How many servers run when: sleep, and load.")
    preemption: Preemption = Field(
        default=Preemption(), description="Whether it may be put to sleep to make room for another Model."
    )
    rollout: Rollout = Field(default=Rollout(), description="How a change reaches the running server.")
    update_policy: UpdatePolicy = Field(
        default=UpdatePolicy.ON_DEMAND,
        description="What a newer engine image of the chart does. OnDemand: nothing, until a person sets the "
        "annotation moorage.dev/restart-at. Rolling: it is rolled out.",
    )
    request: ModelRequest | None = Field(
        default=None, description="Parameters of requests that come through the gateway."
    )
    served_names: ServedNames = Field(
        default=[],
        description="Further names that clients may use, such as llama3:instruct. Of two objects of a namespace that "
        "claim one name the older has it; names that begin with a namespace (team-b/x) are that namespace's alone. Who "
        "has lost a name says so in its condition NameConflict.",
    )
    allowed_namespaces: AllowedNamespaces = Field(
        default=AllowedNamespaces(), description="Whose aliases may point at this Model."
    )
    description: Text | None = Field(
        default=None, description="A sentence for the people who choose a model; `/v1/models` shows it."
    )
    tags: Annotated[list[Tag], Field(max_length=16), Extension("x-kubernetes-list-type", "set")] = Field(
        default=[], description="Words to find the model by; `/v1/models` lists them."
    )
    capabilities: Capabilities = Field(
        default=[],
        description="What the model can do, instead of what Moorage finds out: this list is all that counts then. "
        "With embeddings or rerank, and neither chat nor completion, the engine is started as a server of those.",
    )
    purpose: Purpose | None = Field(default=None, description="What the model is meant for; a field to select by.")
    benchmark: Benchmark = Field(default=Benchmark(), description="The measurement that runs once the Model serves.")
    storage: Annotated[Storage, STORAGE_IS_IMMUTABLE] = Field(
        default=Storage(), description="The volume that the files are downloaded to. Cannot be changed later."
    )


class Model(Resource):
    """A model to be served: where its files come from, with which engine and settings, and how many servers."""

    rules: ClassVar = (
        Rule(
            "self.metadata.name.size() <= 50",
            "metadata.name must have at most 50 characters, because the names of the Model's pods and Jobs are made "
            "from it",
        ),
    )

    spec: ModelSpec = Field(description="What should be served, and how. Written by people only.")
    status: ModelStatus = Field(
        default=ModelStatus(), description="What Moorage found and did. Written by Moorage only."
    )
