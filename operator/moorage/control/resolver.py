"""Answers "what is this source?": commit, files and header facts, from the hub or URL that a spec names."""

import base64
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any
from urllib.parse import unquote, urlsplit

from moorage import names
from moorage.engines.facts import broken, expected_reads, read_facts
from moorage.errors import ApiError, NotFound, SourceError
from moorage.hub import HubClient
from moorage.hub.ahead import Ahead
from moorage.kube.client import KubeClient
from moorage.kube.resources import CONFIG_MAPS, SECRETS
from moorage.planning.types import Defaults
from moorage.sizing.errors import HeaderError
from moorage.sizing.reading import Want, drive_async
from moorage.sources import Access, Quantization, RepoFile, Repository, Selection, formats, quantizations, select
from moorage.sources.access import parse_headers
from moorage.sources.choice import MAX_FILES, needed
from moorage.sources.urls import without_query

Facts = dict[str, Any]
_REMEMBERED = 256


class Resolver:
    """Resolves sources; Secrets and ConfigMaps are read by name and never kept."""

    def __init__(self, kube: KubeClient, hub: HubClient, defaults: Defaults) -> None:
        self._kube, self._hub, self._defaults = kube, hub, defaults
        self._pinned: OrderedDict[str, Facts] = OrderedDict()

    async def resolve(self, namespace: str, source: dict[str, Any], files: tuple[str, ...]) -> Facts:
        """`{commit, url, files: [{path, sizeBytes, sha256}], selected, facts}` of a huggingFace or http `source`.

        Of the former `license` too. `selected` tells that the files are a choice out of more. Raises SourceError with
        the reason for status.
        """
        if "http" in source:
            return await self._url(namespace, source["http"])
        spec = source["huggingFace"]
        known = self._pinned.get(_pin(namespace, spec, spec.get("revision", "main"), files))
        return known or await self._repository(namespace, spec, files)

    async def _repository(self, namespace: str, spec: dict[str, Any], files: tuple[str, ...]) -> Facts:
        endpoint = spec.get("endpoint") or self._defaults.huggingface_endpoint
        repository = Repository(spec["repo"], spec.get("revision", "main"), endpoint)
        access = await self._access(namespace, spec.get("tokenSecretRef"), spec.get("caBundleRef"))
        commit, stated = await self._hub.describe(repository, access)
        available = await self._hub.tree(repository, commit, access)
        chosen, selected = _choose(available, spec, files)
        others = [] if files else _quantizations(available, spec, chosen)
        facts = await self._header(
            chosen, access, lambda path: repository.file_url(commit, path), f"{repository.repo} on {endpoint}"
        )
        url = f"{endpoint.rstrip('/')}/{repository.repo}/tree/{commit}"
        found = {
            "commit": commit,
            "url": url,
            "files": [_item(f) for f in chosen],
            "selected": selected,
            "license": stated,
            "facts": facts,
            "quantizations": [{"name": q.name, "sizeBytes": q.size} for q in others],
        }
        self._remember(_pin(namespace, spec, commit, tuple(f.path for f in chosen) if selected else files), found)
        return found

    def _remember(self, pin: str, found: Facts) -> None:
        """Keep what cannot change: the ModelDownload made for a Model asks for the very same a moment later."""
        self._pinned[pin] = found
        if len(self._pinned) > _REMEMBERED:
            self._pinned.popitem(last=False)

    async def _url(self, namespace: str, spec: dict[str, Any]) -> Facts:
        headers = await self._headers(namespace, spec["headersSecretRef"]) if "headersSecretRef" in spec else {}
        access = replace(await self._access(namespace, None, spec.get("caBundleRef")), headers=headers)
        url: str = spec["url"]
        remote = await self._hub.probe(url, access)
        name = spec.get("fileName") or unquote(urlsplit(url).path.rpartition("/")[2])
        file = RepoFile(name, remote.size, spec["sha256"].lower())
        facts = await self._header([file], access, lambda _path: url)
        return {
            "commit": spec["sha256"].lower(),
            "url": without_query(url),
            "files": [_item(file)],
            "selected": True,
            "facts": facts,
        }

    async def _header(
        self, files: list[RepoFile], access: Access, url_of: Callable[[str], str], where: str = ""
    ) -> Facts:
        """What the headers of the model among `files` say; messages call a file `PATH of WHERE`, else by its URL."""

        def read(want: Want) -> Awaitable[bytes]:
            url, what = url_of(want.path), f"{want.path} of {where}" if where else None
            return self._hub.read_range(url, want.start, want.length, access, what=what)

        try:
            return await drive_async(read_facts(files, whole=True), Ahead(read, expected_reads(files)))
        except HeaderError as error:
            raise SourceError("UnexpectedContent", broken(error, files), retryable=False) from error

    async def _access(self, namespace: str, token: dict[str, Any] | None, bundle: dict[str, Any] | None) -> Access:
        secret = await self._secret(namespace, token) if token else None
        return Access(token=secret, ca=await self._config(namespace, bundle) if bundle else None)

    async def _secret(self, namespace: str, ref: dict[str, Any]) -> str:
        name, key = ref["name"], ref.get("key", "token")
        data = (await self._read(SECRETS, namespace, name, "Secret")).get("data") or {}
        if key not in data:
            raise SourceError("SecretNotFound", f"Secret {name} has no key {key}", retryable=True)
        return base64.b64decode(data[key]).decode(errors="replace").strip()

    async def _headers(self, namespace: str, ref: dict[str, Any]) -> dict[str, str]:
        text = await self._secret(namespace, {"key": "headers", **ref})
        try:
            return parse_headers(text)
        except ValueError as error:
            text = f"key {ref.get('key', 'headers')} of Secret {ref['name']}: {error}"
            raise SourceError("InvalidSpec", text, retryable=False) from None

    async def _config(self, namespace: str, ref: dict[str, Any]) -> str:
        name, key = ref["name"], ref.get("key", "ca.crt")
        data = (await self._read(CONFIG_MAPS, namespace, name, "ConfigMap")).get("data") or {}
        if key not in data:
            raise SourceError("SecretNotFound", f"ConfigMap {name} has no key {key}", retryable=True)
        return str(data[key])

    async def _read(self, resource: Any, namespace: str, name: str, kind: str) -> dict[str, Any]:
        try:
            return await self._kube.get(resource, namespace, name)
        except NotFound as error:
            text = f"there is no {kind} {name} in namespace {namespace}"
            raise SourceError("SecretNotFound", text, retryable=True) from error
        except ApiError as error:
            raise SourceError("APIUnavailable", f"{kind} {name} cannot be read: {error}", retryable=True) from error


