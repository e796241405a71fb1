"""Which nodes the Job of a ModelDownload may run on: where the volume is, or where it is wanted.

A volume that is made for its first pod (WaitForFirstConsumer) stays where that pod ran, and the first pod is the
download. So the Job goes where the Model wants its servers, else the files end up beside the GPU that is free.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from moorage.placement.affinity import merged
from moorage.placement.matching import REQUIRED
from moorage.placement.survey import tolerations
from moorage.placement.vendors import ORDER
from moorage.planning.types import Manifest, ObservedDownload, Server
from moorage.planning.volumes import mountable, one_node, only_nodes


@dataclass(frozen=True)
class JobPlace:
    """The core/v1 pod fields that say where the Job's pod may run."""

    node_selector: Manifest
    tolerations: tuple[Manifest, ...]
    affinity: Manifest


def job_place(seen: ObservedDownload) -> JobPlace:
    """Beside whoever mounts the volume; where it is; or, while it is still to be made, where the servers will be."""
    volume, server = seen.volume, seen.server or Server()
    nodes = mountable(volume)
    if nodes is not None:
        pin = only_nodes(nodes) if one_node(volume) and volume and volume["mounted"] else {}
        return JobPlace({}, _tolerated(server), merged(None, pin))
    made = volume is not None and volume["bound"]
    if made or not _one_node(seen):
        return JobPlace({}, (), {})
    planned = only_nodes(server.nodes) if server.nodes else of_pools(server.pools) if server.pools else {}
    wish = {"nodeAffinity": server.node_affinity} if server.node_affinity else None
    return JobPlace(server.node_selector, _tolerated(server) if planned else server.tolerations, merged(wish, planned))


def of_pools(pools: Iterable[Mapping[str, str]]) -> Manifest:
    """The core/v1 NodeAffinity that requires a node of one of the pools, by their labels: the autoscaler adds it."""
    terms = [
        {
            "matchExpressions": [
                {"key": key, "operator": "In", "values": [value]} for key, value in sorted(labels.items())
            ]
        }
        for labels in pools
    ]
    return {REQUIRED: {"nodeSelectorTerms": terms}}


def stranded(seen: ObservedDownload, job: Manifest) -> bool:
    """Whether no node takes the Job's pod, which is wanted elsewhere by now: its node went, its pool brings none."""
    waits = any(p.get("owner") == job["uid"] and p.get("unschedulable") and not p["node"] for p in seen.pods)
    wanted = job_place(seen).affinity.get("nodeAffinity") if waits else None
    return bool(wanted) and json.dumps(wanted, sort_keys=True) != job.get("nodeAffinity")


def _one_node(seen: ObservedDownload) -> bool:
    """Whether the volume to come will be one node's; before the claim is seen the spec says so."""
    if seen.volume is not None:
        return one_node(seen.volume)
    storage = seen.download["spec"].get("storage") or {}
    return one_node({"accessModes": storage.get("accessModes") or []})


def _tolerated(server: Server) -> tuple[Manifest, ...]:
    """The Model's own tolerations, and those of the taints that keep pods without GPUs off GPU nodes."""
    return (*server.tolerations, *(dict(t) for vendor in ORDER for t in tolerations(vendor)))
