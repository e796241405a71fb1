"""The report of a gateway to the operator: what one side writes the other reads, and nonsense is named."""

import json

import pytest

from moorage.errors import InvalidSpec
from moorage.usage import LONGEST_BYTES, AliasUse, FailedOver, ModelUse, Report

REPORT = Report(
    gateway="moorage-gateway-1",
    instance="0123456789abcdef",
    models={"team/qwen": ModelUse(ok=3, milliseconds=1200, last_used=1_790_000_000, wanted=2, wanted_at=1_790_000_001)},
    aliases={
        "team/chat": AliasUse(ok=3, completion_tokens=90),
        "team/fast": AliasUse(failed_over={"team/qwen": FailedOver(since=1_790_000_000, why="12 of 20 failed")}),
    },
)


def test_a_report_survives_the_wire():
    assert Report.parse(REPORT.dump()) == REPORT


def test_zeros_are_not_sent():
    assert json.loads(REPORT.dump())["aliases"] == {
        "team/chat": {"ok": 3, "completionTokens": 90},
        "team/fast": {"failedOver": {"team/qwen": {"since": 1_790_000_000, "why": "12 of 20 failed"}}},
    }


def test_fields_of_a_newer_version_are_ignored():
    newer = json.loads(REPORT.dump()) | {"weather": "fine"}
    assert Report.parse(json.dumps(newer).encode()) == REPORT


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"instance": ""}, "instance"),
        ({"models": {"qwen": {}}}, "models.qwen"),
        ({"models": {"team/qwen": {"ok": -1}}}, "models.team/qwen.ok"),
        ({"aliases": {"team/chat": {"lastUsed": "now"}}}, "aliases.team/chat.lastUsed"),
    ],
)
def test_nonsense_is_named(change, told):
    body = json.dumps(json.loads(REPORT.dump()) | change).encode()
    with pytest.raises(InvalidSpec, match=told):
        Report.parse(body)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff", b" " * (LONGEST_BYTES + 1)])
def test_what_is_no_report_is_refused(body):
    with pytest.raises(InvalidSpec):
        Report.parse(body)
