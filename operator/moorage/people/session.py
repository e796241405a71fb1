"""What every command for people shares: the options that name a cluster, the way into it, how results are printed."""

import asyncio
import functools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click
import orjson

from moorage.api.alias import ModelAlias
from moorage.api.common import duration_seconds
from moorage.api.model import Model
from moorage.errors import InvalidSpec, MoorageError, NotFound
from moorage.kube.client import KubeClient
from moorage.kube.resources import MODEL_ALIASES, MODELS
from moorage.people.errors import Senseless, from_api

FIELD_MANAGER = "moorage-cli"
"""Not the operator's, which never writes a spec: `kubectl get --show-managed-fields` tells who did what."""

F = TypeVar("F", bound=Callable[..., Any])
Result = dict[str, Any]


class Duration(click.ParamType[float]):
    """`10m`, `1h30m`, `90s` as kubectl takes them, or a number of seconds; the value is in seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Seconds of `value`."""
        text = str(value)
        try:
            return float(text) if text.isdecimal() else duration_seconds(text)
        except ValueError:
            self.fail(f"{text!r} is no duration; write it as 30s, 10m or 1h30m", param, ctx)


@dataclass(frozen=True)
class Options:
    """The options of every command."""

    kubeconfig: Path | None
    context: str | None
    namespace: str | None
    output: str


def cluster_options(command: F) -> F:
    """Add the options of `Options` to a command, which gets them as its first argument."""

    @functools.wraps(command)
    def collected(
        kubeconfig: Path | None, context: str | None, namespace: str | None, output: str, **rest: Any
    ) -> object:
        return command(Options(kubeconfig, context, namespace, output), **rest)

    made: Any = collected
    for option in reversed(
        (
            click.option("-n", "--namespace", metavar="NS", help="Namespace; absent: the kubeconfig's."),
            click.option("--context", metavar="NAME", help="Context of the kubeconfig; absent: the current one."),
            click.option(
                "--kubeconfig",
                metavar="FILE",
                type=click.Path(exists=True, dir_okay=False, path_type=Path),
                help="Absent: KUBECONFIG, or ~/.kube/config.",
            ),
            click.option(
                "-o",
                "--output",
                type=click.Choice(["text", "json"]),
                default="text",
                show_default=True,
                help="json: the result as one JSON object.",
            ),
        )
    ):
        made = option(made)
    found: F = made
    return found


class Session:
    """A cluster, as one person reaches it."""

    def __init__(self, kube: KubeClient, namespace: str) -> None:
        self.kube, self.namespace = kube, namespace

    async def alias(self, name: str) -> ModelAlias:
        """The ModelAlias `name`. Senseless where there is none, or where its spec does not parse."""
        try:
            return ModelAlias.read(await self.kube.get(MODEL_ALIASES, self.namespace, name))
        except NotFound:
            raise Senseless(f"there is no ModelAlias {name} in namespace {self.namespace}") from None
        except (InvalidSpec, ValueError) as error:
            raise Senseless(f"ModelAlias {name}: {error}") from None

    async def model(self, name: str, namespace: str | None = None) -> Model:
        """The Model `name`. Senseless where there is none, or where its spec does not parse."""
        namespace = namespace or self.namespace
        try:
            return Model.read(await self.kube.get(MODELS, namespace, name))
        except NotFound:
            raise Senseless(f"there is no Model {name} in namespace {namespace}") from None
        except (InvalidSpec, ValueError) as error:
            raise Senseless(f"Model {name}: {error}") from None

    async def scale(self, model: Model, replicas: int) -> None:
        """Set `spec.replicas` through the scale subresource, as `kubectl scale` does."""
        meta = model.metadata
        body = {"spec": {"replicas": replicas}}
        await self.kube.merge_patch(
            MODELS, meta.namespace, meta.name, body, subresource="scale", field_manager=FIELD_MANAGER
        )

    async def annotate(self, model: Model, annotation: str, value: str) -> None:
        """Set one annotation of a Model."""
        meta = model.metadata
        body = {"metadata": {"annotations": {annotation: value}}}
        await self.kube.merge_patch(MODELS, meta.namespace, meta.name, body, field_manager=FIELD_MANAGER)


def run(options: Options, work: Callable[[Session], Awaitable[Result]], text: Callable[[Result], str]) -> None:
    """Do `work` in the cluster that `options` name, and print its result: `text` of it, or JSON."""

    async def inside() -> Result:
        async with await KubeClient.connect(options.kubeconfig, options.context, user_agent="moorage-cli") as kube:
            return await work(Session(kube, options.namespace or kube.namespace))

    try:
        result = asyncio.run(inside())
    except MoorageError as error:
        raise from_api(error) from error
    except KeyboardInterrupt:
        raise click.Abort from None
    if options.output == "json":
        click.echo(orjson.dumps(result, option=orjson.OPT_INDENT_2).decode())
    else:
        click.echo(text(result))


def say(text: str) -> None:
    """Progress, for a person who waits: on stderr, so that results can be piped."""
    click.echo(text, err=True)
