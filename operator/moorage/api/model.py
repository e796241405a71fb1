"""The Model: what a person wants served. What Moorage made of it, its status, is in model_status.py."""

from enum import IntEnum, StrEnum
from typing import Annotated, ClassVar

from pydantic import Field

from moorage.api.common import Extension, Quantity, Resource, Rule, SpecPart, Text
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
from moorage.api.managed_args import ARG_RULES
from moorage.api.model_status import ModelStatus
from moorage.api.request import ModelRequest
from moorage.api.source import STORAGE_IS_IMMUTABLE, ModelSource, Storage


class Engine(StrEnum):
    """Which server runs the model."""

    AUTO = "Auto"
    LLAMA_CPP = "LlamaCpp"


class KVCacheType(StrEnum):
    """Number format of the KV cache, in llama.cpp's words."""

    F16 = "f16"
    Q8_0 = "q8_0"
    Q4_0 = "q4_0"


class Vendor(StrEnum):
    """Whose accelerators a Model may use."""

    AUTO = "Auto"
    NVIDIA = "Nvidia"
    AMD = "AMD"
    NONE = "None"


class AcceleratorCount(IntEnum):
    """Accelerators per replica."""

    ONE = 1
    TWO = 2
    FOUR = 4
    EIGHT = 8


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


class BenchmarkProfile(StrEnum):
    """What a benchmark measures."""

    LATENCY = "Latency"
    THROUGHPUT = "Throughput"


class LlamaCpp(SpecPart):
    """Settings of the llama.cpp server."""

    rules: ClassVar = (
        Rule(
            "self.ubatchSize <= self.batchSize",
            "spec.llamaCpp.ubatchSize (absent: 512) must be at most batchSize (absent: 2048)",
        ),
    )

    threads: int | None = Field(
        default=None,
        ge=1,
        le=64,
        description="CPU threads for generating (n_threads). Absent: by the CPU request or node.",
    )
    batch_size: int = Field(
        default=2048, ge=1, le=65536, description="Prompt tokens taken in one logical batch (n_batch)."
    )
    ubatch_size: int = Field(
        default=512,
        ge=1,
        le=65536,
        description="Prompt tokens computed at once (n_ubatch); the compute buffer grows with it.",
    )
    keep: int = Field(
        default=0, ge=-1, le=16777216, description="Prompt tokens kept when the context overflows (n_keep); -1: all."
    )
    predict: int = Field(
        default=-1,
        ge=-1,
        le=16777216,
        description="Tokens generated at most where a request sets no limit; -1: no limit.",
    )
    gpu_layers: int | None = Field(
        default=None, ge=0, le=1024, description="Layers held in GPU memory, the rest in host memory. Absent: all."
    )
    flash_attention: bool = Field(default=True, description="Whether to use Flash Attention.")
    unified_kv_cache: bool = Field(
        default=False, description="One KV cache for all sequences instead of an equal share for each."
    )


class Accelerator(SpecPart):
    """Which accelerators one replica uses."""

    rules: ClassVar = (
        Rule(
            "self.vendor != 'None' || !has(self.count)",
            "spec.accelerator.count has no effect with vendor None, which means CPUs only; remove one of the two",
        ),
        Rule(
            "self.vendor != 'None' || !has(self.memoryPerGPUOverride)",
            "spec.accelerator.memoryPerGPUOverride has no effect with vendor None, which means CPUs only; "
            "remove one of the two",
        ),
    )

    vendor: Vendor = Field(
        default=Vendor.AUTO, description="Auto: whatever fits. None: no accelerator, the model runs on CPUs."
    )
    count: AcceleratorCount | None = Field(
        default=None, description="Accelerators per replica, all on one node: 1, 2, 4 or 8. Absent: as few as fit."
    )
    memory_per_gpu_override: Quantity | None = Field(
        default=None,
        description="Memory needed on each GPU, such as 10Gi, instead of what Moorage computes from the file header.",
    )
    runtime_class_name: Annotated[str, Field(min_length=1, max_length=253)] | None = Field(
        default=None, description="RuntimeClass of the pods, such as nvidia."
    )


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


class Slo(SpecPart):
    """Service level that a request should meet."""

    ttft_milliseconds: int | None = Field(
        default=None, ge=1, le=3600000, description="Time to the first token, at most."
    )
    tpot_milliseconds: int | None = Field(default=None, ge=1, le=60000, description="Time per further token, at most.")


class Benchmark(SpecPart):
    """The measurement that runs once the Model serves, and again when what is served changes."""

    rules: ClassVar = (
        Rule(
            "self.concurrency.all(level, level <= self.requests)",
            "spec.benchmark.requests must be at least the largest concurrency, or that many requests never run at once",
        ),
    )

    enabled: bool = Field(default=True, description="Whether to measure at all.")
    profile: BenchmarkProfile = Field(
        default=BenchmarkProfile.LATENCY,
        description="Latency: requests one after another at each concurrency. Throughput: as many as the server takes.",
    )
    concurrency: Annotated[
        list[Annotated[int, Field(ge=1, le=256)]],
        Field(min_length=1, max_length=5),
        Extension("x-kubernetes-list-type", "set"),
    ] = Field(default=[1], description="Requests in flight at once; one row of figures for each.")
    input_tokens: int = Field(default=128, ge=1, le=131072, description="Prompt tokens of each request.")
    output_tokens: int = Field(default=64, ge=1, le=16384, description="Tokens that each request generates.")
    requests: int = Field(
        default=20, ge=20, le=1000, description="Requests per row; fewer than 20 give no percentiles."
    )
    slo: Slo | None = Field(default=None, description="Service level; the figures then say how many requests met it.")


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
            "self.accelerator.vendor != 'None' || !has(self.llamaCpp) || !has(self.llamaCpp.gpuLayers) "
            "|| self.llamaCpp.gpuLayers == 0",
            "spec.llamaCpp.gpuLayers needs a GPU, but spec.accelerator.vendor is None; remove one of the two",
        ),
    )

    source: ModelSource = Field(description="Where the model's files come from; exactly one of the fields.")
    engine: Engine = Field(
        default=Engine.AUTO, description="Server that runs the model. Auto: by the files' format; GGUF means llama.cpp."
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
        default=None, ge=1, le=16, description="Requests served at once by one replica. Absent: 4."
    )
    kv_cache_type: KVCacheType = Field(
        default=KVCacheType.F16,
        description="Number format of the KV cache; q8_0 takes half the memory of f16, q4_0 a quarter.",
    )
    llama_cpp: LlamaCpp | None = Field(default=None, description="Settings of the llama.cpp server.")
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
        default=1, ge=0, le=64, description="How many servers run. 0 unloads the model and keeps its files."
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
    description: Text | None = Field(default=None, description="A sentence for the people who choose a model.")
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
