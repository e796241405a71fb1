"""Models, ModelAliases and EndpointSlices as a routing table. Pure.

`namespace/name` always names a Model or an alias; in the default namespace the bare name does too, and there it is the
name that metrics and `/v1/models` show. An alias hides a Model of its name. What points at a Model that is not there
is left out, so that one wrong alias disturbs no other.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from moorage import names
from moorage.api.alias import AliasSpec
from moorage.api.common import duration_seconds
from moorage.api.request import ModelRequest
from moorage.engines.choice import AUTO, default_sequences
from moorage.gateway.keys import Key
from moorage.gateway.routes import Alias, Hold, Model, Parameters, Snapshot

Manifest = dict[str, Any]
ObjectKey = tuple[str, str]  # namespace, name


@dataclass(frozen=True)
class ModelFacts:
    """What routing needs of a Model: its engine (empty: not chosen yet), and the requests a server takes at once."""

    engine: str = ""
    slots: int = 0
    defaults: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class AliasFacts:
    """What routing needs of a ModelAlias; names are those of Models in its namespace."""

    targets: tuple[tuple[str, int], ...]  # Model, weight
    fallbacks: tuple[str, ...] = ()
    parameters: Parameters = field(default_factory=Parameters)
    hold: Hold = field(default_factory=Hold)
    sticky_header: str = ""


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
    return ModelFacts(engine, spec.get("maxSequences") or default_sequences(engine), request.defaults.flat())


def alias_facts(obj: Manifest) -> AliasFacts:
    """The projection of a ModelAlias. Raises pydantic's ValidationError where its spec does not parse."""
    spec = AliasSpec.model_validate(obj["spec"])
    parameters = Parameters()
    if request := spec.request:
        parameters = Parameters(
            request.defaults.flat(), request.overrides.flat(), frozenset(request.drop), request.system_prompt or ""
        )
    return AliasFacts(
        targets=tuple((target.model_ref.name, target.weight) for target in spec.targets),
        fallbacks=tuple(fallback.model_ref.name for fallback in spec.fallbacks),
        parameters=parameters,
        hold=Hold(spec.hold.max_pending, duration_seconds(spec.hold.timeout)),
        sticky_header=spec.sticky_header or "",
    )


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
    *,
    default_namespace: str,
    own_hold: Hold,
    keys: Iterable[Key] = (),
    closed: bool = False,
) -> Snapshot:
    """The routing table of all these; `own_hold` holds requests for a Model's own name; `closed`: a key is needed."""
    endpoints = _endpoints(slices)

    def shown(key: ObjectKey) -> str:
        return key[1] if key[0] == default_namespace else "/".join(key)

    def others(key: ObjectKey) -> tuple[str, ...]:
        return ("/".join(key),) if key[0] == default_namespace else ()

    routed = [
        Model(
            name=shown(key),
            engine=facts.engine,
            served_name=key[1],
            endpoints=endpoints.get((key[0], names.dns_label(key[1])), ()),
            max_in_flight=facts.slots,
            defaults=facts.defaults,
            namespace=key[0],
            others=others(key),
        )
        for key, facts in models.items()
    ]
    leading = {key: found for key, facts in aliases.items() if (found := _present(key, facts, models))}
    return Snapshot.build(
        routed,
        [_alias(shown, key, aliases[key], *found, others(key)) for key, found in leading.items()],
        keys,
        own=own_hold,
        hidden=[shown(key) for key in aliases.keys() - leading.keys()],
        closed=closed,
    )


def _endpoints(slices: Mapping[ObjectKey, SliceFacts]) -> dict[ObjectKey, tuple[str, ...]]:
    """Addresses by namespace and label. A dual-stack Service lists each pod once for each family: one family counts."""
    found: defaultdict[ObjectKey, defaultdict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for (namespace, _), facts in slices.items():
        if facts.addresses:
            found[namespace, facts.model][facts.family].update(facts.addresses)
    return {key: tuple(sorted(families[min(families)])) for key, families in found.items()}


def _present(
    key: ObjectKey, facts: AliasFacts, models: Mapping[ObjectKey, ModelFacts]
) -> tuple[list[tuple[str, int]], list[str]] | None:
    """The alias' targets and fallbacks that exist; with no target left the first fallback is one. None: nothing is."""
    targets = [(name, weight) for name, weight in facts.targets if weight > 0 and (key[0], name) in models]
    fallbacks = [name for name in facts.fallbacks if (key[0], name) in models]
    if not targets and fallbacks:
        return [(fallbacks[0], 1)], fallbacks[1:]
    return (targets, fallbacks) if targets else None


def _alias(
    shown: Callable[[ObjectKey], str],
    key: ObjectKey,
    facts: AliasFacts,
    targets: Iterable[tuple[str, int]],
    fallbacks: Iterable[str],
    others: tuple[str, ...],
) -> Alias:
    return Alias(
        name=shown(key),
        targets=tuple((shown((key[0], name)), weight) for name, weight in targets),
        fallbacks=tuple(shown((key[0], name)) for name in fallbacks),
        parameters=facts.parameters,
        hold=facts.hold,
        sticky_header=facts.sticky_header,
        namespace=key[0],
        others=others,
    )
