"""DSPy and Pydantic AI as applications use them: one scenario each, its findings printed as JSON.

Runs in the clients' environment (requirements/clients.txt): `python speak_frameworks.py BASE_URL SCENARIO KEY`.
"""

import json
import sys
from typing import Any


def dspy_chat(url: str, key: str) -> Any:
    import dspy

    model = dspy.LM("openai/chat", api_base=url, api_key=key, max_tokens=8, cache=False)
    return {"answers": len(model("Hello")), "counted": model.history[-1]["usage"]["completion_tokens"]}


def dspy_json(url: str, key: str) -> Any:
    """DSPy hands a schema on; the engine is held to it."""
    import dspy

    city = {"type": "object", "properties": {"city": {"enum": ["Oslo", "Rome"]}}, "required": ["city"]}
    wanted = {"type": "json_schema", "json_schema": {"name": "place", "schema": city}}
    model = dspy.LM("openai/chat", api_base=url, api_key=key, max_tokens=64, cache=False)
    (text,) = model("Where?", response_format=wanted)
    return json.loads(text)


def dspy_error(url: str, key: str) -> Any:
    import dspy

    try:
        dspy.LM("openai/nowhere", api_base=url, api_key=key, cache=False, num_retries=0)("Hello")
    except Exception as error:
        return {"says": str(error)}
    return {"says": ""}


def _agent(url: str, key: str, model: str) -> Any:
    from pydantic_ai import Agent
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    return Agent(OpenAIChatModel(model, provider=OpenAIProvider(base_url=url, api_key=key)))


def agent_calls_a_tool(url: str, key: str) -> Any:
    """The whole loop: the model asks for a tool, the agent calls it, the model answers with the result."""
    agent = _agent(url, key, "caller")
    asked = []

    @agent.tool_plain
    def weather(city: str) -> str:
        """Weather of a city."""
        asked.append(city)
        return "sunny"

    ended = agent.run_sync("What is the weather in Oslo?")
    return {"asked": asked, "answer": ended.output}


def agent_streams(url: str, key: str) -> Any:
    import asyncio

    async def inside() -> Any:
        async with _agent(url, key, "chat").run_stream("Hello", model_settings={"max_tokens": 8}) as running:
            pieces = [piece async for piece in running.stream_text(delta=True, debounce_by=None)]
        return {"pieces": len(pieces) > 1, "text": bool("".join(pieces).strip())}

    return asyncio.run(inside())


if __name__ == "__main__":
    address, scenario, secret = sys.argv[1:4]
    print(json.dumps(globals()[scenario](address, secret)))
