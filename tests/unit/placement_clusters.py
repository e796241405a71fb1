"""Simulated clusters for the placement tests: nodes as the operator's projections show them, and a small scheduler."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from moorage.placement.affinity import merged
from moorage.placement.inventory import Inventory, NodeState, build
from moorage.placement.matching import PREFERRED, REQUIRED, term_matches, untolerated
from moorage.placement.request import Decision, Request

CLASSES = {8: 8192, 12: 12282, 16: 16380, 24: 24564, 48: 49140, 80: 81559}
"""Nominal GiB -> what NVML says of such a card, in MiB."""
GPU = "nvidia.com/gpu"


def node(
    name: str, gib: int = 24, gpus: int = 1, *, labels: Mapping[str, str] | None = None, **more: Any
) -> dict[str, Any]:
    """A ready node with NVIDIA GPUs, labelled as GPU feature discovery does."""
    found = {
        "kubernetes.io/hostname": name,
        "nvidia.com/gpu.memory": str(CLASSES[gib]),
        "nvidia.com/gpu.count": str(gpus),
        "nvidia.com/gpu.replicas": "1",
        "nvidia.com/gpu.sharing-strategy": "none",
        **(labels or {}),
    }
    return {
        "name": name,
        "ready": True,
        "unschedulable": False,
        "taints": [],
        "labels": found,
        "gpus": {GPU: gpus},
    } | more


def bare(name: str, **more: Any) -> dict[str, Any]:
    """A ready node without GPUs."""
    return {"name": name, "ready": True, "labels": {"kubernetes.io/hostname": name}, "gpus": {}} | more


def amd(name: str, vram: str, gpus: int = 1) -> dict[str, Any]:
    """A ready node with AMD GPUs, labelled as AMD's node labeller does."""
    labels = {"kubernetes.io/hostname": name, "amd.com/gpu.vram": vram, f"beta.amd.com/gpu.vram.{vram}": str(gpus)}
    return {"name": name, "ready": True, "labels": labels, "gpus": {"amd.com/gpu": gpus}}


def pod(
    name: str, on: str, gpus: int = 1, *, namespace: str = "team-a", resource: str = GPU, **more: Any
) -> dict[str, Any]:
    """A running pod that holds GPUs."""
    return {"namespace": namespace, "name": name, "node": on, "phase": "Running", "gpus": {resource: gpus}} | more


def device(name: str, gib: int, product: str = "NVIDIA L4") -> dict[str, Any]:
    """A device as NVIDIA's DRA driver publishes it."""
    return {
        "name": name,
        "attributes": {"type": {"string": "gpu"}, "productName": {"string": product}},
        "capacity": {"memory": {"value": f"{CLASSES[gib]}Mi"}},
    }


def slice_of(node_name: str, devices: Sequence[Mapping[str, Any]], generation: int = 1) -> dict[str, Any]:
    """A ResourceSlice of one node."""
    return {
        "node": node_name, "driver": "gpu.nvidia.com", "pool": node_name, "generation": generation, "devices": devices,
    }  # fmt: skip


def matches(decision: Decision, state: NodeState, spec: Request | None = None) -> bool:
    """Whether kube-scheduler's filters let a pod with the decision's affinity and tolerations onto a node."""
    affinity = merged({"nodeAffinity": spec.node_affinity} if spec and spec.node_affinity else None, decision.affinity)
    terms = (affinity.get("nodeAffinity") or {}).get(REQUIRED, {}).get("nodeSelectorTerms")
    if terms is not None and not any(term_matches(t, state.name, state.labels) for t in terms):
        return False
    if spec is not None and any(state.labels.get(k) != v for k, v in spec.node_selector.items()):
        return False
    tolerations = [*(spec.tolerations if spec else ()), *decision.tolerations]
    return state.ready and not state.unschedulable and untolerated(state.taints, tolerations) is None


def score(decision: Decision, state: NodeState) -> int:
    """The sum of the weights of the preferred terms that match, which the scheduler normalises."""
    preferred = decision.affinity.get(PREFERRED, ())
    return sum(p["weight"] for p in preferred if term_matches(p["preference"], state.name, state.labels))


def feasible(decision: Decision, inventory: Inventory, spec: Request | None = None) -> list[NodeState]:
    """Nodes that pass the filters and have enough free GPUs in the scheduler's own books."""
    assert decision.candidate is not None
    return [
        state
        for state in inventory.nodes
        if matches(decision, state, spec)
        and any(
            p.resource == decision.resource and p.count - inventory.used(p) >= decision.candidate.gpus
            for p in state.pools
        )
    ]


def cluster(*nodes: Mapping[str, Any], pods: Iterable[Mapping[str, Any]] = (), **more: Any) -> Inventory:
    """The inventory of these nodes and pods."""
    return build(nodes, pods, **more)
