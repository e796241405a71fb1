"""Where the volumes of claims can be mounted, and which nodes mount them now."""

from collections import defaultdict
from collections.abc import Mapping
from heapq import nsmallest
from typing import Any

from moorage.kube.reflector import Reflector
from moorage.kube.resources import CLAIMS, VOLUMES, Resource
from moorage.placement.inventory import Inventory, NodeState
from moorage.placement.matching import may_match, term_matches

Manifest = dict[str, Any]
Where = tuple[str, str]
Terms = list[Manifest]

OVER = ("Succeeded", "Failed")


class Volumes:
    """Puts claim, volume and pods together; `mirrors` are those of the children."""

    def __init__(self, mirrors: Mapping[Resource, Reflector[Manifest]]) -> None:
        self._mirrors = mirrors
        self._mounts: dict[Where, dict[str, set[str]]] = defaultdict(dict)  # claim -> node -> pods there
        self._nodes_known: tuple[NodeState, ...] = ()
        self._selected: dict[str, tuple[Terms, list[str]]] = {}  # volume -> its terms and what they select of those

    def pod_changed(self, where: Where, old: Manifest | None, new: Manifest | None) -> set[Where]:
        """Note which claims a pod mounts; returns those that another node mounts now, or one less."""
        before, after = _mounts(where, old), _mounts(where, new)
        changed = set()
        for claim, node in before - after:
            pods = self._mounts[claim][node]
            pods.discard(where[1])
            if not pods:
                del self._mounts[claim][node]
                changed.add(claim)
        for claim, node in after - before:
            if node not in self._mounts[claim]:
                self._mounts[claim][node] = set()
                changed.add(claim)
            self._mounts[claim][node].add(where[1])
        for claim in changed:
            if not self._mounts[claim]:
                del self._mounts[claim]
        return changed

    def facts(self, claim: Where, inventory: Inventory) -> Manifest | None:
        """What planning knows of the volume of `claim`; None where there is no such claim.

        `nodes` are those that can mount it, None: any (or not known before it is bound); `pools` the node pools whose
        new nodes may, None: any; `mounted` maps nodes to the pods there that mount it, 8 at most.
        """
        found = self._mirrors[CLAIMS].items.get(claim)
        if found is None:
            return None
        return {
            "claim": claim[1],
            "bound": found["phase"] == "Bound",
            "accessModes": found["accessModes"],
            "nodes": self._nodes(claim, found, inventory),
            "pools": self._pools(claim, found, inventory),
            "mounted": {node: nsmallest(8, pods) for node, pods in sorted(self._mounts.get(claim, {}).items())},
        }

    def _nodes(self, claim: Where, found: Manifest, inventory: Inventory) -> list[str] | None:
        volume = self._mirrors[VOLUMES].items.get(("", found["volume"]))
        if volume is not None and volume["claim"] == claim:
            return self._select(volume, inventory.nodes)
        return [found["node"]] if found["node"] and found["phase"] != "Bound" else None

    def _select(self, volume: Manifest, nodes: tuple[NodeState, ...]) -> list[str]:
        """Names of the `nodes` that the volume's terms select; asked for in every pass, so it is kept."""
        if nodes is not self._nodes_known:
            self._nodes_known, self._selected = nodes, {}
        kept = self._selected.get(volume["name"])
        if kept is None or kept[0] is not volume["terms"]:
            terms = volume["terms"]
            names = [n.name for n in nodes if any(term_matches(t, n.name, n.labels) for t in terms)]
            kept = self._selected[volume["name"]] = (terms, names)
        return kept[1]

    def _pools(self, claim: Where, found: Manifest, inventory: Inventory) -> list[str] | None:
        volume = self._mirrors[VOLUMES].items.get(("", found["volume"]))
        if volume is not None and volume["claim"] == claim:
            return [s.name for s in inventory.node_pools if any(may_match(t, s.labels) for t in volume["terms"])]
        return [] if found["node"] and found["phase"] != "Bound" else None


def _mounts(where: Where, pod: Manifest | None) -> set[tuple[Where, str]]:
    """Claim and node of each volume that a pod which is bound and not over mounts."""
    if pod is None or not pod["node"] or pod["phase"] in OVER:
        return set()
    return {((where[0], name), pod["node"]) for name in pod.get("claims", ())}
