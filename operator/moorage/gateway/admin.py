"""The admin port: /metrics, /healthz and /readyz, which the public one never shows."""

import asyncio
import logging
from collections.abc import Callable, Iterator

from moorage.gateway import refusals
from moorage.gateway.refusals import Refusal
from moorage.gateway.request import Request
from moorage.gateway.server import NEVER, ClientConnection

log = logging.getLogger(__name__)

_TEXT = b"content-type: text/plain; version=0.0.4; charset=utf-8\r\n"
_PATHS = frozenset({b"/metrics", b"/healthz", b"/readyz"})


class Admin:
    """The handler of the admin listener. `metrics` makes the page; `unready` says why no traffic should come, if so."""

    def __init__(self, metrics: Callable[[], Iterator[bytes]], unready: Callable[[], str]) -> None:
        self._metrics = metrics
        self._unready = unready

    def check(self, request: Request) -> Refusal | None:
        """See server.Handler."""
        if request.path not in _PATHS:
            return refusals.UNKNOWN_PATH
        return None if request.method == b"GET" else refusals.ONLY_GET

    def start(self, request: Request, client: ClientConnection) -> None:
        """See server.Handler."""
        if request.path == b"/metrics":
            client.job = _Scrape(client, self._metrics())
        elif request.path == b"/readyz" and (why := self._unready()):
            client.answer(503, _TEXT, why.encode() + b"\n")
        else:
            client.answer(200, _TEXT, b"ok\n")

    def refused(self, refusal: Refusal) -> None:
        """See server.Handler: nobody counts these."""


class _Scrape:
    """A page in the making: a job (server) that takes turns with everybody's requests.

    It does not keep its handle in the event loop, which keeps it: page and connection would stay until somebody looks
    for such circles.
    """

    deadline = NEVER

    def __init__(self, client: ClientConnection, pieces: Iterator[bytes]) -> None:
        self._client, self._pieces, self._done = client, pieces, list[bytes]()
        self._gone = False
        asyncio.get_running_loop().call_soon(self._step)

    def _step(self) -> None:
        if self._gone:
            return
        try:
            piece = next(self._pieces, None)
        except Exception:
            log.exception("a defect: the metrics page could not be made")
            self._client.refuse(refusals.INTERNAL)
            return
        if piece is None:
            self._client.answer(200, _TEXT, b"".join(self._done))
        else:
            self._done.append(piece)
            asyncio.get_running_loop().call_soon(self._step)

    def on_deadline(self) -> None:
        """See server.Job: there is none."""

    def on_client_gone(self) -> None:
        """See server.Job."""
        self._gone = True

    def on_client_slow(self, slow: bool) -> None:
        """See server.Job: nothing is sent before all is made."""

    def on_shutdown(self) -> None:
        """See server.Job: whoever watches may see the end."""
