"""What a refusal of the API server means: try again, or wait for a person."""

from typing import Any

import pytest

from moorage.control.apply import MIRRORED_SECONDS, Applier, Refused
from moorage.control.store import MODEL, Key, Store
from moorage.errors import Forbidden
from moorage.manifests.common import stamped
from moorage.planning.types import Plan, PlannedEvent

POD = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "m", "namespace": "n"}}
DEPLOYMENT = stamped(POD)
SERVICE = stamped({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "m", "namespace": "n"}})


class Refusing:
    """A client whose every apply is refused with `message`; also the mirror of children, which is empty."""

    def __init__(self, message: str) -> None:
        self.message = message

    async def apply(self, manifest: dict[str, Any], *, force: bool) -> dict[str, Any]:
        raise Forbidden(self.message, status=403, reason="Forbidden")

    def get(self, *_: Any) -> None:
        return None

    applied = get


async def refuse(message: str) -> None:
    stub: Any = Refusing(message)
    await Applier(stub, Store(), stub, stub).apply(Key(MODEL, "n", "m"), {}, Plan(apply=(SERVICE,)))


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ('services "m" is forbidden: exceeded quota: q, requested: services=1', "QuotaExceeded"),
        ('services "m" is forbidden: no RBAC policy matched', "Forbidden"),
    ],
)
async def test_a_refusal_for_good_is_told(message: str, reason: str):
    with pytest.raises(Refused) as told:
        await refuse(message)
    assert told.value.reason == reason


async def test_a_budget_that_is_refused_keeps_nothing_else_from_being_done():
    stub: Any = Refusing('poddisruptionbudgets "m" is forbidden: exceeded quota: q')
    budget = stamped({**SERVICE, "apiVersion": "policy/v1", "kind": "PodDisruptionBudget"})
    events: Any = Told()
    plan = Plan(apply=(budget,), events=(PlannedEvent("Normal", "Loaded", "serving"),))
    assert await Applier(stub, Store(), stub, events).apply(Key(MODEL, "n", "m"), {}, plan) is None
    assert events.told == ["Loaded"]


class Told:
    """An event recorder that remembers."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def record(self, _owner: Any, _type: str, reason: str, _message: str) -> None:
        self.told.append(reason)


async def test_what_could_not_be_done_is_not_told_as_an_event():
    stub: Any = Refusing("services is forbidden: exceeded quota: q")
    events: Any = Told()
    plan = Plan(apply=(SERVICE,), events=(PlannedEvent("Normal", "Loading", "loading"),))
    with pytest.raises(Refused):
        await Applier(stub, Store(), stub, events).apply(Key(MODEL, "n", "m"), {}, plan)
    assert events.told == []


class Taking(Refusing):
    """A client that takes everything and notes in which order."""

    def __init__(self) -> None:
        super().__init__("")
        self.taken: list[str] = []
        self.made: dict[Any, str] = {}

    async def apply(self, manifest: dict[str, Any], *, force: bool) -> dict[str, Any]:
        self.taken.append(manifest["kind"])
        return {**manifest, "metadata": {**manifest["metadata"], "uid": "u"}}

    async def apply_status(self, *_: Any, **__: Any) -> dict[str, Any]:
        self.taken.append("status")
        return {"metadata": {"name": "m", "namespace": "n", "uid": "u", "resourceVersion": "2"}}

    def remember(self, resource: Any, where: Any, wanted: str, _uid: str) -> None:
        self.made[resource, where] = wanted

    def applied(self, resource: Any, where: Any) -> str | None:
        return self.made.get((resource, where))


async def test_children_go_before_words_while_many_wait():
    stub: Any = Taking()
    events: Any = Told()
    crowd = [True]
    applier = Applier(stub, Store(), stub, events, lambda: crowd[0])
    owner = {"metadata": {"name": "m", "namespace": "n", "resourceVersion": "1"}}
    key, told = Key(MODEL, "n", "m"), (PlannedEvent("Normal", "Loading", "loading"),)
    plan = Plan(apply=(SERVICE,), status={"phase": "Loading"}, events=told)
    assert await applier.apply(key, owner, plan) == 0.0
    assert stub.taken == ["Service"]
    assert events.told == []
    assert await applier.apply(key, owner, Plan(status={"phase": "Loading"}, events=told)) is None, "nothing to make"
    assert stub.taken == ["Service", "status"]
    crowd[0] = False
    assert await applier.apply(key, owner, plan) is None


@pytest.mark.parametrize("wait", [True, False])
async def test_words_that_may_wait_are_written_with_what_the_mirror_shows(wait: bool):
    stub: Any = Taking()
    events: Any = Told()
    owner = {"metadata": {"name": "m", "namespace": "n", "resourceVersion": "1"}}
    told = (PlannedEvent("Normal", "Loading", "loading"),)
    plan = Plan(apply=(DEPLOYMENT, SERVICE), status={"phase": "Loading"}, events=told, words_wait=wait)
    applier, key = Applier(stub, Store(), stub, events), Key(MODEL, "n", "m")
    first = await applier.apply(key, owner, plan)
    assert first == (MIRRORED_SECONDS if wait else None)
    assert stub.taken == ["Deployment", "Service"] + ([] if wait else ["status"])
    assert events.told == ([] if wait else ["Loading"])
    assert await applier.apply(key, owner, plan) is None, "there was nothing more to make"
    assert stub.taken[2:] == ["status"] if wait else ["status", "status"]


async def test_pods_go_before_services_while_many_wait():
    """The API server makes Services one at a time; a worker that waits for one starts no other Model's pod."""
    stub: Any = Taking()
    applier = Applier(stub, Store(), stub, Told(), lambda: True)  # type: ignore[arg-type]
    owner = {"metadata": {"name": "m", "namespace": "n", "resourceVersion": "1"}}
    key, plan = Key(MODEL, "n", "m"), Plan(apply=(DEPLOYMENT, SERVICE), status={"phase": "Loading"})
    seen = []
    for _ in range(3):
        done = await applier.apply(key, owner, plan)
        seen.append((done, tuple(stub.taken)))
    assert seen == [
        (0.0, ("Deployment",)),
        (0.0, ("Deployment", "Service")),
        (None, ("Deployment", "Service", "status")),
    ]
