"""What makes a key run again: children, claims that a spec names, strangers that go, downloads that vanish."""

import asyncio
from typing import Any

import pytest
from aiohttp import web

from moorage import names
from moorage.control import progress
from moorage.control.apply import Applier
from moorage.control.children import Children
from moorage.control.fleet import GPUs
from moorage.control.gate import DownloadGate
from moorage.control.progress import ProgressPoller
from moorage.control.runner import Runner
from moorage.control.store import DOWNLOAD, MODEL, Key, Store
from moorage.kube.resources import CLAIMS, DEPLOYMENTS, JOBS, PODS
from moorage.manifests.common import stamped
from moorage.planning.types import Plan, Progress
from tests.support.beside import idle
from tests.support.eventually import eventually


class Desk:
    """A store and the mirrors of children over no cluster at all, and a list of who was woken."""

    def __init__(self) -> None:
        self.woken: list[Key] = []
        nothing: Any = None
        self.store = Store()
        self.children = Children(nothing, self.store, self.woken.append, lambda: None, GPUs())
        self._version = 0

    def put(self, kind: str, name: str, spec: dict[str, Any]) -> Key:
        self._version += 1
        meta = {"name": name, "namespace": "n", "uid": f"uid-{name}", "resourceVersion": str(self._version)}
        key = Key(kind, "n", name)
        self.store.put(key, {"apiVersion": names.API_VERSION, "kind": kind, "metadata": meta, "spec": spec})
        return key

    def appears(self, resource: Any, name: str, **rest: Any) -> None:
        meta = {"name": name, "namespace": "n", "uid": f"other-{name}"}
        self.children.mirrors[resource]._put(("n", name), {"metadata": meta, "spec": {}, **rest})

    def goes(self, resource: Any, name: str) -> None:
        self.children.mirrors[resource]._drop(("n", name))


@pytest.mark.parametrize(
    "spec",
    [{"source": {"persistentVolumeClaim": {"claimName": "mine"}}}, {"source": {}, "storage": {"claimName": "mine"}}],
)
def test_a_claim_that_a_download_names_wakes_it_when_it_appears(spec: dict[str, Any]):
    desk = Desk()
    key = desk.put(DOWNLOAD, "d", spec)
    desk.appears(CLAIMS, "mine")
    assert desk.woken == [key]


@pytest.mark.parametrize(("resource", "kind"), [(DEPLOYMENTS, MODEL), (JOBS, DOWNLOAD)])
def test_whoever_waits_for_a_name_hears_when_the_stranger_goes(resource: Any, kind: str):
    desk = Desk()
    key = desk.put(kind, "m", {"source": {}})
    desk.appears(resource, "m")
    desk.woken.clear()
    desk.goes(resource, "m")
    assert desk.woken == [key]


FILES = stamped(
    {
        "apiVersion": names.API_VERSION,
        "kind": "ModelDownload",
        "metadata": {"name": "files", "namespace": "n", "labels": {names.MANAGED_BY: "moorage"}},
        "spec": {"source": {}},
    }
)


class Server:
    """An API server that takes every apply."""

    def __init__(self) -> None:
        self.applied: list[dict[str, Any]] = []

    async def apply(self, manifest: dict[str, Any], *, force: bool = False) -> dict[str, Any]:
        self.applied.append(manifest)
        made = {"uid": f"uid-{len(self.applied)}", "resourceVersion": str(100 * len(self.applied))}
        return {**manifest, "metadata": {**manifest["metadata"], **made}}


async def test_a_download_that_is_deleted_right_after_it_was_made_is_made_again():
    desk, server = Desk(), Server()
    stub: Any = server
    applier = Applier(stub, desk.store, desk.children, stub)
    for _ in range(2):
        await applier.apply(Key(MODEL, "n", "m"), {}, Plan(apply=(FILES,)))
    assert len(server.applied) == 1, "it is known as soon as it is made"
    desk.store.drop(Key(DOWNLOAD, "n", "files"), 150)
    await applier.apply(Key(MODEL, "n", "m"), {}, Plan(apply=(FILES,)))
    assert len(server.applied) == 2


async def test_a_download_that_is_there_is_never_written_over():
    desk, server = Desk(), Server()
    stub: Any = server
    desk.put(DOWNLOAD, "files", {"source": {}, "priority": 7})
    await Applier(stub, desk.store, desk.children, stub).apply(Key(MODEL, "n", "m"), {}, Plan(apply=(FILES,)))
    assert server.applied == []


