"""What the gateway serves: who may ask what, and where it goes.

Only listed paths exist. An engine's other routes (loading adapters, slots, metrics) cannot be reached from here.
"""

import itertools
import os
import re
import time
from urllib.parse import unquote

import orjson

from moorage.gateway import listing, refusals, rewrite
from moorage.gateway.demand import Demand
from moorage.gateway.exchange import Exchange, Plant
from moorage.gateway.fleet import Fleet
from moorage.gateway.health import Health
from moorage.gateway.keys import Key, Limits
from moorage.gateway.limits import Meter
from moorage.gateway.refusals import Refusal
from moorage.gateway.request import Request
from moorage.gateway.rewrite import Kind, Unusable
from moorage.gateway.routes import Route, Snapshot
from moorage.gateway.server import ClientConnection
from moorage.gateway.settings import Settings
from moorage.gateway.stats import Stats
from moorage.gateway.upstream import EngineEndpoint

MODELS_PATH = b"/v1/models"
ONE_MODEL = b"/v1/models/"
KINDS = {kind.value.encode(): kind for kind in Kind} | {b"/rerank": Kind.RERANK}
_UNLIMITED = Limits()
_REQUEST_ID = re.compile(rb"[!-~]{1,128}")


class Proxy:
    """The handler of the public listener. `snapshot` is the routing table in force; `swap` replaces it.

    Until the first one is `routed`, nobody hears that a name does not exist: clients believe that, and give up.
    """

    def __init__(self, settings: Settings, stats: Stats, demand: Demand) -> None:
        self.snapshot, self.routed = Snapshot(), False
        self.fleet = Fleet(lambda address: EngineEndpoint(address, settings), demand)
        self.demand = demand
        self.stats = stats
        self.health = Health()
        self._plant = Plant(settings, self.fleet, stats, demand, self.health)
        self._settings = settings
        self._id_prefix = os.urandom(8).hex().encode()
        self._ids = itertools.count(1)
        self._listing: dict[Key | None, bytes] = {}
        self._meters: dict[str, Meter] = {}  # by the key's name

    def swap(self, snapshot: Snapshot) -> None:
        """Put another routing table in force. Requests under way keep the one they began with."""
        self.snapshot, self.routed = snapshot, True
        self._listing = {}
        self._set_meters(snapshot)
        self.health.apply(snapshot)
        self.fleet.apply(snapshot)

    def check(self, request: Request) -> Refusal | None:
        """See server.Handler: path, method and key, before any of the body is read."""
        if request.path in KINDS:
            if request.method != b"POST":
                return refusals.ONLY_POST
        elif request.path != MODELS_PATH and not request.path.startswith(ONE_MODEL):
            return refusals.UNKNOWN_PATH
        elif request.method != b"GET":
            return refusals.ONLY_GET
        if not self.routed:
            return refusals.STARTING
        if self.snapshot.closed:
            scheme, _, secret = request.headers.get(b"authorization", b"").partition(b" ")
            request.key = self.snapshot.find_key(secret.strip()) if scheme.lower() == b"bearer" else None
            if request.key is None:
                return refusals.INVALID_KEY if self.snapshot.keys else refusals.NO_KEYS
            if request.key.expires and request.key.expires <= time.time():
                return refusals.EXPIRED_KEY
        return None

    def start(self, request: Request, client: ClientConnection) -> None:
        """See server.Handler."""
        kind = KINDS.get(request.path)
        if kind is None:
            self._answer_models(request, client)
            return
        try:
            body = rewrite.parse(request.body, self._settings.max_json_marks)
            name = rewrite.model_of(body)
            if "stream" in body:
                rewrite.is_stream(body)
        except Unusable as unusable:
            client.refuse(unusable.refusal)
            return
        key = request.key
        route = self._route(name, key)
        if isinstance(route, Refusal):
            client.refuse(route)
            return
        if (refusal := self._refusal(route, name, key, kind)) is not None:
            client.refuse(refusal)
            return
        exchange = Exchange(self._plant, client, request, kind, body, self._request_id(request))
        if key is not None:
            exchange.meter = self._meters.get(key.name)
        client.job = exchange
        exchange.start(route.serving(kind))

    def _route(self, name: str, key: Key | None) -> Route | Refusal:
        """Where `name` leads; a refusal where nothing is called so, or where `key` may not know whether anything is."""
        route = self.snapshot.routes.get(name) if key is None else self.snapshot.route(name, key)
        if route is not None:
            return route
        known = key is None or _may_know(key, name)
        return refusals.model_not_found(name) if known else refusals.model_not_allowed(name)

    def _refusal(self, route: Route, name: str, key: Key | None, kind: Kind) -> Refusal | None:
        """Why `key` may not go there, or not now; where it may, its limits know of it: that comes last."""
        if key is not None and not route.allowed(key, name):
            return refusals.model_not_allowed(name)
        if (refusal := route.refusal(name, kind, self._settings.retry_after_blocked)) is not None:
            return refusal
        meter = None if key is None else self._meters.get(key.name)
        return None if meter is None else meter.admit(time.monotonic())

    def refused(self, refusal: Refusal) -> None:
        """See server.Handler."""
        self.stats.refused[refusal.code] += 1

    def _request_id(self, request: Request) -> bytes:
        given = request.headers.get(b"x-request-id")
        if given is not None and _REQUEST_ID.fullmatch(given):
            return given
        return b"%b%08x" % (self._id_prefix, next(self._ids))

    def _set_meters(self, snapshot: Snapshot) -> None:
        """Give each key with limits its meter; one whose limits stay goes on counting."""
        known, self._meters = self._meters, {}
        for key in snapshot.keys:
            if key.limits == _UNLIMITED:
                continue
            meter = self._meters[key.name] = known.get(key.name) or Meter(key.limits, time.monotonic())
            if meter.limits != key.limits:
                meter.set(key.limits, time.monotonic())

    def _answer_models(self, request: Request, client: ClientConnection) -> None:
        """The list, or one of it: OpenAI's `GET /v1/models/{model}`, where the name's slashes may be escaped."""
        if request.path == MODELS_PATH:
            client.answer(200, refusals.JSON_HEADER, self._models(request.key))
            return
        name, key = unquote(request.path.removeprefix(ONE_MODEL)), request.key
        route = self._route(name, key)
        if isinstance(route, Refusal):
            client.refuse(route)
        elif key is not None and not route.allowed(key, name):
            client.refuse(refusals.model_not_allowed(name))
        else:
            client.answer(200, refusals.JSON_HEADER, orjson.dumps(listing.entry(name, route)))

    def _models(self, key: Key | None) -> bytes:
        """What `/v1/models` says to `key`: the Models and aliases it may use."""
        found = self._listing.get(key)
        if found is None:
            routes = self.snapshot.routes
            names = ((name, self._shown(name, key)) for name in self.snapshot.listed)
            data = [listing.entry(shown, routes[name]) for name, shown in names if shown]
            found = self._listing[key] = orjson.dumps({"object": "list", "data": data})
        return found

    def _shown(self, name: str, key: Key | None) -> str:
        """What `key` calls the route `name`: as short as leads there; empty where it may not use it."""
        route = self.snapshot.routes[name]
        if key is None:
            return name
        if not route.allowed(key, name):
            return ""
        bare = name.removeprefix(f"{route.namespace}/")
        return bare if self.snapshot.route(bare, key) is route else name


def _may_know(key: Key, name: str) -> bool:
    """Whether `key` may know that there is nothing called `name`."""
    if key.names is not None:
        return False
    return key.namespaces is None or "/" not in name or name.partition("/")[0] in key.namespaces
