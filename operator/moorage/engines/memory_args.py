"""What arguments in `spec.args` and `spec.env` do to the memory that a Model needs.

Every argument of an engine that could change its memory is one of these: refused, because a field sets it
(`moorage.api.managed_args`); followed by the computation; or a reason to trust the computation less, which
`status.memory.reasons` tells. The tables are held to the engines' own lists of arguments by a test.
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Final, TypeVar

from moorage.api.model import ModelSpec
from moorage.sizing.model import Confidence, LlamaModel
from moorage.sizing.transformer import TransformerModel

_Model = TypeVar("_Model", LlamaModel, TransformerModel)
_VALUE: Final = re.compile(r"-?[0-9.]")
_TRUTHY: Final = ("on", "enabled", "true", "1")
"""As `common_arg_utils::is_truthy` of llama.cpp; argparse's environment has no flags."""
MOST: Final = 1 << 30
"""MiB, or GB: a petabyte."""
_ORDER: Final = (Confidence.EXACT, Confidence.BOUNDED, Confidence.GUESS)


class Effect(StrEnum):
    """What an argument does to the estimate."""

    FOLLOWED = "followed"
    """The computation takes its value."""
    BOUNDED = "Bounded"
    """The need is counted as if it was not there, which is an upper bound; confidence is Bounded at best."""
    GUESS = "Guess"
    """It takes memory that is not counted; confidence is Guess, with a larger margin."""
    NONE = "none"
    """It changes no memory that is counted, or needs another argument of this table to do so."""


@dataclass(frozen=True)
class MemoryArg:
    """Spellings of one argument, or patterns (`--lora-*`) of several of a kind; `note` is for people.

    `env` is the environment variable that says the same. `flag`: it has no value; `negated`: it says no to what the
    variable says yes to. `to_host`: what may lie in host memory by it (weights or cache), which is counted there too.
    """

    names: tuple[str, ...]
    effect: Effect
    note: str
    env: str = ""
    flag: bool = False
    negated: bool = False
    to_host: str = ""

    @property
    def key(self) -> str:
        """What it is known by: its first spelling, or the variable where it has none."""
        return self.names[0] if self.names else self.env

    def named(self, name: str) -> bool:
        """Whether `name` is one of its spellings."""
        return any(fnmatchcase(name, known) for known in self.names)


@dataclass(frozen=True)
class Given:
    """What a Model's arguments and environment say: value by the argument's first spelling, and what that means."""

    values: dict[str, str]
    found: tuple[tuple[str, MemoryArg], ...]
    unseen: str = ""

    def has(self, name: str) -> bool:
        """Whether the argument is given."""
        return name in self.values

    def number(self, name: str, default: float = 0) -> float:
        """The argument's value; `default` where it is not given or no number, which ends the engine's start anyway.

        At most MOST either way, which no machine has.
        """
        try:
            value = float(self.values[name])
        except (KeyError, ValueError):
            return default
        return min(max(value, -MOST), MOST) if math.isfinite(value) else default

    def to_host(self, what: str) -> bool:
        """Whether an argument has `what` lie in host memory."""
        return any(arg.to_host == what for _, arg in self.found)

    def applied(self, model: _Model) -> _Model:
        """`model` with its confidence lowered by the arguments, and the reasons why."""
        lowering = [(name, arg) for name, arg in self.found if arg.effect in (Effect.BOUNDED, Effect.GUESS)]
        told: list[str] = [f"{name}: {arg.note}" for name, arg in lowering]
        told += [self.unseen] if self.unseen else []
        if not told:
            return model
        least = [Confidence(arg.effect.value) for _, arg in lowering] + [Confidence.BOUNDED]
        confidence: Confidence = max(model.confidence, *least, key=_ORDER.index)
        reasons: tuple[str, ...] = (*model.reasons, *dict.fromkeys(told))
        return replace(model, confidence=confidence, reasons=reasons)


def given(spec: ModelSpec, table: Iterable[MemoryArg], prefixes: tuple[str, ...]) -> Given:
    """What `spec` gives of `table`; arguments win over the environment, the last of several over the others.

    `prefixes` are those of the engine's environment variables, which `spec.envFrom` may set unseen.
    """
    table = tuple(table)
    said = [*_of_environment(spec, table), *_of_arguments(spec.args, table)]
    values = {arg.key: value for _, arg, value in said}
    last = {arg.key: (name, arg) for name, arg, _ in said}
    where = " or ".join(f"{prefix}*" for prefix in prefixes)
    unseen = f"spec.envFrom may set {where}, which is not looked at" if spec.env_from else ""
    return Given(values, tuple(last.values()), unseen)


