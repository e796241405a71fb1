"""The smallest changes to a Model that would give it a place, each proven by deciding again with it.

What a change costs in memory is for the caller to say (sizing is another room): `need` gets the changed settings and
returns the candidates, or None where the engine cannot run with them.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from moorage.placement.decide import decide
from moorage.placement.inventory import Inventory, Reservation
from moorage.placement.preempt import smallest_sleep
from moorage.placement.request import Candidate, Decision, Request

Settings = Mapping[str, str | int]
"""Fields of a Model's spec that change, by their path below `spec`, with their new values."""
Need = Callable[[Settings], Sequence[Candidate] | None]

CONTEXT, SEQUENCES, CACHE = "contextLength", "maxSequences", "kvCacheType"
QUANTIZATION, COUNT = "source.huggingFace.quantization", "accelerator.count"
CONTEXT_STEP = 512
SLEEP = "replicas: 0 of "
"""How a change begins that is one of other Models, not of this one."""
BY_FILE_SIZE = "; the need is Bounded, by the size of the file"
MOST = 8


@dataclass(frozen=True)
class Space:
    """What may change: the present value and what it may become.

    cache_types     from the least to the greatest loss, none larger than the present one
    quantizations   each smaller than the one before, all smaller than the present one
    counts          numbers of GPUs that a fixed accelerator.count could become instead
    """

    context_length: int
    least_context_length: int = CONTEXT_STEP
    max_sequences: int = 1
    cache_types: tuple[str, ...] = ()
    quantizations: tuple[str, ...] = ()
    counts: tuple[int, ...] = ()


@dataclass(frozen=True)
class Remedy:
    """A change (`contextLength: 6144`), and where the Model would go with it."""

    change: str
    effect: str


def remedies(
    request: Request,
    inventory: Inventory,
    reservations: Iterable[Reservation],
    *,
    need: Need,
    space: Space,
) -> tuple[Remedy, ...]:
    """Changes that would help, one of each kind, the least harmful first; pairs only where no single change does.

    Nothing is said of a Model that has a place, and a change that would only make it wait is none.
    """
    trial = _Trial(request, inventory, tuple(reservations), need)
    if trial.decide({}) is not None:
        return ()
    found = [
        made for search in (_counts, _sequences, _caches, _contexts, _quantizations) for made in search(trial, space)
    ]
    return tuple(found or _pairs(trial, space))[:MOST]


def sleep(
    request: Request, inventory: Inventory, reservations: Iterable[Reservation], groups: Iterable[Mapping[str, str]]
) -> Remedy | None:
    """The fewest other Models whose sleep would give the Model a place, proven with them asleep.

    `groups` are tried in order and hold what people call each Model by its name as a holder of GPUs.
    """
    asked, promises = replace(request, replicas=1), tuple(reservations)
    for group in groups:
        owners = smallest_sleep(asked, inventory, promises, group) if group else ()
        decision = decide(asked, inventory.without(owners), promises) if owners else None
        if decision is not None and decision.placed:
            return Remedy(f"{SLEEP}{', '.join(group[owner] for owner in owners)}", decision.message)
    return None


@dataclass(frozen=True)
class _Trial:
    """Decides again with changed settings."""

    request: Request
    inventory: Inventory
    reservations: tuple[Reservation, ...]
    need: Need

    def decide(self, settings: Settings) -> Decision | None:
        """The decision with the change, where it places the Model now."""
        candidates = self.need(settings)
        if candidates is None:
            return None
        changed = replace(self.request, candidates=tuple(candidates), replicas=1)
        if COUNT in settings:
            changed = replace(changed, count=int(settings[COUNT]))
        decision = decide(changed, self.inventory, self.reservations)
        return decision if decision.placed else None

    def remedy(self, settings: Settings) -> Iterator[Remedy]:
        """The change as a remedy if it helps."""
        decision = self.decide(settings)
        if decision is not None:
            how = BY_FILE_SIZE if QUANTIZATION in settings else ""
            yield Remedy(", ".join(f"{path}: {value}" for path, value in settings.items()), decision.message + how)


def _first(made: Iterable[Remedy]) -> Iterator[Remedy]:
    """The first of several remedies of one kind, which is the least harmful."""
    for remedy in made:
        yield remedy
        return


def _counts(trial: _Trial, space: Space) -> Iterator[Remedy]:
    return _first(remedy for count in space.counts for remedy in trial.remedy({COUNT: count}))


def _sequences(trial: _Trial, space: Space) -> Iterator[Remedy]:
    most = _largest(trial, {}, SEQUENCES, 1, space.max_sequences - 1, 1)
    return trial.remedy({SEQUENCES: most}) if most else iter(())


def _caches(trial: _Trial, space: Space) -> Iterator[Remedy]:
    return _first(remedy for kind in space.cache_types for remedy in trial.remedy({CACHE: kind}))


def _contexts(trial: _Trial, space: Space) -> Iterator[Remedy]:
    return _with_context(trial, {}, space)


def _quantizations(trial: _Trial, space: Space) -> Iterator[Remedy]:
    kind = _largest_quantization(trial, space, {})
    return trial.remedy({QUANTIZATION: kind}) if kind else iter(())


def _largest_quantization(trial: _Trial, space: Space, others: Settings) -> str:
    """The largest one that helps together with `others`, empty for none: a repository may have thirty of them."""
    kinds = space.quantizations

    def helps(kind: str) -> bool:
        return trial.decide({QUANTIZATION: kind, **others}) is not None

    found = bisect_left(range(len(kinds)), True, key=lambda at: helps(kinds[at]))
    return kinds[found] if found < len(kinds) else ""


def _pairs(trial: _Trial, space: Space) -> Iterator[Remedy]:
    """A shorter context together with the next best other change."""
    others: list[Settings] = [{CACHE: kind} for kind in space.cache_types]
    others += [{SEQUENCES: 1}] if space.max_sequences > 1 else []
    kind = _largest_quantization(trial, space, {CONTEXT: max(space.least_context_length, CONTEXT_STEP)})
    others += [{QUANTIZATION: kind}] if kind else []
    return _first(remedy for other in others for remedy in _with_context(trial, other, space))


def _with_context(trial: _Trial, others: Settings, space: Space) -> Iterator[Remedy]:
    """The longest shorter context that helps together with `others`."""
    longest = (space.context_length - 1) // CONTEXT_STEP
    found = _largest(trial, others, CONTEXT, -(-space.least_context_length // CONTEXT_STEP), longest, CONTEXT_STEP)
    return trial.remedy({**others, CONTEXT: found * CONTEXT_STEP}) if found else iter(())


def _largest(trial: _Trial, others: Settings, path: str, least: int, most: int, unit: int) -> int:
    """The largest multiple of `unit` (from `least` to `most` units) that helps, 0 for none; a larger one needs more."""
    if most < least or trial.decide({**others, path: least * unit}) is None:
        return 0
    while least < most:
        middle = (least + most + 1) // 2
        if trial.decide({**others, path: middle * unit}) is not None:
            least = middle
        else:
            most = middle - 1
    return least
