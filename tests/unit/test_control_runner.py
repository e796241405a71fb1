"""One pass: what it writes where planning fails, and which object it writes to."""

from typing import Any

import pytest

from moorage import names
from moorage.control.apply import Applier
from moorage.control.runner import Runner
from moorage.control.store import ALIAS, MODEL, Key, Store
from moorage.errors import Conflict, MoorageError
from moorage.planning.types import Plan
from tests.support.beside import idle


class Server:
    """An API server that keeps one status and its version."""

    def __init__(self, version: int = 1) -> None:
        self.version, self.written = version, []

    async def apply_status(
        self, _resource: Any, _namespace: str, name: str, status: dict[str, Any], *, resource_version: str | None = None
    ) -> dict[str, Any]:
        if resource_version not in (None, str(self.version)):
            raise Conflict("the object has been modified", status=409)
        self.version += 1
        self.written.append(status)
        meta = {"name": name, "namespace": "n", "uid": "u", "resourceVersion": str(self.version), "generation": 1}
        return {"apiVersion": names.API_VERSION, "metadata": meta, "spec": {}, "status": status}


class Silent:
    """An event recorder that tells nobody."""

    def record(self, *_: Any) -> None:
        return None


class Broken:
    """An observer under which every planner fails."""

    def __getattr__(self, _name: str) -> Any:
        raise RuntimeError("a defect with a secret in it")


def desk(server: Server, observer: Any = None) -> tuple[Store, Runner, Applier]:
    stub: Any = server
    nothing: Any = None
    store = Store()
    events: Any = Silent()
    applier = Applier(stub, store, nothing, events)
    return store, Runner(store, nothing, observer, applier, idle(store)), applier


def put(store: Store, kind: str, version: int = 1) -> Key:
    key = Key(kind, "n", "m")
    meta = {"name": "m", "namespace": "n", "uid": "u", "resourceVersion": str(version), "generation": 1}
    store.put(key, {"apiVersion": names.API_VERSION, "kind": kind, "metadata": meta, "spec": {}})
    return key


@pytest.mark.parametrize("kind", [MODEL, ALIAS])
async def test_a_defect_of_ours_is_told_in_the_status_once_and_without_its_text(kind: str):
    server = Server()
    store, runner, _ = desk(server, Broken())
    key = put(store, kind)
    for _ in range(3):
        with pytest.raises(RuntimeError):
            await runner.handle(key)
    assert len(server.written) == 1
    stalled = next(c for c in server.written[0]["conditions"] if c["type"] == "Stalled")
    assert (stalled["status"], stalled["reason"]) == ("True", "InternalError")
    assert "RuntimeError" in stalled["message"]
    assert "secret" not in str(server.written[0])


async def test_a_decision_never_lands_on_an_object_it_was_not_made_about():
    server = Server(version=9)
    store, _, applier = desk(server)
    key = put(store, MODEL, version=1)
    owner = store.get(key)
    assert owner is not None
    with pytest.raises(MoorageError):
        await applier.apply(key, owner, Plan(status={"phase": "Ready"}))
    assert server.written == []
