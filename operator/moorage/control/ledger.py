"""What Models were promised and have to give, so that two passes never promise one thing twice.

Planning and noting happen in one step of the event loop, without a pause between them: that is the lock. All of it is
decided again after a restart; the places of the loaded come from their statuses.
"""

from collections import defaultdict
from collections.abc import Callable, Collection

from moorage.control.store import Key
from moorage.placement.inventory import Reservation


class Ledger:
    """The newest reservations of each Model, who is to sleep for whom, and who is loaded in each namespace.

    `wake(key)` is called for a Model that is to sleep, `freed()` when something was given back that others wait for.
    """

    def __init__(
        self, wake: Callable[[Key], None] = lambda _key: None, freed: Callable[[], None] = lambda: None
    ) -> None:
        self._wake, self._freed = wake, freed
        self._held: dict[Key, tuple[Reservation, ...]] = {}
        self._orders: dict[Key, frozenset[Key]] = {}  # for whom: who is to sleep
        self._loaded: dict[str, set[str]] = defaultdict(set)

    def hold(self, key: Key, reservations: tuple[Reservation, ...]) -> None:
        """Replace the GPUs that are held for pods of `key` that are still to come."""
        self._held.pop(key, None)
        if reservations:
            self._held[key] = reservations

    def nodes(self, key: Key) -> tuple[str, ...]:
        """Nodes on which something is held for `key`."""
        return tuple(sorted({r.node for r in self._held.get(key, ())}))

    def all(self) -> tuple[Reservation, ...]:
        """Everything that is held; a decision leaves out its own Model's."""
        return tuple(r for held in self._held.values() for r in held)

    def order(self, key: Key, victims: Collection[Key]) -> None:
        """Have `victims` sleep for `key`, and nobody else."""
        before = self._orders.pop(key, frozenset())
        if victims:
            self._orders[key] = frozenset(victims)
        for victim in set(victims) - before:
            self._wake(victim)

    def ordered_for(self, victim: Key) -> Key | None:
        """The Model that `victim` is to sleep for."""
        return next((key for key, victims in self._orders.items() if victim in victims), None)

    def load(self, key: Key, loaded: bool) -> None:
        """Note whether `key` takes a place among the loaded Models of its namespace."""
        names = self._loaded[key.namespace]
        if loaded:
            names.add(key.name)
        elif key.name in names:
            names.discard(key.name)
            self._freed()

    def is_loaded(self, key: Key) -> bool:
        """Whether `key` itself has a place; one for which others are still to sleep has none."""
        return key.name in self._loaded.get(key.namespace, set())

    def loaded(self, namespace: str) -> Collection[str]:
        """Names of the loaded Models of a namespace, and of those for which others are made to sleep right now."""
        coming = {key.name for key in self._orders if key.namespace == namespace}
        return self._loaded.get(namespace, set()) | coming

    def forget(self, key: Key) -> None:
        """Give back everything of a Model that is gone."""
        held = self._held.pop(key, ())
        self.order(key, ())
        self.load(key, False)
        if held:
            self._freed()
