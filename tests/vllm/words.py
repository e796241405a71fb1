"""Runs inside the image of vLLM: which of the words in WORDS (JSON, by file under vllm/) do not stand in that file."""

import json
import os
from pathlib import Path

import vllm

ROOT = Path(vllm.__file__).parent
WORDS: dict[str, list[str]] = json.loads(os.environ["WORDS"])
print(json.dumps([word for file, said in WORDS.items() for word in said if word not in (ROOT / file).read_text()]))
