"""The operator's first request to a real llama-server, and what that server says of itself."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from e2e.tinymodels.gguf_file import write_gguf
from e2e.tinymodels.reranker import CONTEXT_LENGTH, write_reranker
from moorage.api.capabilities import Capability
from moorage.api.model import ModelSpec
from moorage.control.prober import HttpProber
from moorage.engines import llamacpp
from moorage.engines.base import Asked, Serving, Start
from moorage.engines.capabilities import Known, capabilities, pooled, sure
from moorage.engines.shown import in_gguf
from moorage.errors import SourceError
from moorage.planning.types import WarmUp
from moorage.sizing.gguf import read_gguf_header
from moorage.sizing.gguf_model import model_of
from tests.support.llamaserver import llama_server

WITH_TOOLS = (
    "{%- if tools %}{{- '<tools>' }}{%- for tool in tools %}{{- tool | tojson }}{%- endfor %}{%- endif %}"
    "{%- for message in messages %}{{- message['role'] + ': ' + message['content'] }}{%- endfor %}"
)


async def first_answer(address: str, capability: str = "chat") -> dict[str, object]:
    prober = HttpProber()
    host, _, port = address.partition(":")
    try:
        return await prober.warm_up(WarmUp("t", "m", host, int(port), capability, address))
    finally:
        await prober.close()


@pytest.mark.parametrize(("arguments", "tools"), [((), False), (("--chat-template", WITH_TOOLS), True)])
async def test_a_server_tells_what_its_chat_template_takes(arguments: tuple[str, ...], tools: bool):
    with llama_server("--alias", "m", *arguments) as address:
        found = await first_answer(address)
    assert found["report"] == {"tools": tools, "vision": False, "audio": False}
    assert str(found["version"]).startswith("b")


@pytest.mark.parametrize(
    ("capability", "arguments"),
    [("embeddings", ("--embeddings", "--pooling", "mean")), ("rerank", ("--reranking",))],
)
async def test_a_server_that_generates_nothing_answers_what_it_is_for(capability: str, arguments: tuple[str, ...]):
    with llama_server("--alias", "m", *arguments) as address:
        assert await first_answer(address, capability)


async def test_what_a_server_does_not_do_is_told_in_its_words():
    words = r"does not support embeddings\. Start it with `--embeddings`"
    with llama_server("--alias", "m") as address, pytest.raises(SourceError, match=words):
        await first_answer(address, "embeddings")


@pytest.mark.parametrize(
    ("write", "spec", "kind", "question"),
    [
        (write_reranker, {}, Capability.RERANK, {"query": "harbor", "documents": ["wind", "harbor " * 1900]}),
        (write_gguf, {"args": ["--embeddings", "--pooling", "mean"]}, Capability.EMBEDDINGS, {"input": "tide " * 1900}),
        (write_gguf, {"args": ["--embeddings", "--pooling", "last"]}, Capability.EMBEDDINGS, {"input": "tide " * 1900}),
    ],
)
async def test_as_the_operator_starts_it_a_server_takes_texts_as_long_as_its_context(
    write: Callable[[Path], Any], spec: dict[str, Any], kind: Capability, question: dict[str, Any], tmp_path: Path
):
    """From the file's header to the command line, and with that to answers."""
    write(tmp_path / "m.gguf")
    header = read_gguf_header((tmp_path / "m.gguf").read_bytes())
    wanted = ModelSpec.model_validate({"source": {"downloadRef": {"name": "d"}}, **spec})
    asked = Asked(wanted, header=json.dumps(model_of(header).to_json()))
    asked = replace(asked, pooled=pooled(sure(capabilities(asked, Known("GGUF", frozenset(in_gguf(header)))))))
    assert asked.pooled == kind
    command = llamacpp.arguments(asked, Start("m", "", Serving(CONTEXT_LENGTH, 4), cpus=1))
    with llama_server(*command[command.index("--ctx-size") :], write=write) as address:
        assert await first_answer(address, kind)
        async with (
            aiohttp.ClientSession() as client,
            client.post(f"http://{address}/v1/{kind}", json=question) as answer,
        ):
            found = await answer.json()
    assert found["usage"]["prompt_tokens"] > 1900
