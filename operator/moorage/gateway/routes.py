"""The routing table: immutable, one per generation, swapped whole. Pure: no I/O, no clock, no state of the run.

`Snapshot.build` makes it from plain facts (`Model`, `Alias`, `Key`), whoever gathered them: a file
(`routes_document`) or a watch. Everything that one request would otherwise compute is computed here.
"""

import hashlib
import hmac
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import accumulate
from types import MappingProxyType
from typing import Any, Self, TypeVar

from moorage.api.capabilities import Capability
from moorage.engines.capabilities import known_of, pooled
from moorage.errors import InvalidSpec
from moorage.gateway import refusals
from moorage.gateway.keys import Key
from moorage.gateway.refusals import Refusal
from moorage.gateway.rewrite import Kind, Rewrite

_HASH_RANGE = 1 << 64
_POOLS = {Kind.EMBEDDING: Capability.EMBEDDINGS.value, Kind.RERANK: Capability.RERANK.value}

_T = TypeVar("_T", "Model", "Alias", "Key")


@dataclass(frozen=True)
class Parameters:
    """What an alias does to request bodies; `overrides` and `defaults` are flat with any JSON key."""

    defaults: Mapping[str, Any] = field(default_factory=dict)
    overrides: Mapping[str, Any] = field(default_factory=dict)
    drop: frozenset[str] = frozenset()
    system_prompt: str = ""


@dataclass(frozen=True)
class Hold:
    """How many requests may wait under one name, and for how many seconds each."""

    max_pending: int = 100
    timeout: float = 300.0


@dataclass(frozen=True)
class Failover:
    """When an alias goes past a target: seconds, and 0 for a limit that is not set; see `health`."""

    min_success_percent: int = 0
    max_first_token: float = 0.0
    window: float = 60.0
    min_requests: int = 20
    recover_after: float = 300.0


@dataclass(frozen=True)
class Obstacle:
    """Why a Model gets no server until a person does something: an error code, and the sentence of its status."""

    code: str
    message: str


@dataclass(frozen=True)
class Card:
    """What `/v1/models` shows of a Model beside its name; 0, None and empty: not known, or nothing to say."""

    context_length: int = 0
    capabilities: tuple[str, ...] | None = None
    description: str = ""
    tags: tuple[str, ...] = ()

    @property
    def textless(self) -> str:
        """What it serves instead of text, such as embeddings; empty: it generates, or nobody knows."""
        return pooled(frozenset(known_of(self.capabilities or ()))) or ""

    def suits(self, kind: Kind) -> bool:
        """Whether to send it requests of `kind` where there is a choice; vectors come of who is known to make them."""
        return not self.textless if kind.generates else _POOLS[kind] in (self.capabilities or ())


@dataclass(frozen=True)
class Model:
    """A Model as the gateway sees it. `endpoints` are `host:port`; none: it sleeps.

    `name` is the one that is shown. `max_in_flight` is the number of requests one endpoint
    serves at once (the engine's slots); 0: no limit.
    """

    name: str
    engine: str = ""
    served_name: str = ""
    endpoints: tuple[str, ...] = ()
    max_in_flight: int = 0
    defaults: Mapping[str, Any] = field(default_factory=dict)
    namespace: str = ""  # of the cluster; a file has none
    obstacle: Obstacle | None = None
    unloaded: bool = False  # by a person: no request loads it
    card: Card = Card()


@dataclass(frozen=True)
class Alias:
    """A name that points at Models, with weights, and at the Models that stand in for them, in order.

    `lacking` is what it requires and none of its Models offers; it has no targets then.
    """

    name: str
    targets: tuple[tuple[str, int], ...]  # Model, weight
    fallbacks: tuple[str, ...] = ()
    parameters: Parameters = Parameters()
    hold: Hold = Hold()
    sticky_header: str = ""
    failover: Failover | None = None
    namespace: str = ""
    lacking: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Target:
    """A Model as one name reaches it: how a request's body is rewritten on the way."""

    model: Model
    rewrite: Rewrite


