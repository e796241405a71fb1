"""A bed for tests of the operator on a real API server: namespaces, ready downloads, and the operator itself."""

import asyncio
import contextlib
import json
import threading
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from moorage import names
from moorage.api.download import ModelDownload
from moorage.control.endpoints import ReportsPort
from moorage.control.kopf_app import run
from moorage.control.operator import Operator
from moorage.control.prober import FakeProber
from moorage.control.settings import Images, Settings, Sources
from moorage.control.usage import UsageBook
from moorage.errors import Forbidden
from moorage.kube.client import KubeClient
from moorage.kube.resources import (
    CLAIMS,
    EVENTS,
    MODEL_ALIASES,
    MODEL_DOWNLOADS,
    MODELS,
    NAMESPACES,
    PODS,
    RESOURCE_CLAIMS,
    SERVICE_ACCOUNTS,
    VOLUMES,
    Resource,
)
from moorage.planning.download import inputs_of
from tests.support.eventually import PATIENCE
from tests.support.upstream import Upstream

SETTINGS = Settings(
    images=Images(moorage="moorage:test", llama_cpp="llamacpp:test"),
    sources=Sources(hugging_face_endpoint="http://127.0.0.1:1", allow_private_hosts=True),
)


class OperatorThread:
    """The whole operator, kopf included, in a thread and event loop of its own.

    kopf cancels whatever tasks appear in its loop while it runs, so it must not share one with a test. Simulated nodes
    answer no HTTP, hence the fake prober.
    """

    def __init__(self, kubeconfig: Path, settings: Settings, reports: ReportsPort | None = None) -> None:
        self._kubeconfig, self._settings, self._reports = kubeconfig, settings, reports
        self._stop: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._operator: Operator | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._main, name="operator", daemon=True)

    @property
    def operator(self) -> Operator:
        assert self._operator is not None
        return self._operator

    def start(self) -> None:
        self._thread.start()
        deadline = time.monotonic() + PATIENCE
        while not (self._operator and self._operator.ready):
            assert self._thread.is_alive(), f"the operator ended: {self._error!r}"
            assert time.monotonic() < deadline, f"the operator did not get ready within {PATIENCE:g} s"
            time.sleep(0.01)

    def stop(self) -> None:
        assert self._loop is not None
        assert self._stop is not None
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), f"the operator did not stop within {PATIENCE:g} s"
        if self._error:
            raise RuntimeError("the operator failed") from self._error

    def _main(self) -> None:
        try:
            asyncio.run(self._run())
        except asyncio.CancelledError:
            pass  # how kopf ends
        except BaseException as error:
            self._error = error

    async def _run(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        window = self._settings.scaling.scale_down_after_seconds
        # A test's gateways report at once.
        usage = UsageBook(listen=0.5, shown=1.0, window=window) if self._reports else None
        parts = {"prober": FakeProber(), "usage": usage}
        self._operator = await Operator.connect(self._kubeconfig, self._settings, **parts)
        await run(self._operator, self._kubeconfig, None, self._stop, reports=self._reports)


@contextmanager
def running_operator(
    kubeconfig: Path, settings: Settings = SETTINGS, reports: ReportsPort | None = None
) -> Iterator[Operator]:
    """An operator that is ready and works until the block ends."""
    thread = OperatorThread(kubeconfig, settings, reports)
    thread.start()
    try:
        yield thread.operator
    finally:
        thread.stop()


class Bed:
    """One namespace of a test, with the verbs that tests need.

    Afterwards everything in it is deleted, and what another test could meet is gone: Models that its operator would
    write, pods and claims that hold GPUs.
    """

    def __init__(self, kube: KubeClient, namespace: str) -> None:
        self.kube, self.namespace = kube, namespace
        self._volumes: list[str] = []

    @classmethod
    @asynccontextmanager
    async def made(cls, kubeconfig: Path) -> AsyncIterator["Bed"]:
        async with await KubeClient.connect(kubeconfig, user_agent="test") as kube:
            name = f"t-{uuid.uuid4().hex[:8]}"
            await kube.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
            bed = cls(kube, name)
            try:
                await bed.until(SERVICE_ACCOUNTS, "default", bool)  # without it the API server takes no pod
                yield bed
            finally:
                await bed._clear(Upstream.read(kubeconfig))

    async def _clear(self, upstream: Upstream) -> None:
        await self.kube.delete(NAMESPACES, None, self.namespace)  # from now on nobody makes anything in it
        for resource in (MODEL_ALIASES, MODELS, MODEL_DOWNLOADS):
            for obj in (await self.kube.list(resource, self.namespace))[0]:
                with contextlib.suppress(Forbidden):  # an alias pointed at it a moment ago: it goes with the namespace
                    await self.kube.delete(resource, self.namespace, obj["metadata"]["name"])
        for volume in self._volumes:
            await self.kube.delete(VOLUMES, None, volume)
        async with upstream.session() as session:
            # By force, as pods on nodes that are gone by now would wait for a minute.
            pods = f"{upstream.server}{PODS.path(self.namespace)}?gracePeriodSeconds=0"

            async def cleared() -> bool:
                async with session.delete(pods) as answer:
                    answer.raise_for_status()
                return not await self._held()

            await self.eventually(cleared)

    async def _held(self) -> list[str]:
        """What is left of what an operator would look after, and of what takes a place on a node."""
        held = {MODELS: bool, MODEL_DOWNLOADS: bool, PODS: _is_bound, RESOURCE_CLAIMS: _is_allocated}
        return [
            obj["metadata"]["name"]
            for resource, holds in held.items()
            for obj in (await self.kube.list(resource, self.namespace))[0]
            if holds(obj)
        ]

    async def create(self, kind: str, name: str, spec: dict[str, Any], **meta: Any) -> dict[str, Any]:
        body = {"apiVersion": names.API_VERSION, "kind": kind, "metadata": {"name": name, **meta}, "spec": spec}
        body["metadata"]["namespace"] = self.namespace
        return await self.kube.apply(body, field_manager="person")

    async def model(self, name: str = "m", **spec: Any) -> dict[str, Any]:
        """A Model on the CPU that serves the ready download `files`, without a benchmark unless asked for."""
        spec.setdefault("source", {"downloadRef": {"name": "files"}})
        spec.setdefault("accelerator", {"vendor": "None"})
        spec.setdefault("benchmark", {"enabled": False})
        annotations = spec.pop("annotations", {})
        return await self.create("Model", name, spec, annotations=annotations)

    async def bound_claim(self, name: str = "files", mode: str = "ReadWriteMany") -> None:
        """A claim that is bound to a volume on a path that only simulated nodes would have."""
        volume = f"{self.namespace}-{name}"
        self._volumes.append(volume)
        size = {"storage": "10Gi"}
        reference = {"namespace": self.namespace, "name": name}
        await self.kube.create(
            {
                "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": volume},
                "spec": {"capacity": size, "accessModes": [mode], "hostPath": {"path": "/nowhere"},
                         "claimRef": reference, "persistentVolumeReclaimPolicy": "Delete", "storageClassName": ""},
            }
        )  # fmt: skip
        await self.kube.create(
            {
                "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": reference,
                "spec": {"accessModes": [mode], "resources": {"requests": size}, "volumeName": volume,
                         "storageClassName": ""},
            }
        )  # fmt: skip
        # Until the controller has bound it, the scheduler refuses every pod that mounts it.
        await self.until(CLAIMS, name, lambda claim: claim["status"].get("phase") == "Bound")

    async def ready_download(self, name: str = "files", mode: str = "ReadWriteMany") -> None:
        """A ModelDownload that has been Ready for a while, as an operator before us left it."""
        await self.bound_claim(name, mode)
        source = {"http": {"url": "https://example.com/tiny.gguf", "sha256": "a" * 64}}
        made = await self.create("ModelDownload", name, {"source": source, "storage": {"claimName": name}})
        await self.kube.apply_status(MODEL_DOWNLOADS, self.namespace, name, ready_status(made, name))

    async def get(self, resource: Resource, name: str) -> dict[str, Any]:
        return await self.kube.get(resource, self.namespace, name)

    async def until(self, resource: Resource, name: str, good: Any, timeout: float = PATIENCE) -> dict[str, Any]:
        """The object as soon as `good(object)` is true; fails with what it last looked like, and what is around it."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        while True:
            try:
                obj = await self.get(resource, name)
                if good(obj):
                    return obj
                last = json.dumps(obj.get("status", {}), indent=1)
            except Exception as error:
                last = repr(error)
            if loop.time() > deadline:
                what = f"{resource.plural}/{name} not as expected within {timeout:g} s"
                raise AssertionError(f"{what}: {last}\n{await self.scene()}")
            await asyncio.sleep(0.05)

    async def eventually(self, check: Callable[[], Awaitable[Any]], timeout: float = PATIENCE) -> Any:
        """What `check()` returns as soon as that is true; fails with what it returned last, and what is there."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        while not (found := await check()):
            if loop.time() > deadline:
                what = f"{check.__qualname__}: not within {timeout:g} s; last: {found!r}"
                raise AssertionError(f"{what}\n{await self.scene()}")
            await asyncio.sleep(0.05)
        return found

    async def scene(self) -> str:
        """What there is in the namespace, for whoever waited in vain: a line for each object, the last events."""
        try:
            return "\n".join([line async for line in self._scene()])
        except Exception as error:  # the API server may be what was waited for
            return repr(error)

    async def _scene(self) -> AsyncIterator[str]:
        for resource in (MODELS, MODEL_DOWNLOADS, MODEL_ALIASES):
            for obj in (await self.kube.list(resource, self.namespace))[0]:
                status = obj.get("status") or {}
                told = [
                    f"{c['type']}={c['status']} {c['reason']}: {c['message']}" for c in status.get("conditions", ())
                ]
                yield f"{resource.plural}/{obj['metadata']['name']} {status.get('phase', '')}: {'; '.join(told)}"
        for pod in (await self.kube.list(PODS, self.namespace))[0]:
            where, status = pod["spec"].get("nodeName", "no node"), pod.get("status") or {}
            ends = " (being deleted)" if "deletionTimestamp" in pod["metadata"] else ""
            why = condition(pod, "PodScheduled").get("message", "") if where == "no node" else ""
            yield f"pods/{pod['metadata']['name']}{ends} on {where}: {status.get('phase')} {why}"
        events, _ = await self.kube.list(EVENTS, self.namespace)
        events.sort(key=lambda e: e["metadata"]["creationTimestamp"])
        for event in events[-15:]:
            yield f"{event['involvedObject']['name']}: {event['reason']}: {event['message']}"

    async def until_condition(self, name: str, kind: str, status: str, reason: str = "", **kw: Any) -> dict[str, Any]:
        """The Model as soon as one condition has this status (and reason)."""

        def good(obj: dict[str, Any]) -> bool:
            found = condition(obj, kind)
            return found.get("status") == status and reason in ("", found.get("reason"))

        return await self.until(kw.pop("resource", MODELS), name, good, **kw)

    async def gone(self, resource: Resource, name: str, timeout: float = PATIENCE) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        while [o for o in (await self.kube.list(resource, self.namespace))[0] if o["metadata"]["name"] == name]:
            if loop.time() > deadline:
                raise AssertionError(
                    f"{resource.plural}/{name} is still there after {timeout:g} s\n{await self.scene()}"
                )
            await asyncio.sleep(0.05)


