"""A status in the making: conditions set one by one, Events for those that changed, texts that fit their columns."""

from collections.abc import Container, Mapping
from contextlib import suppress
from datetime import datetime
from typing import Any

from pydantic import ValidationError

from moorage.api.conditions import Condition, ConditionStatus, Reason, get_condition, set_condition
from moorage.planning.types import Manifest, PlannedEvent

TRUE, FALSE, UNKNOWN = ConditionStatus.TRUE, ConditionStatus.FALSE, ConditionStatus.UNKNOWN

# Which Event tells of a condition's change: (type, status, reason) -> Event reason; a reason of "*" matches any.
EventTable = Mapping[Any, str]


def conditions_of(obj: Manifest) -> list[Condition]:
    """The conditions in the status of `obj`; one that another version wrote in another shape is left out."""
    found = []
    for raw in (obj.get("status") or {}).get("conditions") or ():
        with suppress(ValidationError):
            found.append(Condition.model_validate(raw))
    return found


class Draft:
    """Collects one pass' conditions over those of the last pass.

    A condition that a pass does not set keeps what it said, so every step owns its own and no other.
    """

    def __init__(self, old: list[Condition], generation: int, now: datetime) -> None:
        self._old = old
        self.conditions = list(old)
        self._generation = generation
        self._now = now

    def set(self, kind: str, status: ConditionStatus, reason: Reason | str, message: str) -> None:
        """Say `status` of the condition `kind`, with a reason of the closed list and a sentence.

        The last word of a pass counts, and its transition time by what stood there before the pass.
        """
        new = Condition(
            type=kind, status=status, reason=str(reason), message=message, observed_generation=self._generation
        )
        before = get_condition(self._old, kind)
        kept = [before if before and c.type == kind else c for c in self.conditions]
        self.conditions = set_condition(kept, new, self._now)

    def drop(self, kind: str) -> None:
        """Say nothing of `kind` any more: for conditions that are there only while they are True."""
        self.conditions = [c for c in self.conditions if c.type != kind]

    def confirm(self, kind: str) -> None:
        """Say again what stands of `kind`: it was looked at and still holds for this generation."""
        if found := self.get(kind):
            self.set(kind, found.status, found.reason, found.message)

    def get(self, kind: str) -> Condition | None:
        """What this pass (or else the last one) says of `kind`."""
        return get_condition(self.conditions, kind)

    def true(self, kind: str) -> bool:
        """Whether `kind` is True by now."""
        found = self.get(kind)
        return found is not None and found.status == TRUE

    def was_true(self, kind: str) -> bool:
        """Whether `kind` was True before this pass."""
        found = get_condition(self._old, kind)
        return found is not None and found.status == TRUE

    def events(self, table: EventTable, endings: Container[str] = ()) -> tuple[PlannedEvent, ...]:
        """One Event for each condition whose status or reason changed and that `table` has a word for.

        The words of `endings` need something that ended: they are not said of a condition's first state.
        """
        found = []
        for new in self.conditions:
            old = get_condition(self._old, new.type)
            if old is not None and (old.status, old.reason) == (new.status, new.reason):
                continue
            word = table.get((new.type, new.status, new.reason), table.get((new.type, new.status, "*")))
            if word and not (old is None and word in endings):
                bad = (new.status == FALSE and new.reason not in _NORMAL) or new.reason == Reason.NAME_CONFLICT
                event_reason = new.reason if word == "*" else word
                found.append(PlannedEvent("Warning" if bad else "Normal", event_reason, new.message))
        return tuple(found)


_NORMAL = {
    Reason.PROGRESSING,
    Reason.DOWNLOADING,
    Reason.LOADING,
    Reason.PENDING,
    Reason.WAITING_FOR_MEMORY,
    Reason.SCALED_TO_ZERO,
    Reason.PREEMPTED,
    Reason.WAITING_FOR_ROOM,
    Reason.LOADED_MODELS_LIMIT,
    Reason.VERIFYING,
    Reason.RUNNING,
    Reason.PAUSED,
    Reason.CANCELLED,
    Reason.QUEUED,
    Reason.WAITING_FOR_NODE,
    Reason.OUTSIDE_WINDOW,
}
