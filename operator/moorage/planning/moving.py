"""Servers on a node that is about to go: replacements start elsewhere first, where they fit.

A node that is cordoned, or that an autoscaler takes away, keeps its pods until somebody evicts them. In that time the
Deployment of a Model that serves is given one more replica for each server there, of the same template. When a
replacement is ready the number goes back, and the ReplicaSet takes the server on that node away, because it is marked
as the cheapest to lose. The other servers are not touched. All of it follows from the pods that are there, so that
neither another wanted number nor a restart of the operator in the middle disturbs it.

Where only another template would have a place (another size of GPU, for an engine whose arguments depend on it), a
single server is moved by a surge rollout; several are not, since a rollout replaces them all. Where there is no place
they go on serving for as long as they are let, and the Model says so.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta

from moorage import names
from moorage.api.conditions import Reason
from moorage.api.model_status import FailedMove
from moorage.placement.decide import decide
from moorage.placement.inventory import Inventory, NodeState, Pool
from moorage.placement.memory import size_class
from moorage.placement.request import Candidate, Decision
from moorage.placement.survey import grown, survey
from moorage.planning import model_engine, model_place, text
from moorage.planning.model_pass import ModelPass
from moorage.planning.pods import first_trouble
from moorage.planning.types import Manifest, Patch, PlannedEvent, Ref

GOING = frozenset(
    {
        "ToBeDeletedByClusterAutoscaler",
        "karpenter.sh/disrupted",
        "karpenter.sh/disruption",
        "cloud.google.com/impending-node-termination",
    }
)
"""Taints by which autoscalers and clouds say that a node's time is over."""
AGAIN_SECONDS = 60.0
FAILED_AGAIN_SECONDS = 600.0
"""A replacement that did not come up is tried again after this long: it may have held a GPU in vain."""
NO_OTHER_PLACE = "there is no other place"
CHEAPEST = "-2147483648"
"""The lowest pod deletion cost: kube-controller-manager's ReplicaSet controller takes such a pod away first, among
those that are ready (pkg/controller/controller_utils.go, ActivePodsWithRanks)."""

Places = Callable[[int], tuple[int, str]]
"""Of so many places, how many there are elsewhere; and what to say where there are none."""


def going(node: NodeState) -> bool:
    """Whether a node is about to go."""
    return node.unschedulable or any(taint.key in GOING for taint in node.taints)


def away(step: ModelPass) -> Decision | None:
    """See to servers whose node is about to go; a decision where the one server there can move by a rollout only."""
    live, leaving = _begin(step)
    if live is None or not leaving:
        return None
    plans = model_place.candidates(step)
    if _unsettled(step, live):
        _hold_place(step, plans, leaving)
        return None
    other: list[Decision] = []

    def places(wanted: int) -> tuple[int, str]:
        found = of_same_template(step, wanted, replacing=False)
        if found.reason in (Reason.PLACED, Reason.WAITING_FOR_NODE):  # a pod that waits is what autoscalers act on
            step.reserve = found.reservations(model_place.owner(step))
            return len(found.nodes), ""
        anyhow = model_place.decision(step, plans, replacing=False)
        if anyhow.placed and step.replicas == 1:
            other.append(anyhow)
        elif anyhow.placed:
            return 0, f"only with other settings ({anyhow.message}), which would start all servers anew"
        return 0, found.message

    _replace(step, live, leaving, places)
    if not other or step.surge:
        return None
    step.moving, step.leaving = _digest(leaving), ""
    return other[0]


def away_from_cpu(step: ModelPass) -> None:
    """The same for servers without GPUs: they move where any other node may run them."""
    live, leaving = _begin(step)
    if live is None or not leaving or _unsettled(step, live):
        return
    asked = model_place.request(step, (), replacing=False)
    inventory = step.seen.inventory or Inventory(())
    able = len(inventory.nodes) > len({b.node.name for b in survey(asked, inventory, ()).blocked})
    _replace(step, live, leaving, lambda wanted: (wanted if able else 0, "no other node may run it"))


def moved(step: ModelPass) -> str:
    """What marks the newest move by a rollout, in the Deployment from then on; empty where there was none."""
    live = step.seen.deployment
    return step.moving or (str(live.get("moved", "")) if live else "")


# -- replacements ------------------------------------------------------------------------------------------------------


def _begin(step: ModelPass) -> tuple[Manifest | None, list[Manifest]]:
    """The Deployment, and the servers whose node is about to go: marked by now, and no others."""
    live = step.seen.deployment
    if step.sleep is not None or live is None or live.get("owner") != step.model.metadata.uid:
        return None, []
    nodes = step.seen.inventory.by_name if step.seen.inventory else {}
    leaving = [p for p in step.servers if (node := nodes.get(p["node"])) is not None and going(node)]
    for pod in step.servers:
        if (pod.get("deletionCost") == CHEAPEST) != (pod in leaving):
            step.patch.append(_mark(pod, CHEAPEST if pod in leaving else None))
    if not leaving and step.status.placement:
        step.status.placement.failed_move = None
    return live, leaving


