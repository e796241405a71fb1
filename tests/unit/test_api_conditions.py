from datetime import UTC, datetime, timedelta

import pytest

from moorage.api.conditions import (
    REASON_HELP,
    AliasCondition,
    Condition,
    ConditionStatus,
    DownloadCondition,
    ModelCondition,
    Reason,
    get_condition,
    is_true,
    set_condition,
)
from moorage.sources import CATALOG

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
LATER = NOW + timedelta(minutes=5)


def condition(kind: str, status: ConditionStatus, reason: Reason = Reason.PROGRESSING, message: str = "") -> Condition:
    return Condition(type=kind, status=status, reason=reason, message=message, observed_generation=1)


def test_a_first_condition_gets_the_time():
    assert set_condition([], condition("Ready", ConditionStatus.FALSE), NOW)[0].last_transition_time == NOW


def test_the_time_stays_while_the_status_stays():
    conditions = set_condition([], condition("Ready", ConditionStatus.FALSE), NOW)
    conditions = set_condition(conditions, condition("Ready", ConditionStatus.FALSE, Reason.LOADING, "loads"), LATER)
    assert conditions[0].last_transition_time == NOW
    assert (conditions[0].reason, conditions[0].message) == ("Loading", "loads")


def test_the_time_moves_when_the_status_changes():
    conditions = set_condition([], condition("Ready", ConditionStatus.FALSE), NOW)
    conditions = set_condition(conditions, condition("Ready", ConditionStatus.TRUE), LATER)
    assert conditions[0].last_transition_time == LATER


def test_the_time_of_the_new_condition_is_not_trusted():
    new = condition("Ready", ConditionStatus.TRUE)
    new.last_transition_time = LATER
    assert set_condition([], new, NOW)[0].last_transition_time == NOW


def test_the_order_never_changes_and_the_input_is_left_alone():
    conditions = []
    for kind in ("Accepted", "Placed", "Ready"):
        conditions = set_condition(conditions, condition(kind, ConditionStatus.FALSE), NOW)
    changed = set_condition(conditions, condition("Placed", ConditionStatus.TRUE), LATER)
    assert [one.type for one in changed] == ["Accepted", "Placed", "Ready"]
    assert not is_true(conditions, "Placed")
    assert is_true(changed, "Placed")


def test_looking_up():
    conditions = set_condition([], condition("Ready", ConditionStatus.UNKNOWN), NOW)
    assert get_condition(conditions, ModelCondition.READY) is conditions[0]
    assert get_condition(conditions, ModelCondition.PLACED) is None
    assert not is_true(conditions, ModelCondition.READY)
    assert not is_true([], ModelCondition.READY)


def test_a_condition_dumps_as_metav1_condition():
    conditions = set_condition([], condition("Ready", ConditionStatus.TRUE, Reason.READY, "serving"), NOW)
    assert conditions[0].dump() == {
        "type": "Ready",
        "status": "True",
        "reason": "Ready",
        "message": "serving",
        "observedGeneration": 1,
        "lastTransitionTime": "2026-01-02T03:04:05Z",
    }


def test_a_condition_survives_a_round_trip_unchanged():
    once = set_condition([], condition("Ready", ConditionStatus.TRUE), NOW + timedelta(microseconds=7))[0]
    assert Condition.model_validate(once.dump()) == once


def test_every_reason_has_help_and_nothing_else_has():
    assert set(REASON_HELP) == set(Reason)
    for reason, text in REASON_HELP.items():
        assert text.endswith("."), reason
        assert "\n" not in text
        assert 20 <= len(text) <= 160, reason


@pytest.mark.parametrize("words", [Reason, ModelCondition, DownloadCondition, AliasCondition])
def test_words_are_valid_reasons_and_types(words):
    for word in words:
        assert word.value.isalnum(), word
        assert word.value[0].isupper()
        assert word.name.replace("_", "") == word.value.upper(), "the member's name is its value in capitals"


def test_every_reason_of_a_source_is_a_reason_of_the_api():
    ours = {reason.value for reason in Reason}
    assert {reason.value for reason in CATALOG} - ours == {"Complete"}
