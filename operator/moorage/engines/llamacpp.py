"""llama.cpp's `llama-server` (pinned build: images/llamacpp-cpu/BUILD).

Every argument that shapes memory or speed is explicit: the server's own defaults depend on the machine and change
between builds, and `--fit` (on by default there) would quietly shrink the context or spill layers to the CPU.
"""

from moorage import names
from moorage.engines.base import EngineContainer, EngineInputs, Probe, startup_seconds

NAME = "LlamaCpp"
DEFAULT_SEQUENCES = 4
GPU_COUNTS = (1, 2, 4, 8)  # a layer split takes any number; these are what nodes come with
DEFAULT_CONTEXT = 8192
PROMPT_CACHE_MIB = 256  # llama-server's own default is 8192 MiB of host memory, more than most pods have

HEALTH = "/health"  # 503 while the weights load, 200 afterwards; answered by the HTTP thread at all times


def arguments(inputs: EngineInputs) -> tuple[str, ...]:
    """Command line of llama-server for `inputs`.

    `--ctx-size` is the server's whole pool, split evenly over `--parallel` slots (or shared with `--kv-unified`), hence
    context length times slots.
    """
    options = inputs.options
    # Threads beyond the pod's share spin at each other's barriers: measured 10 tokens/s instead of 100 on two CPUs.
    threads = str(options.get("threads") or inputs.cpus or -1)
    on_off = {True: "on", False: "off"}
    args = [
        *("--model", inputs.model_path),
        *("--alias", inputs.name),
        *("--host", "0.0.0.0"),
        *("--port", str(names.ENGINE_PORT)),
        *("--ctx-size", str(inputs.context_length * inputs.max_sequences)),
        *("--parallel", str(inputs.max_sequences)),
        "--kv-unified" if options.get("unifiedKVCache") else "--no-kv-unified",
        *("--predict", str(options.get("predict", -1))),
        *("--keep", str(options.get("keep", 0))),
        *("--threads", threads),
        *("--threads-batch", threads),
        *("--batch-size", str(options.get("batchSize", 2048))),
        *("--ubatch-size", str(options.get("ubatchSize", 512))),
        *("--gpu-layers", _gpu_layers(inputs)),
        *("--cache-type-k", inputs.kv_cache_type),
        *("--cache-type-v", inputs.kv_cache_type),
        *("--flash-attn", on_off[bool(options.get("flashAttention", True))]),
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
    if inputs.gpus > 1:  # equal shares, as the memory plan counts; the default splits by what is free at that moment
        args += ["--split-mode", "layer", "--tensor-split", ",".join(["1"] * inputs.gpus)]
    return (*args, *inputs.extra_args)


def _gpu_layers(inputs: EngineInputs) -> str:
    if not inputs.gpus:
        return "0"
    layers = inputs.options.get("gpuLayers")
    return "all" if layers is None else str(layers)


def container(inputs: EngineInputs) -> EngineContainer:
    """The container of one llama-server.

    The start-up probe asks every second, so that Ready is seen a second after the weights are there, for as long as the
    size of the file makes plausible. Liveness starts only after it and waits a minute of silence.
    """
    return EngineContainer(
        args=arguments(inputs),
        port=names.ENGINE_PORT,
        startup=Probe(HEALTH, period=1, timeout=5, failures=startup_seconds(inputs.size_bytes)),
        readiness=Probe(HEALTH, period=1, timeout=5, failures=5),
        liveness=Probe(HEALTH, period=10, timeout=10, failures=6),
        writable=("/tmp",),
        env={"HOME": "/tmp", "HF_HUB_OFFLINE": "1", "LLAMA_ARG_OFFLINE": "1"},
    )
