"""The revisions of an alias: each change of its targets makes one, the present one first."""

from datetime import datetime

from moorage.api.alias import ModelAlias, PastTarget, Revision, StatusModelRef

CHANGE_CAUSE = "kubernetes.io/change-cause"
"""The annotation by which people say why, as for `kubectl rollout history`."""


def advance(alias: ModelAlias, now: datetime) -> tuple[int, list[Revision]]:
    """Number of the present revision, and the history with it.

    A revision is made where the targets differ from the present one's; `spec.revisionHistoryLimit` older ones are kept.
    """
    history, number = list(alias.status.history), alias.status.revision or 0
    targets = targets_of(alias)
    if not history or history[0].targets != targets:
        number = max([number, *(revision.revision for revision in history)]) + 1
        reason = _reason(alias, history, targets)
        history.insert(0, Revision(revision=number, targets=targets, since=now, reason=reason))
    return number, history[: alias.spec.revision_history_limit + 1]


def targets_of(alias: ModelAlias) -> list[PastTarget]:
    """The targets of the spec as a status has them."""
    own = alias.metadata.namespace
    return [
        PastTarget(
            model_ref=StatusModelRef(
                name=target.model_ref.name,
                namespace=target.model_ref.namespace if target.model_ref.namespace != own else None,
            ),
            weight=target.weight,
        )
        for target in alias.spec.targets
    ]


def _reason(alias: ModelAlias, history: list[Revision], targets: list[PastTarget]) -> str:
    """The change cause, unless it was that of an earlier revision already: then nobody said why."""
    cause = alias.metadata.annotations.get(CHANGE_CAUSE)
    if cause and all(revision.reason != cause for revision in history):
        return cause
    if not history:
        return "created"
    before = [target.model_ref for target in history[0].targets]
    return "weights changed" if before == [target.model_ref for target in targets] else "targets changed"
