"""The asynchronous client of a Hugging Face-compatible hub and of plain HTTP sources."""

import asyncio
import re
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import aiohttp

from moorage import __version__
from moorage.errors import SourceError
from moorage.hub.resolver import CheckedResolver
from moorage.sources import (
    Access,
    HostPolicy,
    Reason,
    RepoFile,
    Repository,
    classify,
    next_page,
    origin,
    parse_commit,
    parse_license,
    parse_tree_page,
    same_origin,
    source_error,
)
from moorage.sources.files import MAX_SIZE
from moorage.sources.proxies import choose_proxy
from moorage.sources.tree import MAX_JSON, read_json
from moorage.sources.urls import redirect, without_query

ANONYMOUS = Access()
_MAX_RANGE = 64 << 20
_MAX_FILES = 200_000
_MAX_REDIRECTS = 5
_REDIRECTS = (301, 302, 303, 307, 308)
_CONTENT_RANGE = re.compile(r"^bytes (\d{1,19})-(\d{1,19})/(\d{1,19})$")


@dataclass(frozen=True)
class RemoteFile:
    """A file behind a plain URL: `size` in bytes, `etag` without quotes or None."""

    size: int
    etag: str | None


class HubClient:
    """Reads metadata and header bytes; use as an async context manager or `close()` it.

    `timeout` (seconds) holds for each request as a whole. Proxies come from the environment (`HTTPS_PROXY`,
    `NO_PROXY`). No request is retried here: the caller's queue does that with its own backoff.
    """

    def __init__(self, *, policy: HostPolicy | None = None, timeout: float = 10.0) -> None:
        self._policy = policy or HostPolicy()
        self._timeout = aiohttp.ClientTimeout(total=timeout)
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> "HubClient":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close every connection."""
        if self._session:
            await self._session.close()
            self._session = None

    async def resolve(self, source: Repository, access: Access = ANONYMOUS) -> str:
        """The commit (40 hex) that `source.revision` stands for now."""
        return (await self.describe(source, access))[0]

    async def describe(self, source: Repository, access: Access = ANONYMOUS) -> tuple[str, str]:
        """The same commit, and the license that the repository states; empty where it states none."""
        what = f"revision {source.revision} of {source.repo} on {source.endpoint}"
        answer, _ = await self._json(source.revision_url(), what, access, source.title)
        return parse_commit(answer), parse_license(answer)

    async def tree(self, source: Repository, commit: str, access: Access = ANONYMOUS) -> list[RepoFile]:
        """Every file of `commit`, all pages; at most 200,000. Names are as sent: `select` checks the wanted ones."""
        files: list[RepoFile] = []
        seen: set[str] = set()
        url: str | None = source.tree_url(commit)
        while url:
            if url in seen or len(files) > _MAX_FILES:
                raise source_error(Reason.NOT_A_HUB, f"the file list of {source.repo} does not end")
            seen.add(url)
            what = f"commit {commit[:12]} of {source.repo} on {source.endpoint}"
            answer, headers = await self._json(url, what, access, source.title)
            files += parse_tree_page(answer)
            url = next_page(url, headers.get("Link"))
        return files

    async def read_range(
        self, url: str, start: int, length: int, access: Access = ANONYMOUS, *, what: str | None = None
    ) -> bytes:
        """`length` bytes (at most 64 MiB) of the file at `url` from offset `start`, fewer only where the file ends.

        Only a 206 with the right Content-Range is taken. Raises SourceError, whose message calls the file `what`.
        """
        data, _ = await self._range(url, start, length, access, what)
        return data

    async def probe(self, url: str, access: Access = ANONYMOUS) -> RemoteFile:
        """Size and ETag of the file at `url`, learnt from its first byte. Raises SourceError."""
        _, remote = await self._range(url, 0, 1, access, None)
        return remote

    async def _range(
        self, url: str, start: int, length: int, access: Access, what: str | None
    ) -> tuple[bytes, RemoteFile]:
        if not 0 < length <= _MAX_RANGE or start < 0:
            raise ValueError(f"a range of {length} bytes at {start} cannot be read")
        what = what or without_query(url)
        asked = {"Range": f"bytes={start}-{start + length - 1}"}
        async with self._get(url, what, access, asked) as answer:
            found = _CONTENT_RANGE.match(answer.headers.get("Content-Range", ""))
            if answer.status != 206 or not found:
                raise source_error(
                    Reason.UNEXPECTED_CONTENT, f"unexpected answer: {what} does not serve ranges (HTTP {answer.status})"
                )
            first, last, total = map(int, found.groups())
            if first != start or last != min(start + length, total) - 1:
                raise source_error(Reason.UNEXPECTED_CONTENT, f"unexpected answer: {what} sent another range")
            if total > MAX_SIZE:
                raise source_error(Reason.UNEXPECTED_CONTENT, f"unexpected answer: {what} would have {total:,} bytes")
            data = await _read(answer, last - first + 1, what)
            if len(data) != last - first + 1:
                raise source_error(Reason.NETWORK, f"connection broken: {what} ended early")
            etag = answer.headers.get("ETag", "").removeprefix("W/").strip('"')
            return data, RemoteFile(total, etag or None)

    async def _json(self, url: str, what: str, access: Access, repository: str) -> tuple[Any, Mapping[str, str]]:
        async with self._get(url, what, access, {}, repository) as answer:
            body = await _read(answer, MAX_JSON, what)
            try:
                return read_json(body), answer.headers
            except ValueError:
                raise source_error(
                    Reason.NOT_A_HUB, f"not a Hugging Face-compatible hub: {without_query(url)} sent no JSON"
                ) from None

    @asynccontextmanager
    async def _get(
        self, url: str, what: str, access: Access, headers: Mapping[str, str], repository: str | None = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """The successful answer to a GET, redirects followed by hand so that each hop is checked."""
        try:
            async with asyncio.timeout(self._timeout.total):
                answer = await self._follow(url, what, access, headers, repository)
                async with answer:
                    yield answer
        except TimeoutError:
            raise source_error(Reason.TIMEOUT, f"timed out after {self._timeout.total:g} s: {what}") from None
        except (aiohttp.ClientError, OSError) as error:
            raise _connection_error(error, what) from None

    async def _follow(
        self, url: str, what: str, access: Access, headers: Mapping[str, str], repository: str | None
    ) -> aiohttp.ClientResponse:
        start = url
        for _ in range(_MAX_REDIRECTS + 1):
            sent = {**headers, **(access.sent() if same_origin(start, url) else {})}
            self._policy.check_host(urlsplit(url).hostname or "")
            scheme, host, port = origin(url)
            proxy = choose_proxy(getproxies(), scheme, host, port)
            if proxy and scheme == "http":
                sent |= proxy.headers  # aiohttp shows a proxy's own headers to it for tunnels only
            answer = await self._open().get(
                url,
                headers=sent,
                allow_redirects=False,
                ssl=_trust(access.ca),
                proxy=proxy.url if proxy else None,
                proxy_headers=proxy.headers if proxy else None,
            )
            if answer.status < 300:
                return answer
            answer.release()
            if answer.status not in _REDIRECTS:
                now, api = datetime.now(tz=UTC), "Range" not in headers
                status, told = answer.status, answer.headers
                raise classify(status, told, what, access=access, now=now, api=api, repository=repository)
            url = redirect(url, answer.headers.get("Location"))
        raise source_error(Reason.UNEXPECTED_CONTENT, f"too many redirects: {what}")

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = aiohttp.TCPConnector(resolver=CheckedResolver(self._policy), limit=64, limit_per_host=16)
            self._session = aiohttp.ClientSession(
                connector=connector,
                timeout=self._timeout,
                headers={"Accept-Encoding": "identity", "User-Agent": f"moorage/{__version__}"},
            )
        return self._session


@lru_cache(maxsize=64)
def _trust(ca: str | None) -> ssl.SSLContext | bool:
    """TLS settings for a PEM bundle, which is trusted beside the system's authorities."""
    if not ca:
        return True
    context = ssl.create_default_context()
    try:
        context.load_verify_locations(cadata=ca)
    except (ssl.SSLError, ValueError) as error:
        raise source_error(Reason.CERTIFICATE_ERROR, f"the CA bundle cannot be read: {error}") from None
    return context


