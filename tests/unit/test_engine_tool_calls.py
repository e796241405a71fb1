"""Which parser reads a model's tool calls, told by the chat templates of published models."""

import json
import re
from pathlib import Path

import pytest

from moorage.engines.tool_calls import MARKERS, parser_for
from tests.support.tool_calls import THOUGHTS, TOOL_CALLS

ROOT = Path(__file__).resolve().parents[2]
VLLM = json.loads((ROOT / "images/vllm-cpu/arguments.json").read_text())
PAGE = (ROOT / "docs/how-to/serve-safetensors.md").read_text()


@pytest.mark.parametrize("model", TOOL_CALLS)
def test_the_template_chooses_the_parser(model):
    assert parser_for(TOOL_CALLS[model].template) == TOOL_CALLS[model].parser


def test_every_parser_that_may_be_chosen_has_a_model():
    assert {parser for _, parser in MARKERS} == {written.parser for written in TOOL_CALLS.values()} - {""}


def test_the_page_lists_the_reasoning_parsers_that_are_tried():
    rows = dict(re.findall(r"^\| ([^|]+) \| `(\w+)` \|$", PAGE, flags=re.MULTILINE))
    del rows["models"]
    assert rows == {kind: thought.parser for kind, thought in THOUGHTS.items()}
    assert set(rows.values()) <= set(VLLM["reasoningParsers"])
