"""How many servers of a Model a drain may take away at once: a PodDisruptionBudget, unless a person made one.

Of servers that are all ready one may always go, and until its successor is ready no other: a drain of one node after
the other finds a server at any time. That counts on starts that end. A server that has not been ready for longer than
a start may take (no GPU is left for it, it fails again and again) is counted on no more, so that it does not keep the
others' nodes from ever being drained. While one that is about to go is being replaced there is one more than wanted, so
the same budget keeps it until its replacement is ready (`moving`).
"""

from datetime import datetime

from moorage import names
from moorage.manifests import model as manifests
from moorage.placement.matching import labels_match
from moorage.planning import moving, volumes
from moorage.planning.model_pass import ModelPass
from moorage.planning.pods import DEADLINE
from moorage.planning.types import Manifest, Ref


def limit_evictions(step: ModelPass, live: Manifest) -> None:
    """Have a budget for servers that were ready once; none beside a person's, which the Eviction API would refuse.

    "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support" is its answer.
    """
    ours = step.seen.budget
    if ours is not None and ours.get("owner") != step.model.metadata.uid:
        return
    bears = _labels(step)
    if not any(labels_match(theirs["selector"], bears) for theirs in step.seen.budgets):
        budget = manifests.disruption_budget(step.seen.model, 1 + _given_up(step, live))
        step.apply += [budget] if ours or live["ready"] else []
    elif ours is not None:
        meta = step.model.metadata
        step.delete.append(Ref("policy/v1", "PodDisruptionBudget", meta.namespace, ours["name"], ours["uid"]))


def _given_up(step: ModelPass, live: Manifest) -> int:
    """Servers that are wanted and that nobody waits for any more.

    One that a rollout has beyond those that are wanted is none of them: what fails there is a new version, and says
    nothing of the servers of the previous one and of their successors, which keep the service.
    """
    lacking: int = max(live["wanted"] - live["ready"], 0)
    late, coming = 0, 0
    patience = moving.patience(step, live)
    for pod in step.servers:
        since = pod.get("readyAt") or pod.get("created")
        if pod["ready"] or not since:
            continue
        left = patience - (step.seen.now - datetime.fromisoformat(since)).total_seconds()
        if left > 0:
            step.wake_in(left)
        late += left <= 0
        coming += left > 0
    rolling = live["updated"] < live["replicas"]
    if not rolling and live["conditions"].get("Progressing", {}).get("reason") == DEADLINE:
        return max(lacking - coming, 0)  # also where no pod can be made at all
    surplus: int = max(len(step.servers) - live["wanted"], int(rolling))  # also while the successor is still to be made
    return min(max(late - surplus, 0), lacking)


def _labels(step: ModelPass) -> dict[str, str]:
    """The labels of the servers' pods."""
    meta = step.model.spec.pod_metadata
    own = {names.MANAGED_BY: "moorage", **manifests.labels(step.model.metadata.name)}
    return {**(meta.labels if meta else {}), **volumes.labels(step.seen.volume), **own}
