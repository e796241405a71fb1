"""A reverse proxy in front of a real kube-apiserver that counts requests and makes them fail on demand.

Plain HTTP in front, whatever the kubeconfig says behind. Requests are forwarded with the kubeconfig's own credentials,
except those that bring an `Authorization` header, which are forwarded as they are (for tests of rights).

    async with ApiProxy(cluster.kubeconfig, tmp_path) as proxy:
        client = await KubeClient.connect(proxy.kubeconfig)

        proxy.fail(409, method="PATCH", path=r"/models/.*/status", times=2)   # the next two; then all is well again
        proxy.fail(429, retry_after=1)                                        # the next request, whatever it is
        proxy.fail(410, path="watch=true")                                    # as the server says it: an ERROR event
        rule = proxy.fail(503, times=FOREVER); ...; proxy.remove(rule)        # until taken away
        proxy.delay(2.0, path="/pods")                                        # forwarded, the answer comes late
        proxy.cut(path="/jobs")                                               # connection closed, nothing forwarded
        proxy.cut(path="/jobs", after=True)                                   # done by the server, the answer lost
        proxy.mute(path="/pods")                                              # the next watch opens and stays silent

        proxy.drop_watches("/pods")      # open watches: connection closed in the middle
        proxy.mute_watches("/pods")      # open watches: stay open, nothing comes any more (a dead load balancer)
        proxy.expire_watches("/pods")    # open watches: end with 410 Expired
        await proxy.go_down(); await proxy.come_up()    # connection refused meanwhile, same port after

        proxy.count(method="PATCH", path="/status", agent="moorage"), proxy.writes(agent="moorage")
        proxy.requests                   # Seen(method, path, query, agent, status, at) in order of arrival

`path` is a regular expression searched in "path?query", `agent` one searched in the User-Agent, `method` a full method
name; left out, they match everything. The first matching rule that is not used up applies. A watch counts as a GET with
`watch=` in its query. `clear()` forgets rules and counts.
"""

import asyncio
import json
import re
import socket
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import aiohttp
import yaml
from aiohttp import web
from multidict import CIMultiDict
from yarl import URL

from tests.support.eventually import PATIENCE
from tests.support.upstream import Upstream

FOREVER = 10**9

_REASONS = {
    400: "BadRequest",
    401: "Unauthorized",
    403: "Forbidden",
    404: "NotFound",
    409: "Conflict",
    410: "Expired",
    422: "Invalid",
    429: "TooManyRequests",
    500: "InternalError",
    503: "ServiceUnavailable",
    504: "Timeout",
}
_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "upgrade", "host", "content-length", "date"}


@dataclass
class Rule:
    """What to do with which requests; made by the methods of ApiProxy."""

    method: str | None
    path: str
    agent: str
    times: int
    status: int = 0
    reason: str = ""
    retry_after: int | None = None
    delay: float = 0.0
    cut: bool = False
    cut_after: bool = False
    mute: bool = False
    hits: int = 0

    def takes(self, seen: "Seen") -> bool:
        return self.hits < self.times and seen.matches(self.method, self.path, self.agent)


@dataclass
class Seen:
    """A request that came; `at` is time.monotonic(), `status` what was answered (0: not yet, or cut)."""

    method: str
    path: str
    query: str
    agent: str
    at: float
    status: int = 0

    @property
    def is_watch(self) -> bool:
        return self.method == "GET" and "watch=" in self.query

    @property
    def changes(self) -> bool:
        return self.method not in {"GET", "HEAD"}

    def matches(self, method: str | None, path: str, agent: str) -> bool:
        if method is not None and method != self.method:
            return False
        whole = f"{self.path}?{self.query}" if self.query else self.path
        return re.search(path, whole) is not None and re.search(agent, self.agent) is not None


@dataclass
class _Watch:
    """An open watch: what to do with it is set from outside, `poke` makes it look."""

    seen: Seen
    poke: asyncio.Event = field(default_factory=asyncio.Event)
    order: str = ""  # drop | mute | expire


