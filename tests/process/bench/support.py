"""What the benchmark's process tests share: the command as a process, the run in process, and the mock's truth."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

from moorage.bench.report import Report
from moorage.bench.run import benchmark
from moorage.bench.settings import Load, Profile, Settings, parse_target
from tests.support.mockengine import ROOT, Behaviour, MockEngine, Request

FAST = {"ttft": 0.002, "tpot": 0.0002}
OUTPUT_TOKENS = 40


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    stdout: str
    stderr: str

    @property
    def facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = json.loads(self.stdout)
        return facts


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "moorage", "bench", "--model", "mock", *map(str, arguments)]


def environment(**extra: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT / "operator"), **extra}


def bench(*arguments: object, **extra: str) -> Ended:
    """Run `moorage bench` to its end."""
    ended = subprocess.run(
        command(*arguments), env=environment(**extra), capture_output=True, text=True, timeout=120, check=False
    )
    return Ended(ended.returncode, ended.stdout, ended.stderr)


def settings(engine: MockEngine | str, **changes: Any) -> Settings:
    """A short run against `engine`, with `changes`."""
    url = engine if isinstance(engine, str) else engine.url
    defaults: dict[str, Any] = {
        "profile": Profile.THROUGHPUT,
        "loads": (Load(concurrency=4),),
        "requests": 20,
        "input_tokens": 64,
        "output_tokens": OUTPUT_TOKENS,
        "request_timeout": 30.0,
        "timeout": 120.0,
    }
    return Settings(target=parse_target(url), model="mock", **{**defaults, **changes})


async def run(engine: MockEngine | str, **changes: Any) -> Report:
    """The run itself, in this process."""
    return await benchmark(settings(engine, **changes), progress=lambda _: None)


def fast(**changes: Any) -> MockEngine:
    """A mock that answers as fast as it can, with `changes`."""
    return MockEngine(Behaviour(**{**FAST, **changes}))


def answers_of(requests: list[Request], output_tokens: int = OUTPUT_TOKENS) -> list[Request]:
    """Requests of the warm-up and the measurement, less those that only asked for the prompt's length."""
    return [request for request in requests if request.body["max_tokens"] == output_tokens]


def measured(requests: list[Request], count: int, output_tokens: int = OUTPUT_TOKENS) -> list[Request]:
    """The last `count` requests: those of the last row, without its warm-up."""
    return answers_of(requests, output_tokens)[-count:]
