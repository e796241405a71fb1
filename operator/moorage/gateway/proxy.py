"""What the gateway serves: who may ask what, and where it goes.

Only listed paths exist. An engine's other routes (loading adapters, slots, metrics) cannot be reached from here.
"""

import itertools
import os
import re

import orjson

from moorage.gateway import refusals, rewrite
from moorage.gateway.demand import Demand
from moorage.gateway.exchange import Exchange, Plant
from moorage.gateway.fleet import Fleet
from moorage.gateway.refusals import Refusal
from moorage.gateway.request import Request
from moorage.gateway.rewrite import Kind, Unusable
from moorage.gateway.routes import Key, Snapshot
from moorage.gateway.server import ClientConnection
from moorage.gateway.settings import Settings
from moorage.gateway.stats import Stats
from moorage.gateway.upstream import EngineEndpoint

MODELS_PATH = b"/v1/models"
KINDS = {kind.value.encode(): kind for kind in Kind} | {b"/rerank": Kind.RERANK}
_REQUEST_ID = re.compile(rb"[!-~]{1,128}")


class Proxy:
    """The handler of the public listener. `snapshot` is the routing table in force; `swap` replaces it."""

    def __init__(self, settings: Settings, stats: Stats, demand: Demand) -> None:
        self.snapshot = Snapshot({}, {}, ())
        self.fleet = Fleet(lambda address: EngineEndpoint(address, settings), demand)
        self.demand = demand
        self.stats = stats
        self._plant = Plant(settings, self.fleet, stats, demand)
        self._settings = settings
        self._id_prefix = os.urandom(8).hex().encode()
        self._ids = itertools.count(1)
        self._listing: dict[Key | None, bytes] = {}

    def swap(self, snapshot: Snapshot) -> None:
        """Put another routing table in force. Requests under way keep the one they began with."""
        self.snapshot = snapshot
        self._listing = {}
        self.fleet.apply(snapshot)

    def check(self, request: Request) -> Refusal | None:
        """See server.Handler: path, method and key, before any of the body is read."""
        if request.path in KINDS:
            if request.method != b"POST":
                return refusals.ONLY_POST
        elif request.path != MODELS_PATH:
            return refusals.UNKNOWN_PATH
        elif request.method != b"GET":
            return refusals.ONLY_GET
        if self.snapshot.closed:
            scheme, _, secret = request.headers.get(b"authorization", b"").partition(b" ")
            request.key = self.snapshot.find_key(secret.strip()) if scheme.lower() == b"bearer" else None
            if request.key is None:
                return refusals.INVALID_KEY
        return None

    def start(self, request: Request, client: ClientConnection) -> None:
        """See server.Handler."""
        kind = KINDS.get(request.path)
        if kind is None:
            client.answer(200, refusals.JSON_HEADER, self._models(request.key))
            return
        try:
            body = rewrite.parse(request.body, self._settings.max_json_marks)
            name = rewrite.model_of(body)
            if "stream" in body:
                rewrite.is_stream(body)
        except Unusable as unusable:
            client.refuse(unusable.refusal)
            return
        request.body = b""
        route = self.snapshot.routes.get(name)
        if request.key is not None and not request.key.allows(name):
            client.refuse(refusals.model_not_allowed(name))
        elif route is None:
            client.refuse(refusals.model_not_found(name))
        else:
            exchange = Exchange(self._plant, client, request, kind, body, self._request_id(request))
            client.job = exchange
            exchange.start(route)

    def refused(self, refusal: Refusal) -> None:
        """See server.Handler."""
        self.stats.refused[refusal.code] += 1

    def _request_id(self, request: Request) -> bytes:
        given = request.headers.get(b"x-request-id")
        if given is not None and _REQUEST_ID.fullmatch(given):
            return given
        return b"%b%08x" % (self._id_prefix, next(self._ids))

    def _models(self, key: Key | None) -> bytes:
        """What `/v1/models` says to `key`: the Models and aliases it may use."""
        found = self._listing.get(key)
        if found is None:
            names = [name for name in self.snapshot.listed if key is None or key.allows(name)]
            data = [{"id": name, "object": "model", "created": 0, "owned_by": "moorage"} for name in names]
            found = self._listing[key] = orjson.dumps({"object": "list", "data": data})
        return found
