"""Who may reach whom: the NetworkPolicies of a cluster, evaluated as a network plugin has to.

Source: https://kubernetes.io/docs/concepts/services-networking/network-policies/ (ingress; no ipBlock, which the chart
does not use: a policy that has one is refused rather than half understood).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

Manifest = dict[str, Any]


@dataclass(frozen=True)
class Pod:
    """A pod as policies see it; `ports` are the names of its container ports."""

    namespace: str
    labels: Mapping[str, str]
    ports: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, namespace: str, template: Manifest) -> "Pod":
        """The pod that a pod template makes."""
        containers = template["spec"]["containers"]
        ports = {p["name"]: p["containerPort"] for c in containers for p in c.get("ports", ()) if "name" in p}
        return cls(namespace, template["metadata"].get("labels", {}), ports)


@dataclass
class Network:
    """Pods of `namespaces` (name to labels) under `policies`, as the API server would store them."""

    policies: Iterable[Manifest]
    namespaces: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def admits(self, source: Pod, target: Pod, port: int) -> bool:
        """Whether a connection from `source` to `port` of `target` is let in, by TCP.

        Not asked for what comes from the target's own node, such as the kubelet's probes: that is always let in.
        """
        over = [p for p in self.policies if _selects(p, target)]
        return not over or any(
            self._from(rule, source, p["metadata"]["namespace"]) and _port(rule, target, port)
            for p in over
            for rule in p["spec"].get("ingress") or ()
        )

    def _from(self, rule: Manifest, source: Pod, own: str) -> bool:
        peers = rule.get("from")
        return not peers or any(self._is(peer, source, own) for peer in peers)

    def _is(self, peer: Manifest, source: Pod, own: str) -> bool:
        unknown = set(peer) - {"podSelector", "namespaceSelector"}
        assert not unknown, f"not evaluated here: {unknown}"
        assert peer, "an empty peer is refused by the API server"
        if "namespaceSelector" in peer:
            labels = {"kubernetes.io/metadata.name": source.namespace, **self.namespaces.get(source.namespace, {})}
            if not matches(peer["namespaceSelector"], labels):
                return False
        elif source.namespace != own:
            return False
        return matches(peer.get("podSelector") or {}, source.labels)


def matches(selector: Manifest, labels: Mapping[str, str]) -> bool:
    """A LabelSelector of meta/v1; the empty one matches everything."""
    if any(labels.get(key) != value for key, value in (selector.get("matchLabels") or {}).items()):
        return False
    return all(_expression(one, labels) for one in selector.get("matchExpressions") or ())


def _expression(one: Manifest, labels: Mapping[str, str]) -> bool:
    key, values = one["key"], one.get("values") or ()
    return {
        "In": labels.get(key) in values,
        "NotIn": labels.get(key) not in values,
        "Exists": key in labels,
        "DoesNotExist": key not in labels,
    }[one["operator"]]


def _selects(policy: Manifest, pod: Pod) -> bool:
    spec = policy["spec"]
    here = policy["metadata"]["namespace"] == pod.namespace and "Ingress" in spec.get("policyTypes", ["Ingress"])
    return here and matches(spec.get("podSelector") or {}, pod.labels)


def _port(rule: Manifest, target: Pod, port: int) -> bool:
    ports = rule.get("ports")
    return not ports or any(_is_port(one, target, port) for one in ports)


def _is_port(one: Manifest, target: Pod, port: int) -> bool:
    if one.get("protocol", "TCP") != "TCP":
        return False
    wanted = one.get("port")
    if wanted is None:
        return True
    if isinstance(wanted, str):
        return target.ports.get(wanted) == port
    return bool(wanted <= port <= one.get("endPort", wanted))
