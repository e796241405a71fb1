"""The status of a Model. Integers only, the unit in the name; texts and lists are cut to their bounds."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from moorage.api.capabilities import CapabilityStatus
from moorage.api.common import Count, Cut, Few, HeaderJson, Line, Sentence, StatusPart, StatusPath, StatusWord, Time
from moorage.api.conditions import Conditions, ModelPhase
from moorage.api.scaling import ScalingStatus, UsageStatus


class SizeClass(StrEnum):
    """A model's size by its number of parameters."""

    TINY = "Tiny"
    SMALL = "Small"
    MEDIUM = "Medium"
    LARGE = "Large"


class Confidence(StrEnum):
    """How sure a memory estimate is."""

    EXACT = "Exact"
    BOUNDED = "Bounded"
    GUESS = "Guess"


class ModelSummary(StatusPart):
    """What the columns of `kubectl get models` print."""

    ready: StatusWord | None = Field(default=None, description="Ready and wanted servers, such as 1/1.")
    vram: StatusWord | None = Field(default=None, description="GPU memory of one replica, such as 9.9Gi or 2x38Gi.")
    tokens_per_second: StatusWord | None = Field(default=None, description="Generated tokens per second, as measured.")
    node: StatusWord | None = Field(default=None, description="Node of the server, or how many nodes.")
    message: Line | None = Field(default=None, description="What is going on, in a line.")
    ttft: StatusWord | None = Field(default=None, description="Median time to the first token, such as 85ms.")
    context: StatusWord | None = Field(default=None, description="Tokens one request may use.")
    source: StatusWord | None = Field(default=None, description="Repository, file or volume the model comes from.")
    reason: StatusWord | None = Field(default=None, description="Reason of the Ready condition.")


class EngineReport(StatusPart):
    """What the running server says of itself; llama.cpp does."""

    tools: bool | None = Field(default=None, description="Whether its chat template takes tools.")
    reasoning: bool | None = Field(default=None, description="Whether its chat template knows of thoughts.")
    vision: bool | None = Field(default=None, description="Whether it takes images.")
    audio: bool | None = Field(default=None, description="Whether it takes sound.")


class EngineStatus(StatusPart):
    """The engine in use."""

    name: StatusWord | None = Field(default=None, description="LlamaCpp or VLLM.")
    version: StatusWord | None = Field(default=None, description="Version of the server.")
    image: Annotated[str, Cut(512)] | None = Field(default=None, description="Image the pods run.")
    reason: Sentence | None = Field(default=None, description="Why this engine.")
    report: EngineReport | None = Field(default=None, description="What the server that runs says of itself.")


class QuantizationStatus(StatusPart):
    """One quantization of the model in its repository."""

    name: StatusWord = Field(description="What source.huggingFace.quantization would be.")
    size_bytes: Count = Field(description="Size of its weight files.")


