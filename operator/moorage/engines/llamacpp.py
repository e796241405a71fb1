"""llama.cpp's `llama-server` (pinned build: images/llamacpp-cpu/BUILD).

Every argument that shapes memory or speed is explicit: the server's own defaults depend on the machine and change
between builds, and `--fit` (on by default there) would quietly shrink the context or spill layers to the CPU.
"""

import json
from dataclasses import replace
from functools import lru_cache

from moorage import names
from moorage.api.capabilities import Capability, Evidence
from moorage.api.engine_settings import AUTO_PARSER, LlamaCpp
from moorage.api.model import ModelSpec
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
from moorage.engines.memory_args import LLAMA_CPP, Given, given
from moorage.sizing.errors import HeaderError
from moorage.sizing.llamacpp import LlamaSettings, llama_need
from moorage.sizing.model import LlamaModel
from moorage.sizing.need import MemoryNeed
from moorage.sizing.projector import Projector
from moorage.sizing.stored import parse

PROMPT_CACHE_MIB = 256  # llama-server's own default is 8192 MiB of host memory, more than most pods have
SERVER_MIB = 512  # program, libraries, HTTP threads and what it parses
POOLED = {
    Capability.EMBEDDINGS: ("--embeddings", "--embedding"),
    Capability.RERANK: ("--reranking", "--rerank"),
}
"""Arguments that make a server of something else than text; the first of each is the one to write.

Without its own the endpoint answers 501, and with --embeddings alone a request for text ends the whole server (seen
with build 11669, where the model has no pooling type)."""
_POOLED_ENV = {"LLAMA_ARG_EMBEDDINGS": Capability.EMBEDDINGS, "LLAMA_ARG_RERANKING": Capability.RERANK}
HEALTH = "/health"  # 503 while the weights load, 200 afterwards; answered by the HTTP thread at all times
GAUGES = ("llamacpp:requests_processing", "llamacpp:requests_deferred")
"""Requests that run and that wait, among its metrics."""