class ApiProxy:
    """See the module's docstring. An async context manager; `kubeconfig` is the file for clients."""

    def __init__(self, upstream: Path, directory: Path | None = None) -> None:
        self.requests: list[Seen] = []
        self.port = 0
        self._upstream = upstream
        self._directory = directory
        self._rules: list[Rule] = []
        self._watches: list[_Watch] = []
        self._server = ""
        self._door: socket.socket | None = None
        self._runner: web.ServerRunner
        self._as_admin: aiohttp.ClientSession
        self._as_caller: aiohttp.ClientSession

    async def __aenter__(self) -> Self:
        if self._directory is None:
            self._directory = Path(tempfile.mkdtemp(prefix="apiproxy-"))
        upstream = Upstream.read(self._upstream)
        self._server = upstream.server
        self._as_admin = upstream.session()
        self._as_caller = upstream.session(anonymous=True)
        await self.come_up()
        self.kubeconfig = self.kubeconfig_for(None)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.go_down()
        if self._door is not None:
            self._door.close()
        await self._as_admin.close()
        await self._as_caller.close()

    async def come_up(self) -> None:
        """Listen, on the same port as before."""
        # A watch whose client went away must close its upstream at once, not at the next event.
        self._runner = web.ServerRunner(web.Server(self._handle, handler_cancellation=True), shutdown_timeout=0.1)
        await self._runner.setup()
        await web.SockSite(self._runner, self._door or _bound(0)).start()
        self._door, self.port = None, self._runner.addresses[0][1]

    async def go_down(self) -> None:
        """Close every connection and refuse new ones."""
        await self._runner.cleanup()
        self._door = self._door or _bound(self.port)  # so that no other program gets the port meanwhile

    def kubeconfig_for(self, token: str | None, namespace: str = "default") -> Path:
        """A kubeconfig that leads here; with a token, the API server sees that token's owner instead of the admin."""
        assert self._directory is not None
        path = self._directory / (f"proxy-{abs(hash(token))}.yaml" if token else "proxy.yaml")
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "proxy", "cluster": {"server": f"http://127.0.0.1:{self.port}"}}],
            "users": [{"name": "proxy", "user": {"token": token} if token else {}}],
            "contexts": [{"name": "proxy", "context": {"cluster": "proxy", "user": "proxy", "namespace": namespace}}],
            "current-context": "proxy",
        }
        path.write_text(yaml.safe_dump(config))
        return path

    # Rules

    def fail(
        self,
        status: int,
        *,
        method: str | None = None,
        path: str = "",
        agent: str = "",
        times: int = 1,
        retry_after: int | None = None,
        reason: str = "",
    ) -> Rule:
        """Answer with `status` and do not forward; a watch that shall fail with 410 gets it as an ERROR event."""
        reason = reason or _REASONS.get(status, "Unknown")
        return self._add(Rule(method, path, agent, times, status=status, reason=reason, retry_after=retry_after))

    def delay(
        self, seconds: float, *, method: str | None = None, path: str = "", agent: str = "", times: int = 1
    ) -> Rule:
        """Forward, and keep the answer back for so long."""
        return self._add(Rule(method, path, agent, times, delay=seconds))

    def cut(
        self, *, method: str | None = None, path: str = "", agent: str = "", times: int = 1, after: bool = False
    ) -> Rule:
        """Close the connection instead of an answer; with `after`, the server has done what was asked."""
        return self._add(Rule(method, path, agent, times, cut=not after, cut_after=after))

    def mute(self, *, path: str = "", agent: str = "", times: int = 1) -> Rule:
        """Let watches open (status 200) and pass nothing on."""
        return self._add(Rule("GET", path, agent, times, mute=True))

    def remove(self, rule: Rule) -> None:
        """Take a rule away."""
        self._rules.remove(rule)

    def clear(self) -> None:
        """Forget all rules and counts; open watches stay."""
        self._rules.clear()
        self.requests.clear()

    # Open watches

    def open_watches(self, path: str = "", agent: str = "") -> int:
        """How many watches are open, muted ones included."""
        return len(list(self._matching(path, agent)))

    def drop_watches(self, path: str = "", agent: str = "") -> int:
        """Cut the connection of open watches; the number of them."""
        return self._order("drop", path, agent)

    def mute_watches(self, path: str = "", agent: str = "") -> int:
        """Leave open watches open and pass nothing more on; the number of them."""
        return self._order("mute", path, agent)

    def expire_watches(self, path: str = "", agent: str = "") -> int:
        """End open watches with an ERROR event 410; the number of them."""
        return self._order("expire", path, agent)

    # Counts

    def count(self, *, method: str | None = None, path: str = "", agent: str = "", status: int | None = None) -> int:
        """Requests seen so far that match."""
        return sum(
            seen.matches(method, path, agent) and (status is None or seen.status == status) for seen in self.requests
        )

    def writes(self, *, path: str = "", agent: str = "") -> int:
        """Requests seen so far that would change something."""
        return sum(seen.changes and seen.matches(None, path, agent) for seen in self.requests)

    async def rest(self, *, path: str = "", seconds: float = 4.0, timeout: float = PATIENCE) -> None:
        """Wait until nothing was written for `seconds`; AssertionError with the last writes where that never comes."""
        start = time.monotonic()
        while True:
            written = [seen for seen in self.requests if seen.changes and seen.matches(None, path, "")]
            now = time.monotonic()
            if now - max(start, written[-1].at if written else 0.0) >= seconds:
                return
            if now - start > timeout:
                last = [f"{now - seen.at:.1f} s ago: {seen.method} {seen.path}: {seen.status}" for seen in written[-8:]]
                raise AssertionError(f"not {seconds:g} s without a write within {timeout:g} s; the last: {last}")
            await asyncio.sleep(0.1)

    # What happens to a request

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        agent = request.headers.get("User-Agent", "")
        seen = Seen(request.method, request.path, request.rel_url.raw_query_string, agent, time.monotonic())
        self.requests.append(seen)
        rule = next((rule for rule in self._rules if rule.takes(seen)), None)
        if rule is not None:
            rule.hits += 1
            if rule.cut:
                return _abort(request)
            if rule.status:
                seen.status = rule.status
                return _expired() if rule.status == 410 and seen.is_watch else _refusal(rule)
        return await self._forward(request, seen, rule)

    async def _forward(self, request: web.BaseRequest, seen: Seen, rule: Rule | None) -> web.StreamResponse:
        session = self._as_caller if "Authorization" in request.headers else self._as_admin
        headers = {k: v for k, v in request.headers.items() if k.lower() not in _HOP_BY_HOP}
        body = await request.read()
        url = URL(self._server + request.raw_path, encoded=True)
        try:
            async with session.request(
                request.method, url, headers=headers, data=body or None, allow_redirects=False
            ) as answer:
                if rule is not None and rule.delay:
                    await asyncio.sleep(rule.delay)
                if rule is not None and rule.cut_after:
                    await answer.read()
                    return _abort(request)
                seen.status = answer.status
                if (seen.is_watch or "follow=true" in seen.query) and answer.status == 200:
                    return await self._stream(request, seen, answer, muted=rule is not None and rule.mute)
                return web.Response(status=answer.status, headers=_passed_on(answer), body=await answer.read())
        except (aiohttp.ClientError, OSError):  # the real server went away: so do we
            return _abort(request)

    async def _stream(
        self, request: web.BaseRequest, seen: Seen, answer: aiohttp.ClientResponse, *, muted: bool
    ) -> web.StreamResponse:
        response = web.StreamResponse(status=answer.status, headers=_passed_on(answer))
        response.enable_chunked_encoding()
        await response.prepare(request)
        watch = _Watch(seen, order="mute" if muted else "")
        self._watches.append(watch)
        try:
            await self._pump(request, watch, answer, response)
        finally:
            self._watches.remove(watch)
        return response

    async def _pump(
        self, request: web.BaseRequest, watch: _Watch, answer: aiohttp.ClientResponse, response: web.StreamResponse
    ) -> None:
        """Pass on what comes until the server ends it or an order comes from the test."""
        while True:
            if watch.order == "mute":
                watch.poke.clear()
                await watch.poke.wait()  # until it is dropped, or the client gives up and this handler is cancelled
                continue
            if watch.order == "drop":
                _abort(request)
                return
            if watch.order == "expire":
                await response.write(_error_event())
                return
            poked = asyncio.ensure_future(watch.poke.wait())
            chunk = asyncio.ensure_future(answer.content.readany())
            try:
                await asyncio.wait({poked, chunk}, return_when=asyncio.FIRST_COMPLETED)
                if chunk.done() and not watch.order:
                    if not chunk.result():
                        return
                    await response.write(chunk.result())
            finally:
                poked.cancel()
                chunk.cancel()

    # Small things

    def _add(self, rule: Rule) -> Rule:
        self._rules.append(rule)
        return rule

    def _matching(self, path: str, agent: str) -> Iterator[_Watch]:
        return (watch for watch in self._watches if watch.seen.matches("GET", path, agent))

    def _order(self, order: str, path: str, agent: str) -> int:
        watches = [watch for watch in self._matching(path, agent) if watch.order != "mute" or order == "drop"]
        for watch in watches:
            watch.order = order
            watch.poke.set()
        return len(watches)


