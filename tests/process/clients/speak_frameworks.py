"""DSPy and Pydantic AI as applications use them: one scenario each, its findings printed as JSON.

Runs in the clients' environment (requirements/clients.txt): `python speak_frameworks.py BASE_URL SCENARIO KEY`.
"""

import json
import sys
from typing import Any


def _declared(url: str, key: str, model: str) -> Any:
    """DSPy asks for JSON and tools only where it knows that it may, and of unknown models it knows nothing."""
    import dspy
    from dspy import lm15

    access = lm15.AccessPolicy(provider="moorage", base_url=url, env_keys=("MOORAGE_API_KEY",))
    lm15.register_provider(
        lm15.ProviderDefinition.chat(access, compat=lm15.OpenAIChatCompat()),
        supports=lm15.ModelSupport(function_calling=True, response_schema=True),
    )
    return dspy.LM(f"moorage/{model}", api_base=url, api_key=key, max_tokens=64, cache=False)


def dspy_chat(url: str, key: str) -> Any:
    import dspy

    model = dspy.LM("openai/chat", api_base=url, api_key=key, max_tokens=8, cache=False)
    return {"answers": len(model("Hello")), "counted": model.history[-1]["usage"]["completion_tokens"]}


def dspy_programs(url: str, key: str) -> Any:
    """The ways that DSPy has of asking for fields: its own notation, JSON by a schema, a call of a tool."""
    import dspy

    class Acting(dspy.Signature):  # type: ignore[misc]
        question: str = dspy.InputField()
        tools: list[dspy.Tool] = dspy.InputField()
        outputs: dspy.ToolCalls = dspy.OutputField()

    def weather(city: str) -> str:
        """Weather of a city."""
        return f"rainy in {city}"

    def answer(model: Any, adapter: Any) -> str:
        with dspy.context(lm=model, adapter=adapter):
            return dspy.Predict("question -> answer")(question="What is safe?").answer

    plain = dspy.LM("openai/talk", api_base=url, api_key=key, max_tokens=64, cache=False)
    declared = _declared(url, key, "talk")
    found = {"notation": answer(plain, dspy.ChatAdapter()), "schema": answer(declared, dspy.JSONAdapter())}
    tools = [dspy.Tool(weather)]
    with dspy.context(lm=declared, adapter=dspy.ChatAdapter(use_native_function_calling=True)):
        acted = dspy.Predict(Acting)(question="What is the weather in Oslo?", tools=tools)
    return {**found, "tool": [call.execute(functions=tools) for call in acted.outputs.tool_calls]}


def dspy_error(url: str, key: str) -> Any:
    import dspy

    try:
        dspy.LM("openai/nowhere", api_base=url, api_key=key, cache=False, num_retries=0)("Hello")
    except Exception as error:
        return {"says": str(error)}
    return {"says": ""}


def _agent(url: str, key: str, model: str, **more: Any) -> Any:
    from pydantic_ai import Agent
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    return Agent(OpenAIChatModel(model, provider=OpenAIProvider(base_url=url, api_key=key)), **more)


def _weather_agent(url: str, key: str, found: str) -> tuple[Any, list[str]]:
    agent, asked = _agent(url, key, "talk"), []

    @agent.tool_plain
    def weather(city: str) -> str:
        """Weather of a city."""
        asked.append(city)
        return found

    return agent, asked


def agent_calls_a_tool(url: str, key: str) -> Any:
    """The whole loop: the model asks for a tool, the agent calls it, the model answers with the result."""
    ended = {}
    for found in ("sunny", "rainy"):
        agent, asked = _weather_agent(url, key, found)
        ended[found] = [asked, agent.run_sync("What is the weather in Oslo?").output]
    return ended


def agent_streams_around_a_tool(url: str, key: str) -> Any:
    import asyncio

    async def inside() -> Any:
        agent, asked = _weather_agent(url, key, "rainy")
        async with agent.run_stream("What is the weather in Oslo?") as running:
            pieces = [piece async for piece in running.stream_text(delta=True, debounce_by=None)]
        return {"asked": asked, "pieces": pieces}

    return asyncio.run(inside())


def agent_wants_a_type(url: str, key: str) -> Any:
    """Pydantic AI's default way to a typed answer is a tool that the model is required to call."""
    from pydantic import BaseModel

    class Place(BaseModel):
        city: str

    return _agent(url, key, "talk", output_type=Place).run_sync("Where to?").output.model_dump()


if __name__ == "__main__":
    address, scenario, secret = sys.argv[1:4]
    print(json.dumps(globals()[scenario](address, secret)))
