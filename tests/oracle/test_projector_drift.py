"""What a projector costs against the pinned llama-server's own dry run of it, header alone.

That dry run takes an image which clip.cpp thinks moderate, so it is compared for that size.
"""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from moorage.sizing.gguf import read_gguf_header
from moorage.sizing.projector import projector_of
from tests.oracle.llamacpp import LlamaCpp, running
from tests.unit.gguf_bytes import data_bytes
from tests.unit.model_shapes import MODELS
from tests.unit.projector_shapes import ENCODERS

pytestmark = pytest.mark.oracle
MIB = 1 << 20
WARM_UP_TOKENS = {"qwen2.5-vl-7b": 46 * 46, "pixtral-12b": 256}
"""`set_warmup_n_tokens` of the kinds that take images of any size."""


@pytest.fixture(scope="module")
def llamacpp() -> Iterator[LlamaCpp]:
    with running(devices=2) as found:
        yield found


def put(llamacpp: LlamaCpp, name: str) -> tuple[str, str]:
    model, shape = MODELS["gemma3-4b Q4_K_M"], ENCODERS[name]
    text = llamacpp.model("text", model.header, data_bytes(model.tensors))
    return text, llamacpp.model(f"mmproj-{name}", shape.header, data_bytes(shape.tensors))


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("flash", ["on", "off"])
def test_the_encoder(llamacpp: LlamaCpp, name: str, flash: str):
    found = llamacpp.projector_dry_run(*put(llamacpp, name), "-fa", flash)
    projector = replace(projector_of(read_gguf_header(ENCODERS[name].header)), tiles=1)
    size = {"flash_attention": flash == "on", "image_max_tokens": WARM_UP_TOKENS.get(name, 0)}
    compute = found["RPC0"] - projector.weight_bytes / MIB
    mine, host = projector.compute_bytes(**size) / MIB, projector.host_bytes(**size) / MIB  # type: ignore[arg-type]
    assert compute <= mine <= 1.4 * compute + 24, (name, found)
    assert found["CPU"] <= host + 1 <= 1.1 * found["CPU"] + 2, (name, found)


def test_it_lies_on_the_first_of_several_devices_or_in_host_memory(llamacpp: LlamaCpp):
    both = put(llamacpp, "gemma3-12b")
    assert "RPC1" not in llamacpp.projector_dry_run(*both, "-fa", "on", devices=2)
    assert set(llamacpp.projector_dry_run(*both, "-fa", "on", "--no-mmproj-offload")) == {"CPU"}


def test_a_limit_for_images_is_kept(llamacpp: LlamaCpp):
    both = put(llamacpp, "qwen2.5-vl-7b")
    found = [llamacpp.projector_dry_run(*both, "-fa", "on", "--image-max-tokens", n)["RPC0"] for n in (256, 1024)]
    assert found[0] < found[1] < llamacpp.projector_dry_run(*both, "-fa", "on")["RPC0"]
