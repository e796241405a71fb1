"""What a projector costs: exact weights, and a buffer that dry runs of llama-server on the same headers stay below."""

from dataclasses import replace

import pytest

from moorage.sizing.errors import HeaderError
from moorage.sizing.gguf import GgufHeader, read_gguf_header
from moorage.sizing.gguf_model import model_of
from moorage.sizing.llamacpp import LlamaSettings, llama_need
from moorage.sizing.model import Confidence
from moorage.sizing.projector import Projector, projector_of
from tests.unit.gguf_bytes import header
from tests.unit.model_shapes import MODELS
from tests.unit.projector_shapes import ENCODERS

MIB = 1 << 20
GEMMA = model_of(read_gguf_header(MODELS["gemma3-12b Q4_K_M"].header))
QWEN = model_of(read_gguf_header(MODELS["llama33-70b Q4_K_M"].header))
READ = {name: projector_of(read_gguf_header(shape.header)) for name, shape in ENCODERS.items()}
EYES = READ["gemma3-12b"]


def settings(**more: object) -> LlamaSettings:
    return LlamaSettings(8192, projector=EYES, **more)  # type: ignore[arg-type]


def test_it_is_counted_on_the_first_gpu_and_named():
    plain, seeing = llama_need(GEMMA, LlamaSettings(8192)), llama_need(GEMMA, settings())
    assert seeing.weights_mib == plain.weights_mib + 813
    assert 121 < seeing.compute_mib - plain.compute_mib < 170  # the dry run: 121 MiB
    assert 8 < seeing.host_mib - plain.host_mib < 11
    assert (plain.confidence, seeing.confidence) == (Confidence.EXACT, Confidence.BOUNDED)
    assert "image encoder" in seeing.reasons[-1]


def test_of_several_gpus_only_the_first_holds_it():
    plain = llama_need(QWEN, LlamaSettings(8192, gpus=4)).per_gpu_mib
    seeing = llama_need(QWEN, settings(gpus=4)).per_gpu_mib
    assert seeing[0] > plain[0] + 900
    assert seeing[1:] == plain[1:]


@pytest.mark.parametrize("more", [{"gpu_layers": 0}, {"projector_offload": False}])
def test_without_a_gpu_for_it_the_host_holds_it(more):
    plain = llama_need(GEMMA, replace(settings(**more), projector=None))
    seeing = llama_need(GEMMA, settings(**more))
    assert seeing.total_mib == plain.total_mib
    assert seeing.host_mib > plain.host_mib + 930


def test_larger_images_take_more_where_they_may_have_any_size():
    qwen = READ["qwen2.5-vl-7b"]
    sizes = [qwen.compute_bytes(flash_attention=True, image_max_tokens=tokens) for tokens in (256, 1024, 4096)]
    assert sizes == sorted(set(sizes))
    assert qwen.compute_bytes(flash_attention=True) == sizes[-1]  # clip.cpp's own limit
    assert EYES.compute_bytes(flash_attention=True, image_max_tokens=4096) == EYES.compute_bytes(flash_attention=True)


def test_tiles_of_a_picture_are_encoded_together():
    assert READ["internvl3-8b"].tiles == 3
    assert {READ[name].tiles for name in READ if name != "internvl3-8b"} == {1}


def test_attention_scores_count_without_flash_attention():
    more = EYES.compute_bytes(flash_attention=False) - EYES.compute_bytes(flash_attention=True)
    assert more > 16 * 4096**2 * 4


def test_an_unknown_kind_and_sound_get_a_planning_value():
    strange = replace(ENCODERS["gemma3-12b"], kind="nobodys")
    heard = replace(ENCODERS["gemma3-12b"], extra={"clip.has_audio_encoder": True})
    for shape in (strange, heard):
        found = projector_of(read_gguf_header(shape.header))
        assert found.compute_bytes(flash_attention=True) >= 1024 * MIB
        assert "planning value" in found.reason


@pytest.mark.parametrize("name", READ)
def test_it_survives_the_way_through_a_status(name):
    assert Projector.from_json(READ[name].to_json()) == READ[name]
    with pytest.raises(HeaderError):
        Projector.from_json({**READ[name].to_json(), "surprise": 1})


def broken(**more: object) -> GgufHeader:
    shape = ENCODERS["gemma3-12b"]
    return read_gguf_header(header({**shape.metadata, **more}, shape.tensors))


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (read_gguf_header(MODELS["gemma3-12b Q4_K_M"].header), "its architecture is 'gemma3'"),
        (broken(**{"clip.vision.image_size": 1 << 31}), "image_size is 2147483648, which is impossible"),
        (broken(**{"clip.vision.patch_size": "x"}), "must be a whole number"),
        (read_gguf_header(header(ENCODERS["gemma3-12b"].metadata)), "no tensors"),
    ],
)
def test_what_is_no_projector_is_refused(found, message):
    with pytest.raises(HeaderError, match=message):
        projector_of(found)
