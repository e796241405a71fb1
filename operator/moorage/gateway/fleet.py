"""Who serves now, how busy they are, and who waits: the state of the run that a routing table does not hold.

A Model's waiters are in the order they came. A slot that gets free goes to the first of them, and nobody new passes
them, so a cold engine is never sent more than it can serve at once.
"""

import time
from collections.abc import Callable, Iterable
from typing import Protocol

from moorage.gateway.demand import Demand
from moorage.gateway.routes import Model, Snapshot, Target
from moorage.gateway.upstream import Call, Receiver


class Endpoint(Protocol):
    """One engine's address. `outstanding` is how many requests it has now."""

    address: str
    outstanding: int
    avoid_until: float  # monotonic seconds

    def head(self, path: bytes) -> bytes:
        """How a request for `path` begins: request line, host and content type."""

    def call(self, head: bytes, body: bytes, receiver: Receiver, now: float, *, fresh: bool = False) -> Call:
        """See upstream.EngineEndpoint. Nothing is called back at once."""

    def close_idle(self) -> None:
        """Close connections that have been idle for too long."""

    def retire(self) -> None:
        """No new request will come: close what is idle, and the rest as it ends."""


class Waiter(Protocol):
    """A request that waits for a slot."""

    def granted(self, pool: "ModelPool", endpoint: Endpoint) -> None:
        """A slot is taken for this waiter, which has left all queues."""

    def reroute(self, snapshot: Snapshot) -> None:
        """The table changed; the waiter has left all queues and looks again where it can go."""


class ModelPool:
    """The endpoints of one Model and the requests that wait for it."""

    __slots__ = ("_turn", "endpoints", "max_in_flight", "model", "name", "waiters")

    def __init__(self, name: str) -> None:
        self.name = name
        self.endpoints: list[Endpoint] = []
        self.max_in_flight = 0
        self.model: Model | None = None  # that all this follows from
        self.waiters: dict[Waiter, None] = {}
        self._turn = 0

    def take(self, tried: Iterable[Endpoint] = ()) -> Endpoint | None:
        """A slot at the least busy endpoint, if possible at one not `tried`; None: there are none, or all are busy."""
        endpoints = self.endpoints
        if len(endpoints) == 1:
            best = endpoints[0]
            if self.max_in_flight and best.outstanding >= self.max_in_flight:
                return None
            best.outstanding += 1
            return best
        free = [e for e in endpoints if not self.max_in_flight or e.outstanding < self.max_in_flight]
        if not free:
            return None
        # Equals take turns; one that could not be reached a moment ago comes after all that were.
        self._turn += 1
        start = self._turn % len(free)
        now = time.monotonic()
        best = min(free[start:] + free[:start], key=lambda e: (e in tried, e.avoid_until > now, e.outstanding))
        best.outstanding += 1
        return best

    @property
    def in_flight(self) -> int:
        """Requests at all endpoints."""
        return sum(endpoint.outstanding for endpoint in self.endpoints)


class Fleet:
    """All Models' pools, kept in step with the routing table."""

    def __init__(self, connect: Callable[[str], Endpoint], demand: Demand) -> None:
        self.pools: dict[str, ModelPool] = {}
        self.pending: dict[str, int] = {}  # waiters by the name they asked for
        self._connect = connect
        self._demand = demand
        self._waiting: dict[Waiter, tuple[str, tuple[ModelPool, ...]]] = {}

    @property
    def held(self) -> int:
        """Requests that wait now."""
        return len(self._waiting)

    def apply(self, snapshot: Snapshot) -> None:
        """Bring the pools in step with `snapshot`, then let every waiter look again, in the order they came.

        An address that stays keeps its connections and its count; one that goes serves what it has to the end.
        """
        for name in [name for name in self.pools if name not in snapshot.models]:
            self._set_endpoints(self.pools.pop(name), ())
        for name, model in snapshot.models.items():
            pool = self.pools.get(name)
            if pool is None:
                pool = self.pools[name] = ModelPool(name)
            if pool.model is not model:  # of thousands few have changed
                pool.model = model
                pool.max_in_flight = model.max_in_flight
                self._set_endpoints(pool, model.endpoints)
        waiters = list(self._waiting)
        for waiter in waiters:
            self.leave(waiter)
        for waiter in waiters:
            waiter.reroute(snapshot)

    def wait(self, waiter: Waiter, name: str, pools: tuple[ModelPool, ...]) -> None:
        """Queue `waiter`, who asked for `name`, at every pool that could serve it."""
        self._waiting[waiter] = (name, pools)
        self.pending[name] = self.pending.get(name, 0) + 1
        self._demand.wait(pools[0].name, 1)
        for pool in pools:
            pool.waiters[waiter] = None

    def leave(self, waiter: Waiter) -> None:
        """Take `waiter` out of all queues; nothing where it is in none."""
        name, pools = self._waiting.pop(waiter, ("", ()))
        if not pools:
            return
        self._demand.wait(pools[0].name, -1)
        for pool in pools:
            pool.waiters.pop(waiter, None)
        self.pending[name] -= 1
        if not self.pending[name]:
            del self.pending[name]

    def stand_in(
        self, fallbacks: Iterable[Target], tried: Iterable[Endpoint]
    ) -> tuple[Target, ModelPool, Endpoint] | None:
        """A slot at the first fallback that is awake and has one, for a request whose target cannot be reached.

        A node that dies leaves endpoints for the 40 s in which nobody knows of it.
        """
        for choice in fallbacks:
            pool = self.pools.get(
                choice.model.name
            )  # none of a Model that went while its alias' request was on its way
            if pool is not None and not pool.waiters and (endpoint := pool.take(tried)) is not None:
                if endpoint not in tried:
                    return choice, pool, endpoint
                endpoint.outstanding -= 1
        return None

    def release(self, pool: ModelPool, endpoint: Endpoint) -> None:
        """Give a slot back, and hand out what is free now."""
        endpoint.outstanding -= 1
        if pool.waiters:
            self.grant(pool)

    def grant(self, pool: ModelPool) -> None:
        """Give free slots to the first waiters."""
        while pool.waiters and (endpoint := pool.take()) is not None:
            waiter = next(iter(pool.waiters))
            self.leave(waiter)
            waiter.granted(pool, endpoint)

    def close_idle(self) -> None:
        """Close connections that have been idle for too long."""
        for pool in self.pools.values():
            for endpoint in pool.endpoints:
                endpoint.close_idle()

    def close(self) -> None:
        """Close every idle connection."""
        for pool in self.pools.values():
            self._set_endpoints(pool, ())

    def _set_endpoints(self, pool: ModelPool, addresses: tuple[str, ...]) -> None:
        known = {endpoint.address: endpoint for endpoint in pool.endpoints}
        pool.endpoints = [known.pop(a) if a in known else self._connect(a) for a in addresses]
        for gone in known.values():
            gone.retire()
