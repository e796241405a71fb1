"""The command line of `moorage explain`."""

from pathlib import Path

import click

from moorage.errors import InvalidSpec
from moorage.explain.gather import View, settings_of
from moorage.explain.text import told
from moorage.people.errors import Senseless
from moorage.people.session import Options, Result, Session, cluster_options, run
from moorage.planning.explaining import explain, where_it_stands


@click.command("explain")
@click.argument("model")
@click.option(
    "--config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Settings of the operator; absent: those of the installation in the cluster.",
)
@cluster_options
def command(options: Options, model: str, config: Path | None) -> None:
    """Explain where MODEL goes: what it needs, what was tried, and what speaks against each node.

    The decision is made here and now, as the operator makes it, of what you may see: nodes, pods, ResourceSlices and
    ResourceClaims, quotas, volumes, and the other Models that wait for GPUs. Nothing is written. Where you may not list
    nodes and pods of the whole cluster, what the operator wrote into the status is told.

    \b
    Examples
      moorage explain qwen3-8b
      kubectl moorage explain qwen3-8b -n team-a
      moorage explain qwen3-8b -o json

    \b
    Exit codes
      0    explained, whatever the decision is
      1    the API server refused, or cannot be reached
      2    wrong usage
      3    there is no such Model, or its spec makes no sense
    """

    async def work(session: Session) -> Result:
        settings, unknown = await settings_of(session.kube, config)
        view = View(session.kube, settings)
        await view.look(session.namespace)
        seen = view.model(session.namespace, model)
        if seen is None:
            raise Senseless(f"there is no Model {model} in namespace {session.namespace}")
        try:
            found = explain(seen) if view.sees_nodes else where_it_stands(seen)
        except InvalidSpec as error:
            raise Senseless(f"Model {model}: {error.message}") from error
        unseen = sorted(view.unseen) + ([unknown] if unknown else [])
        return {**found, "unseen": unseen}

    run(options, work, told)
