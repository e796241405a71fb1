"""Tiny Llama models with random weights, the same for the same seed, in the formats that real servers load.

They exist so that downloads, engines and chats can be tested with files of every wanted size and no network.
The text that they produce is word salad; everything else about them (headers, vocabulary, chat template, shapes)
is what the real formats ask for.
"""

from e2e.tinymodels.gguf_file import write_gguf
from e2e.tinymodels.safetensors_dir import write_safetensors

__all__ = ["write_gguf", "write_safetensors"]
