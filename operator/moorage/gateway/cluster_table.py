"""Models, ModelAliases and EndpointSlices as a routing table. No I/O.

`namespace/name` always names a Model or an alias; in the default namespace the bare name does too, and there it is the
name that metrics and `/v1/models` show. An alias hides a Model of its name. Names that are claimed by servedNames are
synonyms of the one that has them (`planning.served_names`), and begin with no namespace that there is. What points at a
Model that is not there, or that does not permit it, is left out, so that one wrong alias disturbs no other. So are
Models that offer less than an alias requires; one that has only such ones stays a name, and says so to who asks.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from itertools import chain

from moorage import names
from moorage.api.alias import Requires
from moorage.gateway.cluster_facts import AliasFacts, ModelFacts, ObjectKey, SliceFacts
from moorage.gateway.keys import Key
from moorage.gateway.routes import Alias, Hold, Model, Route, Snapshot, alias_route, own_route
from moorage.planning.requirements import missing
from moorage.planning.served_names import Claim, owners

_MODEL, _ALIAS = "Model", "ModelAlias"
_Namespaces = Mapping[ObjectKey, Mapping[str, str]]
_Leads = tuple[list[tuple[ObjectKey, int]], list[ObjectKey], tuple[str, ...]]  # targets, fallbacks, what all lack


class Table:
    """The routing table of four mirrors, whose changes it is told; `namespaces` are labels under `("", name)`.

    A change that moves no name (endpoints, parameters, targets) costs what it touches; one that may, a pass over all
    names. Requests wait meanwhile, hence the difference: with 10,000 Models it is 2 ms or 80.
    """

    def __init__(
        self,
        models: Mapping[ObjectKey, ModelFacts],
        aliases: Mapping[ObjectKey, AliasFacts],
        slices: Mapping[ObjectKey, SliceFacts],
        namespaces: _Namespaces,
        *,
        default_namespace: str,
        own_hold: Hold,
    ) -> None:
        self._models, self._aliases, self._slices = models, aliases, slices
        self._namespaces, self._home, self._own_hold = namespaces, default_namespace, own_hold
        self._permitted = _Permitted(models, namespaces)
        self._built: dict[ObjectKey, _Built] = {}
        self._routed: dict[str, Model] = {}  # by the name that is shown
        self._routes: dict[str, Route] = {}  # by every name
        self._listed: set[str] = set()
        self._sorted: tuple[str, ...] | None = None  # None: they have changed
        self._names: dict[tuple[str, ObjectKey], tuple[str, ...]] = {}
        self._labels: dict[ObjectKey, ObjectKey] = {}  # Model -> namespace, and the label of its Service
        self._by_label: dict[ObjectKey, ObjectKey] = {}  # the other way round
        self._slices_of: defaultdict[ObjectKey, set[ObjectKey]] = defaultdict(set)
        self._users: defaultdict[ObjectKey, set[ObjectKey]] = defaultdict(set)  # Model -> aliases that name it
        self._stale_names = True
        self._stale_models: set[ObjectKey] = set()
        self._stale_aliases: set[ObjectKey] = set()
        for key, facts in slices.items():
            self.note_slice(key, None, facts)

    # Changes

    def note_model(self, key: ObjectKey, old: ModelFacts | None, new: ModelFacts | None) -> None:
        """A Model came, went or changed."""
        self._note_names(old, new)
        self._stale_models.add(key)

    def note_alias(self, key: ObjectKey, old: AliasFacts | None, new: AliasFacts | None) -> None:
        """An alias came, went or changed."""
        self._note_names(old, new)
        self._stale_aliases.add(key)
        self._point(key, old, new)

    def note_slice(self, key: ObjectKey, old: SliceFacts | None, new: SliceFacts | None) -> None:
        """An EndpointSlice came, went or changed."""
        for facts in (old, new):
            if facts is None:
                continue
            label = key[0], facts.model
            (self._slices_of[label].discard if facts is old else self._slices_of[label].add)(key)
            if model := self._by_label.get(label):
                self._stale_models.add(model)

    def note_all(self, *_: object) -> None:
        """Anything may have changed."""
        self._stale_names = True

    def _note_names(self, old: ModelFacts | AliasFacts | None, new: ModelFacts | AliasFacts | None) -> None:
        if old is None or new is None or (old.served_names, old.made) != (new.served_names, new.made):
            self._stale_names = True

    def _point(self, key: ObjectKey, old: AliasFacts | None, new: AliasFacts | None) -> None:
        for model in old.models if old else ():
            self._users[model].discard(key)
        for model in new.models if new else ():
            self._users[model].add(key)

    # The table

    def snapshot(self, keys: Iterable[Key] = (), *, closed: bool = False) -> Snapshot:
        """The table as things are now; `closed`: a key is needed."""
        if self._stale_names:
            self._name_all()
        else:
            for key in self._stale_models:
                self._put_model(key)
                self._stale_aliases |= self._users.get(key, set())
            for key in self._stale_aliases:
                self._put_alias(key)
        self._stale_names, self._stale_models, self._stale_aliases = False, set(), set()
        if self._sorted is None:
            self._sorted = tuple(sorted(self._listed))
        return Snapshot(self._routed, self._routes, self._sorted, keys, closed=closed)

    def _name_all(self) -> None:
        self._names = _Naming(self._models, self._aliases, self._namespaces, self._home).all()
        self._labels = {key: (key[0], names.dns_label(key[1])) for key in self._models}
        self._by_label = {label: key for key, label in self._labels.items()}
        self._users.clear()
        for key, facts in self._aliases.items():
            self._point(key, None, facts)
        self._built = {key: built for key, built in self._built.items() if key in self._models}
        self._routed, self._routes, self._listed, self._sorted = {}, {}, set(), None
        for key in self._models:
            self._put_model(key)
        for key in self._aliases:
            self._put_alias(key)

    def _put_model(self, key: ObjectKey) -> None:
        facts, addresses, named = self._models[key], self._addresses(key), self._names[_MODEL, key]
        built = self._built.get(key)
        if built is None or built.facts is not facts or built.model.endpoints != addresses:
            model = Model(
                name=self._shown(key),
                engine=facts.engine,
                served_name=key[1],
                endpoints=addresses,
                max_in_flight=facts.slots,
                defaults=facts.defaults,
                namespace=key[0],
                obstacle=facts.obstacle,
                unloaded=facts.unloaded,
                card=facts.card,
            )
            built = self._built[key] = _Built(facts, model, own_route(model, self._own_hold))
        self._routed[built.model.name] = built.model
        for name in named:
            self._routes[name] = built.route
        if built.model.name in named:
            self._list(built.model.name, True)

    def _put_alias(self, key: ObjectKey) -> None:
        name_shown, named = self._shown(key), self._names[_ALIAS, key]
        facts = self._aliases[key]
        leads = self._permitted.of(key[0], facts)
        if leads is None:
            for name in named:
                self._routes.pop(name, None)
            self._list(name_shown, False)
            return
        targets, fallbacks, lacking = leads
        alias = Alias(
            name=name_shown,
            targets=tuple((self._shown(model), weight) for model, weight in targets),
            fallbacks=tuple(self._shown(model) for model in fallbacks),
            parameters=facts.parameters,
            hold=facts.hold,
            sticky_header=facts.sticky_header,
            failover=facts.failover,
            namespace=key[0],
            lacking=lacking,
        )
        route = alias_route(alias, self._routed)
        for name in named:
            self._routes[name] = route
        self._list(name_shown, True)

    def _list(self, name: str, there: bool) -> None:
        if there != (name in self._listed):
            (self._listed.add if there else self._listed.discard)(name)
            self._sorted = None

    def _addresses(self, key: ObjectKey) -> tuple[str, ...]:
        """Of its ready pods. A dual-stack Service lists each pod once for each family: one family counts."""
        families: defaultdict[str, set[str]] = defaultdict(set)
        for slice_key in self._slices_of.get(self._labels[key], ()):
            facts = self._slices[slice_key]
            if facts.addresses:
                families[facts.family].update(facts.addresses)
        return tuple(sorted(families[min(families)])) if families else ()

    def _shown(self, key: ObjectKey) -> str:
        return shown(key, self._home)


class _Built:
    """What became of a Model, and of which facts."""

    __slots__ = ("facts", "model", "route")

    def __init__(self, facts: ModelFacts, model: Model, route: Route) -> None:
        self.facts, self.model, self.route = facts, model, route


def shown(key: ObjectKey, home: str) -> str:
    """The name in lists and metrics: in the default namespace `home` the bare one."""
    return key[1] if key[0] == home else "/".join(key)


class _Naming:
    """The names that lead to each object."""

    def __init__(
        self,
        models: Mapping[ObjectKey, ModelFacts],
        aliases: Mapping[ObjectKey, AliasFacts],
        namespaces: _Namespaces,
        home: str,
    ) -> None:
        self._kinds: tuple[tuple[str, Mapping[ObjectKey, ModelFacts | AliasFacts]], ...]
        self._kinds = ((_ALIAS, aliases), (_MODEL, models))
        self._aliases, self._home = aliases, home
        self._served: defaultdict[tuple[str, ObjectKey], list[str]] = defaultdict(list)
        claims = (
            (name, Claim(facts.made, kind, *key))
            for kind, objects in self._kinds
            for key, facts in objects.items()
            for name in facts.served_names
        )
        # An object may be known a moment before its namespace is.
        there = {name for _, name in namespaces} | {namespace for namespace, _ in chain(models, aliases)}
        for (namespace, name), claim in owners(claims, self._holder, there.__contains__).items():
            if self._holder((namespace, name)) is None:  # an own name leads there already
                self._served[claim.kind, (namespace, claim.name)].append(name)

    def _holder(self, key: ObjectKey) -> Claim | None:
        return next((Claim(objects[key].made, kind, *key) for kind, objects in self._kinds if key in objects), None)

    def all(self) -> dict[tuple[str, ObjectKey], tuple[str, ...]]:
        """What leads to each object, by kind and key: names in full, in the default namespace without it too."""
        own = {(kind, key): self._own(kind, key) for kind, objects in self._kinds for key in objects}
        full = {found: tuple(f"{found[1][0]}/{name}" for name in some) for found, some in own.items()}
        bare = {found: some for found, some in own.items() if found[1][0] == self._home}
        return full | {found: (*full[found], *some) for found, some in bare.items()}

    def _own(self, kind: str, key: ObjectKey) -> tuple[str, ...]:
        served = self._served.get((kind, key), ())
        hidden = kind == _MODEL and key in self._aliases
        return (*served, *(() if hidden else (key[1],)))


class _Permitted:
    """Where aliases lead: Models that exist, permit it, and offer what the alias requires."""

    def __init__(self, models: Mapping[ObjectKey, ModelFacts], namespaces: _Namespaces) -> None:
        self._models, self._namespaces = models, namespaces

    def of(self, namespace: str, facts: AliasFacts) -> _Leads | None:
        """Targets and fallbacks of an alias of `namespace`; with no target left the first fallback is one.

        None: it leads nowhere. Where it leads only to Models that fall short there is no target, but what they lack.
        """
        lacking: set[str] = set()
        targets = [(key, weight) for key, weight in facts.targets if weight > 0 and self._leads(namespace, key)]
        fallbacks = [key for key in facts.fallbacks if self._leads(namespace, key)]
        if facts.requires and (targets or fallbacks):
            targets = [(key, weight) for key, weight in targets if self._suffices(facts.requires, key, lacking)]
            fallbacks = [key for key in fallbacks if self._suffices(facts.requires, key, lacking)]
        if not targets and fallbacks:
            return [(fallbacks[0], 1)], fallbacks[1:], ()
        return (targets, fallbacks, () if targets else tuple(sorted(lacking))) if targets or lacking else None

    def _leads(self, namespace: str, key: ObjectKey) -> bool:
        model = self._models.get(key)
        return model is not None and model.allowed.permits(key[0], namespace, self._namespaces.get(("", namespace)))

    def _suffices(self, requires: Requires, key: ObjectKey, lacking: set[str]) -> bool:
        """Whether the Model offers what is required; what it lacks goes into `lacking`."""
        short = missing(requires, self._models[key].offer)
        lacking.update(short)
        return not short
