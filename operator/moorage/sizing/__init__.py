"""How much memory a model needs: bytes of a header in, numbers out. No file, network, clock or asyncio in here.

`gguf` and `safetensors` read headers, `llamacpp` and `vllm` turn them into a need per engine.
"""
