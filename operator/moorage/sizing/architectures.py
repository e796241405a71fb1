"""What differs between the architectures of llama.cpp, as far as memory goes.

Source: src/models/*.cpp (`load_arch_hparams`), llama_model::create_memory and llama_arch_is_hybrid of llama.cpp
0c1e57098 (July 2026). An architecture that is in none of these tables is sized by the plain rules and called a guess.
"""

from typing import Final, NamedTuple


class Windows(NamedTuple):
    """Sliding-window attention where the header has no per-layer list.

    `period` p: every p-th layer attends to everything, the last of each p or (`dense_first`) the first; 0: the list
    in the header is required. `window` tokens where the header does not say; None: then there is no window at all.
    """

    period: int
    dense_first: bool = False
    window: int | None = None


SLIDING: Final[dict[str, Windows]] = {
    "afmoe": Windows(4),
    "cohere2": Windows(4),
    "cohere2moe": Windows(4, dense_first=True),
    "exaone-moe": Windows(4, window=128),
    "gemma2": Windows(2, window=4096),
    "gemma3": Windows(6),
    "gemma3n": Windows(5),
    "gemma4": Windows(0),
    "gpt-oss": Windows(2),
    "granite_swa": Windows(0),
    "laguna": Windows(4, dense_first=True),
    "llama4": Windows(4, window=8192),
    "maple": Windows(0),
    "mellum": Windows(4),
    "mimo2": Windows(0),
    "muse-glimmer": Windows(4),
    "olmo2": Windows(4),
    "plamo3": Windows(8),
    "smallthinker": Windows(4, dense_first=True),
    "spark2_5": Windows(0),
    "step35": Windows(0),
}
FIXED_WINDOW: Final = {"llama4": 8192, "smallthinker": 4096}
"""Whatever the header says, unless it says 0."""
EXAONE4_WINDOWED_LAYERS: Final = 64
"""exaone4 has windows (4096, every fourth layer full) in its 64-layer size only."""

RECURRENT: Final = frozenset({"mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7"})
"""Every layer keeps state, none caches keys and values."""
RECURRENT_BY_KV_HEADS: Final = frozenset(
    {"jamba", "plamo2", "granitehybrid", "lfm2", "lfm2moe", "kimi-linear", "bailingmoe3"}
)
"""A layer without key-value heads keeps state."""
RECURRENT_BY_INTERVAL: Final = {"qwen3next": 4, "qwen35": 4, "qwen35moe": 4, "minimax-01": 8}
"""All but every n-th layer keep state (`attention.recurrent_layers` or `full_attention_interval` say otherwise)."""
NEMOTRON_H: Final = frozenset({"nemotron_h", "nemotron_h_moe"})
"""A layer is one of three: feed-forward, attention, or (neither heads nor feed-forward) recurrent."""
BOTH_PER_LAYER: Final = frozenset({"falcon-h1"})
"""Every layer has attention and state."""

NO_CACHE: Final = frozenset(
    {
        "bert", "jina-bert-v2", "jina-bert-v3", "nomic-bert", "nomic-bert-moe", "neo-bert", "eurobert", "modern-bert",
        "gemma-embedding", "dream", "llada", "llada-moe", "rnd1",
    }
)  # fmt: skip
"""Encoders and diffusion models: nothing is cached."""
ENCODERS: Final = NO_CACHE - {"dream", "llada", "llada-moe", "rnd1"}
"""They give embeddings, so every token of a batch is an output."""

PLAIN: Final = frozenset(
    {
        "apertus", "arcee", "arctic", "baichuan", "bailingmoe", "bailingmoe2", "bitnet", "bloom", "chameleon",
        "chatglm", "codeshell", "cogvlm", "command-r", "dbrx", "deci", "deepseek", "deepseek2", "deepseek2-ocr",
        "dots1", "ernie4_5", "ernie4_5-moe", "exaone", "exaone4", "falcon", "gemma", "glm4", "glm4moe", "gpt2",
        "gptneox", "granite", "granitemoe", "grok", "grovemoe", "hunyuan-dense", "hunyuan-moe", "hunyuan_vl", "hy_v3",
        "internlm2", "jais", "jais2", "llama", "llama-embed", "maincoder", "minicpm", "minicpm3", "minimax-m2",
        "mistral3", "mistral4", "mpt", "nemotron", "olmo", "olmoe", "openelm", "orion", "paddleocr", "pangu-embedded",
        "phi2", "phi3", "phimoe", "plamo", "plm", "qwen", "qwen2", "qwen2moe", "qwen2vl", "qwen3", "qwen3moe",
        "qwen3vl", "qwen3vlmoe", "refact", "seed_oss", "smollm3", "stablelm", "starcoder", "starcoder2", "talkie",
        "xverse",
    }
)  # fmt: skip
"""Keys and values of every token in every layer (or a compressed latent: `key_length_mla`)."""

UNKNOWN_MEMORY: Final = {
    "deepseek32": "a sparse-attention index beside the cache",
    "deepseek4": "compressed caches beside the cache",
    "dots3note": "a sparse-attention index beside the cache",
    "glm-dsa": "a sparse-attention index beside the cache",
    "glm5-next": "a sparse-attention index beside the cache",
    "hy_v4": "a sparse-attention index beside the cache",
    "minimax-m3": "a sparse-attention index beside the cache",
    "qwen4exp": "a sparse-attention index beside the cache",
    "kimi-k3": "residuals kept across layers",
    "hrm_text": "layers that run in loops",
    "nanbeige": "layers that run in loops",
    "graniteswitch": "a router layer beside the cache",
    "t5": "an encoder's output beside the cache",
}
"""Known to keep memory that the formulas here do not count."""

LOOSE_ROWS: Final = {"jamba": 5}
"""Rows of one embedding per token that the allocator loses between buffers of unlike sizes (35 MiB at short contexts
where 8k and more lose nothing)."""
UNMEASURED: Final = frozenset(
    {
        "arctic", "arwkv7", "bailingmoe3", "bitnet", "chameleon", "cogvlm", "dbrx", "grok", "kimi-linear", "minicpm3",
        "minimax-01", "openelm", "plamo2", "plm", "rwkv6", "rwkv6qwen2",
    }
)  # fmt: skip
"""Weights and cache are exact, but no dry run of a graph of this kind has been compared."""

KNOWN: Final = (
    PLAIN
    | NO_CACHE
    | RECURRENT
    | RECURRENT_BY_KV_HEADS
    | NEMOTRON_H
    | BOTH_PER_LAYER
    | set(SLIDING)
    | set(RECURRENT_BY_INTERVAL)
)