def _of_arguments(args: list[str], table: tuple[MemoryArg, ...]) -> Iterable[tuple[str, MemoryArg, str]]:
    for at, text in enumerate(args):
        name, equals, value = text.partition("=")
        if not name.startswith("-"):
            continue
        name = name.split(".")[0].replace("_", "-")  # vLLM takes parts of JSON as --option.part
        if not equals and at + 1 < len(args) and (not args[at + 1].startswith("-") or _VALUE.match(args[at + 1])):
            value = args[at + 1]
        if arg := next((arg for arg in table if arg.named(name)), None):
            yield name, arg, value


def _of_environment(spec: ModelSpec, table: tuple[MemoryArg, ...]) -> Iterable[tuple[str, MemoryArg, str]]:
    variables = {str(item.get("name")): str(item.get("value", "1")) for item in spec.env}
    for arg in table:
        for name in (name for name in variables if arg.env and fnmatchcase(name, arg.env)):
            if not arg.flag or (variables[name] in _TRUTHY) != arg.negated:
                yield name, arg, variables[name]


_F, _B, _G, _N = Effect.FOLLOWED, Effect.BOUNDED, Effect.GUESS, Effect.NONE
_DRAFT = "a second model and its cache are not counted"
_MOVED = "how much of the weights it moves to host memory is not computed: they are counted on the GPUs and there"

