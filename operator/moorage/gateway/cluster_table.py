"""Models, ModelAliases and EndpointSlices as a routing table. Pure.

`namespace/name` always names a Model or an alias; in the default namespace the bare name does too, and there it is the
name that metrics and `/v1/models` show. An alias hides a Model of its name. Names that are claimed by servedNames are
synonyms of the one that has them (`planning.served_names`). What points at a Model that is not there, or that does not
permit it, is left out, so that one wrong alias disturbs no other.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from moorage import names
from moorage.api.alias import AliasSpec
from moorage.api.common import duration_seconds
from moorage.api.naming import AllowedNamespaces, ModelRef
from moorage.api.request import ModelRequest
from moorage.engines.choice import AUTO, default_sequences
from moorage.gateway.keys import Key
from moorage.gateway.routes import Alias, Hold, Model, Parameters, Snapshot
from moorage.planning.served_names import Claim, owners

Manifest = dict[str, Any]
ObjectKey = tuple[str, str]  # namespace, name

_MODEL, _ALIAS = "Model", "ModelAlias"


@dataclass(frozen=True)
class ModelFacts:
    """What routing needs of a Model: its engine (empty: not chosen yet), the requests a server takes at once, names.

    `made` is its creationTimestamp.
    """

    engine: str = ""
    slots: int = 0
    defaults: Mapping[str, Any] = field(default_factory=dict)
    served_names: tuple[str, ...] = ()
    allowed: AllowedNamespaces = field(default_factory=AllowedNamespaces)
    made: str = ""


@dataclass(frozen=True)
class AliasFacts:
    """What routing needs of a ModelAlias."""

    targets: tuple[tuple[ObjectKey, int], ...]  # Model, weight
    fallbacks: tuple[ObjectKey, ...] = ()
    parameters: Parameters = field(default_factory=Parameters)
    hold: Hold = field(default_factory=Hold)
    sticky_header: str = ""
    served_names: tuple[str, ...] = ()
    made: str = ""


@dataclass(frozen=True)
class SliceFacts:
    """What routing needs of an EndpointSlice: the Model's label, the IP family, and `host:port` of each ready pod."""

    model: str
    family: str
    addresses: tuple[str, ...]


def model_facts(obj: Manifest) -> ModelFacts:
    """The projection of a Model. Raises pydantic's ValidationError (a ValueError) where spec.request does not parse."""
    spec = obj["spec"]
    request = ModelRequest.model_validate(spec.get("request") or {})
    known = ((obj.get("status") or {}).get("engine") or {}).get("name") or ""
    engine = known if spec.get("engine", AUTO) == AUTO else spec["engine"]
    return ModelFacts(
        engine=engine,
        slots=spec.get("maxSequences") or default_sequences(engine),
        defaults=request.defaults.flat(),
        served_names=tuple(spec.get("servedNames") or ()),
        allowed=AllowedNamespaces.model_validate(spec.get("allowedNamespaces") or {}),
        made=obj["metadata"].get("creationTimestamp") or "",
    )


def alias_facts(obj: Manifest) -> AliasFacts:
    """The projection of a ModelAlias. Raises pydantic's ValidationError where its spec does not parse."""
    spec, meta = AliasSpec.model_validate(obj["spec"]), obj["metadata"]

    def key(ref: ModelRef) -> ObjectKey:
        return (ref.namespace or meta["namespace"], ref.name)

    parameters = Parameters()
    if request := spec.request:
        parameters = Parameters(
            request.defaults.flat(), request.overrides.flat(), frozenset(request.drop), request.system_prompt or ""
        )
    return AliasFacts(
        targets=tuple((key(target.model_ref), target.weight) for target in spec.targets),
        fallbacks=tuple(key(fallback.model_ref) for fallback in spec.fallbacks),
        parameters=parameters,
        hold=Hold(spec.hold.max_pending, duration_seconds(spec.hold.timeout)),
        sticky_header=spec.sticky_header or "",
        served_names=tuple(spec.served_names),
        made=meta.get("creationTimestamp") or "",
    )


def namespace_labels(obj: Manifest) -> dict[str, str]:
    """The projection of a Namespace."""
    return dict(obj["metadata"].get("labels") or {})


def slice_facts(obj: Manifest) -> SliceFacts | None:
    """The projection of an EndpointSlice; None for one that is of no Model or has no address to connect to."""
    model = (obj["metadata"].get("labels") or {}).get(names.MODEL_LABEL)
    ports = obj.get("ports") or []
    port = next((p.get("port") for p in ports if p.get("name") == names.ENGINE_PORT_NAME), None)
    if not model or not port or obj["addressType"] not in ("IPv4", "IPv6"):
        return None
    host = "[{}]" if obj["addressType"] == "IPv6" else "{}"
    # Absent means ready. Of several addresses of an endpoint "consumers should use the first" (discovery.k8s.io/v1).
    ready = [e for e in obj.get("endpoints") or () if (e.get("conditions") or {}).get("ready") is not False]
    addresses = tuple(f"{host.format(e['addresses'][0])}:{port}" for e in ready)
    return SliceFacts(model, obj["addressType"], addresses)


