"""What an application does with OpenAI's own client: one scenario each, its findings printed as JSON.

Runs in the environment of requirements/clients.txt, not in Moorage's: `python speak_openai.py BASE_URL SCENARIO KEY`.
"""

import json
import sys
from typing import Any, Literal

import openai
from openai import OpenAI
from pydantic import BaseModel

UNLIMITED = "sk-moorage-unlimited-0123456789abcdef"
USER = [{"role": "user", "content": "Hello"}]
WEATHER = [{"role": "user", "content": "What is the weather in Oslo?"}]
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
        client.with_options(timeout=5).chat.completions.create(**ENDLESS)
    except openai.APITimeoutError:
        return {"got": False}
    return {"got": True}


def completion(client: OpenAI) -> Any:
    made = client.completions.create(model="chat", prompt="Hello", max_tokens=4)
    return {"text": made.choices[0].text, "completion": made.usage.completion_tokens}


def json_mode(client: OpenAI) -> Any:
    """The same question, answered freely, as some JSON, and by a schema: as text and as the client's own type."""

    class Place(BaseModel):
        city: Literal["Rome", "Bergen"]

    def answer(**wanted: Any) -> str:
        return client.chat.completions.create(model="talk", messages=USER, **wanted).choices[0].message.content

    by_schema = {"type": "json_schema", "json_schema": {"name": "place", "schema": CITY, "strict": True}}
    parsed = client.chat.completions.parse(model="talk", messages=USER, response_format=Place)
    return {
        "free": answer(),
        "json_object": json.loads(answer(response_format={"type": "json_object"})),
        "json_schema": json.loads(answer(response_format=by_schema)),
        "parsed": parsed.choices[0].message.parsed.city,
    }


def tool_choice(client: OpenAI) -> Any:
    """What comes with each `tool_choice`, for a question that needs the tool and for one that does not."""
    return {
        "auto": _said(client, WEATHER, tool_choice="auto"),
        "auto, not needed": _said(client, USER, tool_choice="auto"),
        "required, not needed": _said(client, USER, tool_choice="required"),
        "a function, not needed": _said(
            client, USER, tool_choice={"type": "function", "function": {"name": "weather"}}
        ),
        "none": _said(client, WEATHER, tool_choice="none"),
    }


def _said(client: OpenAI, told: list[Any], **more: Any) -> list[Any]:
    made = client.chat.completions.create(model="talk", messages=told, tools=[TOOL], **more).choices[0]
    calls = [[call.function.name, json.loads(call.function.arguments)] for call in made.message.tool_calls or []]
    return [made.finish_reason, made.message.content or "", calls]


def tool_call_in_a_stream(client: OpenAI) -> Any:
    """Chunk by chunk as they come, and put together by the client's own helper."""
    asked: Any = {"model": "talk", "messages": WEATHER, "tools": [TOOL]}
    pieces = [
        call.function.arguments
        for chunk in client.chat.completions.create(**asked, stream=True)
        for call in (chunk.choices[0].delta.tool_calls or [] if chunk.choices else [])
    ]
    with client.chat.completions.stream(**asked) as events:
        (call,) = events.get_final_completion().choices[0].message.tool_calls
    return {
        "pieces": len(pieces),
        "arguments": json.loads("".join(pieces)),
        "helper": [call.function.name, json.loads(call.function.arguments)],
    }


def tool_result(client: OpenAI) -> Any:
    """The model answers with what the tool has found, in words: sent back is the model's own message."""
    called = client.chat.completions.create(model="talk", messages=WEATHER, tools=[TOOL]).choices[0].message
    answers = {}
    for found in ("sunny", "rainy"):
        result = {"role": "tool", "tool_call_id": called.tool_calls[0].id, "content": found}
        answers[found] = _said(client, [*WEATHER, called, result])
    return answers


def rerank(client: OpenAI) -> Any:
    """OpenAI has no such path; its client posts to any."""
    documents = ["The harbor is calm at night.", "Wind and tide.", "harbor harbor harbor"]
    asked = {"model": "rank", "query": "harbor", "documents": documents}
    there = client.post("/rerank", body=asked, cast_to=object)["results"]
    back = client.post("/rerank", body={**asked, "documents": documents[::-1]}, cast_to=object)["results"]
    best = client.post("/rerank", body={**asked, "top_n": 1}, cast_to=object)
    scores = {one["index"]: one["relevance_score"] for one in there}
    return {
        "descending": [one["relevance_score"] for one in there] == sorted(scores.values(), reverse=True),
        "different": len(set(scores.values())),
        "of the documents": all(abs(scores[2 - one["index"]] - one["relevance_score"]) < 1e-4 for one in back),
        "best": [one["index"] for one in best["results"]] == [there[0]["index"]],
        "counted": best["usage"]["total_tokens"] > 0,
    }


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
