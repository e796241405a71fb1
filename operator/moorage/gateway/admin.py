"""The admin port: /metrics, /healthz and /readyz, which the public one never shows."""

from collections.abc import Callable

from moorage.gateway import refusals
from moorage.gateway.refusals import Refusal
from moorage.gateway.request import Request
from moorage.gateway.server import ClientConnection

_TEXT = b"content-type: text/plain; version=0.0.4; charset=utf-8\r\n"
_PATHS = frozenset({b"/metrics", b"/healthz", b"/readyz"})


class Admin:
    """The handler of the admin listener. `unready` says why no traffic should come, or nothing."""

    def __init__(self, metrics: Callable[[], bytes], unready: Callable[[], str]) -> None:
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
            client.answer(200, _TEXT, self._metrics())
        elif request.path == b"/readyz" and (why := self._unready()):
            client.answer(503, _TEXT, why.encode() + b"\n")
        else:
            client.answer(200, _TEXT, b"ok\n")

    def refused(self, refusal: Refusal) -> None:
        """See server.Handler: nobody counts these."""
