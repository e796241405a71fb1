"""`moorage load` and `moorage unload`: servers of a Model come and go, its files stay."""

from datetime import UTC, datetime

import click

from moorage import names
from moorage.api.model import Model
from moorage.people.errors import Senseless
from moorage.people.session import Duration, Options, Result, Session, cluster_options, run, say
from moorage.people.waiting import serves, until, until_serving


@click.command("load")
@click.argument("model")
@click.option(
    "--replicas", type=click.IntRange(1, 64), default=1, show_default=True, help="Servers, where it has none."
)
@click.option("--timeout", type=Duration(), default="10m", show_default=True, help="How long to wait.")
@click.option("--no-wait", is_flag=True, help="Ask for it, and do not wait until it serves.")
@cluster_options
def load(options: Options, model: str, replicas: int, timeout: float, no_wait: bool) -> None:
    """Load MODEL: start its servers, and wait until it serves.

    A Model at replicas 0 gets --replicas; one that sleeps is woken; one that serves already is left alone.

    \b
    Examples
      moorage load qwen3-8b
      moorage load qwen3-8b -n team-a --timeout 30m
      moorage load qwen3-8b --no-wait

    \b
    Exit codes
      0    it serves (with --no-wait: it was asked to)
      1    the API server refused, or cannot be reached
      2    wrong usage
      3    there is no such Model
      4    it failed, or waits for a person; its conditions say why
      5    it does not serve after --timeout
    """

    async def work(session: Session) -> Result:
        found = await session.model(model)
        done = await wake(session, found, replicas)
        if not no_wait:
            found = await until_serving(session, found, timeout)
        return {"model": model, "namespace": session.namespace, "asked": done, "serves": serves(found)}

    def text(result: Result) -> str:
        if result["serves"]:
            return f"{model} serves" + ("" if result["asked"] else "; it did already")
        return f"{model} loads" if result["asked"] else f"{model} is on its way already"

    run(options, work, text)


async def wake(session: Session, model: Model, replicas: int = 1) -> str:
    """Have servers of `model` started where there are none; what was done: `scaled`, `woken` or nothing."""
    if model.spec.replicas == 0:
        await session.scale(model, replicas)
        return "scaled"
    if model.status.desired_replicas == 0:
        await session.annotate(model, names.WAKE_AT, datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"))
        return "woken"
    return ""


@click.command("unload")
@click.argument("model")
@click.option("--force", is_flag=True, help="Even where an alias points at it and has nobody else.")
@click.option("--timeout", type=Duration(), default="3m", show_default=True, help="How long to wait.")
@click.option("--no-wait", is_flag=True, help="Ask for it, and do not wait until its servers are gone.")
@cluster_options
def unload(options: Options, model: str, force: bool, timeout: float, no_wait: bool) -> None:
    """Unload MODEL: stop its servers and give back their GPUs. Its files stay, so that it is loaded again in seconds.

    This is `kubectl scale model MODEL --replicas=0`: only a person undoes it, no request wakes the Model. Requests
    under way have two minutes to end. Refused while an alias has no other Model that is ready.

    \b
    Examples
      moorage unload qwen3-8b
      moorage unload qwen3-8b --force --no-wait

    \b
    Exit codes
      0    its servers are gone (with --no-wait: it was asked to)
      1    the API server refused, or cannot be reached
      2    wrong usage
      3    there is no such Model, or an alias counts on it
      5    it still has servers after --timeout
    """

    async def work(session: Session) -> Result:
        found = await session.model(model)
        was = found.spec.replicas
        if was:
            counting = await relying(session, found)
            if counting and not force:
                others = ", ".join(counting)
                raise Senseless(f"{others} would have no Model left; `moorage switch` it first, or use --force")
            await session.scale(found, 0)
        if not no_wait:
            say(f"{model}: waits until its servers are gone")
            await until(session, found, lambda m: not m.status.replicas, timeout, "without servers")
        return {"model": model, "namespace": session.namespace, "replicasBefore": was}

    def text(result: Result) -> str:
        before = result["replicasBefore"]
        return (
            f"{model} is unloaded; `moorage load {model}` brings it back" if before else f"{model} was unloaded already"
        )

    run(options, work, text)


async def relying(session: Session, model: Model) -> list[str]:
    """The aliases of its own namespace that have no other ready Model than this one, as far as their status says."""
    own = f"{model.metadata.namespace}/"
    found = []
    for used in model.status.used_by:
        if not used.startswith(own):
            continue  # another namespace's, which this person may not be allowed to read
        alias = await session.alias(used.removeprefix(own))
        ready = [t.model_ref for t in alias.status.current if t.ready]
        if ready and all(ref.name == model.metadata.name and ref.namespace is None for ref in ready):
            found.append(f"ModelAlias {alias.metadata.name}")
    return found
