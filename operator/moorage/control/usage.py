"""What the gateways reported, and what follows for each Model and alias at this moment.

Kept in memory only: after a restart every gateway tells all of it again, because the epoch has changed. Totals that
have to outlive everybody stand in the objects' statuses (`moorage.planning.usage`).
"""

import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from moorage.control.store import ALIAS, MODEL, Key
from moorage.planning.usage import GonePast, Hearing, InstanceUse, Usage
from moorage.usage import ALIVE_SECONDS, CHANGED_SECONDS, AliasUse, FailedOver, ModelUse, Report, Use

SILENT_SECONDS = 4 * ALIVE_SECONDS
"""A gateway that is silent for this long is gone: nothing is in flight there, and nobody waits."""
LISTEN_SECONDS = ALIVE_SECONDS + CHANGED_SECONDS
"""By then every gateway that lives has reported to an operator that has just started."""
FORGET_SECONDS = 3600.0
"""A gateway that is silent for this long does not come back; if it does all the same, nothing is counted twice."""
SHOWN_SECONDS = 60.0
"""How often the totals of one object may change."""
MOST_INSTANCES = 64
WINDOW_SECONDS = 300.0


@dataclass
class _Instance:
    """One gateway process; `reports` counts those since we listen.

    `base`: what it had told before a long silence, or of an object of that name that is gone.
    """

    heard: float
    reports: int = 0
    uses: dict[Key, Use] = field(default_factory=dict)
    base: dict[Key, Use] = field(default_factory=dict)


@dataclass
class _Shown:
    at: float
    counts: tuple[InstanceUse, ...]


