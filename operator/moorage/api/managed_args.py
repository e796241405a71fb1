"""The engine arguments that Moorage sets itself, so that `spec.args` and `spec.env` may not set them again.

One place for the names: the CRD's rules refuse them, the engines build their command lines from the same table.
Source: `llama-server --help` and `vllm serve --help=all` of the pinned versions; both take `_` for `-` in names that
start with `--`. Which engine serves a Model may be known only when its files are, so the arguments of both are refused
for every Model; what only one of them has would end the start of the other anyway.
"""

from moorage.api.common import Rule

# Where no field governs an argument, but probes, the Service, warm-up and benchmark depend on it.
MOORAGE = "Moorage itself"

# What sets an argument of llama-server -> every spelling of the argument.
LLAMA_CPP_ARGS_BY_OWNER: dict[str, tuple[str, ...]] = {
    "spec.source": (
        *("--model", "-m", "--model-url", "-mu", "--hf-repo", "-hf", "-hfr", "--hf-file", "-hff", "--hf-token", "-hft"),
        *("--docker-repo", "-dr", "--models-dir", "--models-preset"),
        *("--mmproj", "-mm", "--mmproj-url", "-mmu", "--mmproj-auto", "--no-mmproj", "--no-mmproj-auto"),
    ),
    "spec.source.huggingFace": (
        *("--embd-gemma-default", "--fim-qwen-1.5b-default", "--fim-qwen-3b-default", "--fim-qwen-7b-default"),
        *("--fim-qwen-7b-spec", "--fim-qwen-14b-spec", "--fim-qwen-30b-default", "--gpt-oss-20b-default"),
        *("--gpt-oss-120b-default", "--vision-gemma-4b-default", "--vision-gemma-12b-default"),
    ),
    "metadata.name": ("--alias", "-a"),
    "spec.contextLength": ("--ctx-size", "-c"),
    "spec.maxSequences": ("--parallel", "-np"),
    "spec.kvCacheType": ("--cache-type-k", "-ctk", "--cache-type-v", "-ctv"),
    "spec.llamaCpp.threads": ("--threads", "-t"),
    "spec.llamaCpp.batchSize": ("--batch-size", "-b"),
    "spec.llamaCpp.ubatchSize": ("--ubatch-size", "-ub"),
    "spec.llamaCpp.keep": ("--keep",),
    "spec.llamaCpp.predict": ("--predict", "--n-predict", "-n"),
    "spec.llamaCpp.gpuLayers": ("--gpu-layers", "--n-gpu-layers", "-ngl"),
    "spec.llamaCpp.flashAttention": ("--flash-attn", "-fa"),
    "spec.llamaCpp.unifiedKVCache": ("--kv-unified", "-kvu", "--no-kv-unified", "-no-kvu", "--kv-unified-per-slot"),
    "spec.accelerator": (
        *("--fit", "-fit", "--fit-target", "-fitt", "--fit-ctx", "-fitc", "--device", "-dev", "--rpc"),
        *("--tensor-split", "-ts", "--split-mode", "-sm", "--main-gpu", "-mg"),
    ),
    MOORAGE: (
        *("--host", "--port", "--reuse-port", "--api-prefix", "--metrics"),
        *("--api-key", "--api-key-file", "--ssl-key-file", "--ssl-cert-file"),
    ),
}

# The same for vLLM.
VLLM_ARGS_BY_OWNER: dict[str, tuple[str, ...]] = {
    "spec.source": ("--tokenizer", "--revision", "--code-revision", "--tokenizer-revision", "--hf-config-path"),
    "metadata.name": ("--served-model-name",),
    "spec.contextLength": ("--max-model-len",),
    "spec.maxSequences": ("--max-num-seqs",),
    "spec.kvCacheType": ("--kv-cache-dtype",),
    "spec.vllm.dtype": ("--dtype",),
    "spec.vllm.maxBatchedTokens": ("--max-num-batched-tokens",),
    "spec.vllm.enforceEager": ("--enforce-eager", "--no-enforce-eager"),
    "spec.vllm.trustRemoteCode": ("--trust-remote-code", "--no-trust-remote-code"),
    "spec.toolCalling": ("--enable-auto-tool-choice", "--no-enable-auto-tool-choice", "--tool-call-parser"),
    "spec.reasoningParser": ("--reasoning-parser",),
    "spec.accelerator": (
        *("--gpu-memory-utilization", "--device-memory-utilization", "--kv-cache-memory-bytes"),
        *("--tensor-parallel-size", "-tp", "--pipeline-parallel-size", "-pp", "--data-parallel-size", "-dp"),
    ),
    MOORAGE: (
        *("--uds", "--config", "--headless", "--grpc", "--root-path", "--ssl-keyfile", "--ssl-certfile"),
        "--disable-log-stats",  # by which a pod that is to stop knows that nobody is being answered
    ),
}

