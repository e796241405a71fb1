"""GPUs promised to Models whose pods are not bound yet, so that two passes never promise one GPU twice.

Planning and reserving happen in one step of the event loop, without a pause between them: that is the lock.
"""

from moorage.control.store import Key
from moorage.placement.inventory import Reservation


class Ledger:
    """The newest reservations of each Model."""

    def __init__(self) -> None:
        self._held: dict[Key, tuple[Reservation, ...]] = {}

    def hold(self, key: Key, reservations: tuple[Reservation, ...]) -> bool:
        """Replace what is held for `key`; says whether something was given back that others may wait for."""
        before = self._held.pop(key, ())
        if reservations:
            self._held[key] = reservations
        return bool(set(before) - set(reservations))

    def nodes(self, key: Key) -> tuple[str, ...]:
        """Nodes on which something is held for `key`."""
        return tuple(sorted({r.node for r in self._held.get(key, ())}))

    def all(self) -> tuple[Reservation, ...]:
        """Everything that is held; a decision leaves out its own Model's."""
        return tuple(r for held in self._held.values() for r in held)
