"""Last words of engines: real texts, and what they mean. The source of each stands beside it."""

import pytest

from moorage.engines.failures import Ran, out_of_memory

# llama.cpp#20431
WEIGHTS = """\
load_tensors: loading model tensors, this can take a while... (mmap = true, direct_io = false)
ggml_backend_cuda_buffer_type_alloc_buffer: allocating 144817.04 MiB on device 0: cudaMalloc failed: out of memory
alloc_tensor_range: failed to allocate CUDA0 buffer of size 151851674624
llama_model_load: error loading model: unable to allocate CUDA0 buffer
srv    load_model: failed to load model, '/models/x.gguf'
"""
# ggml-alloc.c and llama-context.cpp; the wording of a compute buffer that does not fit
COMPUTE = """\
ggml_gallocr_reserve_n_impl: failed to allocate CUDA0 buffer of size 5242880000
graph_reserve: failed to allocate compute buffers
llama_init_from_model: failed to initialize the context: failed to allocate compute pp buffers
"""
# ollama#12634
CPU = """\
ggml_backend_cpu_buffer_type_alloc_buffer: failed to allocate buffer of size 437944320
alloc_tensor_range: failed to allocate CPU buffer of size 437944320
llama_model_load: error loading model: unable to allocate CPU buffer
"""
# llama-server build 11669, seen
ALIGNED = "ggml_aligned_malloc: insufficient memory (attempted to allocate 8192.00 MB)\n"
RUNNING = "CUDA error: out of memory\n  current device: 0, in function alloc at ggml-cuda.cu:466\n"
# vLLM: v1/worker/gpu_worker.py and v1/core/kv_cache_utils.py; PyTorch's caching allocator
TORCH = (
    "(EngineCore_DP0 pid=71) torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.50 GiB. GPU 0 has a total "
    "capacity of 23.65 GiB of which 559.12 MiB is free. Including non-PyTorch memory, this process has 23.09 GiB\n"
)
BLOCKS = (
    "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization` when initializing "
    "the engine.\nRuntimeError: Engine core initialization failed. See root cause above.\n"
)
CACHE = (
    "ValueError: To serve at least one request with the model's max seq len (32000), (1.1 GiB KV cache is needed, "
    "which is larger than the available KV cache memory (0.59 GiB). Based on the available memory, the estimated"
)
CACHE_OF_ANOTHER_VERSION = (
    "To serve at least one request with the model's max seq len (262144), (72.00 GiB KV cache) is needed, which is "
    "larger than the available KV cache memory (18.30 GiB)."
)
SAMPLER = (
    "RuntimeError: CUDA out of memory occurred when warming up sampler with 1024 dummy requests. Please try lowering "
    "`max_num_seqs` or `gpu_memory_utilization` when initializing the engine."
)
BUSY = (
    "ValueError: Free memory on device cuda:0 (3.25/23.43 GiB) on startup is less than desired GPU memory utilization "
    "(0.96, 22.49 GiB). Decrease GPU memory utilization or reduce GPU memory used by other processes."
)


@pytest.mark.parametrize(
    ("log", "ran", "mib"),
    [
        (WEIGHTS, Ran.GPU_MEMORY, 144817),
        (COMPUTE, Ran.GPU_MEMORY, 5000),
        (COMPUTE.replace("CUDA0", "ROCm0"), Ran.GPU_MEMORY, 5000),
        (RUNNING, Ran.GPU_MEMORY, 0),
        ("ggml_vulkan: Device memory allocation of size 1073741824 failed.", Ran.GPU_MEMORY, 1024),
        (CPU, Ran.HOST_MEMORY, 417),
        (ALIGNED, Ran.HOST_MEMORY, 8192),
        (TORCH, Ran.GPU_MEMORY, 1536),
        (TORCH.replace("CUDA out", "HIP out").replace("1.50 GiB", "896.00 MiB"), Ran.GPU_MEMORY, 896),
        (BLOCKS, Ran.CACHE_MEMORY, 0),
        (CACHE, Ran.CACHE_MEMORY, 0),
        (CACHE_OF_ANOTHER_VERSION, Ran.CACHE_MEMORY, 0),
        (SAMPLER, Ran.GPU_MEMORY, 0),
        (BUSY, Ran.GPU_IN_USE, 0),
        (BUSY.replace(" on startup is", " on startup\nis"), Ran.GPU_IN_USE, 0),
    ],
)
def test_what_ran_out_is_told_by_the_engines_own_words(log: str, ran: Ran, mib: int):
    found = out_of_memory("0.00.032.681 I srv  llama_server: loading\n" + log)
    assert found is not None
    assert (found.ran, found.asked_mib) == (ran, mib)
    assert found.words
    assert "\n" not in found.words
    assert len(found.words) <= 240


@pytest.mark.parametrize(
    "log",
    [
        "",
        "llama_model_load: error loading model: tensor 'x' data is not within the file bounds",
        "error: invalid argument: --no-such-flag",
        "srv  load_model: failed to load model, '/models/out-of-memory.gguf'",
        "load_tensors:        CUDA0 model buffer size = 48928.09 MiB",
    ],
)
def test_other_ends_are_not_taken_for_it(log: str):
    assert out_of_memory(log) is None