def _bound(port: int) -> socket.socket:
    """A socket of loopback that refuses connections until it listens."""
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind(("127.0.0.1", port))
    return made


def _abort(request: web.BaseRequest) -> web.Response:
    if request.transport is not None:
        request.transport.abort()
    return web.Response(status=499)


def _status(code: int, reason: str, retry_after: int | None = None) -> dict[str, Any]:
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": f"the test's proxy says {code}",
        "reason": reason,
        "code": code,
        "details": {"retryAfterSeconds": retry_after} if retry_after is not None else {},
    }


def _refusal(rule: Rule) -> web.Response:
    headers = {"Retry-After": str(rule.retry_after)} if rule.retry_after is not None else {}
    return web.json_response(_status(rule.status, rule.reason, rule.retry_after), status=rule.status, headers=headers)


def _error_event() -> bytes:
    return json.dumps({"type": "ERROR", "object": _status(410, "Expired")}).encode() + b"\n"


def _expired() -> web.Response:
    return web.Response(body=_error_event(), content_type="application/json")


def _passed_on(answer: aiohttp.ClientResponse) -> CIMultiDict[str]:
    # aiohttp has undone the compression, so the header must go too.
    drop = _HOP_BY_HOP | {"content-encoding"}
    return CIMultiDict((k, v) for k, v in answer.headers.items() if k.lower() not in drop)
