"""Servers on a node that is about to go: a replacement starts elsewhere first, where one fits.

A node that is cordoned, or that an autoscaler takes away, keeps its pods until somebody evicts them. In that time a
Model that serves gets a new pod by a surge rollout; the old one stops when the new one is ready. Where there is no
place the old one goes on serving for as long as it is let, and the Model says so.
"""

from moorage import names
from moorage.placement.inventory import Inventory, NodeState
from moorage.placement.request import Candidate, Decision
from moorage.placement.survey import survey
from moorage.planning import model_place
from moorage.planning.model_pass import ModelPass
from moorage.planning.types import Manifest

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


def going(node: NodeState) -> bool:
    """Whether a node is about to go."""
    return node.unschedulable or any(taint.key in GOING for taint in node.taints)


def away(step: ModelPass, plans: tuple[Candidate, ...]) -> Decision | None:
    """The place elsewhere for servers whose node is about to go; None where none has to move, or none can.

    Only a Model that serves and is not being rolled out begins to move; while it moves, the new place is held for it.
    """
    live, leaving = step.seen.deployment, _leaving(step)
    if live is None or not leaving or step.sleep is not None:
        return None
    if not _settled(step, live):
        if sum(bool(p["node"]) for p in step.servers) - len(leaving) < step.replicas:
            found = model_place.decision(step, plans, replacing=False)
            step.reserve = found.reservations(model_place.owner(step)) if found.placed else ()
        return None
    found = model_place.decision(step, plans, replacing=False)
    if not found.placed:
        _stays(step, leaving, found.message)
        return None
    step.moving = _mark(leaving)
    return found


def away_from_cpu(step: ModelPass) -> None:
    """The same for servers without GPUs: they move where any other node may run them."""
    live, leaving = step.seen.deployment, _leaving(step)
    if live is None or not leaving or step.sleep is not None or not _settled(step, live):
        return
    asked = model_place.request(step, (), replacing=False)
    inventory = step.seen.inventory or Inventory(())
    blocked = {b.node.name for b in survey(asked, inventory, ()).blocked}
    if len(blocked) == len(inventory.nodes):
        _stays(step, leaving, "no other node may run it")
    else:
        step.moving = _mark(leaving)


def moved(step: ModelPass) -> str:
    """What marks the newest move, in the Deployment from then on; empty where there was none."""
    live = step.seen.deployment
    return step.moving or (str(live.get("moved", "")) if live else "")


def _leaving(step: ModelPass) -> list[Manifest]:
    nodes = step.seen.inventory.by_name if step.seen.inventory else {}
    return [p for p in step.servers if (node := nodes.get(p["node"])) is not None and going(node)]


def _settled(step: ModelPass, live: Manifest) -> bool:
    """Whether all servers are there, ready, and of the newest template."""
    seen = live["observedGeneration"] >= live["generation"]
    whole = live["wanted"] == live["updated"] == live["replicas"] == live["ready"]
    return bool(seen and whole and live["wanted"] and len(step.servers) == live["wanted"])


def _mark(leaving: list[Manifest]) -> str:
    return names.digest(sorted(p["uid"] for p in leaving))


def _stays(step: ModelPass, leaving: list[Manifest], why: str) -> None:
    where = ", ".join(sorted({p["node"] for p in leaving}))
    step.stuck = f"node {where} is about to go, and there is no other place: {why}"
    step.wake_in(AGAIN_SECONDS)
