"""vLLM's OpenAI server, `vllm serve` (pinned version: images/vllm-cpu/VERSION).

Every argument that shapes memory or speed is explicit: vLLM's own defaults depend on the GPU and change between
versions. A replica has its GPUs to itself, so the plan is what the model needs at least, and vLLM may use the rest of
the GPU for its cache: `--gpu-memory-utilization` is what the GPU's memory leaves, not what the need takes. On CPUs the
cache gets exactly what the plan says.
"""

import json
import math
import re
from contextlib import suppress
from dataclasses import replace

from moorage import names
from moorage.api.capabilities import Capability, Evidence
from moorage.api.engine_settings import AUTO_PARSER, VLLM, DType, KVCacheType
from moorage.engines.base import (
    Asked,
    Engine,
    EngineContainer,
    Probe,
    Reported,
    Scratch,
    Serving,
    Start,
    beyond_training,
    option,
    startup_seconds,
)
from moorage.engines.drain import drain_command
from moorage.engines.memory_args import VLLM as VLLM_ARGS
from moorage.engines.memory_args import WHOLE_CONTEXT, given
from moorage.engines.tool_calls import tool_parser
from moorage.placement import memory
from moorage.sizing.errors import HeaderError
from moorage.sizing.need import MemoryNeed
from moorage.sizing.stored import parse
from moorage.sizing.transformer import TransformerModel
from moorage.sizing.vllm import (
    SHARED_GIB,
    VllmPlan,
    VllmSettings,
    judged,
    tensor_parallel_problem,
    vllm_cpu_plan,
    vllm_plan,
)

FULL_SEQUENCES = 4
"""Requests of full length that the cache must hold at once; vLLM serves more of them where they are shorter."""
MOST_UTILIZATION = 0.92
"""vLLM's own default; above it the warm-up of the sampler was seen to fail (gpt-oss-20b at 0.95 of 80 GB)."""
CPU_CACHE_BYTES = 1 << 30
"""Cache on CPUs where the header is not known; vLLM's own default would be most of the node's memory."""
START_SECONDS = 1200
"""What a start may take beside reading the weights: imports, compiling graphs, capturing them, profiling."""
GAUGES = ("vllm:num_requests_running*", "vllm:num_requests_waiting*")
"""Requests that run and that wait, among its metrics."""
KEEP_ALIVE_SECONDS = 75
"""An idle connection stays longer than any client pools it; vLLM's own 5 s race with the gateway's 4."""
HEALTH = "/health"  # nobody listens while the weights load; afterwards 200, or 503 when the engine's process died
_VERSIONED = re.compile(r":v?(?P<major>\d{1,3})\.(?P<minor>\d{1,4})(?![\d/])[^/:]*$")
LOGGING_FILE = "logging.json"
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "line": {"format": "%(levelname)s %(asctime)s [%(filename)s:%(lineno)d] %(message)s"},
        "bare": {"format": "%(message)s"},
    },
    "handlers": {
        "log": {"class": "logging.StreamHandler", "formatter": "line", "level": "INFO", "stream": "ext://sys.stdout"},
        "last_words": {
            "class": "logging.FileHandler",
            "filename": names.TERMINATION_LOG,
            "delay": True,
            "formatter": "bare",
            "level": "ERROR",
        },
    },
    "loggers": {
        "vllm": {"handlers": ["log"], "level": "INFO", "propagate": False},
        "vllm.v1.engine.core": {"handlers": ["last_words"]},
        "vllm.v1.executor.multiproc_executor": {"handlers": ["last_words"]},
    },
}
"""Has the two processes that die of a cause write it where the kubelet keeps it. The front end that they take down with
them prints 3 KiB of its own traceback ("See root cause above"), more than the kubelet keeps of a log's end."""


