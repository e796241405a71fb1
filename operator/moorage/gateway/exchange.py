"""One request on its way: from the client's last byte to the answer's last byte.

    start -> place -> [wait] -> send -> answer
               ^                 |
               +----- retry -----+   only while not one byte of an answer has come

Callbacks instead of a coroutine: a task for each request costs more than the request. Whatever happens, `_end` is
called exactly once: it counts the request and gives its slot back.
"""

import asyncio
import logging
import time
from dataclasses import dataclass
from typing import Any

from moorage.gateway import refusals, rewrite
from moorage.gateway.answer import STREAM_HEADERS, Answer, EventAnswer, begin_answer
from moorage.gateway.demand import Demand
from moorage.gateway.events import Usage
from moorage.gateway.fleet import Endpoint, Fleet, ModelPool
from moorage.gateway.health import Health, TargetHealth
from moorage.gateway.limits import Meter
from moorage.gateway.refusals import Refusal
from moorage.gateway.request import Request
from moorage.gateway.rewrite import Kind, Unusable
from moorage.gateway.routes import Failover, Route, Snapshot, Target
from moorage.gateway.server import NEVER, ClientConnection
from moorage.gateway.settings import Settings
from moorage.gateway.stats import CANCELLED, ERROR, OK, Outcome, RouteStats, Stats
from moorage.gateway.upstream import Call, Headers

log = logging.getLogger(__name__)

# Of the client's head the engine gets this and nothing else: above all not its Authorization and its cookies.
_FORWARDED = (b"accept", b"user-agent", b"traceparent", b"tracestate", b"baggage")
_KEEPALIVE = b": waiting for the model\n\n"


@dataclass(frozen=True)
class Plant:
    """What all exchanges share."""

    settings: Settings
    fleet: Fleet
    stats: Stats
    demand: Demand
    health: Health


