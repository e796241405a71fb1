"""How many servers of a Model a drain may take away at once: a PodDisruptionBudget, unless a person made one.

Of servers that are all ready one may always go. While one that is about to go is being replaced there is one more than
wanted, so the same budget keeps it until its replacement is ready (`moving`). A Model that lacks a server already can
lose no other: a drain waits until it has all of them again, or a person deletes the budget.
"""

from moorage import names
from moorage.manifests import model as manifests
from moorage.placement.matching import labels_match
from moorage.planning import volumes
from moorage.planning.model_pass import ModelPass
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
        step.apply += [manifests.disruption_budget(step.seen.model)] if ours or live["ready"] else []
    elif ours is not None:
        meta = step.model.metadata
        step.delete.append(Ref("policy/v1", "PodDisruptionBudget", meta.namespace, ours["name"], ours["uid"]))


def _labels(step: ModelPass) -> dict[str, str]:
    """The labels of the servers' pods."""
    meta = step.model.spec.pod_metadata
    own = {names.MANAGED_BY: "moorage", **manifests.labels(step.model.metadata.name)}
    return {**(meta.labels if meta else {}), **volumes.labels(step.seen.volume), **own}
