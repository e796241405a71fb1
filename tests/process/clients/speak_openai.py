"""What an application does with OpenAI's own client: one scenario each, its findings printed as JSON.

Runs in the environment of requirements/clients.txt, not in Moorage's: `python speak_openai.py BASE_URL SCENARIO KEY`.
"""

import json
import sys
from typing import Any

import openai
from openai import OpenAI

UNLIMITED = "sk-moorage-unlimited-0123456789abcdef"
USER = [{"role": "user", "content": "Hello"}]
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Oslo", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "weather", "description": "Weather of a city", "parameters": CITY}}


def chat(client: OpenAI) -> Any:
    made = client.chat.completions.create(model="chat", messages=USER, max_tokens=8)
    return {
        "text": made.choices[0].message.content,
        "finish": made.choices[0].finish_reason,
        "completion": made.usage.completion_tokens,
        "model": made.model,
    }


def stream(client: OpenAI) -> Any:
    chunks = list(client.chat.completions.create(model="chat", messages=USER, max_tokens=8, stream=True))
    return {
        "pieces": sum(1 for c in chunks if c.choices and c.choices[0].delta.content),
        "finish": [c.choices[0].finish_reason for c in chunks if c.choices][-1],
        "usage": [c.usage for c in chunks if c.usage],
    }


def stream_with_usage(client: OpenAI) -> Any:
    options = {"include_usage": True}
    with client.chat.completions.create(
        model="chat", messages=USER, max_tokens=8, stream=True, stream_options=options
    ) as chunks:
        last = list(chunks)[-1]
    return {"choices": len(last.choices), "completion": last.usage.completion_tokens}


ENDLESS: dict[str, Any] = {
    "model": "chat",
    "messages": USER,
    "max_tokens": 1_000_000,
    "extra_body": {"ignore_eos": True},
}


def leaves_a_stream(client: OpenAI) -> Any:
    with client.chat.completions.create(**ENDLESS, stream=True) as chunks:
        first = next(iter(chunks))
    return {"got": bool(first.id)}


def loses_patience(client: OpenAI) -> Any:
    try:
        client.with_options(timeout=1).chat.completions.create(**ENDLESS)
    except openai.APITimeoutError:
        return {"got": False}
    return {"got": True}


def completion(client: OpenAI) -> Any:
    made = client.completions.create(model="chat", prompt="Hello", max_tokens=4)
    return {"text": made.choices[0].text, "completion": made.usage.completion_tokens}


def json_schema(client: OpenAI) -> Any:
    wanted = {"type": "json_schema", "json_schema": {"name": "place", "schema": CITY, "strict": True}}
    made = client.chat.completions.create(model="chat", messages=USER, max_tokens=64, response_format=wanted)
    return json.loads(made.choices[0].message.content)


def tools_are_taken(client: OpenAI) -> Any:
    """Random weights call no functions; but the engine takes the definitions, a call and its result."""
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
    told = [
        *USER,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
    ]
    without = client.chat.completions.create(model="chat", messages=USER, max_tokens=4)
    made = client.chat.completions.create(model="chat", messages=told, tools=[TOOL], tool_choice="auto", max_tokens=4)
    return {"grew": made.usage.prompt_tokens > without.usage.prompt_tokens, "finish": made.choices[0].finish_reason}


def tool_call(client: OpenAI) -> Any:
    made = client.chat.completions.create(model="caller", messages=USER, tools=[TOOL])
    (call,) = made.choices[0].message.tool_calls
    return {
        "finish": made.choices[0].finish_reason,
        "name": call.function.name,
        "with": json.loads(call.function.arguments),
    }


def tool_call_in_a_stream(client: OpenAI) -> Any:
    parts = []
    for chunk in client.chat.completions.create(model="caller", messages=USER, tools=[TOOL], stream=True):
        for call in (chunk.choices[0].delta.tool_calls or []) if chunk.choices else []:
            parts.append((call.function.name, call.function.arguments))
    return {"name": parts[0][0], "with": json.loads("".join(arguments or "" for _, arguments in parts))}


def embeddings(client: OpenAI) -> Any:
    """The client asks for base64 and decodes it, without being told to."""
    made = client.embeddings.create(model="embed", input=["harbor", "tide"])
    plain = client.embeddings.create(model="embed", input=["harbor"], encoding_format="float")
    return {
        "vectors": len(made.data),
        "dimensions": len({len(one.embedding) for one in made.data}),
        "same": max(abs(a - b) for a, b in zip(made.data[0].embedding, plain.data[0].embedding, strict=True)) < 1e-4,
    }


def models(client: OpenAI) -> Any:
    one, served = client.models.retrieve("chat"), client.models.retrieve("acme/tiny")
    able = (one.model_extra or {}).get("capabilities")  # fields beyond OpenAI's own
    return {"listed": [one.id for one in client.models.list()], "one": one.id, "served": served.id, "able": able}


def errors(client: OpenAI) -> Any:
    """What is raised for each model that cannot be had, with the status and the code."""
    found = {}
    for name in ("asleep", "too-large", "full", "patient", "forbidden"):
        found[name] = _raised(client, name)
    found["nowhere"] = _raised(client.with_options(api_key=UNLIMITED), "nowhere")
    found["bad key"] = _raised(client.with_options(api_key="sk-moorage-wrong"), "chat")
    found["bad request"] = _raised(client, "chat", temperature="hot")
    return found


def _raised(client: OpenAI, model: str, **more: Any) -> list[Any]:
    try:
        client.chat.completions.create(model=model, messages=USER, max_tokens=1, **more)
    except openai.APIStatusError as error:
        return [type(error).__name__, error.status_code, error.code, error.message]
    return ["answered"]


def waits_and_tries_again(client: OpenAI) -> Any:
    """The client's own retries are enough for a Model that is being loaded."""
    made = client.with_options(max_retries=4).chat.completions.create(model="rising", messages=USER, max_tokens=1)
    return {"finish": made.choices[0].finish_reason}


if __name__ == "__main__":
    url, scenario, secret = sys.argv[1:4]
    print(json.dumps(globals()[scenario](OpenAI(base_url=url, api_key=secret, max_retries=0, timeout=60))))
