"""Who serves, and who waits: load, order, and counts that come back to zero."""

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from moorage.gateway.demand import Demand
from moorage.gateway.fleet import Fleet
from moorage.gateway.routes import Model, Snapshot


@dataclass(eq=False)
class FakeEndpoint:
    address: str
    outstanding: int = 0
    avoid_until: float = 0.0
    host_header: bytes = b""
    retired: bool = False

    def retire(self):
        self.retired = True

    def close_idle(self): ...

    def call(self, *_, **__): ...


@dataclass(eq=False)
class FakeWaiter:
    number: int
    fleet: Fleet
    order: list = field(default_factory=list)
    slot: tuple | None = None

    def granted(self, pool, endpoint):
        self.slot = pool, endpoint
        self.order.append(self.number)

    def reroute(self, snapshot):
        pool = self.fleet.pools["m"]
        endpoint = None if pool.waiters else pool.take()
        if endpoint is None:
            self.fleet.wait(self, "m", (pool,))
        else:
            self.granted(pool, endpoint)


def fleet_of(*addresses: str, limit: int = 0) -> Fleet:
    fleet = Fleet(FakeEndpoint, Demand())
    apply(fleet, *addresses, limit=limit)
    return fleet


def apply(fleet: Fleet, *addresses: str, limit: int = 0) -> None:
    fleet.apply(Snapshot.build([Model("m", endpoints=addresses, max_in_flight=limit)]))


def test_the_least_busy_endpoint_is_taken_and_equals_take_turns():
    pool = fleet_of("a", "b", "c").pools["m"]
    assert sorted(pool.take().address for _ in range(6)) == ["a", "a", "b", "b", "c", "c"]
    pool.endpoints[1].outstanding = 0
    assert [pool.take().address for _ in range(2)] == ["b", "b"]
    firsts = set()
    for _ in range(3):
        taken = pool.take()
        firsts.add(taken.address)
        taken.outstanding -= 1
    assert len(firsts) == 3


def test_an_endpoint_that_was_tried_or_failed_comes_last():
    pool = fleet_of("a", "b", "c").pools["m"]
    a, b, c = pool.endpoints
    a.outstanding, b.avoid_until = 5, 1e12
    assert pool.take([c]) is a
    assert pool.take([a, c]) is b
    assert pool.take([a, b, c]).address in "abc"


def test_a_limit_holds_for_one_endpoint_and_for_many():
    for addresses in (("a",), ("a", "b")):
        pool = fleet_of(*addresses, limit=2).pools["m"]
        assert sum(pool.take() is not None for _ in range(9)) == 2 * len(addresses)
    assert fleet_of().pools["m"].take() is None


def test_what_stays_keeps_its_count_and_what_goes_is_retired():
    fleet = fleet_of("a", "b")
    a, b = fleet.pools["m"].endpoints
    a.outstanding = 3
    apply(fleet, "c", "a")
    assert fleet.pools["m"].endpoints[1] is a
    assert (a.retired, b.retired, a.outstanding) == (False, True, 3)
    fleet.apply(Snapshot.build([]))
    assert a.retired


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 3),
    st.lists(st.sampled_from(["arrive", "finish", "leave", "table", "sleep", "wake"]), max_size=60),
)
def test_slots_are_never_overdrawn_and_the_order_is_kept(limit, steps):
    fleet, order, number = fleet_of("a", "b", limit=limit), [], 0
    running: list[FakeWaiter] = []
    waiting: list[FakeWaiter] = []
    addresses = ("a", "b")
    for step in steps:
        if step == "arrive":
            number += 1
            waiter = FakeWaiter(number, fleet, order)
            waiting.append(waiter)
            waiter.reroute(None)
        elif step == "finish" and running:
            fleet.release(*running.pop(0).slot)
        elif step == "leave" and waiting:
            fleet.leave(waiting.pop())
        elif step in ("table", "sleep", "wake"):
            addresses = {"table": addresses, "sleep": (), "wake": ("a", "b")}[step]
            apply(fleet, *addresses, limit=limit)
        running += [waiter for waiter in waiting if waiter.slot]
        waiting = [waiter for waiter in waiting if not waiter.slot]
        pool = fleet.pools["m"]
        assert all(0 <= endpoint.outstanding <= limit for endpoint in pool.endpoints)
        assert fleet.held == len(waiting) == fleet.pending.get("m", 0) == len(pool.waiters)
        assert not waiting or pool.take() is None, "nobody waits while there is a slot"
        assert fleet._demand.wanted("m").pending == len(waiting)
    assert order == sorted(order), "first come, first served"
