"""Runs inside the image of vLLM: what its real parsers of tool calls and thoughts make of fixed answers, as JSON.

The answers come as JSON in the environment variable ANSWERS: a list of {kind, parser, answer, special}.
"""

import json
import os
from typing import Any

from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.reasoning import ReasoningParserManager
from vllm.tool_parsers import ToolParserManager

TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


class Tokenizer:
    """As much of a tokenizer as parsers ask for: one token for each marker, else one for each character."""

    def __init__(self, special: list[str]) -> None:
        characters = {chr(at): at for at in range(0x250)}
        self.vocab = {**characters, **{text: 1000 + at for at, text in enumerate(special)}}
        self.special = special
        self.is_fast = True
        self.eos_token, self.eos_token_id = "", 0

    def get_vocab(self) -> dict[str, int]:
        return self.vocab

    def get_added_vocab(self) -> dict[str, int]:
        return {text: self.vocab[text] for text in self.special}

    @property
    def all_special_tokens(self) -> list[str]:
        return self.special

    def encode(self, text: str, **_: Any) -> list[int]:
        found = []
        while text:
            marker = next((one for one in self.special if text.startswith(one)), text[0])
            found.append(self.vocab.get(marker, 0))
            text = text[len(marker) :]
        return found

    def tokenize(self, text: str, **_: Any) -> list[str]:
        names = {at: name for name, at in self.vocab.items()}
        return [names[at] for at in self.encode(text)]

    def decode(self, ids: list[int] | int, **_: Any) -> str:
        names = {at: name for name, at in self.vocab.items()}
        return "".join(names.get(at, "") for at in (ids if isinstance(ids, list) else [ids]))

    def convert_tokens_to_ids(self, tokens: list[str] | str) -> list[int] | int | None:
        return self.vocab.get(tokens) if isinstance(tokens, str) else [self.vocab[token] for token in tokens]


def read(kind: str, parser: str, answer: str, special: list[str]) -> dict[str, Any]:
    """What `parser` finds in `answer`."""
    question = {"model": "m", "messages": [{"role": "user", "content": "?"}], "tools": [TOOL]}
    request = ChatCompletionRequest.model_validate(question)
    tokenizer = Tokenizer(special)
    if kind == "tool":
        found = ToolParserManager.get_tool_parser(parser)(tokenizer, request.tools).extract_tool_calls(answer, request)
        calls = [(call.function.name, json.loads(call.function.arguments)) for call in found.tool_calls]
        return {"calls": calls, "content": found.content}
    thought, content = ReasoningParserManager.get_reasoning_parser(parser)(tokenizer).extract_reasoning(answer, request)
    return {"thought": thought, "content": content}


def main() -> None:
    """Print one JSON object a line, in the order of the answers."""
    found = []
    for asked in json.loads(os.environ["ANSWERS"]):
        try:
            found.append(read(**asked))
        except Exception as error:
            found.append({"error": f"{type(error).__name__}: {error}"[:500]})
    print(json.dumps(found))


main()