class VllmEngine(Engine):
    """vLLM for safetensors files; see `moorage.engines.base.Engine`."""

    name = "VLLM"
    title = "vLLM"
    format = "Safetensors"
    files = "safetensors files"
    weights_pattern = "*.safetensors"
    loads_folder = True
    default_sequences = 64
    most_sequences = 1024
    cache_types = ("f16", "fp8")
    gpu_counts = (1, 2, 4, 8)
    process_mib = 0  # counted in the need's host memory
    reports_itself = False
    fills_gpu = True

    def understands(self, header: str, projector: str = "") -> bool:
        """See Engine."""
        try:
            if header:
                TransformerModel.from_json(parse(header))
        except HeaderError:
            return False
        return True

    def refusal(self, asked: Asked) -> str:
        """See Engine."""
        spec, options = asked.spec, asked.spec.vllm or VLLM()
        sequences = spec.max_sequences or self.default_sequences
        if spec.llama_cpp:
            return "spec.llamaCpp has no effect on safetensors files, which vLLM serves; remove it, or see spec.vllm"
        if spec.kv_cache_type not in self.cache_types:
            return f"vLLM has no cache of type {spec.kv_cache_type}; set spec.kvCacheType to f16 or fp8"
        if options.trust_remote_code and not asked.remote_code_allowed:
            return (
                "spec.vllm.trustRemoteCode runs programs out of the repository, which this installation does not "
                "allow; remove it, or have vllm.allowRemoteCode set in the chart's values"
            )
        tools = spec.tool_calling
        if tools and tools.enabled and asked.header and not tool_parser(tools, asked.tool_parser):
            return "the chat template shows no tool calls that are known here; name spec.toolCalling.parser"
        if options.max_batched_tokens < sequences:
            return f"spec.vllm.maxBatchedTokens must be at least spec.maxSequences, which is {sequences}"
        return beyond_training(asked, ("--hf-overrides", "--hf_overrides"))

    def unsplittable(self, asked: Asked, gpus: int) -> str:
        """See Engine. Tensor parallelism shares out every matrix, so its dimensions must come out even."""
        return tensor_parallel_problem(_model(asked), gpus) if asked.header else ""

    def need(self, asked: Asked, serving: Serving, gpus: int) -> MemoryNeed | None:
        """See Engine."""
        return _plan(asked, serving, gpus).need if asked.header else None

    def claim_mib(self, asked: Asked, start: Start) -> int:
        """See Engine. Its workers look whether the share of the GPU is free, after their CUDA contexts took theirs
        (`request_memory` in v1/worker/utils.py), and end where it is not, however little the model needs."""
        plan = _plan(asked, start.serving, start.gpus) if asked.header else None
        claimed = math.ceil(_share(plan, start) * _visible_mib(start))
        return claimed + (plan.uncounted_mib if plan and claimed else 0)

    def container(self, asked: Asked, start: Start) -> EngineContainer:
        """See Engine.

        /dev/shm carries what vLLM's processes tell each other; the 64 MiB that runtimes give by default end its start.
        """
        shared_gib = SHARED_GIB * max(start.gpus, 1)
        return EngineContainer(
            command=("vllm", "serve"),
            args=arguments(asked, start),
            port=names.ENGINE_PORT,
            startup=Probe(HEALTH, period=1, timeout=5, failures=startup_seconds(asked.size_bytes, START_SECONDS)),
            readiness=Probe(HEALTH, period=1, timeout=5, failures=5),
            liveness=Probe(HEALTH, period=10, timeout=10, failures=6),
            scratch=(Scratch("/tmp", "8Gi"), Scratch("/dev/shm", f"{shared_gib}Gi", memory=True)),
            env=_environment(start),
            drain=drain_command(*GAUGES),
            files={LOGGING_FILE: json.dumps(LOGGING, separators=(",", ":"))},
        )

    def capabilities(
        self, asked: Asked, shows: frozenset[Capability], reported: Reported
    ) -> dict[Capability, Evidence]:
        """See Engine. Tool calls and thoughts are told apart from text by parsers, which have to be known or named."""
        spec, found = asked.spec, dict.fromkeys(shows, Evidence.METADATA)
        pooling = option(spec.args, "--runner") == "pooling" or option(spec.args, "--convert") == "embed"
        if pooling and not shows & {Capability.EMBEDDINGS, Capability.RERANK}:
            return {Capability.EMBEDDINGS: Evidence.DECLARED}
        for parsed in (Capability.TOOLS, Capability.REASONING):
            found.pop(parsed, None)
        if Capability.COMPLETION not in found:
            return found
        if spec.chat_template or option(spec.args, "--chat-template") is not None:
            found[Capability.CHAT] = Evidence.DECLARED
        elif Capability.TOOLS in shows and tool_parser(spec.tool_calling, asked.tool_parser):
            found[Capability.TOOLS] = Evidence.METADATA
        if spec.tool_calling and spec.tool_calling.parser != AUTO_PARSER:
            found[Capability.TOOLS] = Evidence.DECLARED
        if spec.reasoning_parser:
            found[Capability.REASONING] = Evidence.DECLARED
        for sense, word in ((Capability.VISION, "image"), (Capability.AUDIO, "audio")):
            if _without(asked, word):
                found.pop(sense, None)
        return found


def arguments(asked: Asked, start: Start) -> tuple[str, ...]:
    """Command line after `vllm serve`."""
    spec, options, serving = asked.spec, asked.spec.vllm or VLLM(), start.serving
    args = [
        start.model_path,
        *("--served-model-name", start.name),
        *("--host", "0.0.0.0"),
        *("--port", str(names.ENGINE_PORT)),
        *("--max-model-len", str(serving.context_length)),
        *("--max-num-seqs", str(serving.max_sequences)),
        *("--max-num-batched-tokens", str(options.max_batched_tokens)),
        *("--tensor-parallel-size", str(max(start.gpus, 1))),
        *_memory(asked, start),
        *("--dtype", options.dtype),
        *("--kv-cache-dtype", _cache_type(serving)),
        "--enforce-eager" if options.enforce_eager else "--no-enforce-eager",
        *("--shutdown-timeout", "0"),  # it is told to stop when it has nothing left to do
        "--no-enable-log-requests",
        *("--disable-access-log-for-endpoints", "/health,/metrics"),
    ]
    if options.trust_remote_code:
        args.append("--trust-remote-code")
    if parser := tool_parser(spec.tool_calling, asked.tool_parser):
        args += ["--enable-auto-tool-choice", "--tool-call-parser", parser]
    if spec.reasoning_parser:
        args += ["--reasoning-parser", spec.reasoning_parser]
    if start.chat_template:
        args += ["--chat-template", start.chat_template]
    if asked.pooled and option(spec.args, "--runner") is None:  # how it pools, vLLM finds out by itself
        args += ["--runner", "pooling"]
    return (*args, *spec.args)