@dataclass(frozen=True, slots=True)
class Route:
    """Where requests for one name go. `alias` is empty for a Model called by its own name.

    A route without targets leads nowhere for now: `lacking` says what none of the alias' Models offers. `textless` is
    what its Models serve where none of them generates text; empty: some may. `views` are the route as kinds of requests
    see it that only some of its Models suit.
    """

    name: str
    alias: str
    targets: tuple[Target, ...]
    bounds: tuple[int, ...]  # running sums of the targets' weights
    fallbacks: tuple[Target, ...]
    hold: Hold
    sticky_header: bytes
    namespace: str = ""
    failover: Failover | None = None
    lacking: tuple[str, ...] = ()
    textless: str = ""
    views: Mapping[Kind, "Route"] = field(default_factory=dict)

    def serving(self, kind: Kind) -> "Route":
        """The route for requests of `kind`: past Models that do not suit it, where others do."""
        return self.views.get(kind, self)

    def refusal(self, name: str, kind: Kind, retry_after: int) -> Refusal | None:
        """Why requests of `kind` get nowhere here, whoever sends them; `name` is what the client calls it."""
        if not self.targets:
            return refusals.requirements_not_met(name, self.lacking, retry_after)
        # A chat may be the end of such a server, and a reranker gives vectors out of memory that it never wrote.
        if self.textless and not any(target.model.card.suits(kind) for target in (*self.targets, *self.fallbacks)):
            return refusals.serves_something_else(name, self.textless)
        return None

    def allowed(self, key: Key, asked: str) -> bool:
        """Whether `key` may use this route, which a client called `asked`."""
        if key.namespaces is not None and self.namespace not in key.namespaces:
            return False
        if key.names is None or asked in key.names or self.name in key.names:
            return True
        bare = self.name.removeprefix(f"{self.namespace}/")
        return bare in key.names or f"{self.namespace}/{bare}" in key.names

    def pick(self, token: bytes) -> Target:
        """The target for `token`, by weight. Every replica of the gateway picks the same without talking.

        The hash space is cut in the order of the targets, so that moving some weight moves only that many requests.
        """
        if len(self.targets) == 1:
            return self.targets[0]
        value = int.from_bytes(hashlib.blake2b(token, digest_size=8).digest(), "big")
        point = value * self.bounds[-1] // _HASH_RANGE
        return next(target for target, bound in zip(self.targets, self.bounds, strict=True) if point < bound)


class Snapshot:
    """One generation of the routing table."""

    __slots__ = ("_keys", "closed", "keys", "listed", "models", "routes")

    def __init__(
        self,
        models: Mapping[str, Model] = MappingProxyType({}),
        routes: Mapping[str, Route] = MappingProxyType({}),
        listed: Iterable[str] = (),
        keys: Iterable[Key] = (),
        *,
        closed: bool = False,
    ) -> None:
        """`routes` by every name that leads to one, `listed` the names to show; a `closed` table needs a key."""
        self.models: Mapping[str, Model] = MappingProxyType(dict(models))
        self.routes: Mapping[str, Route] = MappingProxyType(dict(routes))
        self.listed = tuple(listed)
        self.keys = tuple(sorted(keys, key=lambda key: key.name))
        # Of two Secrets that are one key the one whose name comes first counts.
        self._keys = {one: key for key in reversed(self.keys) for one in key.digests}
        self.closed = closed or bool(self.keys)

    @classmethod
    def build(
        cls,
        models: Iterable[Model],
        aliases: Iterable[Alias] = (),
        keys: Iterable[Key] = (),
        *,
        own: Hold = Hold(),
        closed: bool = False,
    ) -> Self:
        """The table of these facts; `own` holds requests for a Model's own name. An alias hides a Model of its name.

        Raises InvalidSpec where two things of one kind share a name, or an alias points at a Model that is not there.
        """
        by_name, by_alias = _unique(models, "model"), _unique(aliases, "alias")
        routes = {name: own_route(model, own) for name, model in by_name.items()}
        routes |= {name: alias_route(alias, by_name) for name, alias in by_alias.items()}
        listed = list(keys)
        _unique(listed, "API key")
        return cls(by_name, routes, sorted(routes), listed, closed=closed)

    def route(self, name: str, key: Key | None) -> Route | None:
        """Where a request for `name` goes that comes with `key`; None: there is nothing of that name."""
        if key is None or key.namespaces is None:
            return self.routes.get(name)
        whole = self.routes.get(name) if "/" in name else None
        if whole is not None and whole.namespace in key.namespaces:
            return whole
        found = (self.routes.get(f"{namespace}/{name}") for namespace in key.namespaces)
        return next((route for route in found if route is not None), whole)

    def find_key(self, secret: bytes) -> Key | None:
        """The key whose text is `secret`.

        Only digests are compared: which byte of one differs tells nothing about a key, and the last word is a
        comparison in constant time.
        """
        digest = hashlib.sha256(secret).digest()
        key = self._keys.get(digest)
        if key is None:
            return None
        return key if any(hmac.compare_digest(one, digest) for one in key.digests) else None


