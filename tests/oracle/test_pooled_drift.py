"""The estimate of servers of embeddings and rerankers against the pinned llama-server's own dry run."""

from collections.abc import Iterator

import pytest

from moorage.sizing.gguf import read_gguf_header
from moorage.sizing.gguf_model import model_of
from moorage.sizing.llamacpp import LlamaSettings, llama_need
from tests.oracle.llamacpp import LlamaCpp, running
from tests.oracle.test_llamacpp_drift import agrees
from tests.unit.gguf_bytes import data_bytes
from tests.unit.hybrid_shapes import POOLED

pytestmark = pytest.mark.oracle


@pytest.fixture(scope="module")
def llamacpp() -> Iterator[LlamaCpp]:
    with running(devices=1) as found:
        yield found


@pytest.mark.parametrize("name", POOLED)
@pytest.mark.parametrize("flash_attention", ["on", "off"])
def test_the_server_itself(llamacpp: LlamaCpp, name: str, flash_attention: str):
    shape = POOLED[name]
    path = llamacpp.model(name, shape.header, data_bytes(shape.tensors))
    model = model_of(read_gguf_header(shape.header))
    for length in sorted({min(length, model.context_length) for length in (512, 2048, 8192)}):
        pool = ["-c", 4 * length, "-np", 4, "--no-kv-unified", "-b", max(length, 2048), "-ub", length]
        serves = ["--reranking"] if "eranker" in name else ["--embeddings"]
        found = llamacpp.server_dry_run(path, *pool, *serves, "-fa", flash_attention)
        settings = LlamaSettings(4 * length, 4, ubatch_size=length, outputs=0, flash_attention=flash_attention == "on")
        need = llama_need(model, settings)
        agrees(need, [found["RPC0"]], case=f"{name}, {length}")
        host = sum(found["Host"])
        most = 1.05 * host + 60 if settings.flash_attention else float("inf")  # casts of masks are counted twice then
        assert host <= need.host_mib <= most, (name, length, need.host_mib, found["Host"])