def build(
    models: Mapping[ObjectKey, ModelFacts],
    aliases: Mapping[ObjectKey, AliasFacts],
    slices: Mapping[ObjectKey, SliceFacts],
    namespaces: Mapping[ObjectKey, Mapping[str, str]],
    *,
    default_namespace: str,
    own_hold: Hold,
    keys: Iterable[Key] = (),
    closed: bool = False,
) -> Snapshot:
    """The routing table of all these; `namespaces` are labels under `("", name)`.

    `own_hold` holds requests for a Model's own name; `closed`: a key is needed.
    """
    endpoints = _endpoints(slices)

    naming = _Naming(models, aliases, default_namespace)
    routed = [
        Model(
            name=naming.shown(key),
            engine=facts.engine,
            served_name=key[1],
            endpoints=endpoints.get((key[0], names.dns_label(key[1])), ()),
            max_in_flight=facts.slots,
            defaults=facts.defaults,
            namespace=key[0],
            others=naming.others(_MODEL, key),
        )
        for key, facts in models.items()
    ]
    permitted = _Permitted(models, namespaces)
    leading = {key: found for key, facts in aliases.items() if (found := permitted.of(key[0], facts))}
    return Snapshot.build(
        routed,
        [_alias(naming, key, aliases[key], *found) for key, found in leading.items()],
        keys,
        own=own_hold,
        hidden=[naming.shown(key) for key in aliases.keys() - leading.keys()],
        closed=closed,
    )


class _Naming:
    """The names that lead to each object."""

    def __init__(
        self, models: Mapping[ObjectKey, ModelFacts], aliases: Mapping[ObjectKey, AliasFacts], home: str
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
        for (namespace, name), claim in owners(claims, self._holder).items():
            if self._holder((namespace, name)) is None:  # an own name leads there already
                self._served[claim.kind, (namespace, claim.name)].append(name)

    def _holder(self, key: ObjectKey) -> Claim | None:
        return next((Claim(objects[key].made, kind, *key) for kind, objects in self._kinds if key in objects), None)

    def shown(self, key: ObjectKey) -> str:
        """The name in lists and metrics: in the default namespace the bare one."""
        return key[1] if key[0] == self._home else "/".join(key)

    def others(self, kind: str, key: ObjectKey) -> tuple[str, ...]:
        """What else leads there: full names, and in the default namespace bare served names."""
        served = self._served.get((kind, key), ())
        full = [f"{key[0]}/{name}" for name in served]
        hidden = kind == _MODEL and key in self._aliases
        return (*full, *(served if key[0] == self._home else ()), *(() if hidden else ("/".join(key),)))


def _endpoints(slices: Mapping[ObjectKey, SliceFacts]) -> dict[ObjectKey, tuple[str, ...]]:
    """Addresses by namespace and label. A dual-stack Service lists each pod once for each family: one family counts."""
    found: defaultdict[ObjectKey, defaultdict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for (namespace, _), facts in slices.items():
        if facts.addresses:
            found[namespace, facts.model][facts.family].update(facts.addresses)
    return {key: tuple(sorted(families[min(families)])) for key, families in found.items()}


class _Permitted:
    """Where aliases lead: Models that exist and permit it."""

    def __init__(
        self, models: Mapping[ObjectKey, ModelFacts], namespaces: Mapping[ObjectKey, Mapping[str, str]]
    ) -> None:
        self._models, self._namespaces = models, namespaces

    def of(self, namespace: str, facts: AliasFacts) -> tuple[list[tuple[ObjectKey, int]], list[ObjectKey]] | None:
        """Targets and fallbacks of an alias of `namespace`; with no target left the first fallback is one.

        None: it leads nowhere.
        """
        targets = [(key, weight) for key, weight in facts.targets if weight > 0 and self._leads(namespace, key)]
        fallbacks = [key for key in facts.fallbacks if self._leads(namespace, key)]
        if not targets and fallbacks:
            return [(fallbacks[0], 1)], fallbacks[1:]
        return (targets, fallbacks) if targets else None

    def _leads(self, namespace: str, key: ObjectKey) -> bool:
        model = self._models.get(key)
        return model is not None and model.allowed.permits(key[0], namespace, self._namespaces.get(("", namespace)))


def _alias(
    naming: _Naming,
    key: ObjectKey,
    facts: AliasFacts,
    targets: Iterable[tuple[ObjectKey, int]],
    fallbacks: Iterable[ObjectKey],
) -> Alias:
    return Alias(
        name=naming.shown(key),
        targets=tuple((naming.shown(model), weight) for model, weight in targets),
        fallbacks=tuple(naming.shown(model) for model in fallbacks),
        parameters=facts.parameters,
        hold=facts.hold,
        sticky_header=facts.sticky_header,
        namespace=key[0],
        others=naming.others(_ALIAS, key),
    )
