"""The text models whose shape `config.json` tells in the usual words, as far as memory goes.

Source: the text-generation table of vllm/model_executor/models/registry.py of vLLM (July 2026), less those that keep
something beside cached keys and values. What is in none of these tables is sized by the plain rules and called a guess.
"""

from typing import Final

PLAIN: Final = frozenset(
    {
        "AfmoeForCausalLM", "ApertusForCausalLM", "AquilaForCausalLM", "AquilaModel", "ArceeForCausalLM",
        "ArcticForCausalLM", "BaiChuanForCausalLM", "BaichuanForCausalLM", "BailingMoeForCausalLM",
        "BailingMoeV2ForCausalLM", "BloomForCausalLM", "ChatGLMModel", "Cohere2ForCausalLM", "CohereForCausalLM",
        "CwmForCausalLM", "DbrxForCausalLM", "DeepseekForCausalLM", "DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM",
        "Dots1ForCausalLM", "Ernie4_5ForCausalLM", "Ernie4_5_MoeForCausalLM", "Exaone4ForCausalLM",
        "ExaoneForCausalLM", "FalconForCausalLM", "FlexOlmoForCausalLM", "GPT2LMHeadModel", "GPTBigCodeForCausalLM",
        "GPTJForCausalLM", "GPTNeoXForCausalLM", "Gemma2ForCausalLM", "Gemma3ForCausalLM", "GemmaForCausalLM",
        "Glm4ForCausalLM", "Glm4MoeForCausalLM", "GlmForCausalLM", "GptOssForCausalLM", "GraniteForCausalLM",
        "GraniteMoeForCausalLM", "GraniteMoeSharedForCausalLM", "Grok1ModelForCausalLM", "HunYuanDenseV1ForCausalLM",
        "HunYuanMoEV1ForCausalLM", "InternLM2ForCausalLM", "InternLM3ForCausalLM", "InternLMForCausalLM",
        "JAISLMHeadModel", "Jais2ForCausalLM", "LLaMAForCausalLM", "Llama4ForCausalLM", "LlamaForCausalLM",
        "LongcatFlashForCausalLM", "MPTForCausalLM", "MiMoForCausalLM", "MiniCPM3ForCausalLM", "MiniCPMForCausalLM",
        "MiniMaxM2ForCausalLM", "MistralForCausalLM", "MistralLarge3ForCausalLM", "MixtralForCausalLM",
        "MptForCausalLM", "NemotronForCausalLM", "OPTForCausalLM", "Olmo2ForCausalLM", "Olmo3ForCausalLM",
        "OlmoForCausalLM", "OlmoeForCausalLM", "OrionForCausalLM", "PanguEmbeddedForCausalLM",
        "PersimmonForCausalLM", "Phi3ForCausalLM", "PhiForCausalLM", "PhiMoEForCausalLM", "Plamo3ForCausalLM",
        "QWenLMHeadModel", "Qwen2ForCausalLM", "Qwen2MoeForCausalLM", "Qwen3ForCausalLM", "Qwen3MoeForCausalLM",
        "RWForCausalLM", "SeedOssForCausalLM", "SmolLM3ForCausalLM", "SolarForCausalLM", "StableLMEpochForCausalLM",
        "StableLmForCausalLM", "Starcoder2ForCausalLM", "TeleChat2ForCausalLM", "TeleFLMForCausalLM",
        "XverseForCausalLM",
    }
)  # fmt: skip

ATTENTION_FREE: Final = frozenset({"FalconMambaForCausalLM", "Mamba2ForCausalLM", "MambaForCausalLM"})
"""Every layer keeps state, none caches keys and values."""
BOTH_PER_LAYER: Final = frozenset({"FalconH1ForCausalLM"})
"""Every layer has attention and state."""

UNKNOWN_MEMORY: Final = {
    "DeepseekV32ForCausalLM": "a sparse-attention index beside the cache",
    "GlmMoeDsaForCausalLM": "a sparse-attention index beside the cache",
    "OuroForCausalLM": "layers that run in loops",
}
"""Known to keep memory that the formulas here do not count."""