def test_a_place_that_was_not_taken_goes_to_the_next():
    woken: list[Key] = []
    gate = DownloadGate(1, lambda: (), woken.append)
    first, second = Key(DOWNLOAD, "n", "first"), Key(DOWNLOAD, "n", "second")
    assert gate.ahead(first, 0, "1") == 0
    assert gate.ahead(second, 0, "2") == 1
    gate.unused(first)
    assert woken == [second]
    assert gate.ahead(second, 0, "2") == 0


async def test_a_download_that_is_deleted_while_it_waits_leaves_the_queue():
    desk, running = Desk(), [Key(DOWNLOAD, "n", "runs")]
    gate = DownloadGate(1, lambda: running, desk.woken.append)
    nothing: Any = None
    runner = Runner(desk.store, desk.children, nothing, nothing, idle(desk.store, gate=gate))
    gone, waits = Key(DOWNLOAD, "n", "gone"), Key(DOWNLOAD, "n", "waits")
    assert gate.ahead(gone, 0, "1") == 1
    assert gate.ahead(waits, 0, "2") == 2
    await runner.handle(gone)
    running.clear()
    assert gate.ahead(waits, 0, "2") == 0, "nobody is before it any more"


async def test_progress_is_followed_through_a_silence(monkeypatch: pytest.MonkeyPatch):
    """A download that stalls says the same for a while, so that nothing asks for its progress again."""
    monkeypatch.setattr(progress, "PERIOD_SECONDS", 0.01)
    answers = {"done": 1}

    async def answer(_request: web.Request) -> web.Response:
        return web.json_response(answers)

    app = web.Application()
    app.add_routes([web.get("/progress", answer)])
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
    key = Key(DOWNLOAD, "n", "d")
    poller = ProgressPoller(lambda _key: None)
    poller.follow(key, Progress("pod", f"http://127.0.0.1:{port}/progress"))
    await eventually(lambda: poller.latest(key) == {"done": 1})
    await asyncio.sleep(0.1)
    answers["done"] = 2
    try:
        await eventually(lambda: poller.latest(key) == {"done": 2})
    finally:
        await poller.close()
        await runner.cleanup()


def test_children_listed_before_their_owners_are_found_whatever_the_name():
    """Mirrors are filled first at a start; a name with a dot is not its own label."""
    desk = Desk()
    name = "llama3.2-1b"
    labels = {names.MANAGED_BY: "moorage", names.MODEL_LABEL: names.dns_label(name), names.COMPONENT: "server"}
    meta = {"name": "p", "namespace": "n", "uid": "p", "labels": labels}
    desk.children.mirrors[PODS]._put(("n", "p"), {"metadata": meta, "spec": {}, "status": {"phase": "Running"}})
    key = desk.put(MODEL, name, {"source": {}})
    assert [p["uid"] for p in desk.children.of(PODS, key)] == ["p"]
    desk.woken.clear()
    desk.children.mirrors[PODS]._drop(("n", "p"))
    assert desk.woken == [key]
    assert list(desk.children.of(PODS, key)) == []


def served(claim: str) -> dict[str, Any]:
    """A Deployment of Model m that mounts `claim`."""
    labels = {names.MANAGED_BY: "moorage", names.MODEL_LABEL: "m"}
    volume = {"name": "models", "persistentVolumeClaim": {"claimName": claim}}
    pod = {"containers": [{"name": "engine", "image": "i"}], "volumes": [volume]}
    return {
        "metadata": {"name": "m", "namespace": "n", "uid": "d", "labels": labels},
        "spec": {"template": {"spec": pod}},
    }


def test_a_model_uses_the_files_it_serves_until_the_new_version_is_out():
    desk = Desk()
    desk.put(MODEL, "m", {"source": {}})
    old, new = desk.put(DOWNLOAD, "old", {"source": {}}), desk.put(DOWNLOAD, "new", {"source": {}})
    mirror = desk.children.mirrors[DEPLOYMENTS]
    mirror._put(("n", "m"), served("old"))
    assert list(desk.children.serving(("n", "old"))) == ["m"]
    desk.woken.clear()
    mirror._put(("n", "m"), served("new"))
    assert {old, new} <= set(desk.woken)
    assert list(desk.children.serving(("n", "old"))) == []
    assert list(desk.children.serving(("n", "new"))) == ["m"]