LLAMA_CPP: Final = (
    MemoryArg(("--swa-full",), _F, "layers with a window cache the whole context", "LLAMA_ARG_SWA_FULL", flag=True),
    MemoryArg(("--image-max-tokens",), _F, "bounds the picture that the projector takes", "LLAMA_ARG_IMAGE_MAX_TOKENS"),
    MemoryArg(
        ("--no-mmproj-offload",), _F, "the projector lies in host memory", "LLAMA_ARG_MMPROJ_OFFLOAD",
        flag=True, negated=True,
    ),
    MemoryArg(("--cache-ram", "-cram"), _F, "host memory for prompts, instead of 256 MiB", "LLAMA_ARG_CACHE_RAM"),
    MemoryArg(("--moe-cache-mib",), _F, "GPU memory for experts that lie in host memory", "LLAMA_ARG_MOE_CACHE_MIB"),
    MemoryArg(
        ("--no-kv-offload", "-nkvo"), _B, "the cache lies in host memory; it is counted on the GPUs and there",
        "LLAMA_ARG_KV_OFFLOAD", flag=True, negated=True, to_host="cache",
    ),
    MemoryArg(("--cpu-moe", "-cmoe"), _B, _MOVED, "LLAMA_ARG_CPU_MOE", flag=True, to_host="weights"),
    MemoryArg(("--n-cpu-moe", "-ncmoe"), _B, _MOVED, "LLAMA_ARG_N_CPU_MOE", to_host="weights"),
    MemoryArg(("--n-cpu-ffn", "-ncffn"), _B, _MOVED, "LLAMA_ARG_N_CPU_FFN", to_host="weights"),
    MemoryArg(("--override-tensor", "-ot"), _G, _MOVED, "LLAMA_ARG_OVERRIDE_TENSOR", to_host="weights"),
    MemoryArg(("--load-mode", "-lm"), _B, "how much of the weights stays in host memory is not computed",
              "LLAMA_ARG_LOAD_MODE", to_host="weights"),
    MemoryArg(("--image-min-tokens",), _B, "pictures may be larger than is counted", "LLAMA_ARG_IMAGE_MIN_TOKENS"),
    MemoryArg(("--mtmd-batch-max-tokens",), _B, "pictures encoded together are counted for 1,024 tokens",
              "LLAMA_ARG_MTMD_BATCH_MAX_TOKENS"),
    MemoryArg(("--mmproj-device", "-mmdev"), _B, "the projector is counted on the first GPU", "MTMD_BACKEND_DEVICE"),
    MemoryArg(("--ctx-checkpoints", "-ctxcp", "--swa-checkpoints"), _B, "checkpoints in host memory are not counted",
              "LLAMA_ARG_CTX_CHECKPOINTS"),
    MemoryArg(("--checkpoint-min-step", "-cms"), _B, "checkpoints in host memory are not counted",
              "LLAMA_ARG_CHECKPOINT_MIN_SPACING_NT"),
    MemoryArg(("--backend-sampling", "-bs"), _B, "buffers for sampling on the GPU are not counted",
              "LLAMA_ARG_BACKEND_SAMPLING", flag=True),
    MemoryArg(("--control-vector", "--control-vector-scaled"), _B, "control vectors are not counted"),
    MemoryArg(("--no-host",), _B, "weights in host memory may be kept in another layout", "LLAMA_ARG_NO_HOST",
              flag=True),
    MemoryArg(("--spec-draft-model", "-md", "--model-draft"), _G, _DRAFT, "LLAMA_ARG_SPEC_DRAFT_MODEL"),
    MemoryArg(("--spec-draft-hf", "-hfd", "-hfrd", "--hf-repo-draft"), _G, _DRAFT, "LLAMA_ARG_SPEC_DRAFT_HF_REPO"),
    MemoryArg(("--spec-type",), _G, "what it keeps for drafts is not counted", "LLAMA_ARG_SPEC_TYPE"),
    MemoryArg(("--spec-default",), _G, "what it keeps for drafts is not counted", flag=True),
    MemoryArg(("--lora", "--lora-scaled"), _G, "adapters are not counted"),
    MemoryArg(("--override-kv",), _G, "it changes what the header says"),
    MemoryArg(
        (
            "--spec-draft-*", "-ctkd", "-ctvd", "--cache-type-?-draft", "-ngld", "--*-draft", "-otd", "-cmoed",
            "-ncmoed", "-devd", "--no-spec-draft-*", "-td", "-tbd", "-Cd", "-Crd", "-Cbd", "--draft*",
        ),
        _N, "of a draft model, which itself counts",
    ),
    MemoryArg(("--spec-ngram-*", "--spec-synth-*", "--lookup-cache-*", "-lcs", "-lcd"), _N, "small tables of tokens"),
    MemoryArg(("--rope-*", "--yarn-*"), _N, "another scale of positions; the context is spec.contextLength"),
    MemoryArg(("--lora-init-without-apply", "--control-vector-layer-range"), _N, "of adapters, which themselves count"),
    MemoryArg(
        ("--cache-prompt", "--no-cache-prompt", "--cache-reuse", "--cache-idle-slots", "--no-cache-idle-slots",
         "--context-shift", "--no-context-shift", "--cont-batching", "-cb", "-nocb", "--no-cont-batching", "-dt",
         "--defrag-thold", "--slot-save-path", "--slots", "--no-slots"),
        _N, "how the cache is used, not its size",
    ),
    MemoryArg(
        ("--kv-offload", "-kvo", "--mmproj-offload", "--op-offload", "--no-op-offload", "--lazy-mode", "-lzm",
         "--repack", "--no-repack", "-nr", "--sleep-idle-seconds", "--warmup", "--no-warmup", "--check-tensors"),
        _N, "as counted, or less",
    ),
    MemoryArg(
        ("--pooling", "--embedding", "--embeddings", "--embd-normalize", "--rerank", "--reranking"),
        _N, "counted as a server of that kind, which gives no logits",
    ),
    MemoryArg(
        ("--threads-batch", "-tb", "--cpu-*", "-C", "-Cr", "-Cb", "-Crb", "--prio*", "--poll*", "--numa",
         "--cache-list", "-cl", "--list-devices", "--offline", "--tools-runtime"),
        _N, "no memory of the model",
    ),
)  # fmt: skip
"""Of llama-server (images/llamacpp-cpu/help.txt)."""

_LORA = "adapters are not counted"
_BACKEND = "another way to compute may take more memory than the one that was measured"
_SHARED_OUT = "how it shares out the model is not computed"
_GRAPHS = "CUDA graphs are counted as the default makes them"
_PICTURES = "what images and sound need is not counted"
_STORED = "weights are counted as they are stored"
_BESIDE = "what it keeps beside the cache is not counted"

WHOLE_CONTEXT: Final = ("--disable-hybrid-kv-cache-manager", "--disable-sliding-window")
"""Arguments of vLLM that take the windows of layers from it."""

