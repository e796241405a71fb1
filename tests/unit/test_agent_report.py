"""The report: what the agent writes is what the operator reads, and nothing else is let in."""

from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moorage.placement.gpu_report import Gpu, GpuReport, Holder, Slice, from_json, to_json, totals_of, used_by_pod

WHOSE = Holder("ns", "tiny-abc", "engine")
REPORT = GpuReport(
    node="gpu-1",
    age_ms=120,
    driver="580.95.05",
    gpus=(
        Gpu(0, "GPU-1", 0, "NVIDIA L4", 23034, 460, 9000, 13574, 37, pods=(WHOSE,)),
        Gpu(1, "GPU-2", 1, problem="GPU is lost"),
        Gpu(2, "GPU-3", 2, "A100", 40960, 1, 2, 3, mig=True, slices=(Slice("MIG-1", 9856, 12, (WHOSE,)),)),
    ),
    pods_problem="",
)


def test_what_is_written_is_read():
    assert from_json(to_json(REPORT)) == REPORT


def test_the_names_are_those_of_the_documentation():
    gpu = to_json(REPORT)["gpus"][0]
    assert gpu["totalMiB"] == 23034
    assert gpu["utilizationPercent"] == 37
    assert gpu["pods"] == [{"namespace": "ns", "pod": "tiny-abc", "container": "engine"}]
    assert to_json(REPORT)["ageMilliseconds"] == 120


def test_a_pods_devices_are_gpus_and_slices():
    assert used_by_pod(REPORT) == {("ns", "tiny-abc"): (9000, 12)}


def test_memory_that_several_pods_share_is_nobodys():
    shared = replace(REPORT, gpus=(replace(REPORT.gpus[0], pods=(WHOSE, Holder("ns", "other", "engine"))),))
    assert used_by_pod(shared) == {}


def test_the_sizes_are_those_of_whole_gpus_or_else_of_their_parts():
    assert totals_of(REPORT) == (23034,)
    assert totals_of(replace(REPORT, gpus=REPORT.gpus[1:])) == (9856,)


def test_what_a_later_version_adds_is_passed_over():
    document = to_json(REPORT)
    document["weather"] = document["gpus"][0]["temperature"] = 40
    assert from_json(document) == REPORT


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"node": 7},
        {"node": "n" * 400},
        {"ageMilliseconds": -1},
        {"ageMilliseconds": True},
        {"ageMilliseconds": 1.5},
        {"gpus": {}},
        {"gpus": [1]},
        {"gpus": [{"index": 0}] * 65},
        {"gpus": [{"totalMiB": 1 << 50}]},
        {"gpus": [{"pods": [{"pod": None}]}]},
    ],
    ids=str,
)
def test_what_is_no_report_is_refused_as_a_whole(change: dict[str, Any]):
    with pytest.raises(ValueError):
        from_json({**to_json(REPORT), **change})


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["gpus", "pods", "index"]), inner),
    max_leaves=12,
)


@given(_JSON)
def test_any_json_is_a_report_or_refused(document: Any):
    with suppress(ValueError):
        from_json({"version": 1, "gpus": document} if not isinstance(document, dict) else {"version": 1, **document})