def _without(asked: Asked, what: str) -> bool:
    """Whether the arguments forbid `what` (image, audio) in requests."""
    args, limit = asked.spec.args, "--limit-mm-per-prompt"
    if option(args, "--language-model-only") is not None or option(args, f"{limit}.{what}") == "0":
        return True
    with suppress(ValueError):
        limits = json.loads(option(args, limit) or "{}")
        return isinstance(limits, dict) and limits.get(what) == 0
    return False


def _memory(asked: Asked, start: Start) -> tuple[str, ...]:
    """The arguments that bound memory: on CPUs the cache itself; on GPUs the share that vLLM may take.

    That share is all that may be planned of a GPU, or what a person says is needed of it, and 0.92 at most, which also
    holds for GPUs whose size nobody knows.
    """
    plan = _plan(asked, start.serving, start.gpus) if asked.header else None
    if not start.gpus:
        return ("--kv-cache-memory-bytes", str(plan.kv_cache_bytes if plan else CPU_CACHE_BYTES))
    return ("--gpu-memory-utilization", f"{_share(plan, start):.3f}")


def _share(plan: VllmPlan | None, start: Start) -> float:
    """`--gpu-memory-utilization`."""
    if not plan or not start.gpu_memory_mib:
        return MOST_UTILIZATION
    most = min(memory.usable_mib(start.gpu_memory_mib), start.memory_limit_mib or start.gpu_memory_mib)
    return min(MOST_UTILIZATION, plan.utilization(_visible_mib(start), most))


def _visible_mib(start: Start) -> int:
    """What CUDA shows of a GPU; 0 where its size is not known."""
    return start.gpu_memory_mib * memory.SHARE_PERMILLE // 1000


def _plan(asked: Asked, serving: Serving, gpus: int) -> VllmPlan:
    options, told = asked.spec.vllm or VLLM(), given(asked.spec, VLLM_ARGS, ("VLLM_",))
    version = version_of(asked.image)
    unknown = f"the tag of {asked.image} does not begin with a version of vLLM" if asked.image and not version else ""
    model = judged(told.applied(_model(asked)), version, unknown)
    if any(told.has(name) for name in WHOLE_CONTEXT):
        model = replace(model, full_layers=model.full_layers + model.window_layers, window_layers=0)
    settings = VllmSettings(
        context_length=serving.context_length,
        full_sequences=min(FULL_SEQUENCES, serving.max_sequences),
        max_sequences=serving.max_sequences,
        max_batched_tokens=options.max_batched_tokens,
        cache_type="auto" if told.has("--kv-cache-dtype-skip-layers") else _cache_type(serving),
        tensor_parallel=max(gpus, 1),
        enforce_eager=options.enforce_eager,
        version=version,
        cpu_offload_gib=max(told.number("--cpu-offload-gb"), 0),
        host_gib=max(told.number("--kv-offloading-size"), 0) + max(told.number("--mm-processor-cache-gb"), 0),
    )
    if not gpus:
        return vllm_cpu_plan(model, settings)
    plan = vllm_plan(model, settings)
    moved = plan.need.weights_mib * told.to_host("weights")
    return plan._replace(need=replace(plan.need, host_mib=plan.need.host_mib + moved))


def version_of(image: str) -> tuple[int, int] | None:
    """Major and minor version by an image's tag, such as `v0.18.1-cu129`; None where the tag does not tell."""
    found = _VERSIONED.search(image.split("@", maxsplit=1)[0])
    return (int(found["major"]), int(found["minor"])) if found else None


def _model(asked: Asked) -> TransformerModel:
    """The model as it will be held: float32 is asked for by few and doubles 16-bit weights and caches."""
    model = TransformerModel.from_json(parse(asked.header))
    if asked.spec.vllm and asked.spec.vllm.dtype == DType.FLOAT32:
        doubled = 2 * model.weight_bytes if model.quantization in ("BF16", "F16") else model.weight_bytes
        return replace(model, weight_bytes=doubled, cache_bytes_per_value=4)
    return model


def _cache_type(serving: Serving) -> str:
    return "auto" if serving.kv_cache_type == KVCacheType.F16 else serving.kv_cache_type


def _environment(start: Start) -> dict[str, str]:
    """Nothing is fetched or reported; caches lie under /tmp, where PyTorch needs a user's name to find its own."""
    env = {
        "HOME": "/tmp",
        "USER": "vllm",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": str(KEEP_ALIVE_SECONDS),
        "VLLM_LOGGING_CONFIG_PATH": f"{names.ENGINE_FILES}/{LOGGING_FILE}",
    }
    if not start.gpus and start.cpus:  # bound to the pod's share, not to every CPU of the node
        env |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(start.cpus)}
    return env
