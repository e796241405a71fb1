"""Every argument that Moorage gives an engine, or refuses from a person, is one of the pinned program's own.

What the programs know stands beside their images; the real parsers are asked in tests/vllm and tests/oracle.
"""

import json
from pathlib import Path

import pytest

from moorage.api.managed_args import LLAMA_CPP_ARGS_BY_OWNER, MOORAGE, VLLM_ARGS_BY_OWNER
from moorage.control.settings import Settings
from moorage.engines.tool_calls import MARKERS
from moorage.sizing.vllm import NEWEST
from tests.support import commandlines

IMAGES = Path(__file__).resolve().parents[2] / "images"
LLAMA_CPP_HELP = (IMAGES / "llamacpp-cpu/help.txt").read_text()
VLLM = json.loads((IMAGES / "vllm-cpu/arguments.json").read_text())
VLLM_VERSION = (IMAGES / "vllm-cpu/VERSION").read_text().strip()


def llama_cpp_options() -> set[str]:
    lines = [line for line in LLAMA_CPP_HELP.splitlines() if line.startswith("-")]
    return {word.rstrip(",") for line in lines for word in line.split() if word.startswith("-")}


def names(arguments: tuple[str, ...]) -> set[str]:
    return {a for a in arguments if a.startswith("--")}


@pytest.mark.parametrize("case", commandlines.llama_cpp())
def test_llama_server_knows_every_argument(case: str):
    assert names(commandlines.llama_cpp()[case]) <= llama_cpp_options()


@pytest.mark.parametrize("case", commandlines.vllm())
def test_vllm_knows_every_argument(case: str):
    assert names(commandlines.vllm()[case]) <= set(VLLM["options"])


def test_what_is_refused_from_a_person_exists():
    assert {n for names in LLAMA_CPP_ARGS_BY_OWNER.values() for n in names} <= llama_cpp_options()
    assert {n for names in VLLM_ARGS_BY_OWNER.values() for n in names} <= set(VLLM["options"])


def test_what_moorage_decides_is_refused_from_a_person():
    """Apart from what only shapes logs and shutdown, and from what a field of its own rules check."""
    free = {"--shutdown-timeout", "--no-enable-log-requests", "--disable-access-log-for-endpoints", "--chat-template"}
    free |= {"--host", "--port", "--seed"}  # llama-server's table has the first two, the last is a person's
    free |= {"--runner"}  # a person may say what Moorage says only where nobody does
    given = {name for arguments in commandlines.vllm().values() for name in names(arguments)}
    refused = {n for owner in VLLM_ARGS_BY_OWNER.values() for n in owner}
    assert given - free <= refused
    assert {"--host", "--port"} <= set(LLAMA_CPP_ARGS_BY_OWNER[MOORAGE])


def test_the_tool_parsers_are_vllms_own():
    assert {parser for _, parser in MARKERS} <= set(VLLM["toolParsers"])


def test_the_images_are_of_the_version_that_the_arguments_are_written_for():
    images = Settings().images
    assert VLLM["version"] == VLLM_VERSION
    assert VLLM_VERSION.startswith(".".join(map(str, NEWEST)) + ".")
    for image in (images.vllm, images.vllm_nvidia, images.vllm_amd):
        assert image.endswith(f":v{VLLM_VERSION}")
    assert f"vllm-cpu=={VLLM_VERSION} " in (IMAGES / "vllm-cpu/requirements.txt").read_text()
