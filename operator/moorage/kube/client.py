"""One request, one answer: the verbs of the Kubernetes API over plain dicts."""

import logging
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal, Self, TypeAlias

import aiohttp
import orjson

from moorage.errors import NotFound
from moorage.kube.errors import from_exception
from moorage.kube.resources import PODS, Resource, resource_of
from moorage.kube.session import Session, request_timeout, stream_timeout
from moorage.kube.watch import WatchEvent, event_batches
from moorage.names import FIELD_MANAGER

log = logging.getLogger(__name__)

Manifest: TypeAlias = dict[str, Any]
Manifests: TypeAlias = list[Manifest]
WatchEvents: TypeAlias = list[WatchEvent]

_APPLY = (
    "application/apply-patch+yaml"  # JSON is YAML: https://kubernetes.io/docs/reference/using-api/server-side-apply/
)
_MERGE_PATCH = "application/merge-patch+json"  # RFC 7386
_METADATA = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
_LIST_SECONDS = 60.0  # the API server's own limit
_WARNINGS_REMEMBERED = 200


class KubeClient:
    """Asks the API server. Use it as an async context manager, or `close()` it.

    Every method raises the ApiError tree of `moorage.errors`; none of them retries (the caller's queue does).
    `requests` counts what was sent by verb: get, list, watch, create, apply, patch, delete, logs.
    """

    def __init__(self, session: Session, timeout: float = 30.0) -> None:
        self._session = session
        self._timeout = timeout
        self._warned: set[str] = set()
        self.requests: Counter[str] = Counter()

    @classmethod
    async def connect(
        cls,
        kubeconfig: Path | None = None,
        context: str | None = None,
        *,
        user_agent: str | None = None,
        timeout: float = 30.0,
    ) -> Self:
        """Read the configuration (a kubeconfig, or the ServiceAccount of our own pod); sends nothing yet.

        `timeout` is for one answer, in seconds; a list's page has 60 s, a watch its own limits. Raises MoorageError
        where there is no usable configuration.
        """
        session = Session(kubeconfig, context, user_agent)
        await session.open()
        return cls(session, timeout)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close every connection."""
        await self._session.close()

    @property
    def namespace(self) -> str:
        """The namespace of the kubeconfig's context, or of our own pod."""
        return self._session.namespace

    async def get(self, resource: Resource, namespace: str | None, name: str) -> Manifest:
        """One object. NotFound if there is none."""
        return await self._send("get", "GET", resource.path(namespace, name))

    async def version(self, resource: Resource, namespace: str | None, name: str) -> str:
        """The resource version of one object, of which only the metadata is sent; empty where there is none."""
        try:
            body = await self._bytes("get", "GET", resource.path(namespace, name), accept=_METADATA)
        except NotFound:
            return ""
        return str(orjson.loads(body)["metadata"]["resourceVersion"])

    async def list(
        self,
        resource: Resource,
        namespace: str | None = None,
        label_selector: str | None = None,
        field_selector: str | None = None,
        limit: int = 500,
    ) -> tuple[Manifests, str]:
        """All objects and the resource version of the whole; for many large ones `pages` needs less memory."""
        items: Manifests = []
        resource_version = ""
        async for page in self.pages(resource, namespace, label_selector, field_selector, limit):
            items.extend(page[0])
            resource_version = page[1]
        return items, resource_version

    async def pages(
        self,
        resource: Resource,
        namespace: str | None = None,
        label_selector: str | None = None,
        field_selector: str | None = None,
        limit: int = 500,
    ) -> AsyncGenerator[tuple[Manifests, str], None]:
        """Pages of at most `limit` objects, all of one resource version, which comes with each page.

        Gone if it takes so long (5 minutes) that the API server forgot that version: start again.
        """
        params = _selection(label_selector, field_selector)
        params["limit"] = str(limit)
        while True:
            answer = await self._send("list", "GET", resource.path(namespace), params=params, seconds=_LIST_SECONDS)
            meta = answer["metadata"]
            items: Manifests = answer.pop("items") or []
            del answer
            for item in items:  # built-in kinds come without these two in a list, but with them in a watch
                item.setdefault("apiVersion", resource.api_version)
                item.setdefault("kind", resource.kind)
            yield items, meta["resourceVersion"]
            if not meta.get("continue"):
                return
            params["continue"] = meta["continue"]

    @asynccontextmanager
    async def watch(
        self,
        resource: Resource,
        namespace: str | None = None,
        *,
        resource_version: str,
        label_selector: str | None = None,
        field_selector: str | None = None,
        seconds: int = 300,
        silence_seconds: float = 75.0,
    ) -> AsyncIterator[AsyncIterator[WatchEvents]]:
        """What changes after `resource_version`, bookmarks included, as batches of what had arrived together.

        The server ends it after `seconds`; silence for longer than `silence_seconds` or a broken connection is
        Unavailable; a version that the server has forgotten is Gone. `requests["watch"]` counts the opened streams.
        """
        params = _selection(label_selector, field_selector) | {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": resource_version,
            "timeoutSeconds": str(seconds),
        }
        self.requests["watch"] += 1
        path = resource.path(namespace)
        async with self._session.request("GET", path, params=params, timeout=stream_timeout(silence_seconds)) as answer:
            yield event_batches(answer.content.iter_any())

    async def apply(
        self,
        manifest: Mapping[str, Any],
        *,
        force: bool = False,
        field_manager: str = FIELD_MANAGER,
        dry_run: bool = False,
    ) -> Manifest:
        """Server-side apply: make or change the object so that it has these fields.

        Conflict, with the managers and their fields in its message, where another manager owns one and not `force`.
        """
        meta = manifest["metadata"]
        path = resource_of(manifest).path(meta.get("namespace"), meta["name"])
        params = {"fieldManager": field_manager, "force": _flag(force)} | ({"dryRun": "All"} if dry_run else {})
        return await self._send("apply", "PATCH", path, params=params, body=manifest, content_type=_APPLY)

    async def apply_status(
        self,
        resource: Resource,
        namespace: str | None,
        name: str,
        status: Mapping[str, Any],
        *,
        resource_version: str | None = None,
    ) -> Manifest:
        """Make `status` the status of the object: fields we wrote earlier and leave out now are removed.

        Only the status subresource is written, never metadata or spec; an object that is gone is NotFound and not
        made again. With `resource_version`, Conflict if the object is not that version any more, so that what was
        decided about one object never lands on another of the same name (a uid would not do: the server ignores it here
        on custom resources, tried on 1.36). The status must not be empty: the server would read null, and refuse.
        """
        meta = {"name": name} | ({"namespace": namespace} if namespace else {})
        meta |= {"resourceVersion": resource_version} if resource_version else {}
        body = {"apiVersion": resource.api_version, "kind": resource.kind, "metadata": meta, "status": status}
        params = {"fieldManager": FIELD_MANAGER, "force": "true"}
        path = resource.path(namespace, name, "status")
        return await self._send("apply", "PATCH", path, params=params, body=body, content_type=_APPLY)

    async def create(self, manifest: Mapping[str, Any]) -> Manifest:
        """Make an object (`generateName` allowed). Conflict, reason AlreadyExists, if the name is taken."""
        path = resource_of(manifest).path(manifest["metadata"].get("namespace"))
        return await self._send("create", "POST", path, params={"fieldManager": FIELD_MANAGER}, body=manifest)

    async def merge_patch(
        self,
        resource: Resource,
        namespace: str | None,
        name: str,
        patch: Mapping[str, Any],
        subresource: str | None = None,
        field_manager: str = FIELD_MANAGER,
    ) -> Manifest:
        """JSON merge patch (RFC 7386): null removes a key, a list replaces the whole list.

        Conflict where `patch` has a `metadata.resourceVersion` and the object has changed since.
        """
        path = resource.path(namespace, name, subresource)
        params = {"fieldManager": field_manager}
        return await self._send("patch", "PATCH", path, params=params, body=patch, content_type=_MERGE_PATCH)

    async def delete(
        self,
        resource: Resource,
        namespace: str | None,
        name: str,
        *,
        uid: str | None = None,
        propagation: Literal["Background", "Foreground", "Orphan"] = "Background",
    ) -> bool:
        """Delete an object; False if it was gone already. Conflict if it is not the one with this `uid`."""
        options: Manifest = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": propagation}
        if uid:
            options["preconditions"] = {"uid": uid}
        try:
            await self._send("delete", "DELETE", resource.path(namespace, name), body=options)
        except NotFound:
            return False
        return True

    async def pod_logs(
        self,
        namespace: str,
        name: str,
        container: str | None = None,
        *,
        tail_lines: int = 20,
        previous: bool = False,
        limit_bytes: int = 16384,
    ) -> str:
        """The last lines a container wrote; `previous`: before its last restart. Invalid if there are none yet."""
        params = {"tailLines": str(tail_lines), "limitBytes": str(limit_bytes), "previous": _flag(previous)}
        if container:
            params["container"] = container
        body = await self._bytes("logs", "GET", PODS.path(namespace, name, "log"), params=params)
        return body.decode(errors="replace")

    async def _send(self, verb: str, method: str, path: str, **options: Any) -> Manifest:
        body = await self._bytes(verb, method, path, **options)
        try:
            answer: Manifest = orjson.loads(body)
        except ValueError as error:
            raise from_exception(error, f"{method} {path}") from error
        return answer

    async def _bytes(
        self,
        verb: str,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        content_type: str = "application/json",
        accept: str = "application/json",
        seconds: float | None = None,
    ) -> bytes:
        self.requests[verb] += 1
        data = orjson.dumps(body) if body is not None else None
        timeout = request_timeout(seconds or self._timeout)
        async with self._session.request(
            method, path, timeout=timeout, params=params, body=data, content_type=content_type, accept=accept
        ) as answer:
            self._tell_warnings(answer, path)
            return await answer.read()

    def _tell_warnings(self, answer: aiohttp.ClientResponse, path: str) -> None:
        """Deprecated versions and fields that the schema does not know come as headers; each text is logged once."""
        if "Warning" not in answer.headers:
            return
        for text in answer.headers.getall("Warning"):
            if text not in self._warned and len(self._warned) < _WARNINGS_REMEMBERED:
                self._warned.add(text)
                log.warning("the API server warns about %s: %s", path, text)


def _selection(label_selector: str | None, field_selector: str | None) -> dict[str, str]:
    params = {"labelSelector": label_selector, "fieldSelector": field_selector}
    return {key: value for key, value in params.items() if value}


def _flag(value: bool) -> str:
    return "true" if value else "false"