class SourceStatus(StatusPart):
    """What the source resolved to; kept so that nothing is asked twice."""

    download_name: StatusWord | None = Field(default=None, description="ModelDownload that holds the files.")
    claim_name: StatusWord | None = Field(default=None, description="PersistentVolumeClaim that holds the files.")
    path: StatusPath | None = Field(default=None, description="Folder of the files inside the volume.")
    resolved_revision: StatusWord | None = Field(default=None, description="Commit, or SHA-256 of a plain URL's file.")
    url: Annotated[str, Cut(2048)] | None = Field(default=None, description="Where a person can look at the source.")
    repo: StatusWord | None = Field(default=None, description="Repository on the hub.")
    files: Annotated[list[StatusPath], Cut(64)] = Field(default=[], description="Files to serve, the first 64.")
    main_file: StatusPath | None = Field(default=None, description="File that the server is given, or whose folder.")
    projector_file: StatusPath | None = Field(
        default=None, description="Multimodal projector that is served beside the model."
    )
    file_count: Count | None = Field(default=None, description="Number of files.")
    size_bytes: Count | None = Field(default=None, description="Size of all files.")
    format: StatusWord | None = Field(default=None, description="GGUF or Safetensors.")
    architecture: StatusWord | None = Field(default=None, description="Architecture by the file header, such as qwen3.")
    parameters: Count | None = Field(default=None, description="Number of parameters.")
    size_class: SizeClass | None = Field(default=None, description="Tiny, Small, Medium or Large, by parameters.")
    quantization: StatusWord | None = Field(default=None, description="Quantization of the weights, such as Q4_K_M.")
    quantizations: Annotated[list[QuantizationStatus], Cut(32)] = Field(
        default=[], description="The quantization in use, and the smaller ones of the same model in the repository."
    )
    context_length: Count | None = Field(default=None, description="Tokens the model was trained for.")
    tool_call_parser: StatusWord | None = Field(
        default=None, description="vLLM's name for how the chat template writes tool calls."
    )
    shows: Annotated[list[StatusWord], Cut(16)] = Field(
        default=[], description="Capabilities that the files show, whatever the engine makes of them."
    )
    license: StatusWord | None = Field(
        default=None, description="License as the repository states it, else the file's header."
    )
    inputs_hash: StatusWord | None = Field(default=None, description="Hash of the spec fields this was resolved from.")
    unsized: Sentence | None = Field(default=None, description="Why the header does not tell the memory need.")
    header: HeaderJson | None = Field(
        default=None, description="What the memory need is computed from, as JSON; for Moorage itself."
    )
    projector: HeaderJson | None = Field(default=None, description="The same of the projector; for Moorage itself.")


class LearnedStatus(StatusPart):
    """What earlier starts with the same files, engine and settings taught; for Moorage itself."""

    inputs_hash: StatusWord | None = Field(default=None, description="Hash of what it was learned about.")
    gpus: Few | None = Field(default=None, description="GPUs per replica at that time.")
    observed_gpu_mib: Count | None = Field(default=None, description="The most that one GPU held.")
    least_gpu_mib: Count | None = Field(default=None, description="What one GPU has to have, at least.")
    estimated_gpu_mib: Count | None = Field(default=None, description="What the file header alone said of that GPU.")
    out_of_memory: Count | None = Field(default=None, description="Starts that ran out of GPU memory.")
    templates: Annotated[list[StatusWord], Cut(8)] = Field(default=[], description="Pod templates that did.")
    restarted_at: StatusWord | None = Field(default=None, description="Request to restart after which it counts anew.")
    message: Sentence | None = Field(default=None, description="How the last one ended.")


class MemoryStatus(StatusPart):
    """Memory of one replica."""

    estimated_mib: Count | None = Field(
        default=None, description="GPU memory by the file header, the sum of the parts."
    )
    planned_mib: Count | None = Field(default=None, description="GPU memory that placement counts with.")
    observed_mib: Count | None = Field(
        default=None, description="GPU memory that one replica really held, the most seen; told by the agent."
    )
    confidence: Confidence | None = Field(default=None, description="How sure the estimate is.")
    reasons: Annotated[list[Sentence], Cut(8)] = Field(default=[], description="Why it is no surer than that.")
    weights_mib: Count | None = Field(default=None, description="Weights on the GPUs.")
    kv_mib: Count | None = Field(default=None, description="KV cache on the GPUs.")
    compute_mib: Count | None = Field(default=None, description="Compute buffers on the GPUs.")
    overhead_mib: Count | None = Field(default=None, description="The GPU runtime's own memory.")
    margin_mib: Count | None = Field(default=None, description="Margin for what the estimate cannot know.")
    host_mib: Count | None = Field(default=None, description="Host memory.")
    per_gpu_mib: Annotated[list[Count], Cut(8)] = Field(default=[], description="GPU memory planned on each GPU.")
    learned: LearnedStatus | None = Field(default=None, description="What earlier starts taught.")