class LlamaCppEngine(Engine):
    """llama.cpp for GGUF files; see `moorage.engines.base.Engine`."""

    name = "LlamaCpp"
    title = "llama.cpp"
    format = "GGUF"
    files = "GGUF files"
    weights_pattern = "*.gguf"
    loads_folder = False
    default_sequences = 4
    most_sequences = 16
    cache_types = ("f16", "q8_0", "q4_0")
    gpu_counts = (1, 2, 4, 8)  # a layer split takes any number; these are what nodes come with
    process_mib = SERVER_MIB + PROMPT_CACHE_MIB
    reports_itself = True
    fills_gpu = False

    def understands(self, header: str, projector: str = "") -> bool:
        """See Engine."""
        try:
            if header:
                _model(header)
            if projector:
                _projector(projector)
        except HeaderError:
            return False
        return True

    def refusal(self, asked: Asked) -> str:
        """See Engine. llama-server would cut a context that is too long without a word."""
        spec = asked.spec
        if spec.vllm:
            return "spec.vllm has no effect on GGUF files, which llama.cpp serves; remove it, or see spec.llamaCpp"
        if spec.kv_cache_type not in self.cache_types:
            return f"llama.cpp has no cache of type {spec.kv_cache_type}; set spec.kvCacheType to f16, q8_0 or q4_0"
        if (spec.max_sequences or 0) > self.most_sequences:
            return f"llama.cpp serves at most {self.most_sequences} requests at once; lower spec.maxSequences"
        if spec.reasoning_parser:
            return "spec.reasoningParser is for vLLM; llama.cpp finds the reasoning by the chat template, so remove it"
        if spec.tool_calling and (spec.tool_calling.parser != AUTO_PARSER or not spec.tool_calling.enabled):
            return "llama.cpp reads tool calls by the chat template, always; remove spec.toolCalling"
        if given(spec, LLAMA_CPP, ("LLAMA_ARG_",)).number("--cache-ram") < 0:
            return "spec.args: --cache-ram below 0 has no limit, and the pod's memory has one; say how many MiB"
        return beyond_training(asked, ("--rope", "--yarn"))

    def unsplittable(self, asked: Asked, gpus: int) -> str:
        """See Engine. Layers are shared out whole, over any number of GPUs."""
        return ""

    def need(self, asked: Asked, serving: Serving, gpus: int) -> MemoryNeed | None:
        """See Engine."""
        if not asked.header:
            return None
        told = given(asked.spec, LLAMA_CPP, ("LLAMA_ARG_",))
        model = told.applied(_model(asked.header))
        need = llama_need(model, _settings(asked, serving, gpus, told))
        moved = need.weights_mib * told.to_host("weights") + need.kv_mib * told.to_host("cache")
        prompts = max(int(told.number("--cache-ram", PROMPT_CACHE_MIB)) - PROMPT_CACHE_MIB, 0)
        need = replace(need, host_mib=need.host_mib + moved + prompts)
        experts = int(told.number("--moe-cache-mib"))
        return need.with_compute(experts) if need.per_gpu_mib and experts > 0 else need

    def requantized(self, asked: Asked, bytes_now: int, bytes_then: int, gpus: int) -> Asked | None:
        """See Engine. Cache and compute buffers do not depend on the quantization."""
        if not asked.header or not 0 < bytes_then <= bytes_now:
            return None
        other = _model(asked.header).requantized(bytes_now, bytes_then, gpus)
        return replace(asked, header=json.dumps(other.to_json()), size_bytes=bytes_then)

    def container(self, asked: Asked, start: Start) -> EngineContainer:
        """See Engine.

        The start-up probe asks every second, so that Ready is seen a second after the weights are there, for as long as
        the size of the file makes plausible. Liveness starts only after it and waits a minute of silence.
        """
        return EngineContainer(
            args=arguments(asked, start),
            port=names.ENGINE_PORT,
            startup=Probe(HEALTH, period=1, timeout=5, failures=startup_seconds(asked.size_bytes)),
            readiness=Probe(HEALTH, period=1, timeout=5, failures=5),
            liveness=Probe(HEALTH, period=10, timeout=10, failures=6),
            scratch=(Scratch("/tmp"),),
            env={"HOME": "/tmp", "HF_HUB_OFFLINE": "1", "LLAMA_ARG_OFFLINE": "1"},
            drain=drain_command(*GAUGES),
        )

    def capabilities(
        self, asked: Asked, shows: frozenset[Capability], reported: Reported
    ) -> dict[Capability, Evidence]:
        """See Engine. Images and sound are shown by a projector's header."""
        if pooled := _pooled_by(asked.spec):
            return {pooled: Evidence.DECLARED}
        found = dict.fromkeys(shows, Evidence.METADATA)
        args = asked.spec.args
        if Capability.COMPLETION in found and (asked.spec.chat_template or option(args, *_TEMPLATES) is not None):
            found[Capability.CHAT] = Evidence.DECLARED
            for unread in (Capability.TOOLS, Capability.REASONING):
                found.pop(unread, None)
        if Capability.CHAT in found:  # every server has a template, also where nobody is to chat
            found |= {capability: Evidence.PROBE for capability, able in reported.items() if able}
            found = {capability: evidence for capability, evidence in found.items() if reported.get(capability, True)}
        plain = option(args, "--skip-chat-parsing") is not None
        if plain or option(args, "--no-jinja") is not None:
            found.pop(Capability.TOOLS, None)
        kept = option(args, "--reasoning-format") == "none" or option(args, "--reasoning", "-rea") == "off"
        if plain or kept or option(args, "--reasoning-budget") == "0":
            found.pop(Capability.REASONING, None)
        return found


_TEMPLATES = ("--chat-template", "--chat-template-file")


def _pooled_by(spec: ModelSpec) -> Capability | None:
    """What a person makes of the server by an argument or a variable."""
    given = (capability for capability, names_ in POOLED.items() if option(spec.args, *names_) is not None)
    meant = (_POOLED_ENV[v["name"]] for v in spec.env if v["name"] in _POOLED_ENV and v.get("value") in ("1", "true"))
    return next(given, None) or next(meant, None)


def _batches(asked: Asked, serving: Serving) -> tuple[int, int]:
    """Tokens of a batch and of a micro-batch.

    A text whose tokens' vectors become one has to be in one micro-batch: llama-server answers 500 to a longer one
    ("input is too large to process"). Only for the last token's vector can it be computed piece by piece.
    """
    options = asked.spec.llama_cpp or LlamaCpp()
    if asked.pooled is None or _takes_last(asked):
        return options.batch_size, options.ubatch_size
    return max(options.batch_size, serving.context_length), max(options.ubatch_size, serving.context_length)


