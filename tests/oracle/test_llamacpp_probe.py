"""The operator's first request to a real llama-server, and what that server says of itself."""

import pytest

from moorage.control.prober import HttpProber
from moorage.errors import SourceError
from moorage.planning.types import WarmUp
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