class RejectedNodes(StatusPart):
    """Nodes that were not chosen for one reason."""

    reason: StatusWord | None = Field(default=None, description="Why not, in a word, such as TooSmall or Taken.")
    nodes: Count | None = Field(default=None, description="How many nodes.")
    example: StatusWord | None = Field(default=None, description="One of them.")
    free_mib: Count | None = Field(default=None, description="The most memory that one of their free GPUs has.")


class FailedMove(StatusPart):
    """Replacements of servers on a node that is about to go, which did not come up."""

    at: Time = Field(description="When they were given up; tried again some minutes later.")
    message: Sentence = Field(description="Why they did not come up.")


class NextPlacement(StatusPart):
    """Where servers of a new version are to go that has not started yet."""

    count: Few | None = Field(default=None, description="Accelerators per replica.")
    vendor: StatusWord | None = Field(default=None, description="Whose accelerators; None: CPUs.")
    gpu_class: StatusWord | None = Field(default=None, description="Size of the chosen GPUs, such as 24Gi.")
    gpu_memory_mib: Count | None = Field(default=None, description="Memory of one chosen GPU.")
    per_gpu_mib: Annotated[list[Count], Cut(8)] = Field(default=[], description="GPU memory planned on each GPU.")
    reason: Sentence | None = Field(default=None, description="Why there, or why there is no place.")


class PlacementStatus(StatusPart):
    """Where the servers run, and why there."""

    count: Few | None = Field(default=None, description="Accelerators per replica.")
    vendor: StatusWord | None = Field(default=None, description="Whose accelerators; None: CPUs.")
    gpu_class: StatusWord | None = Field(default=None, description="Size of the chosen GPUs, such as 24Gi.")
    gpu_memory_mib: Count | None = Field(default=None, description="Memory of one chosen GPU.")
    reason: Sentence | None = Field(default=None, description="Why there.")
    nodes: Annotated[list[StatusWord], Cut(64)] = Field(default=[], description="Nodes of the servers.")
    rejected: Annotated[list[RejectedNodes], Cut(16)] = Field(
        default=[], description="Why not the other nodes, grouped; written when a decision is made."
    )
    next: NextPlacement | None = Field(
        default=None,
        description="Where a new version is to go, while what runs serves on; the rest tells of what runs.",
    )
    node_pool: StatusWord | None = Field(default=None, description="Node pool that a new node is waited for from.")
    waiting_since: Time | None = Field(default=None, description="Since when a pod waits for a node of that pool.")
    late_pools: Annotated[list[StatusWord], Cut(16)] = Field(
        default=[], description="Node pools that brought no node in time."
    )
    failed_move: FailedMove | None = Field(
        default=None, description="The last try to replace servers whose node is about to go, where it failed."
    )
    inputs_hash: StatusWord | None = Field(default=None, description="Hash of what the decision was made for.")


class RemedyStatus(StatusPart):
    """A change of the spec that would give the Model a place, proven by deciding again with it."""

    change: StatusWord = Field(description="What to change, such as contextLength: 4096.")
    effect: Sentence = Field(description="Where the Model would go then.")


class StartupStatus(StatusPart):
    """How long the last start took, step by step."""

    schedule_milliseconds: Count | None = Field(default=None, description="From pod created to pod bound to a node.")
    pull_milliseconds: Count | None = Field(default=None, description="Pulling the image.")
    download_milliseconds: Count | None = Field(default=None, description="Downloading and verifying the files.")
    load_milliseconds: Count | None = Field(default=None, description="From container start to ready.")
    first_token_milliseconds: Count | None = Field(default=None, description="The warm-up request.")


class Percentiles(StatusPart):
    """Percentiles over all requests of a run, in the unit of the field's name."""

    p50: Count | None = Field(default=None, description="Median.")
    p90: Count | None = Field(default=None, description="90th percentile.")
    p99: Count | None = Field(default=None, description="99th percentile.")


class RequestCounts(StatusPart):
    """Requests of a run."""

    total: Count = Field(default=0, description="Requests sent.")
    failed: Count = Field(default=0, description="Requests that failed.")