def _unique(things: Iterable[_T], kind: str) -> dict[str, _T]:
    found: dict[str, _T] = {}
    for thing in things:
        if thing.name in found:
            raise InvalidSpec("InvalidSpec", f"two entries for the {kind} {thing.name!r}")
        found[thing.name] = thing
    return found


def own_route(model: Model, hold: Hold) -> Route:
    """The route of a Model called by its own name."""
    target = Target(model, Rewrite.of(model.served_name or model.name, (model.defaults,)))
    return Route(model.name, "", (target,), (1,), (), hold, b"", model.namespace, textless=model.card.textless)


def alias_route(alias: Alias, models: Mapping[str, Model]) -> Route:
    """The route of an alias. Raises InvalidSpec where it leads to a Model that is not there, or to none."""
    if alias.lacking:
        return Route(alias.name, alias.name, (), (), (), alias.hold, b"", alias.namespace, lacking=alias.lacking)
    weighted = [(_target(alias, name, models), weight) for name, weight in alias.targets if weight > 0]
    if not weighted:
        raise InvalidSpec("InvalidSpec", f"alias {alias.name!r} has no target with a weight above 0")
    fallbacks = [_target(alias, name, models) for name in alias.fallbacks]
    cards = [target.model.card for target in (*(target for target, _ in weighted), *fallbacks)]
    route = Route(
        name=alias.name,
        alias=alias.name,
        targets=tuple(target for target, _ in weighted),
        bounds=tuple(accumulate(weight for _, weight in weighted)),
        fallbacks=tuple(fallbacks),
        hold=alias.hold,
        sticky_header=alias.sticky_header.lower().encode("latin-1", "replace"),
        namespace=alias.namespace,
        failover=alias.failover,
        textless=cards[0].textless if all(card.textless for card in cards) else "",
    )
    views = {kind: view for kind in Kind if (view := _view(route, weighted, kind)) is not route}
    return replace(route, views=views) if views else route


def _view(route: Route, weighted: list[tuple[Target, int]], kind: Kind) -> Route:
    """`route` less the Models that do not suit `kind`; with no target left the first fallback is one.

    Where none is known to suit, those are left that may: a server of something else would answer with nonsense.
    """
    cards = [target.model.card for target in (*route.targets, *route.fallbacks)]
    suiting = [card for card in cards if card.suits(kind)] or [card for card in cards if not card.textless]
    if len(suiting) in (0, len(cards)):
        return route
    suited = [(target, weight) for target, weight in weighted if target.model.card in suiting]
    fallbacks = [target for target in route.fallbacks if target.model.card in suiting]
    if not suited:
        suited, fallbacks = [(fallbacks[0], 1)], fallbacks[1:]
    targets, weights = zip(*suited, strict=True)
    return replace(route, targets=targets, bounds=tuple(accumulate(weights)), fallbacks=tuple(fallbacks))


def _target(alias: Alias, name: str, models: Mapping[str, Model]) -> Target:
    model = models.get(name)
    if model is None:
        raise InvalidSpec("InvalidSpec", f"alias {alias.name!r} points at {name!r}, which is not among the models")
    given = alias.parameters
    rewrite = Rewrite.of(
        model.served_name or model.name,
        (given.defaults, model.defaults),
        overrides=given.overrides,
        drop=given.drop,
        system_prompt=given.system_prompt,
    )
    return Target(model, rewrite)