class UsageBook:
    """Takes reports and answers questions about one key. `clock` gives monotonic seconds."""

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        listen: float = LISTEN_SECONDS,
        shown: float = SHOWN_SECONDS,
        window: float = WINDOW_SECONDS,
    ) -> None:
        self.epoch = uuid.uuid4().hex
        self._clock, self._listen, self._every, self._window = clock, listen, shown, window
        self._since = clock()
        self._instances: dict[str, _Instance] = {}
        self._shown: dict[Key, _Shown] = {}
        self._changed: set[Key] = set()  # whose shown counts are no longer the newest
        self._loads: dict[Key, deque[tuple[float, int]]] = {}

    # -- reports -------------------------------------------------------------------------------------------------

    def take(self, report: Report) -> set[Key]:
        """Remember `report`; the keys that should be looked at now: wanted, waited for, or under another load."""
        now = self._clock()
        told = self._instances.setdefault(report.instance, _Instance(now))
        if now - told.heard > FORGET_SECONDS:
            told.base = dict(told.uses)
        told.heard, told.reports = now, told.reports + 1
        concerned = set(self._learn(told, MODEL, report.models))
        concerned |= set(self._learn(told, ALIAS, report.aliases))
        self._forget()
        for key in self._loads:
            self._note(key, now)
        return concerned

    def _learn(self, told: _Instance, kind: str, uses: Mapping[str, Use]) -> Iterator[Key]:
        for name, use in uses.items():
            key = Key(kind, *name.split("/", 1))
            before = told.uses.get(key)
            told.uses[key] = use
            if _counts(use) != (_counts(before) if before else _NOTHING):
                self._changed.add(key)
            first = key not in self._shown and _counts(use)[0] > 0
            if first or _urgent(before, use, followed=key in self._loads):
                yield key

    def _forget(self) -> None:
        """Of very many processes those that are silent for longest."""
        for instance in sorted(self._instances, key=lambda i: self._instances[i].heard)[:-MOST_INSTANCES]:
            del self._instances[instance]

    # -- what follows --------------------------------------------------------------------------------------------

    def of(self, key: Key) -> Usage:
        """The use of one Model or alias now."""
        alive = self._alive()
        uses = [use for told in alive if (use := told.uses.get(key))]
        models = [use for use in uses if isinstance(use, ModelUse)]
        known = [use for told in self._instances.values() if (use := told.uses.get(key))]
        return Usage(
            hearing=self.hearing,
            in_flight=sum(use.in_flight for use in models),
            pending=sum(use.pending for use in models),
            peak=self._peak(key),
            wanted_at=max((use.wanted_at for use in known if isinstance(use, ModelUse)), default=0),
            last_used=max((use.last_used for use in known), default=0),
            counts=self._counts(key),
            complete=self._clock() - self._since > FORGET_SECONDS,
            gone_past=_gone_past(uses),
            gateways=len(alive),
        )

    def activity(self, key: Key) -> tuple[int, int]:
        """Requests that are served or wait now, and when the last one ended (Unix seconds): `of` in short."""
        load, last = 0, 0
        now = self._clock()
        for told in self._instances.values():
            use = told.uses.get(key)
            if isinstance(use, ModelUse):
                last = max(last, use.last_used)
                load += use.in_flight + use.pending if now - told.heard < SILENT_SECONDS else 0
        return load, last

    @property
    def hearing(self) -> Hearing:
        """Whether every gateway has told everything: a report after our first answer holds all names."""
        if self._clock() - self._since < self._listen:
            return Hearing.LISTENING
        alive = self._alive()
        if not alive:
            return Hearing.SILENT
        return Hearing.COMPLETE if all(told.reports > 1 for told in alive) else Hearing.LISTENING

    @property
    def gateways(self) -> int:
        """Gateway processes that are alive."""
        return len(self._alive())

    def due(self) -> list[Key]:
        """Keys whose totals have changed and may be shown now."""
        now = self._clock()
        return [k for k in self._changed if (s := self._shown.get(k)) is None or now - s.at >= self._every]

    def follow(self, key: Key, wanted: bool) -> None:
        """Have changes of `key`'s load told, and its peak known; or no longer."""
        if not wanted:
            self._loads.pop(key, None)
        elif key not in self._loads:
            self._loads[key] = deque()
            self._note(key, self._clock())

    def forget(self, key: Key) -> None:
        """Drop what is known of an object that is gone; a namesake begins anew, though gateways count on."""
        for told in self._instances.values():
            if key in told.uses:
                told.base[key] = told.uses[key]
        self._loads.pop(key, None)
        self._shown.pop(key, None)
        self._changed.discard(key)

    def _alive(self) -> list[_Instance]:
        now = self._clock()
        return [told for told in self._instances.values() if now - told.heard < SILENT_SECONDS]

    def _counts(self, key: Key) -> tuple[InstanceUse, ...]:
        """The counts to put into the totals: the newest, but not more often than `shown` allows."""
        now, known = self._clock(), self._shown.get(key)
        if key in self._changed and (known is None or now - known.at >= self._every):
            self._changed.discard(key)
            known = self._shown[key] = _Shown(now, tuple(self._told(key, now)))
        return known.counts if known else ()

    def _told(self, key: Key, now: float) -> Iterable[InstanceUse]:
        for instance, told in self._instances.items():
            if (use := told.uses.get(key)) and now - told.heard < FORGET_SECONDS:
                base = told.base.get(key)
                yield _instance_use(instance, use, _instance_use(instance, base, None) if base else None)

    # -- load over the last minutes ---------------------------------------------------------------------------------

    def _note(self, key: Key, now: float) -> None:
        loads = self._loads[key]
        load = sum(
            use.in_flight + use.pending for told in self._alive() if isinstance(use := told.uses.get(key), ModelUse)
        )
        if not loads or loads[-1][1] != load:
            loads.append((now, load))
        while len(loads) > 1 and loads[1][0] <= now - self._window:
            loads.popleft()  # the first left is what held when the window began

    def _peak(self, key: Key) -> int | None:
        """Most requests at once within the window; None where it was not followed for that long."""
        loads = self._loads.get(key)
        if not loads or loads[0][0] > self._clock() - self._window:
            return None
        return max(load for _, load in loads)


def _urgent(before: Use | None, use: Use, *, followed: bool) -> bool:
    """Whether the operator should act on it at once."""
    if isinstance(use, AliasUse):
        return use.failed_over != (before.failed_over if isinstance(before, AliasUse) else {})
    if not isinstance(use, ModelUse):
        return False
    old = before if isinstance(before, ModelUse) else ModelUse()
    if use.wanted != old.wanted or use.pending != old.pending:
        return True
    return followed and use.in_flight != old.in_flight


def _gone_past(uses: Iterable[Use]) -> tuple[GonePast, ...]:
    """The targets that gateways go past: how many do, and in the words of the one that began first."""
    told: dict[str, list[FailedOver]] = {}
    for use in uses:
        for model, facts in (use.failed_over if isinstance(use, AliasUse) else {}).items():
            told.setdefault(model, []).append(facts)
    first = {model: min(told[model], key=lambda facts: facts.since) for model in sorted(told)}
    return tuple(GonePast(model, facts.since, facts.why, len(told[model])) for model, facts in first.items())


def _counts(use: Use) -> tuple[int, int, int, int, int, int]:
    requests = use.ok + use.error + use.cancelled
    return requests, use.error, use.cancelled, use.prompt_tokens, use.completion_tokens, use.milliseconds


_NOTHING = _counts(Use())


def _instance_use(instance: str, use: Use, base: InstanceUse | None) -> InstanceUse:
    return InstanceUse(instance, *_counts(use), use.last_used, base)
