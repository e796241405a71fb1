"""The kubelet's answer: the few fields that matter, in bytes that may be anything."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from e2e.gpusim.protobuf import fields
from moorage.agent import wire
from moorage.agent.podresources import parse
from moorage.placement.gpu_report import Holder
from tests.support.kubelet import answer, claim, plugin_devices, pod


def test_gpus_are_found_by_pod_whatever_else_the_kubelet_tells():
    found = parse(
        answer(
            pod("a", "one", devices=(plugin_devices("nvidia.com/gpu", "GPU-1", "GPU-2"),)),
            pod("b", "nic", devices=(plugin_devices("vendor.com/nic", "GPU-1"),)),
            pod("b", "shared", devices=(plugin_devices("nvidia.com/gpu", "GPU-3::0", "GPU-3::1"),)),
            pod("b", "slice", devices=(plugin_devices("nvidia.com/mig-1g.10gb", "MIG-7"),)),
            pod("c", "dra", claims=(claim("gpu.nvidia.com", "gpu-4"), claim("net.example.com", "gpu-9"))),
            pod("d", "none"),
        )
    )
    assert found == {
        "GPU-1": (Holder("a", "one", "engine"),),
        "GPU-2": (Holder("a", "one", "engine"),),
        "GPU-3": (Holder("b", "shared", "engine"),),
        "MIG-7": (Holder("b", "slice", "engine"),),
        "gpu-4": (Holder("c", "dra", "engine"),),
    }


def test_no_pods_is_an_answer():
    assert parse(b"") == {}


@pytest.mark.parametrize(
    "data", [b"\x0a", b"\x0a\x05abc", b"\x0b", b"\xff" * 12, b"\x09\x01", b"\x0a\x02\x12\x09"], ids=repr
)
def test_what_is_cut_or_senseless_is_refused(data: bytes):
    with pytest.raises(ValueError):
        parse(data)


@given(st.binary(max_size=200))
def test_any_bytes_are_an_answer_or_refused(data: bytes):
    with suppress(ValueError):
        parse(data)


@given(st.lists(st.text(max_size=20), max_size=5))
def test_texts_come_back(values: list[str]):
    data = fields(*((300, value) for value in values))
    assert wire.texts(memoryview(data), 300) == values
    assert wire.text(memoryview(data), 300) == (values[-1] if values else "")
    assert wire.texts(memoryview(data), 1) == []