class Exchange:
    """See the module. It is the client connection's job, the engine connection's receiver, and a waiter."""

    _route: Route
    _stats: RouteStats
    _status: int
    _headers: Headers

    def __init__(
        self,
        plant: Plant,
        client: ClientConnection,
        request: Request,
        kind: Kind,
        body: dict[str, Any],
        request_id: bytes,
    ) -> None:
        # All of it here: as defaults of the class mypyc leaves some unset (docs/adr/0026).
        self.deadline = NEVER
        self.meter: Meter | None = None  # of a key with limits
        self._plant = plant
        self._client = client
        self._request = request
        self._kind = kind
        # Bytes once it can be sent. None: as it came it waits in the request, where it takes far less than parsed.
        self._body: dict[str, Any] | bytes | None = body
        self._streams = body.get("stream") is True
        self._id = request_id
        self._started = time.monotonic()
        self._choices: tuple[Target, ...] = ()
        self._pool: ModelPool | None = None
        self._endpoint: Endpoint | None = None
        self._tried: tuple[Endpoint, ...] = ()
        self._call: Call | None = None
        self._health: TargetHealth | None = None  # of the target, where the alias has a failover
        self._asked = ""  # the Model whose waking was asked for
        self._cold = self._hide = False  # hide: the client did not ask for the usage chunk
        self._wait_since = self._wait_until = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._answer: Answer | None = None
        self._usage = Usage()
        self._first_token: float | None = None  # seconds, of a stream

    def start(self, route: Route) -> None:
        """Go where `route` leads."""
        self._route = route
        target = route.targets[0] if len(route.targets) == 1 else self._pick()
        if route.failover is not None:
            self._place(target)
            return
        pool = self._plant.fleet.pools[target.model.name]
        endpoint = None if pool.waiters else pool.take()
        if endpoint is not None:
            self._go(target, pool, endpoint, self._started)
        else:
            self._place(target)

    # A waiter (fleet)

    def granted(self, pool: ModelPool, endpoint: Endpoint) -> None:
        """See fleet.Waiter."""
        target = next(t for t in self._choices if t.model.name == pool.name)
        self._go(target, pool, endpoint, time.monotonic())

    def reroute(self, snapshot: Snapshot) -> None:
        """See fleet.Waiter. Nothing has been sent yet, so the newest table is the one to follow."""
        route = snapshot.routes.get(self._route.name)
        if route is None:
            self._fail(refusals.model_not_found(self._route.name))
            return
        # What a Model offers may be known only now: its files are read while requests wait.
        if (refusal := route.refusal(route.name, self._kind, self._plant.settings.retry_after_blocked)) is not None:
            self._fail(refusal)
            return
        self._route = route.serving(self._kind)
        self._place(self._pick())

    # A job (server)

    def on_deadline(self) -> None:
        """See server.Job: the engine did not say anything for too long."""
        log.warning("%s: no answer in time from %s", self._id.decode(), self._endpoint and self._endpoint.address)
        if self._call is not None:
            self._call.abort()
        self._fail(refusals.ENGINE_TIMEOUT)

    def on_client_gone(self) -> None:
        """See server.Job: the engine must not go on generating for nobody."""
        if self._call is not None:
            self._call.abort()
        self._end(CANCELLED, time.monotonic())

    def on_client_slow(self, slow: bool) -> None:
        """See server.Job: the engine waits with its client, and its silence is not its fault."""
        if self._call is None:
            return
        if slow:
            self.deadline = NEVER
            self._call.pause()
        else:
            self.deadline = time.monotonic() + self._plant.settings.silence_timeout
            self._call.resume()

    def on_shutdown(self) -> None:
        """See server.Job."""
        if self._call is not None:
            self._call.abort()
        self._fail(refusals.SHUTTING_DOWN)

    # A receiver (upstream)

    def on_head(self, status: int, headers: Headers) -> None:
        """See upstream.Receiver."""
        self._status = status
        self._headers = headers
        self._request.body = b""
        if self._client.blocked:
            self.on_client_slow(True)

    def on_data(self, data: bytes, last: bool) -> None:
        """See upstream.Receiver."""
        now = time.monotonic()
        answer = self._answer
        if answer is None:
            self._stats.first_byte.observe(now - self._started)
            limit, own = self._plant.settings.answer_buffer_bytes, self._own_headers()
            answer = begin_answer(self._client, self._status, self._headers, own, self._usage, self._hide, limit)
            self._answer = answer
            if isinstance(answer, EventAnswer) and not self._cold:
                self._first_token = now - self._started
        if not last:
            if not self._client.blocked:
                self.deadline = now + self._plant.settings.silence_timeout
            answer.feed(data, False)
            return
        # Usage is read while the answer is written, so count afterwards; the slot must not wait for that.
        self._call = None
        self._give_back()
        answer.feed(data, True)
        self._end(OK if self._status < 500 else ERROR, now)

    def on_broken(self, why: str, answered: bool) -> None:
        """See upstream.Receiver."""
        endpoint, pool = self._endpoint, self._pool
        assert endpoint is not None and pool is not None
        self._call = None
        log.warning("%s: %s: %s", self._id.decode(), endpoint.address, why)
        if answered or len(self._tried) >= self._plant.settings.retries:
            self._fail(refusals.ENGINE_BROKE if answered else refusals.ENGINE_UNREACHABLE)
            return
        self._plant.stats.retries += 1
        self._tried = (*self._tried, endpoint)
        # This request has been let in already, so it does not queue again.
        endpoint.outstanding -= 1
        now, other = time.monotonic(), pool.take(self._tried)
        # An idle connection that was just closed says nothing of its endpoint: that one is asked again first.
        lost = (other is None or other in self._tried) and (len(self._tried) > 1 or endpoint.avoid_until > now)
        if lost and (found := self._plant.fleet.stand_in(self._route.fallbacks, self._tried)) is not None:
            if other is not None:
                other.outstanding -= 1
            if self._health is not None:
                self._health.note(True, None, now)
                self._health = None
            self._body = None
            self._go(*found, now)
        else:
            if other is None:
                other = endpoint
                other.outstanding += 1
            self._send(other, now, fresh=True)
        self._plant.fleet.grant(pool)

    # Inside

    def _pick(self) -> Target:
        route = self._route
        token = self._request.headers.get(route.sticky_header) if route.sticky_header else None
        return route.pick(token or self._id)

    def _place(self, target: Target) -> None:
        """Send the request to `target`, or to the first stand-in that is awake where it is not, or wait for any."""
        pools = self._plant.fleet.pools
        if self._health is not None:  # of a choice before the table changed
            self._health.give_back()
            self._health = None
        if not pools[target.model.name].endpoints:
            self._ask_for(target.model.name)
        choices = (target, *self._route.fallbacks)
        awake = next((choice for choice in choices if pools[choice.model.name].endpoints), None)
        if self._route.failover is not None and awake is not None:
            awake = self._well(target, self._route.failover) or awake
        self._choices = choices if awake is None else (awake,)
        self._cold = self._cold or awake is None
        if awake is not None:
            pool = pools[awake.model.name]
            endpoint = None if pool.waiters else pool.take()
            if endpoint is not None:
                self._go(awake, pool, endpoint, time.monotonic())
                return
        self._stats = self._plant.stats.route(self._route.alias, self._choices[0].model.name)
        obstacle = self._choices[0].model.obstacle
        if awake is None and obstacle is not None and all(choice.model.obstacle for choice in self._choices):
            after = self._plant.settings.retry_after_blocked
            self._fail(refusals.blocked(self._route.name, obstacle.code, obstacle.message, after))
        else:
            self._wait()

    def _well(self, target: Target, policy: Failover) -> Target | None:
        """The first of `target`, the fallbacks and the other targets that is awake and does well.

        None: there is none; then a stand-in that sleeps is asked to wake, and `target` has to do until it has.
        """
        route, plant, now = self._route, self._plant, time.monotonic()
        order = (target, *route.fallbacks, *(other for other in route.targets if other is not target))
        sleeper = ""
        for choice in order:
            name = choice.model.name
            health = plant.health.target(route.alias, name, policy)
            if not plant.fleet.pools[name].endpoints:
                sleeper = sleeper or (name if health.away is None else "")
            elif health.admit(now):
                self._health = health
                return choice
        if sleeper:
            self._ask_for(sleeper)
        return None

    def _ask_for(self, model: str) -> None:
        """Report demand, once however often the table changes meanwhile."""
        if self._asked != model:
            self._asked = model
            self._plant.demand.ask(model)

    def _wait(self) -> None:
        fleet, route, now = self._plant.fleet, self._route, time.monotonic()
        if not self._wait_since:
            if fleet.pending.get(route.name, 0) >= route.hold.max_pending:
                self._fail(self._no_room())
                return
            self._body = None
            self._wait_since, self._wait_until = now, now + route.hold.timeout
            self._set_timer()
        fleet.wait(self, route.name, tuple({c.model.name: fleet.pools[c.model.name] for c in self._choices}.values()))

    def _no_room(self) -> Refusal:
        name, retry_after = self._route.name, self._plant.settings.retry_after
        if self._cold and not self._route.hold.max_pending:
            return (refusals.model_unloaded if self._unloaded else refusals.model_loading)(name, retry_after)
        return refusals.hold_queue_full(name, retry_after)

    @property
    def _unloaded(self) -> bool:
        """Whether nothing that could serve it is woken by a request."""
        return self._cold and all(choice.model.unloaded for choice in self._choices)

    @property
    def _comments(self) -> bool:
        """Whether the client hears comments while it waits."""
        return self._streams and self._plant.settings.hold_keepalive > 0

    def _set_timer(self) -> None:
        wait = max(0.0, self._wait_until - time.monotonic())
        if self._comments:
            wait = min(wait, self._plant.settings.hold_keepalive)
        self._timer = asyncio.get_running_loop().call_later(wait, self._on_timer)

    def _on_timer(self) -> None:
        # The event loop's clock is a little coarser than ours.
        if time.monotonic() >= self._wait_until - 0.002:
            self._fail(refusals.hold_timeout(self._route.name, unloaded=self._unloaded))
            return
        if self._comments:
            if not self._client.committed:
                headers = b"content-type: text/event-stream\r\n" + STREAM_HEADERS + self._own_headers()
                self._client.begin(200, headers, None)
            self._client.send(_KEEPALIVE, False)
        self._set_timer()

    def _go(self, target: Target, pool: ModelPool, endpoint: Endpoint, now: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._pool, self._endpoint = pool, endpoint
        self._stats = self._plant.stats.route(self._route.alias, target.model.name)
        body = self._body
        try:
            if not isinstance(body, dict):
                body = rewrite.parse(self._request.body, self._plant.settings.max_json_marks)
            self._hide = target.rewrite.apply(body, self._kind, counted=self.meter is not None)
            self._body = rewrite.dump(body)
        except Unusable as unusable:
            self._fail(unusable.refusal, OK)
            return
        if not self._route.fallbacks:
            self._request.body = b""
        self._send(endpoint, now)

    def _send(self, endpoint: Endpoint, now: float, *, fresh: bool = False) -> None:
        body, request = self._body, self._request
        assert isinstance(body, bytes)
        self._endpoint = endpoint
        head = b"%bcontent-length: %d\r\nx-request-id: %b\r\n" % (endpoint.head(request.path), len(body), self._id)
        for name in _FORWARDED:
            if name in request.headers:
                head += b"%b: %b\r\n" % (name, request.headers[name])
        self.deadline = now + self._plant.settings.first_byte_timeout
        self._call = endpoint.call(head + b"\r\n", body, self, now, fresh=fresh)

    def _own_headers(self) -> bytes:
        """What the gateway adds to the answer's head."""
        lines = b"x-request-id: %b\r\n" % self._id
        if self._wait_since:
            lines += b"x-moorage-held-milliseconds: %d\r\n" % int((time.monotonic() - self._wait_since) * 1000)
            if self._cold:
                lines += b"x-moorage-cold-start: true\r\n"
        return lines

    def _fail(self, refusal: Refusal, outcome: Outcome = ERROR) -> None:
        self._end(outcome, time.monotonic())
        if self._answer is not None:
            self._answer.fail(refusal)
        elif self._client.committed:
            self._client.cut(refusal.event())
        else:
            self._client.refuse(refusal)

    def _give_back(self) -> None:
        pool, endpoint = self._pool, self._endpoint
        self._pool = None
        if pool is not None and endpoint is not None:
            self._plant.fleet.release(pool, endpoint)

    def _end(self, outcome: Outcome, now: float) -> None:
        self.deadline = NEVER
        self._call = None
        if self._wait_since:
            self._plant.fleet.leave(self)
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
        self._give_back()
        if self._health is not None:
            late = now - self._started if self._streams and self._answer is None and not self._cold else None
            self._health.ended(outcome if self._endpoint is not None else None, self._first_token, late, now)
        stats, usage = self._stats, self._usage
        stats.ended(outcome, self._started, now)
        stats.prompt_tokens += usage.prompt
        stats.completion_tokens += usage.completion
        if self.meter is not None:
            self.meter.end(usage.prompt + usage.completion, now)