class BenchmarkFigures(StatusPart):
    """The figures of one run."""

    ttft_microseconds: Percentiles | None = Field(default=None, description="Time to the first token.")
    tpot_microseconds: Percentiles | None = Field(default=None, description="Time per further token of a request.")
    e2e_microseconds: Percentiles | None = Field(default=None, description="Time of a whole request.")
    chunk_gap_p99_microseconds: Count | None = Field(
        default=None, description="99th percentile of the gaps between two chunks of an answer."
    )
    output_tokens_per_second_milli: Count | None = Field(
        default=None, description="Generated tokens per second over all requests, in thousandths."
    )
    requests_per_second_milli: Count | None = Field(
        default=None, description="Finished requests per second, in thousandths."
    )
    goodput_requests_per_second_milli: Count | None = Field(
        default=None, description="Requests per second that met the service level, in thousandths; only with slo."
    )
    requests: RequestCounts | None = Field(default=None, description="Requests of the run.")


class BenchmarkRow(BenchmarkFigures):
    """The figures at one concurrency."""

    concurrency: Count = Field(description="Requests in flight at once.")


class BenchmarkStatus(BenchmarkFigures):
    """The last benchmark; the figures on top are those of the first row."""

    profile: StatusWord | None = Field(default=None, description="Latency or Throughput.")
    rows: Annotated[list[BenchmarkRow], Cut(5)] = Field(default=[], description="The figures at each concurrency.")
    run: StatusWord | None = Field(default=None, description="Identifies what was measured; part of the Job's name.")
    completed_at: Time | None = Field(default=None, description="When the run ended.")
    stale: bool | None = Field(default=None, description="Whether what is served has changed since.")
    message: Sentence | None = Field(default=None, description="Why there are no figures, or what they lack.")


class ModelStatus(StatusPart):
    """What Moorage found and did."""

    phase: ModelPhase | None = Field(default=None, description="Where the Model stands, in a word.")
    observed_generation: Count | None = Field(default=None, description="The metadata.generation this status is about.")
    conditions: Conditions = Field(
        default=[],
        description="Accepted, Downloaded, Placed, Serving, Benchmarked, UpToDate, Active, Reconciling, "
        "Stalled, Ready, and NameConflict while another object has one of the served names.",
    )
    replicas: Few | None = Field(default=None, description="Servers that exist.")
    ready_replicas: Few | None = Field(default=None, description="Servers that are ready.")
    desired_replicas: Few | None = Field(default=None, description="Servers that Moorage wants now.")
    selector: Annotated[str, Cut(512)] | None = Field(default=None, description="Label selector of the pods.")
    endpoint: Annotated[str, Cut(512)] | None = Field(
        default=None, description="URL of the Service inside the cluster."
    )
    summary: ModelSummary | None = Field(default=None, description="What the columns print.")
    engine: EngineStatus | None = Field(default=None, description="The engine in use.")
    source: SourceStatus | None = Field(default=None, description="What the source resolved to.")
    capabilities: Annotated[list[CapabilityStatus], Cut(16)] = Field(
        default=[], description="What applications can count on, and how Moorage knows."
    )
    memory: MemoryStatus | None = Field(default=None, description="Memory of one replica.")
    placement: PlacementStatus | None = Field(default=None, description="Where the servers run, and why there.")
    remedies: Annotated[list[RemedyStatus], Cut(8)] = Field(
        default=[], description="The smallest changes that would give the Model a place, where it has none."
    )
    startup: StartupStatus | None = Field(default=None, description="How long the last start took.")
    benchmark: BenchmarkStatus | None = Field(default=None, description="The last benchmark.")
    scaling: ScalingStatus | None = Field(default=None, description="What is remembered of sleep.")
    usage: UsageStatus | None = Field(default=None, description="Requests that came through the gateways.")
    used_by: Annotated[list[StatusWord], Cut(64)] = Field(
        default=[], description="Aliases that point here, as namespace/name; those that allowedNamespaces permits."
    )
    template: StatusWord | None = Field(default=None, description="Hash of the inputs of the pods last applied.")