def _choose(available: list[RepoFile], spec: dict[str, Any], files: tuple[str, ...]) -> tuple[list[RepoFile], bool]:
    if files:
        return select(available, Selection(files=files)), True
    include, exclude = tuple(spec.get("include") or ()), tuple(spec.get("exclude") or ())
    quantization = spec.get("quantization")
    chosen = select(available, Selection(include, exclude, (), quantization))
    gguf = "GGUF" in formats(f.path for f in chosen)
    if include or quantization or (exclude and gguf):
        return chosen, bool(quantization) or gguf
    found, selected = needed(chosen)
    return found, selected and (gguf or len(found) <= MAX_FILES)


def _quantizations(available: list[RepoFile], spec: dict[str, Any], chosen: list[RepoFile]) -> list[Quantization]:
    """What else of the same model the patterns of `spec` leave to choose from."""
    wanted = Selection(tuple(spec.get("include") or ()), tuple(spec.get("exclude") or ()))
    return quantizations(available, wanted, chosen)


def _pin(namespace: str, spec: dict[str, Any], revision: str, files: tuple[str, ...]) -> str:
    """Identity of an answer for one commit; the Secret is part of it, so that nobody sees what another's token saw.

    With `files` the patterns no longer matter: they are what made the choice.
    """
    kept = {k: v for k, v in spec.items() if k in ("endpoint", "repo", "tokenSecretRef", "caBundleRef")}
    patterns = [] if files else [spec.get("include") or [], spec.get("exclude") or [], spec.get("quantization")]
    return names.digest([namespace, kept, revision, files, patterns], 32)


def _item(file: RepoFile) -> dict[str, Any]:
    return {"path": file.path, "sizeBytes": file.size, **({"sha256": file.sha256} if file.sha256 else {})}
