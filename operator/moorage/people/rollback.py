"""`moorage rollback`: an alias points again where it pointed before, as `kubectl rollout undo` does for Deployments."""

from datetime import UTC, datetime
from typing import Any

import click

from moorage.api.alias import ModelAlias, PastTarget, Revision
from moorage.kube.resources import MODEL_ALIASES
from moorage.people.errors import Senseless
from moorage.people.session import FIELD_MANAGER, Options, Result, Session, cluster_options, run, say
from moorage.people.waiting import message
from moorage.planning.alias_history import CHANGE_CAUSE, targets_of


@click.command("rollback")
@click.argument("alias")
@click.option("--to", "number", type=click.IntRange(1), metavar="N", help="Revision; absent: the one before.")
@cluster_options
def command(options: Options, alias: str, number: int | None) -> None:
    """Let ALIAS point where it pointed before.

    Its targets become those of an earlier revision, which makes a new revision. Fallbacks and parameters stay as they
    are. `kubectl describe modelalias ALIAS` lists the revisions; `spec.revisionHistoryLimit` says how many are kept.

    \b
    Examples
      moorage rollback chat
      moorage rollback chat --to 3 -n team-a

    \b
    Exit codes
      0    it points there now
      1    the API server refused, or cannot be reached
      2    wrong usage
      3    there is no such alias or revision, its Model is gone, or the alias points there already
    """

    async def work(session: Session) -> Result:
        found = await session.alias(alias)
        past = earlier(found, number)
        for target in past.targets:
            await _usable(session, past.revision, target)
        cause = f"moorage rollback {alias} --to {past.revision}"
        await point(session, found, [_target(t) for t in past.targets], cause)
        return {"alias": alias, "namespace": session.namespace, "from": found.status.revision, "to": past.revision,
                "targets": [t.dump() for t in past.targets]}  # fmt: skip

    def text(result: Result) -> str:
        shown = ", ".join(_shown(target) for target in result["targets"])
        return f"{alias} points at {shown} again, as in revision {result['to']}"

    run(options, work, text)


def earlier(alias: ModelAlias, number: int | None) -> Revision:
    """The revision `number`, or the newest with other targets than the present ones. Senseless where there is none."""
    name, present, history = alias.metadata.name, targets_of(alias), alias.status.history
    known = ", ".join(str(revision.revision) for revision in history) or "none"
    if number is None:
        past = next((revision for revision in history if revision.targets != present), None)
        if past is None:
            raise Senseless(f"ModelAlias {name} has no earlier revision; known: {known}")
        return past
    chosen = next((revision for revision in history if revision.revision == number), None)
    if chosen is None:
        raise Senseless(f"ModelAlias {name} has no revision {number}; known: {known}")
    if chosen.targets == present:
        raise Senseless(f"ModelAlias {name} points there already; known revisions: {known}")
    return chosen


async def _usable(session: Session, revision: int, target: PastTarget) -> None:
    """Senseless where the Model is gone; that it has no server just now is told, because requests then wait."""
    ref = target.model_ref
    try:
        model = await session.model(ref.name, ref.namespace)
    except Senseless as error:
        raise Senseless(f"revision {revision} cannot come back: {error.message}") from None
    if target.weight and not model.status.ready_replicas:
        say(f"{ref.name} has no server now: {message(model)}. `moorage load {ref.name}` brings one")


async def point(session: Session, alias: ModelAlias, targets: list[dict[str, Any]], cause: str) -> None:
    """Write the targets, unless the alias has changed since it was read (Conflict); `cause` goes into its history."""
    when = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    meta = {"resourceVersion": alias.metadata.resource_version, "annotations": {CHANGE_CAUSE: f"{cause} ({when})"}}
    body = {"metadata": meta, "spec": {"targets": targets}}
    await session.kube.merge_patch(
        MODEL_ALIASES, alias.metadata.namespace, alias.metadata.name, body, field_manager=FIELD_MANAGER
    )


def _target(target: PastTarget) -> dict[str, Any]:
    return {"modelRef": target.model_ref.dump(), "weight": target.weight}


def _shown(target: dict[str, Any]) -> str:
    ref = target["modelRef"]
    name = "/".join(filter(None, [ref.get("namespace"), ref["name"]]))
    return f"{name} (weight {target['weight']})"
