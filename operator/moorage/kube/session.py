"""One pool of HTTP connections to one API server, on the aiohttp session that `kubernetes.aio` uses too.

Its own request paths are left aside: on loopback without TLS they took 690 us (`rest`) and 800 us (generated API) of
CPU for one small request where this takes 165 to 210, most of it for reading the proxy environment each time.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import aiohttp
from yarl import URL

from moorage import __version__
from moorage.errors import ApiError, Forbidden, MoorageError
from moorage.kube.errors import TRANSPORT_ERRORS, from_exception, from_response
from moorage.kube.login import Login, log_in

# The API server closes idle connections after 90 s; we must be first, or a request meets a closed one.
_KEEP_ALIVE_SECONDS = 60
_CONNECT_SECONDS = 10
# A refused token is worth one new login (exec plugins, rotated files), but not one for every request of a storm.
_LOGIN_AGAIN_SECONDS = 10
_MAX_CONNECTIONS = 100
# Bytes of an error answer that are looked at.
_ERROR_BODY_LIMIT = 64 * 1024


class Session:
    """Sends requests as somebody; logs in again when the API server no longer knows us."""

    def __init__(self, kubeconfig: Path | None, context: str | None, user_agent: str | None) -> None:
        self._kubeconfig = kubeconfig
        self._context = context
        # Compressing lists costs both sides more CPU than a cluster's network gives back.
        self._headers = {
            "Accept": "application/json",
            "Accept-Encoding": "identity",
            "User-Agent": user_agent or f"moorage/{__version__}",
        }
        self._login: Login
        self._http: aiohttp.ClientSession
        self._logged_in_at = 0.0
        self._login_lock = asyncio.Lock()

    async def open(self) -> None:
        """Read the credentials and make the pool; no request is sent."""
        self._login = await log_in(self._kubeconfig, self._context)
        self._http = self._pool(self._login)
        self._logged_in_at = time.monotonic()

    async def close(self) -> None:
        """Close every connection; running requests end with Unavailable."""
        await self._http.close()

    @property
    def namespace(self) -> str:
        """The namespace a person means who names none."""
        return self._login.namespace

    @property
    def server(self) -> str:
        """URL of the API server."""
        return self._login.server

    @asynccontextmanager
    async def request(
        self,
        method: str,
        path: str,
        *,
        timeout: aiohttp.ClientTimeout,
        params: Mapping[str, str] | None = None,
        body: bytes | None = None,
        content_type: str = "application/json",
        accept: str = "application/json",
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """An answer with a status below 400, its body still to be read. Raises the errors of `moorage.errors`."""
        query = f"{path}?{urlencode(params)}" if params else path
        headers = {"Accept": accept, **({"Content-Type": content_type} if body is not None else {})}
        try:
            async with await self._send(method, query, headers, body, timeout) as response:
                if response.status >= 400:
                    raise await _failure(response, f"{method} {query}")
                yield response
        except ApiError:
            raise
        except TRANSPORT_ERRORS as error:
            raise from_exception(error, f"{method} {query}") from error

    async def _send(
        self, method: str, query: str, headers: dict[str, str], body: bytes | None, timeout: aiohttp.ClientTimeout
    ) -> aiohttp.ClientResponse:
        sent_at = time.monotonic()
        response = await self._send_once(method, query, headers, body, timeout)
        if response.status != 401 or not await self._log_in_again(sent_at):
            return response
        response.release()
        return await self._send_once(method, query, headers, body, timeout)

    async def _send_once(
        self, method: str, query: str, headers: dict[str, str], body: bytes | None, timeout: aiohttp.ClientTimeout
    ) -> aiohttp.ClientResponse:
        login = self._login
        authorization = await login.authorization()
        if authorization:
            headers["Authorization"] = authorization
        extra: dict[str, Any] = {"server_hostname": login.tls_server_name} if login.tls_server_name else {}
        return await self._http.request(
            method,
            URL(login.server + query, encoded=True),
            headers=headers,
            data=body,
            timeout=timeout,
            allow_redirects=False,
            proxy=login.proxy,
            **extra,
        )

    async def _log_in_again(self, sent_at: float) -> bool:
        """True if there is a newer login than the one refused; the old pool's running requests are cut."""
        async with self._login_lock:
            if self._logged_in_at > sent_at:
                return True
            if time.monotonic() - self._logged_in_at < _LOGIN_AGAIN_SECONDS:
                return False
            old = self._http
            try:
                await self.open()
            except MoorageError as error:
                raise Forbidden(str(error), status=401, reason="Unauthorized") from error
            await old.close()
            return True

    def _pool(self, login: Login) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(
            ssl=login.ssl_context, limit=_MAX_CONNECTIONS, keepalive_timeout=_KEEP_ALIVE_SECONDS
        )
        return aiohttp.ClientSession(connector=connector, headers=self._headers)


def request_timeout(seconds: float) -> aiohttp.ClientTimeout:
    """For an answer that comes whole."""
    return aiohttp.ClientTimeout(total=seconds, sock_connect=_CONNECT_SECONDS)


def stream_timeout(silence_seconds: float) -> aiohttp.ClientTimeout:
    """For an answer that goes on: no end, but no longer silence than this either."""
    return aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS, sock_read=silence_seconds)


async def _failure(response: aiohttp.ClientResponse, request: str) -> ApiError:
    body = await response.content.read(_ERROR_BODY_LIMIT)
    return from_response(response.status, body, response.headers, request)