async def _read(answer: aiohttp.ClientResponse, limit: int, what: str) -> bytes:
    """The body, which may have at most `limit` bytes."""
    parts: list[bytes] = []
    size = 0
    async for chunk in answer.content.iter_chunked(1 << 16):
        size += len(chunk)
        if size > limit:
            raise source_error(Reason.UNEXPECTED_CONTENT, f"unexpected answer: {what} sent more than {limit} bytes")
        parts.append(chunk)
    return b"".join(parts)


def _connection_error(error: Exception, what: str) -> SourceError:
    text = " ".join(str(error).split())[:200]
    if isinstance(error, aiohttp.ClientConnectorCertificateError | aiohttp.ClientSSLError):
        return source_error(Reason.CERTIFICATE_ERROR, f"certificate not trusted: {what}: {text}")
    if isinstance(error, aiohttp.InvalidURL):
        return source_error(Reason.REQUEST_REFUSED, f"not an http(s) address: {what}")
    if isinstance(error, aiohttp.ClientConnectorError):
        text = f"{error.host}:{error.port}: {error.os_error.strerror or text}"
        return source_error(Reason.HUB_UNREACHABLE, f"cannot be reached: {what}: {text}")
    return source_error(Reason.NETWORK, f"connection broken: {what}: {text or type(error).__name__}")