# Environment variables by which llama-server takes the same arguments.
LLAMA_CPP_ENV_BY_OWNER: dict[str, tuple[str, ...]] = {
    "spec.source": (
        *("LLAMA_ARG_MODEL", "LLAMA_ARG_MODEL_URL", "LLAMA_ARG_HF_REPO", "LLAMA_ARG_HF_FILE"),
        *("LLAMA_ARG_DOCKER_REPO", "LLAMA_ARG_MODELS_DIR", "LLAMA_ARG_MODELS_PRESET"),
        *("LLAMA_ARG_MMPROJ", "LLAMA_ARG_MMPROJ_URL", "LLAMA_ARG_MMPROJ_AUTO"),
    ),
    "metadata.name": ("LLAMA_ARG_ALIAS",),
    "spec.contextLength": ("LLAMA_ARG_CTX_SIZE",),
    "spec.maxSequences": ("LLAMA_ARG_N_PARALLEL",),
    "spec.kvCacheType": ("LLAMA_ARG_CACHE_TYPE_K", "LLAMA_ARG_CACHE_TYPE_V"),
    "spec.llamaCpp.threads": ("LLAMA_ARG_THREADS",),
    "spec.llamaCpp.batchSize": ("LLAMA_ARG_BATCH",),
    "spec.llamaCpp.ubatchSize": ("LLAMA_ARG_UBATCH",),
    "spec.llamaCpp.predict": ("LLAMA_ARG_N_PREDICT",),
    "spec.llamaCpp.gpuLayers": ("LLAMA_ARG_N_GPU_LAYERS",),
    "spec.llamaCpp.flashAttention": ("LLAMA_ARG_FLASH_ATTN",),
    "spec.llamaCpp.unifiedKVCache": ("LLAMA_ARG_KV_UNIFIED", "LLAMA_ARG_KV_UNIFIED_PER_SLOT"),
    "spec.accelerator": (
        *("LLAMA_ARG_FIT", "LLAMA_ARG_FIT_TARGET", "LLAMA_ARG_FIT_CTX", "LLAMA_ARG_DEVICE", "LLAMA_ARG_RPC"),
        *("LLAMA_ARG_TENSOR_SPLIT", "LLAMA_ARG_SPLIT_MODE", "LLAMA_ARG_MAIN_GPU"),
    ),
    MOORAGE: (
        *("LLAMA_ARG_HOST", "LLAMA_ARG_PORT", "LLAMA_ARG_REUSE_PORT", "LLAMA_ARG_API_PREFIX"),
        *("LLAMA_ARG_ENDPOINT_METRICS", "LLAMA_API_KEY", "LLAMA_ARG_API_KEY_FILE"),
        *("LLAMA_ARG_SSL_KEY_FILE", "LLAMA_ARG_SSL_CERT_FILE"),
    ),
}

VLLM_ENV_BY_OWNER: dict[str, tuple[str, ...]] = {
    "spec.accelerator": ("VLLM_CPU_KVCACHE_SPACE",),
    MOORAGE: ("VLLM_API_KEY",),
}


def _refusals(subject: str, owners: dict[str, tuple[str, ...]], where: str) -> tuple[Rule, ...]:
    """One rule per owner: the string is none of its names. `subject` is CEL for the name in it."""
    return tuple(
        Rule(
            f"!({subject} in [{', '.join(repr(name) for name in names)}])",
            f"{', '.join(names)}: {_instead(owner)} remove it from {where}",
        )
        for owner, names in owners.items()
    )


def _instead(owner: str) -> str:
    if owner == MOORAGE:
        return "Moorage sets this itself;"
    return f"Moorage sets this from {owner}; change it there and"


def _joined(*tables: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """One table: an owner that several have sets what each of them says."""
    owners = dict.fromkeys(owner for table in tables for owner in table)
    return {o: tuple(dict.fromkeys(name for table in tables for name in table.get(o, ()))) for o in owners}


ARGS_BY_OWNER = _joined(LLAMA_CPP_ARGS_BY_OWNER, VLLM_ARGS_BY_OWNER)
ENV_BY_OWNER = _joined(LLAMA_CPP_ENV_BY_OWNER, VLLM_ENV_BY_OWNER)
ARG_RULES = (
    Rule(
        "!self.matches('^-[^ =]* ')",
        "write an argument and its value as two items of spec.args, not as one with a space between them",
    ),
    *_refusals("self.split('=')[0].replace('_', '-')", ARGS_BY_OWNER, "spec.args"),
)
ENV_RULES = _refusals("self", ENV_BY_OWNER, "spec.env")
