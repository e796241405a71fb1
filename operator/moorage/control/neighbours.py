"""Gathers what a Model without room sees of the others: only then, and only of those that matter."""

from collections.abc import Iterable, Iterator

from moorage.control.store import MODEL, Key, Store
from moorage.control.usage import UsageBook
from moorage.placement.inventory import Inventory
from moorage.planning import model_place
from moorage.planning.neighbours import Around, Neighbour, neighbour_of

LONGEST_CHAIN = 64


class Neighbours:
    """Projections of Models, kept as long as the objects do not change: parsing thousands for each look is too slow."""

    def __init__(self, store: Store, usage: UsageBook) -> None:
        self._store, self._usage = store, usage
        self._known: dict[Key, tuple[int, Neighbour]] = {}

    def around(self, key: Key, inventory: Inventory, loaded: Iterable[str]) -> Around:
        """What is around `key`: who holds GPUs, the Models `loaded` in its namespace, and whom it made room for."""
        holders = {holder for held in inventory.held.values() for holder in held if not holder.startswith("pod ")}
        owners = holders | {owner_of(Key(MODEL, key.namespace, name)) for name in loaded}
        history = tuple(self._history(key))
        owners |= {whom for _, whom, _ in history}
        owners.discard(owner_of(key))
        found = tuple(self._neighbour(owner) for owner in sorted(owners))
        history += tuple((n.owner, n.preempted_for, n.preempted_at) for n in found if n.preempted_for)
        activity = {n.owner: self._usage.activity(known) for n in found if n.desired and (known := self._key(n.owner))}
        return Around(found, activity, history)

    def _history(self, key: Key) -> Iterator[tuple[str, str, int]]:
        """For whom `key` made room, and for whom that one did, and so on."""
        owner = owner_of(key)
        for _ in range(LONGEST_CHAIN):
            record = self._neighbour(owner)
            if not record.preempted_for:
                return
            yield owner, record.preempted_for, record.preempted_at
            owner = record.preempted_for

    def _neighbour(self, owner: str) -> Neighbour:
        """One Model; of one that is gone or does not parse nothing is wanted any more."""
        key = self._key(owner)
        version = self._store.version(key) if key else None
        if key is None or version is None:
            return Neighbour(owner)
        known = self._known.get(key)
        if known is None or known[0] != version:
            try:
                projected = neighbour_of(self._store.get(key) or {}, owner)
            except (ValueError, TypeError, KeyError):
                projected = Neighbour(owner, desired=1)
            known = self._known[key] = (version, projected)
        return known[1]

    def _key(self, owner: str) -> Key | None:
        namespace, _, label = owner.partition("/")
        return self._store.by_label(MODEL, namespace, label)

    def forget(self, key: Key) -> None:
        """Drop the projection of a Model that is gone."""
        self._known.pop(key, None)


def owner_of(key: Key) -> str:
    """A Model as reservations and holders of GPUs name it."""
    return model_place.owner_of(key.namespace, key.name)
