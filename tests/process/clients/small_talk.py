"""The little that a table model says: about the weather, with a tool or without, in words or as JSON.

Its template writes and reads tool calls as Qwen2.5 and Hermes do. What a prompt ends with chooses what comes: a marker
for what was asked, or what the tool has found.
"""

from tests.support.table_model import END, Table

TEMPLATE = """{%- if tools %}<|im_start|>system
# Tools

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{%- for tool in tools %}
{{ tool | tojson }}
{%- endfor %}
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call><|im_end|>
{% endif %}
{%- for message in messages %}<|im_start|>{{ message.role }}
{%- if message.content %}
{{ message.content }}
{%- endif %}
{%- for call in message.tool_calls or [] %}
<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>
{%- endfor %}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% if messages[-1].role == 'tool' %}{{ messages[-1].content }}
{%- elif tools and 'weather' in messages[-1].content %}<|use|>
{%- elif '[[ ## completed ## ]]' in messages[-1].content %}<|fields|>
{%- else %}<|say|>{% endif %}{% endif %}"""

SAY, USE, FIELDS = "<|say|>", "<|use|>", "<|fields|>"
"""The markers at the end of prompts: words, a tool's use, DSPy's own notation of fields."""

_CITY = ('{"city": ', '"Oslo"', "}")
_CALL = ("<tool_call>", '\n{"name": ', '"weather"', ', "arguments": ', *_CITY, "}\n", "</tool_call>", END)

SMALL_TALK = Table(
    chains=(
        (SAY, "Fair", " winds", ".", END),
        (USE, *_CALL),
        ("sunny", "Take", " a hat", ".", END),
        ("rainy", "Bring", " an umbrella", ".", END),
        (FIELDS, "[[ ## answer ## ]]\n", "Harbors", "\n\n[[ ## completed ## ]]", END),
        # What is said where a grammar forbids the above:
        (SAY, '{"answer": ', '"fair"', "}", END),
        (".", "<tool_call>"),  # where a tool is required, llama-server lets words come first
        ('\n{"name": ', '"final_result"', ', "arguments": '),
        ('{"city": ', '"Rome"', "}", END),
        (SAY, *_CITY, END),
    ),
    template=TEMPLATE,
)
