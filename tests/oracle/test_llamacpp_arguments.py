"""The real llama-server's own parser takes every argument that Moorage gives it."""

import subprocess

import pytest

from images.recipes import LLAMACPP_BUILD
from tests.oracle.llamacpp import inside, unpacked
from tests.support import commandlines

pytestmark = pytest.mark.oracle


def parse(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """Arguments are taken in order, and `--version` ends the program when its turn comes."""
    root = unpacked()
    template = root / commandlines.TEMPLATE.lstrip("/")
    template.parent.mkdir(exist_ok=True)
    template.write_text("{{ messages }}")
    command = [*inside(root), "/usr/bin/llama-server", *arguments, "--version"]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("case", commandlines.llama_cpp())
def test_every_command_line_is_taken(case: str):
    done = parse(*commandlines.llama_cpp()[case])
    assert done.returncode == 0, done.stderr
    assert f"build {LLAMACPP_BUILD.read_text().strip()}" in done.stdout + done.stderr


@pytest.mark.parametrize("arguments", [("--ctx-sise", "1"), ("--flash-attn", "perhaps"), ("--cache-type-k", "fp8")])
def test_the_parser_would_complain(arguments: tuple[str, ...]):
    assert parse(*arguments).returncode != 0
