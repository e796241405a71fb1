"""Reading objects through the types: defaults, other versions, what is too long, what does not parse."""

from datetime import UTC, datetime

import pytest
from pydantic import ValidationError

from moorage.api.alias import ModelAlias
from moorage.api.common import camel, duration_seconds, quantity_bytes
from moorage.api.download import DownloadStatus, ModelDownload
from moorage.api.model import Model
from moorage.api.model_status import ModelStatus
from moorage.errors import InvalidSpec

SOURCE = {"huggingFace": {"repo": "acme/tiny"}}


def model(spec: dict | None = None, **fields) -> Model:
    return Model.read({"metadata": {"name": "tiny"}, "spec": {"source": SOURCE, **(spec or {})}, **fields})


def test_defaults_are_those_of_the_design():
    spec = model().spec
    assert (spec.replicas, spec.engine, spec.kv_cache_type, spec.update_policy) == (1, "Auto", "f16", "OnDemand")
    assert spec.source.hugging_face.revision == "main"
    assert spec.storage.access_modes == ["ReadWriteOnce"]
    assert (spec.storage.reclaim_policy, spec.storage.delete_after_unused) == ("Delete", "24h")
    assert (spec.benchmark.enabled, spec.benchmark.concurrency, spec.benchmark.requests) == (True, [1], 20)
    assert (spec.max_sequences, spec.context_length, spec.llama_cpp) == (None, None, None)


def test_a_spec_dumps_in_camel_case_and_reads_back():
    spec = model({"llamaCpp": {"unifiedKVCache": True, "gpuLayers": 3}, "storage": {"size": "20Gi"}}).spec
    assert spec.dump()["llamaCpp"]["unifiedKVCache"] is True
    assert spec.dump()["storage"]["size"] == "20Gi"
    assert "image" not in spec.dump()
    assert type(spec).model_validate(spec.dump()) == spec


def test_a_spec_is_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        model().spec.replicas = 2


def test_a_field_of_a_newer_version_is_ignored():
    assert model({"teleport": {"to": "moon"}, "benchmark": {"rate": 5}}).spec == model().spec


@pytest.mark.parametrize(
    ("source", "given"),
    [
        ({}, "given: none"),
        ({"huggingFace": {"repo": "a/b"}, "downloadRef": {"name": "d"}}, "given: huggingFace, downloadRef"),
    ],
)
def test_a_source_is_exactly_one(source, given):
    with pytest.raises(InvalidSpec, match=f"spec.source: .*exactly one of huggingFace, http.*{given}") as caught:
        model({"source": source})
    assert caught.value.reason == "InvalidSpec"


def test_every_problem_of_a_spec_is_named():
    with pytest.raises(InvalidSpec) as caught:
        model({"contextLength": 5, "storage": {"size": "big", "deleteAfterUnused": "1 day"}})
    for part in (
        "spec.contextLength",
        "512",
        "spec.storage.size",
        "'big'",
        "spec.storage.deleteAfterUnused",
        "'1 day'",
    ):
        assert part in caught.value.message


def test_an_object_without_a_spec_is_invalid():
    with pytest.raises(InvalidSpec, match="spec: Field required"):
        Model.read({"metadata": {"name": "x"}})


def test_a_status_never_fails():
    status = model(
        status={
            "phase": "Teleporting",
            "replicas": "many",
            "readyReplicas": 1,
            "source": {"sizeBytes": -1},
            "conditions": [{"type": "Ready"}],
            "endpoint": "http://tiny",
        }
    ).status
    assert status == ModelStatus(ready_replicas=1, endpoint="http://tiny")


def test_what_is_too_long_for_a_status_is_cut():
    status = ModelStatus.read({"summary": {"message": "x" * 500}, "source": {"files": [f"f{i}" for i in range(99)]}})
    assert status.summary.message == "x" * 119 + "…"
    assert len(status.source.files) == 64
    status.summary.message = "y" * 500
    assert len(status.summary.message) == 120


def test_a_status_dumps_only_what_is_known():
    status = DownloadStatus(percent=41, started_at=datetime(2026, 1, 2, 3, 4, 5, 999, tzinfo=UTC))
    dumped = status.dump()
    assert dumped["percent"] == 41
    assert dumped["startedAt"] == "2026-01-02T03:04:05Z"
    assert "lastError" not in dumped
    assert DownloadStatus.read(dumped) == status


def test_the_other_kinds_read():
    alias = ModelAlias.read({"spec": {"targets": [{"modelRef": {"name": "a"}}]}})
    assert (alias.spec.targets[0].weight, alias.spec.fallbacks) == (100, [])
    download = ModelDownload.read({"spec": {"source": SOURCE}})
    assert (download.spec.connections, download.spec.verify, download.spec.state) == (8, "Full", "Active")
    assert (download.spec.retry.attempts_without_progress, download.spec.retry.stall_timeout) == (6, "30s")


def test_status_objects_do_not_share_their_defaults():
    one, other = ModelStatus(), ModelStatus()
    one.conditions.append("x")
    assert other.conditions == []
    assert ModelStatus().conditions == []


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("per_gpu_mib", "perGpuMiB"),
        ("unified_kv_cache", "unifiedKVCache"),
        ("kv_cache_type", "kvCacheType"),
        ("e2e_microseconds", "e2eMicroseconds"),
        ("sha256", "sha256"),
    ],
)
def test_names_in_manifests(name, expected):
    assert camel(name) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0", 0), ("1024", 1024), ("20Gi", 20 * 2**30), ("1.5Gi", 3 * 2**29), ("2k", 2000), ("0.3", 1), ("1P", 10**15)],
)
def test_quantities(text, expected):
    assert quantity_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "Gi", "-1", "1e3", "1 Gi", "1gb", "1.", "1Gi\n", "٣Gi"])
def test_what_is_no_quantity(text):
    with pytest.raises(ValueError, match="not a quantity"):
        quantity_bytes(text)


@pytest.mark.parametrize(
    ("text", "expected"), [("30s", 30), ("1h30m", 5400), ("250ms", 0.25), ("0s", 0), ("24h", 86400)]
)
def test_durations(text, expected):
    assert duration_seconds(text) == expected


@pytest.mark.parametrize("text", ["", "30", "1d", "-5s", "1.5h", "100000s", "5s\n"])
def test_what_is_no_duration(text):
    with pytest.raises(ValueError, match="not a duration"):
        duration_seconds(text)