def _takes_last(asked: Asked) -> bool:
    """Whether the last token's vector stands for a text; a reranker always looks at all of it."""
    said = option(asked.spec.args, "--pooling")
    return asked.pooled == Capability.EMBEDDINGS and (
        _file_pools_last(asked.header) if said is None else said == "last"
    )


def _file_pools_last(header: str) -> bool:
    """False also where nothing is known, or another Moorage wrote it: what is in one micro-batch always works."""
    try:
        return bool(header) and _model(header).pools_last
    except HeaderError:
        return False


@lru_cache(maxsize=256)
def _model(header: str) -> LlamaModel:
    """The model that a stored header tells of, read once for the many needs that one pass asks for."""
    return LlamaModel.from_json(parse(header))


@lru_cache(maxsize=256)
def _projector(header: str) -> Projector:
    return Projector.from_json(parse(header))


def _settings(asked: Asked, serving: Serving, gpus: int, told: Given) -> LlamaSettings:
    options = asked.spec.llama_cpp or LlamaCpp()
    return LlamaSettings(
        ctx_size=serving.context_length * serving.max_sequences,
        parallel=serving.max_sequences,
        kv_unified=options.unified_kv_cache,
        cache_type_k=serving.kv_cache_type,
        cache_type_v=serving.kv_cache_type,
        ubatch_size=_batches(asked, serving)[1],
        flash_attention=options.flash_attention,
        swa_full=told.has("--swa-full"),
        gpu_layers=options.gpu_layers if gpus else 0,
        gpus=max(gpus, 1),
        outputs=0 if asked.pooled else None,
        projector=_projector(asked.projector) if asked.projector else None,
        image_max_tokens=max(int(told.number("--image-max-tokens")), 0),
        projector_offload=not told.has("--no-mmproj-offload"),
    )


def arguments(asked: Asked, start: Start) -> tuple[str, ...]:
    """Command line of llama-server.

    `--ctx-size` is the server's whole pool, split evenly over `--parallel` slots (or shared with `--kv-unified`), hence
    context length times slots.
    """
    options, serving = asked.spec.llama_cpp or LlamaCpp(), start.serving
    # Threads beyond the pod's share spin at each other's barriers: measured 10 tokens/s instead of 100 on two CPUs.
    threads = str(options.threads or start.cpus or -1)
    batch, micro_batch = _batches(asked, serving)
    args = [
        *("--model", start.model_path),
        *("--alias", start.name),
        *("--host", "0.0.0.0"),
        *("--port", str(names.ENGINE_PORT)),
        *("--ctx-size", str(serving.context_length * serving.max_sequences)),
        *("--parallel", str(serving.max_sequences)),
        "--kv-unified" if options.unified_kv_cache else "--no-kv-unified",
        *("--predict", str(options.predict)),
        *("--keep", str(options.keep)),
        *("--threads", threads),
        *("--threads-batch", threads),
        *("--batch-size", str(batch)),
        *("--ubatch-size", str(micro_batch)),
        *("--gpu-layers", _gpu_layers(options, start.gpus)),
        *("--cache-type-k", serving.kv_cache_type),
        *("--cache-type-v", serving.kv_cache_type),
        *("--flash-attn", "on" if options.flash_attention else "off"),
        *("--cache-ram", str(PROMPT_CACHE_MIB)),
        *("--fit", "off"),
        *("--timeout", "3600"),
        "--cont-batching",
        "--jinja",
        "--metrics",
        "--no-slots",
        "--no-ui",
        "--offline",
    ]
    if start.gpus > 1:  # equal shares, as the memory plan counts; the default splits by what is free at that moment
        args += ["--split-mode", "layer", "--tensor-split", ",".join(["1"] * start.gpus)]
    if start.projector_path:
        args += ["--mmproj", start.projector_path]
    if start.chat_template:
        args += ["--chat-template-file", start.chat_template]
    if asked.pooled and not _pooled_by(asked.spec):
        args.append(POOLED[asked.pooled][0])
    return (*args, *asked.spec.args)


def _gpu_layers(options: LlamaCpp, gpus: int) -> str:
    if not gpus:
        return "0"
    return "all" if options.gpu_layers is None else str(options.gpu_layers)