def _replace(step: ModelPass, live: Manifest, leaving: list[Manifest], places: Places) -> None:
    """Ask for as many further servers as are to be replaced and have a place; fewer with each that became ready."""
    where = f"node {', '.join(sorted({p['node'] for p in leaving}))} is about to go"
    staying = [p for p in step.servers if p not in leaving]
    lacking = min(len(leaving), max(step.replicas - sum(p["ready"] for p in staying), 0))
    begun = _begun(step, live)
    if not begun and not any(p["ready"] for p in leaving):
        return  # what does not serve has nothing to keep up
    if lacking and (why := _failed(step, live, _newest(staying, begun))):
        lacking, step.leaving = 0, f"{where}, and {why}"
    started = min(sum(bool(p["node"] and not p["ready"]) for p in staying), lacking)
    if started < lacking:
        found, why = places(lacking - started)
        if not found:
            step.leaving = f"{where}, and {NO_OTHER_PLACE}: {why}"
            step.wake_in(AGAIN_SECONDS)
        lacking = started + found
    step.surge = lacking
    if any(p.get("deletionCost") != CHEAPEST for p in leaving):
        step.surge = max(step.surge, begun)  # not before the ReplicaSet can know which one is to go
    if step.surge and not step.leaving:
        step.leaving = f"{where}; {step.surge} replacement{'s' * (step.surge > 1)} on the way"


def _begun(step: ModelPass, live: Manifest) -> int:
    """Replacements that were asked for by now."""
    return int(max(live["wanted"] - step.replicas, 0))


def _failed(step: ModelPass, live: Manifest, new: list[Manifest]) -> str:
    """Why replacements are given up for the time being; empty while there is hope.

    They have as long as a rollout would, or as a node that an autoscaler is to add.
    """
    placed = step.status.placement
    if placed is None:
        return ""
    now, failed = step.seen.now, placed.failed_move
    late = [p for p in new if not p["ready"]]
    limit = patience(step, live)
    refused = live["conditions"].get("ReplicaFailure", {}) if _begun(step, live) else {}
    told = refused["message"] if refused.get("status") == "True" else ""  # a quota or a policy: there is no pod at all
    if not told and late and min(_age(step, p) for p in late) > limit:
        found = first_trouble(late)
        told = found.message if found else f"no replacement was ready within {text.duration(limit)}"
    if failed is None and told:
        failed = placed.failed_move = FailedMove(at=now, message=told)
        step.tell.append(PlannedEvent("Warning", "MoveFailed", f"no server moves for now: {told}"))
    if failed is None:
        return ""
    left = (failed.at + timedelta(seconds=FAILED_AGAIN_SECONDS) - now).total_seconds()
    if left <= 0:
        placed.failed_move = None
        return ""
    step.wake_in(left)
    again = text.duration(FAILED_AGAIN_SECONDS)
    return f"its replacement did not come up: {failed.message}; tried again {again} after that"


def patience(step: ModelPass, live: Manifest) -> float:
    """Seconds that a start may take: as long as a rollout, or as a node that an autoscaler is to add."""
    return float(max(live["progressDeadline"], step.seen.defaults.node_deadline_seconds))


def _newest(pods: list[Manifest], count: int) -> list[Manifest]:
    """The last `count` of `pods` that were made."""
    return sorted(pods, key=lambda p: p.get("created") or "")[len(pods) - count :] if count < len(pods) else pods


def _age(step: ModelPass, pod: Manifest) -> float:
    """Seconds since a pod was made."""
    made = pod.get("created")
    return (step.seen.now - datetime.fromisoformat(made)).total_seconds() if made else 0.0


def of_same_template(step: ModelPass, wanted: int, *, replacing: bool) -> Decision:
    """Places for `wanted` pods just like those that run: their GPUs, their number and plan of them, their affinity.

    With `replacing` what those that run hold counts as free, and `wanted` are all of them.
    """
    live, placed, memory = step.seen.deployment or {}, step.status.placement, step.status.memory
    said, gpus = json.loads(live.get("placement") or "{}"), (placed.count if placed else None) or 1
    exact = size_class(placed.gpu_memory_mib or 0) if placed and model_engine.engine_of(step).fills_gpu else 0
    claims = bool(said.get("claims"))

    def usable(pool: Pool) -> bool:
        asked = pool.dra if claims else not pool.dra and pool.resource in said.get("gpus", {})
        return asked and exact in (0, pool.size_class)

    inventory = step.seen.inventory or Inventory(())
    nodes = tuple(replace(n, pools=tuple(filter(usable, n.pools))) for n in inventory.nodes)
    shapes = tuple(s for s in inventory.node_pools if usable(grown(s)))
    plan = Candidate(gpus, max(memory.per_gpu_mib if memory else (), default=0))
    asked = replace(
        model_place.request(step, (plan,), replacing=replacing),
        count=gpus,
        node_affinity=said.get("nodeAffinity"),
        replicas=wanted,
    )
    return decide(asked, replace(inventory, nodes=nodes, node_pools=shapes), step.seen.reservations)


def _mark(pod: Manifest, cost: str | None) -> Patch:
    """Tell the ReplicaSet how cheap a pod is to lose. By the status: that way nobody can change what a pod runs."""
    ref = Ref("v1", "Pod", pod["namespace"], pod["name"], pod["uid"])
    return Patch(ref, {"metadata": {"annotations": {names.DELETION_COST: cost}}}, subresource="status")


# -- a rollout ---------------------------------------------------------------------------------------------------------


def _unsettled(step: ModelPass, live: Manifest) -> bool:
    """Whether pods of another template are there, or may be; a number that the controller is still to see stays."""
    unseen = live["observedGeneration"] < live["generation"]
    if unseen:
        step.surge = _begun(step, live)
    return bool(unseen or live["updated"] < live["replicas"])


def _hold_place(step: ModelPass, plans: tuple[Candidate, ...], leaving: list[Manifest]) -> None:
    """Keep the new place for the pod of a rollout that is on its way, until it is bound."""
    if sum(bool(p["node"]) for p in step.servers) - len(leaving) < step.replicas:
        found = model_place.decision(step, plans, replacing=False)
        step.reserve = found.reservations(model_place.owner(step)) if found.placed else ()


def _digest(leaving: list[Manifest]) -> str:
    return names.digest(sorted(p["uid"] for p in leaving))
