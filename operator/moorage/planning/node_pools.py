"""A Model that waits for a node which a cluster autoscaler is to add: until when, what then, and what its pod says.

The autoscaler acts on pods that wait, so the pod is made although no node has room for it. Where its node pool brings
no node in time, the next pool is tried; where none is left the pod waits for any of them, and a person is told.
"""

import json
from datetime import timedelta

from moorage.api.conditions import ModelCondition as C
from moorage.api.conditions import Reason
from moorage.api.model_status import PlacementStatus
from moorage.placement.inventory import Inventory
from moorage.placement.matching import affinity_matches
from moorage.placement.request import Decision
from moorage.planning import text
from moorage.planning.draft import FALSE
from moorage.planning.model_pass import ModelPass
from moorage.planning.pods import Trouble
from moorage.planning.types import Manifest


def late(step: ModelPass) -> frozenset[str]:
    """Node pools that were waited for until their deadline; what is past is remembered in the status."""
    placed = step.status.placement
    if placed is None:
        return frozenset()
    over = set(placed.late_pools)
    if placed.node_pool and placed.waiting_since:
        left = (placed.waiting_since - step.seen.now).total_seconds() + step.seen.defaults.node_deadline_seconds
        if left <= 0:
            over.add(placed.node_pool)
    return frozenset(over)


def forget(placed: PlacementStatus) -> None:
    """Another need is another question: all pools may be tried again."""
    placed.node_pool, placed.waiting_since, placed.late_pools = None, None, []


def remember(step: ModelPass, new: PlacementStatus, found: Decision) -> None:
    """Note in the new status which pool is waited for, since when, and which were waited for in vain."""
    if found.placed:
        return
    new.late_pools = sorted(late(step))
    if found.reason == Reason.WAITING_FOR_NODE:
        before, new.node_pool = step.status.placement, found.node_pools[0]
        new.waiting_since = before.waiting_since if before and before.node_pool == new.node_pool else None


def waits(step: ModelPass, found: Decision) -> None:
    """Say that there is no place yet."""
    message = found.message
    if found.reason == Reason.NO_NODE_CAME:
        patience = text.duration(step.seen.defaults.node_deadline_seconds)
        pod = next((f"pod {p['name']}" for p in step.servers if not p["node"]), "that pod")
        message += (
            f" within {patience}; its pod goes on waiting for any of them: see the events of {pod}, and what the "
            "cluster autoscaler says of these pools (quota, stock, maximum)"
        )
    step.stop(C.PLACED, found.reason, message)


def waiting(step: ModelPass, problem: Trouble) -> str | None:
    """The sentence on a pod that waits for a new node, whose time begins now; None where it waits for something else.

    The pool's time runs from when its pod was first seen waiting: before that no autoscaler could know of it.
    """
    placed, condition = step.status.placement, step.draft.get(C.PLACED)
    refused = problem.reason in (Reason.UNSCHEDULABLE, Reason.VOLUME_ON_ONE_NODE)
    if not refused or placed is None or condition is None or condition.status != FALSE:
        return None
    if condition.reason == Reason.NO_NODE_CAME:
        return condition.message
    if condition.reason != Reason.WAITING_FOR_NODE or not placed.node_pool:
        return None
    placed.waiting_since = placed.waiting_since or step.seen.now
    deadline = placed.waiting_since + timedelta(seconds=step.seen.defaults.node_deadline_seconds)
    step.wake_in(max((deadline - step.seen.now).total_seconds(), 1.0))
    return f"waiting for the autoscaler to add a node of pool {placed.node_pool}: {problem.message}"


def misplaced(step: ModelPass, live: Manifest) -> bool:
    """Whether the pods that wait could not go where the decision wants them; never of pods that are bound.

    Nodes and pools come and go between a decision and the binding; a template that will do is left as it is.
    """
    found, said = step.decision, json.loads(live["placement"]) if live.get("placement") else {}
    waiting_pods = bool(step.servers) and not any(p["node"] for p in step.servers)
    if found is None or found.candidate is None or not waiting_pods or not step.replicas:
        return False
    inventory = step.seen.inventory or Inventory(())
    wanted = [(n.name, n.labels) for n in map(inventory.by_name.get, found.nodes) if n]
    wanted += [(s.name, s.labels) for s in inventory.node_pools if s.name in found.node_pools]
    able = all(affinity_matches(said.get("nodeAffinity"), name, labels) for name, labels in wanted)
    if found.dra:
        made = {t["name"] for t in step.seen.claim_templates}
        return not able or not made & set(said.get("claims", ()))
    return not able or (bool(found.resource) and found.resource not in said.get("gpus", {}))
