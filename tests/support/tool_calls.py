"""How published models write tool calls and thoughts: what their chat templates show of it, and an answer like theirs.

The templates are those of the models' repositories (llama.cpp's models/templates keeps copies of most), cut down to the
lines that show the call. `answer` is what such a model writes for one call of `get_weather` with the city Paris;
`special` are the tokens that its tokenizer has for the markers.
"""

from dataclasses import dataclass

NAME, ARGUMENTS = "get_weather", {"city": "Paris"}


@dataclass(frozen=True)
class Written:
    """One model's way; `parser` is vLLM's name of what reads it (empty: none of those found by a template)."""

    template: str
    parser: str
    answer: str = ""
    special: tuple[str, ...] = ()


HERMES = """For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call><|im_end|>"""  # noqa: E501
CODER = """If you choose to call a function ONLY reply in the following format with NO suffix:

<tool_call>
<function=example_function_name>
<parameter=example_parameter_1>
value_1
</parameter>
</function>
</tool_call>"""

TOOL_CALLS = {
    "Qwen/Qwen2.5-7B-Instruct": Written(
        HERMES,
        "hermes",
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>',
        ("<tool_call>", "</tool_call>"),
    ),
    "Qwen/Qwen3-8B": Written(
        HERMES + "\n{%- if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>",
        "hermes",
        '<think>\nThe weather.\n</think>\n\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>',  # noqa: E501
        ("<tool_call>", "</tool_call>", "<think>", "</think>"),
    ),
    "Qwen/Qwen3-Coder-30B-A3B-Instruct": Written(
        CODER,
        "qwen3_coder",
        "<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n</function>\n</tool_call>",
        ("<tool_call>", "</tool_call>"),
    ),
    "stepfun-ai/Step-3.7-Flash": Written(
        CODER + "{{- '<|im_start|>assistant\n<think>\n' }}",
        "qwen3_coder",
        "<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n</function>\n</tool_call>",
        ("<tool_call>", "</tool_call>"),
    ),
    "meta-llama/Llama-3.1-8B-Instruct": Written(
        '{{- "Environment: ipython\\n" }}{{- \'Respond in the format {"name": function name, "parameters": '
        "dictionary of argument name and its value}.' }}{{- '<|python_tag|>' + tool_call.name + \".call(\" }}",
        "llama3_json",
        '{"name": "get_weather", "parameters": {"city": "Paris"}}',
        ("<|python_tag|>",),
    ),
    "meta-llama/Llama-3.2-3B-Instruct": Written(
        '{{- "Environment: ipython\\n" }}{{- \'Respond in the format {"name": function name, "parameters": '
        "dictionary of argument name and its value}.' }}",
        "llama3_json",
        '{"name": "get_weather", "parameters": {"city": "Paris"}}',
        ("<|python_tag|>",),
    ),
    "mistralai/Mistral-Small-3.1-24B-Instruct-2503": Written(
        '{{- "[TOOL_CALLS] [" }}{%- set out = tool_call.function|tojson %}{{- out[:-1] }}',
        "mistral",
        '[TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": "Paris"}, "id": "123456789"}]',
        ("[TOOL_CALLS]",),
    ),
    "deepseek-ai/DeepSeek-V3": Written(
        "'<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>' + tool['type'] + '<｜tool▁sep｜>' + tool['function']['name'] + "
        "'\\n' + '```json' + '\\n' + tool['function']['arguments'] + '\\n' + '```' + '<｜tool▁call▁end｜>'",
        "deepseek_v3",
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n"
        '{"city": "Paris"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
        ("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>"),
    ),
    "deepseek-ai/DeepSeek-V3.1": Written(
        "'<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>'+ tool['function']['name'] + '<｜tool▁sep｜>' + "
        "tool['function']['arguments'] + '<｜tool▁call▁end｜>'",
        "deepseek_v31",
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>"
        '{"city": "Paris"}<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
        ("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>"),
    ),
    "moonshotai/Kimi-K2-Thinking": Written(
        "<|tool_calls_section_begin|>{%- for tool_call in message['tool_calls'] -%}<|tool_call_begin|>"
        "{{ formatted_id }}<|tool_call_argument_begin|>{{ tool_call['function']['arguments'] }}<|tool_call_end|>",
        "kimi_k2",
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>"
        '{"city": "Paris"}<|tool_call_end|><|tool_calls_section_end|>',
        (
            *("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>", "<|tool_call_begin|>"),
            *("<|tool_call_end|>", "<|tool_call_argument_begin|>"),
        ),
    ),
    "zai-org/GLM-4.5": Written(
        "<tool_call>{function-name}\n<arg_key>{arg-key-1}</arg_key>\n<arg_value>{arg-value-1}</arg_value>\n...\n</tool_call>",
        "glm45",
        "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n</tool_call>",
        ("<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"),
    ),
    "MiniMaxAI/MiniMax-M2": Written(
        "{%- set toolcall_begin_token = '<minimax:tool_call>' -%}\n<invoke name=\"tool-name-1\">\n"
        '<parameter name="param-key-1">param-value-1</parameter>\n</invoke>',
        "minimax_m2",
        '<minimax:tool_call>\n<invoke name="get_weather">\n<parameter name="city">Paris</parameter>\n</invoke>\n'
        "</minimax:tool_call>",
        ("<minimax:tool_call>", "</minimax:tool_call>"),
    ),
    "ByteDance-Seed/Seed-OSS-36B-Instruct": Written(
        "{%- set toolcall_begin_token = '<seed:tool_call>' -%}\n<function=example_function_name>\n"
        "<parameter=example_parameter_1>value_1</parameter>\n</function>",
        "seed_oss",
        "<seed:tool_call>\n<function=get_weather>\n<parameter=city>Paris</parameter>\n</function>\n</seed:tool_call>",
        ("<seed:tool_call>", "</seed:tool_call>", "<seed:think>", "</seed:think>"),
    ),
    "microsoft/Phi-4-mini-instruct": Written(
        "{{- '<|tool|>' + (tool['function'] | tojson) + '<|/tool|>' -}}"
        "{{- '<|tool_call|>' + (tool_call['function'] | tojson) + '<|/tool_call|>' -}}",
        "phi4_mini_json",
        'functools[{"name": "get_weather", "arguments": {"city": "Paris"}}]',
    ),
    "LiquidAI/LFM2.5-8B-A1B": Written(
        '{{- "<|tool_call_start|>[" + (tool_calls_ns.tool_calls | join(", ")) + "]<|tool_call_end|>" -}}',
        "lfm2",
        "<|tool_call_start|>[get_weather(city='Paris')]<|tool_call_end|>",
        ("<|tool_call_start|>", "<|tool_call_end|>"),
    ),
    "openai/gpt-oss-20b": Written(
        '{{- "<|start|>assistant<|channel|>commentary to=functions." + tool_call.name + " <|constrain|>json" }}',
        "openai",  # it reads tokens of its own vocabulary, not text
    ),
    "google/gemma-3-12b-it": Written("{{ '<start_of_turn>' + role + '\n' }}", ""),
    "nvidia/Llama-3_3-Nemotron-Super-49B-v1_5": Written("<TOOLCALL>[{{ tool_call | tojson }}]</TOOLCALL>", ""),
    "moonshotai/Kimi-K2-Instruct": Written("{{ '<|im_system|>tool_declare<|im_middle|>' }}{{ tools | tojson }}", ""),
}

THOUGHT, ANSWER = "The weather.", "Sunny."


@dataclass(frozen=True)
class Thought:
    """How models of a kind write a thought before the answer, and vLLM's parser for it."""

    parser: str
    answer: str
    special: tuple[str, ...] = ("<think>", "</think>")


THOUGHTS = {
    "Qwen3": Thought("qwen3", "<think>\nThe weather.\n</think>\n\nSunny."),
    "DeepSeek-R1 and what is distilled from it": Thought("deepseek_r1", "The weather.\n</think>\n\nSunny."),
    "GLM-4.5": Thought("glm45", "<think>The weather.</think>\nSunny."),
    "Kimi-K2-Thinking": Thought("kimi_k2", "<think>The weather.</think>Sunny."),
    "MiniMax-M2": Thought("minimax_m2", "The weather.\n</think>\n\nSunny."),
    "Seed-OSS": Thought("seed_oss", "<seed:think>The weather.</seed:think>Sunny.", ("<seed:think>", "</seed:think>")),
    "Granite 3.3": Thought(
        "granite", "Here is my thought process: The weather. Here is my response: Sunny.", ()
    ),
}  # fmt: skip
"""By the kind of model, as docs/how-to/serve-safetensors.md lists them."""
