"""Which of vLLM's parsers reads the tool calls that a model writes: told by the markers in its chat template.

Names: `_TOOL_PARSERS_TO_REGISTER` in vllm/tool_parsers/__init__.py of the pinned version (a test compares them).
"""

from typing import Final

from moorage.api.engine_settings import AUTO_PARSER, ToolCalling

MARKERS: Final[tuple[tuple[tuple[str, ...], str], ...]] = (
    (("<｜tool▁calls▁begin｜>", "```json"), "deepseek_v3"),
    (("<｜tool▁calls▁begin｜>",), "deepseek_v31"),
    (("<|tool_calls_section_begin|>",), "kimi_k2"),
    (("<minimax:tool_call>",), "minimax_m2"),
    (("<seed:tool_call>",), "seed_oss"),
    (("<|channel|>", "functions."), "openai"),
    (("[TOOL_CALLS]",), "mistral"),
    (("<tool_call>", "<arg_key>"), "glm45"),
    (("<tool_call>", "<function="), "qwen3_coder"),
    (("<tool_call>",), "hermes"),
    (("<|python_tag|>",), "llama3_json"),
    (("Environment: ipython",), "llama3_json"),
    (("<|tool|>", "<|tool_call|>"), "phi4_mini_json"),
    (("<|tool_call_start|>",), "lfm2"),
)
"""All markers of an entry must stand in the template; the first entry wins, so the narrower come first."""


def parser_for(template: str) -> str:
    """The parser for the calls that `template` shows to the model; empty where it shows none that is known."""
    return next((parser for markers, parser in MARKERS if all(m in template for m in markers)), "")


def tool_parser(wanted: ToolCalling | None, found: str) -> str:
    """The parser to start vLLM with: the one that the spec names, else the one `found` in the template; empty: none."""
    if wanted is None:
        return found
    if not wanted.enabled:
        return ""
    return found if wanted.parser == AUTO_PARSER else wanted.parser
