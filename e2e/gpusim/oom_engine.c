/* STANDS IN for a llama-server whose GPU is too small: says what llama.cpp says then (its issue 20431) and ends. */
#include <stdio.h>

int main(void) {
    fputs("load_tensors: loading model tensors, this can take a while... (mmap = true, direct_io = false)\n"
          "ggml_backend_cuda_buffer_type_alloc_buffer: allocating 30817.04 MiB on device 0: cudaMalloc failed: out of memory\n"
          "alloc_tensor_range: failed to allocate CUDA0 buffer of size 32314008371\n"
          "llama_model_load: error loading model: unable to allocate CUDA0 buffer\n"
          "srv    load_model: failed to load model, '/models/tiny.gguf'\n",
          stderr);
    return 1;
}
