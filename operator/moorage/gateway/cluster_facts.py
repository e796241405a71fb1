"""What routing needs of a cluster's objects. Pure.

Of what the mirrors keep nothing else decides: where the facts of an object stay the same, the routing table does.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from moorage import names
from moorage.api.alias import AliasSpec, Requires
from moorage.api.alias import Failover as FailoverSpec
from moorage.api.capabilities import Capability
from moorage.api.common import duration_seconds
from moorage.api.conditions import ModelCondition, ModelPhase, Reason
from moorage.api.naming import AllowedNamespaces, ModelRef
from moorage.api.request import ModelRequest
from moorage.engines.choice import AUTO, default_sequences
from moorage.gateway.routes import Card, Failover, Hold, Obstacle, Parameters
from moorage.planning.requirements import Offer, offer

Manifest = dict[str, Any]
ObjectKey = tuple[str, str]  # namespace, name

_WITHOUT_NAMES = re.compile(r" \(|; \S+ would do but ")
"""Behind these, sentences about GPUs name nodes and other people's Models: nothing for clients."""
_NO_MEMORY = {
    Reason.NO_GPU_FITS,
    Reason.NO_GPU_FREE,
    Reason.NO_NODE_CAME,
    Reason.UNKNOWN_GPU_MEMORY,
    Reason.INSUFFICIENT_MEMORY,
}


@dataclass(frozen=True)
class ModelFacts:
    """What routing needs of a Model: its engine (empty: not chosen yet), the requests a server takes at once, names.

    `made` is its creationTimestamp, `offer` what aliases may require of it, `card` what lists show.
    """

    engine: str = ""
    slots: int = 0
    defaults: Mapping[str, Any] = field(default_factory=dict)
    served_names: tuple[str, ...] = ()
    allowed: AllowedNamespaces = field(default_factory=AllowedNamespaces)
    made: str = ""
    obstacle: Obstacle | None = None
    offer: Offer = field(default_factory=Offer)
    card: Card = field(default_factory=Card)
    unloaded: bool = False


@dataclass(frozen=True)
class AliasFacts:
    """What routing needs of a ModelAlias."""

    targets: tuple[tuple[ObjectKey, int], ...]  # Model, weight
    fallbacks: tuple[ObjectKey, ...] = ()
    parameters: Parameters = field(default_factory=Parameters)
    hold: Hold = field(default_factory=Hold)
    sticky_header: str = ""
    served_names: tuple[str, ...] = ()
    failover: Failover | None = None
    made: str = ""
    requires: Requires | None = None

    @property
    def models(self) -> set[ObjectKey]:
        """Every Model that it names."""
        return {model for model, _ in self.targets} | set(self.fallbacks)


@dataclass(frozen=True)
class SliceFacts:
    """What routing needs of an EndpointSlice: the Model's label, the IP family, and `host:port` of each ready pod."""

    model: str
    family: str
    addresses: tuple[str, ...]


def model_facts(obj: Manifest) -> ModelFacts:
    """The projection of a Model. Raises pydantic's ValidationError (a ValueError) where spec.request does not parse."""
    spec, status = obj["spec"], obj.get("status") or {}
    request = ModelRequest.model_validate(spec.get("request") or {})
    known = (status.get("engine") or {}).get("name") or ""
    offered = _offer(spec, status)
    engine = known if spec.get("engine", AUTO) == AUTO else spec["engine"]
    return ModelFacts(
        engine=engine,
        slots=spec.get("maxSequences") or default_sequences(engine),
        defaults=request.defaults.flat(),
        served_names=tuple(spec.get("servedNames") or ()),
        allowed=AllowedNamespaces.model_validate(spec.get("allowedNamespaces") or {}),
        made=obj["metadata"].get("creationTimestamp") or "",
        obstacle=_obstacle(status),
        unloaded=spec.get("replicas") == 0,
        offer=offered,
        card=_card(spec, offered),
    )


def _offer(spec: Manifest, status: Manifest) -> Offer:
    """What the Model offers by its spec and by what the operator found out."""
    source = status.get("source") or {}
    return offer(
        spec.get("contextLength"),
        source.get("contextLength"),
        spec.get("capabilities") or (),
        {found["name"]: found["evidence"] for found in status.get("capabilities") or ()},
        files_known=bool(source.get("mainFile")),
    )


def _card(spec: Manifest, offered: Offer) -> Card:
    known = offered.capabilities
    return Card(
        context_length=offered.context_length,
        capabilities=None if known is None else tuple(str(one) for one in Capability if one in known),
        description=spec.get("description") or "",
        tags=tuple(spec.get("tags") or ()),
    )


def _obstacle(status: Manifest) -> Obstacle | None:
    """What stands in the way of a Model that only a person can mend, or for which every GPU is taken."""
    ready = next((c for c in status.get("conditions") or () if c["type"] == ModelCondition.READY), None)
    if ready is None or ready["status"] == "True":
        return None
    reason = ready["reason"]
    if status.get("phase") != ModelPhase.BLOCKED and reason != Reason.NO_GPU_FREE:
        return None
    message = (status.get("summary") or {}).get("message") or ready.get("message") or reason
    if reason in _NO_MEMORY:
        return Obstacle("insufficient_gpu_memory", _WITHOUT_NAMES.split(message)[0])
    return Obstacle("model_blocked", message)


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
        failover=_failover(spec.failover) if spec.failover else None,
        made=meta.get("creationTimestamp") or "",
        requires=spec.requires,
    )


def _failover(spec: FailoverSpec) -> Failover:
    return Failover(
        min_success_percent=spec.min_success_percent or 0,
        max_first_token=(spec.max_ttft_milliseconds or 0) / 1000,
        window=duration_seconds(spec.window),
        min_requests=spec.min_requests,
        recover_after=duration_seconds(spec.recover_after),
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