VLLM: Final = (
    MemoryArg(("--cpu-offload-gb",), _F, "GiB of each GPU's weights that lie in host memory"),
    MemoryArg(("--kv-offloading-size",), _F, "GiB of cache in host memory, all GPUs together"),
    *(MemoryArg((name,), _F, "layers with a window cache the whole context", flag=True) for name in WHOLE_CONTEXT),
    MemoryArg(("--kv-cache-dtype-skip-layers",), _F, "the cache is counted as if no layer had fp8"),
    MemoryArg(("--mm-processor-cache-gb",), _F, "GiB of host memory for images"),
    MemoryArg(("--num-gpu-blocks-override",), _G, "the cache has another size than the plan"),
    MemoryArg(
        ("--enable-lora", "--lora-*", "--max-lora-*", "--max-loras", "--max-cpu-loras", "--fully-sharded-loras",
         "--default-mm-loras", "--enable-*lora*", "--specialize-active-lora"), _G, _LORA,
    ),
    MemoryArg(("--speculative-config", "-sc", "--spec-method", "--spec-model", "--spec-tokens"), _G,
              "a draft model and its cache are not counted"),
    MemoryArg(("--hf-overrides", "--model-class-overrides", "--additional-config", "--engram-config",
               "--diffusion-config"), _G, "it changes what config.json says"),
    MemoryArg(("--kv-transfer-config", "--ec-transfer-config", "--ec-manager-config", "--weight-transfer-config"), _G,
              "buffers for transfers are not counted"),
    MemoryArg(("--mm-ipc-gpu-memory-gb", "--mm-processor-device", "--mm-tensor-ipc"), _G, _PICTURES),
    MemoryArg(
        ("--nnodes", "--node-rank", "--data-parallel-*", "-dp?", "--prefill-context-parallel-size", "-pcp",
         "--decode-context-parallel-size", "-dcp", "--enable-expert-parallel", "-ep", "--elastic-ep-*",
         "--distributed-executor-backend", "--worker-cls", "--worker-extension-cls", "--eplb-config",
         "--enable-elastic-ep", "--enable-eplb", "--expert-placement-strategy"),
        _G, _SHARED_OUT,
    ),
    MemoryArg(("--quantization", "-q", "--quantization-config", "--load-format", "--model-loader-extra-config",
               "--model-impl", "--allow-deprecated-quantization"), _B, _STORED),
    MemoryArg(("--offload-*", "--cpu-offload-params"), _B, _MOVED, to_host="weights"),
    MemoryArg(("--compilation-config", "-cc", "--cudagraph-capture-sizes", "--max-cudagraph-capture-size",
               "--optimization-level", "--performance-mode", "--sleep-mode-offload-cudagraph"), _B, _GRAPHS),
    MemoryArg(
        ("--*-backend", "--attention-config", "-ac", "--kernel-config", "--enable-dbo", "--ubatch-size",
         "--enable-cumem-allocator", "--enable-sleep-mode", "--runner", "--convert", "--pooler-config",
         "--max-logprobs", "--logprobs-mode", "--logits-processors", "--return-sampling-mask", "--use-fp64-gumbel",
         "--enable-return-routed-experts"),
        _B, _BACKEND,
    ),
    MemoryArg(("--mamba-*", "--enable-mamba-*", "--replayssm-*", "--use-replayssm", "--kv-sharing-fast-prefill",
               "--block-size", "--swa-bounded-replay"), _B, _BESIDE),
    MemoryArg(("--limit-mm-per-prompt", "--mm-*", "--skip-mm-profiling", "--language-model-only",
               "--enable-mm-embeds", "--disable-chunked-mm-input", "--interleave-mm-strings",
               "--trust-request-mm-kwargs", "--media-io-kwargs"), _B, _PICTURES),
    MemoryArg(("--api-server-count", "-asc", "--renderer-num-workers", "--max-parallel-loading-workers",
               "--safetensors-*", "--enable-shm-tensor-arena", "--pt-load-map-location"),
              _B, "host memory of further processes and buffers is not counted"),
    MemoryArg((), _B, "the profile of the start leaves CUDA graphs out", "VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS"),
    MemoryArg((), _B, _BACKEND, "VLLM_*USE_*"),
    MemoryArg((), _B, _BACKEND, "VLLM_*MOE*"),
    MemoryArg((), _B, "it changes how memory is allocated", "PYTORCH_*ALLOC_CONF"),
    MemoryArg((), _B, "buffers for transfers are not counted", "NCCL_*"),
    MemoryArg(
        ("--*-config", "--log-config-file", "--enable-*", "--kv-*", "--cp-kv-*", "--dcp-*",
         "--data-parallel-supervisor-*", "--numa-*",
         "--model", "--cpu-distributed-timeout-seconds", "--download-dir", "--h11-*", "--cohere-*",
         "--prefix-cache-*", "--per-request-*", "--ray-*", "--sleep-*", "--use-tqdm-on-load", "--cudagraph-metrics",
         "--config-format", "--enable-prefix-caching", "--override-generation-config", "--generation-config"),
        _N, "no memory that is counted",
    ),
)  # fmt: skip
"""Of vLLM (images/vllm-cpu/arguments.json); of several lines that fit a name the first counts."""
