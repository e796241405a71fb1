"""`moorage switch`: an alias moves to another Model without a failed request, and stays if that one fails."""

import time
from datetime import UTC, datetime

import click

from moorage import names
from moorage.api.alias import ModelAlias
from moorage.api.model import Model
from moorage.errors import ApiError, Conflict
from moorage.kube.resources import NAMESPACES
from moorage.people.errors import ModelFailed, Senseless, TookTooLong
from moorage.people.load import wake
from moorage.people.rollback import point
from moorage.people.session import Duration, Options, Result, Session, cluster_options, run, say
from moorage.people.waiting import until_serving
from moorage.planning.alias import offer_of
from moorage.planning.requirements import shortfall

Where = tuple[str, str]  # namespace, name


@click.command("switch")
@click.argument("alias")
@click.argument("model", metavar="[NAMESPACE/]MODEL")
@click.option("--timeout", type=Duration(), default="10m", show_default=True, help="How long to wait for MODEL.")
@click.option("--keep", is_flag=True, help="Leave the Models it pointed at loaded.")
@cluster_options
def command(options: Options, alias: str, model: str, timeout: float, keep: bool) -> None:
    """Let ALIAS point at MODEL alone, without a failed request.

    MODEL is loaded or woken where it has no server. Only when it serves the alias moves; requests under way end where
    they began. The Models that it pointed at, and that no other alias points at, are put to sleep once they have no
    request left, and wake if one comes (--keep: they stay). If MODEL fails, or does not serve after --timeout, the
    alias stays where it is, and MODEL is left as it was found.

    \b
    Examples
      moorage switch chat qwen3-8b
      moorage switch chat shared/qwen3-8b -n team-a --timeout 30m --keep

    \b
    Exit codes
      0    it points at MODEL now
      1    the API server refused, or cannot be reached
      2    wrong usage
      3    there is no such alias or Model, MODEL does not permit it or falls short, or it points there already
      4    MODEL failed, or waits for a person; the alias is where it was
      5    MODEL does not serve after --timeout; the alias is where it was
    """
    run(options, lambda session: switch(session, alias, model, timeout, keep), _text)


async def switch(session: Session, name: str, to: str, timeout: float, keep: bool) -> Result:
    """Do it; what a person hears of it as JSON."""
    alias = await session.alias(name)
    own = alias.metadata.namespace
    namespace, _, bare = to.rpartition("/")
    new: Where = (namespace or own, bare)
    old = _pointed(alias)
    model = await session.model(bare, new[0])
    _check(alias, model, old, await _labels(session, own))
    began = time.monotonic()
    await _loaded(session, alias, model, timeout)
    alias = await _moved(session, alias, new, f"moorage switch {name} {to}")
    slept = [] if keep else await _to_sleep(session, alias, [where for where in old if where != new])
    return {"alias": name, "namespace": own, "from": [_shown(own, w) for w in old], "to": _shown(own, new),
            "toSleep": slept, "milliseconds": round((time.monotonic() - began) * 1000)}  # fmt: skip


def _text(result: Result) -> str:
    slept = result["toSleep"]
    tail = f"; {', '.join(slept)} will sleep once idle" if slept else ""
    return f"{result['alias']} points at {result['to']} now{tail}"


async def _labels(session: Session, namespace: str) -> dict[str, str] | None:
    """Labels of a namespace; None where this person may not read them."""
    try:
        found = await session.kube.get(NAMESPACES, None, namespace)
    except ApiError:
        return None
    return dict(found["metadata"].get("labels") or {})


def _check(alias: ModelAlias, model: Model, old: list[Where], labels: dict[str, str] | None) -> None:
    """Senseless where the alias could not use the Model."""
    name, meta = alias.metadata.name, model.metadata
    if old == [(meta.namespace, meta.name)]:
        raise Senseless(f"ModelAlias {name} points at {meta.name} already")
    own, allowed = alias.metadata.namespace, model.spec.allowed_namespaces
    unknown = labels is None and allowed.from_ == "Selector"
    if not unknown and not allowed.permits(meta.namespace, own, labels):
        raise Senseless(
            f"Model {meta.namespace}/{meta.name} does not permit aliases of namespace {own}: see its "
            "spec.allowedNamespaces"
        )
    if short := shortfall(alias.spec.requires, offer_of(model), meta.name):
        raise Senseless(f"ModelAlias {name} requires more than {meta.name} offers: {short}")


async def _loaded(session: Session, alias: ModelAlias, model: Model, timeout: float) -> None:
    """Have the Model serve; where it does not come to that, leave it as it was and say where the alias is."""
    done = await wake(session, model)
    try:
        await until_serving(session, model, timeout)
    except (ModelFailed, TookTooLong) as error:
        text = error.message
        if done == "scaled":
            await session.scale(model, 0)
            text += f"; {model.metadata.name} is unloaded again"
        elif done == "woken":
            await _ask_to_sleep(session, model)
            text += f"; {model.metadata.name} will sleep again"
        stays = ", ".join(_shown(alias.metadata.namespace, where) for where in _pointed(alias))
        raise type(error)(f"{text}. {alias.metadata.name} still points at {stays}") from None


async def _moved(session: Session, alias: ModelAlias, new: Where, cause: str) -> ModelAlias:
    """Retarget; a spec that somebody else changed meanwhile is not overwritten."""
    own = alias.metadata.namespace
    ref = {"name": new[1]} | ({"namespace": new[0]} if new[0] != own else {})
    for _ in range(5):
        now = await session.alias(alias.metadata.name)
        if now.spec.targets != alias.spec.targets:
            raise Senseless(f"somebody else moved {alias.metadata.name} meanwhile; it was not moved again")
        try:
            await point(session, now, [{"modelRef": ref, "weight": 100}], cause)
        except Conflict:
            continue  # its status was written just now
        return now
    raise Senseless(f"{alias.metadata.name} changes all the time; it was not moved")


async def _to_sleep(session: Session, alias: ModelAlias, old: list[Where]) -> list[str]:
    """Ask the Models that nobody else points at to sleep once they are idle; what cannot be asked is told."""
    own, asked = alias.metadata.namespace, []
    me = f"{own}/{alias.metadata.name}"
    keeps = {(f.model_ref.namespace or own, f.model_ref.name) for f in alias.spec.fallbacks}
    for where in old:
        try:
            model = await session.model(where[1], where[0])
            others = [user for user in model.status.used_by if user != me]
            if others or where in keeps:
                say(f"{where[1]} stays: {', '.join(others) or 'it is a fallback of ' + me}")
            elif model.spec.replicas:
                await _ask_to_sleep(session, model)
                asked.append(_shown(own, where))
        except (ApiError, Senseless) as error:
            say(f"{where[1]} stays as it is: {error}")
    return asked


async def _ask_to_sleep(session: Session, model: Model) -> None:
    """Once it has no request left."""
    await session.annotate(model, names.SLEEP_AT, datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"))


def _pointed(alias: ModelAlias) -> list[Where]:
    own = alias.metadata.namespace
    return [(t.model_ref.namespace or own, t.model_ref.name) for t in alias.spec.targets]


def _shown(own: str, where: Where) -> str:
    return where[1] if where[0] == own else "/".join(where)