def _is_bound(pod: dict[str, Any]) -> bool:
    return bool(pod["spec"].get("nodeName"))


def _is_allocated(claim: dict[str, Any]) -> bool:
    return bool((claim.get("status") or {}).get("allocation"))


def condition(obj: dict[str, Any], kind: str) -> dict[str, Any]:
    found = (obj.get("status") or {}).get("conditions", ())
    return next((c for c in found if c["type"] == kind), {})


def ready_status(made: dict[str, Any], claim: str) -> dict[str, Any]:
    """The status of a finished ModelDownload, with the hash that the operator knows its spec by."""
    since = {"lastTransitionTime": "2026-01-01T00:00:00Z", "observedGeneration": 1}
    kinds = ("Resolved", "SpaceAvailable", "Downloaded", "Verified", "Ready")
    return {
        "phase": "Ready",
        "inputsHash": inputs_of(ModelDownload.read(made)),
        "conditions": [{"type": k, "status": "True", "reason": k, "message": "as before", **since} for k in kinds],
        "manifestDigest": "d",
        "resolvedRevision": "a" * 64,
        "claimName": claim,
        "path": "x/y",
        "files": {"total": 1, "done": 1},
        "bytes": {"total": 500_000, "done": 500_000},
        "facts": {"format": "GGUF", "mainFile": "tiny.gguf", "architecture": "llama", "contextLength": 4096},
    }
