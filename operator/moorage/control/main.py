"""`moorage operator`: the process that reconciles Models, ModelAliases and ModelDownloads.

Exit codes: 0 stopped on request, 1 could not start or could not go on (the Deployment starts it again), 2 wrong usage.
"""

import asyncio
import logging
import os
import sys
from pathlib import Path

import click
import uvloop

from moorage.control.endpoints import ReportsPort
from moorage.control.kopf_app import run
from moorage.control.operator import Operator
from moorage.control.settings import Settings, load
from moorage.errors import MoorageError


@click.command("operator")
@click.option(
    "--kubeconfig",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Cluster to work in; absent: the one this runs in, or KUBECONFIG.",
)
@click.option(
    "--config",
    "config_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="YAML file with settings, as the chart renders it.",
)
@click.option(
    "--listen",
    default="0.0.0.0:8080",
    show_default=True,
    help="HOST:PORT of /healthz, /readyz and /metrics; empty: none.",
)
@click.option(
    "--reports",
    default="",
    help="HOST:PORT for the gateways' usage reports, such as 0.0.0.0:8081; empty: none.",
)
@click.option(
    "--reports-token-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The token that gateways bear, shared with them; read again when it changes. --reports needs it.",
)
@click.option("--verbose", is_flag=True, help="Log every decision.")
def command(
    kubeconfig: Path | None,
    config_file: Path | None,
    listen: str,
    reports: str,
    reports_token_file: Path | None,
    verbose: bool,
) -> None:
    """Reconcile Models, ModelAliases and ModelDownloads.

    Runs in a cluster, or beside one:

        moorage operator --kubeconfig ~/.kube/config --listen 127.0.0.1:8080
    """
    if bool(reports) != bool(reports_token_file):
        raise click.UsageError("--reports and --reports-token-file belong together")
    port = ReportsPort(reports, reports_token_file) if reports_token_file else None
    level = logging.DEBUG if verbose else logging.INFO
    logging.basicConfig(level=level, stream=sys.stderr, format="%(asctime)s %(levelname)-7s %(name)s: %(message)s")
    for noisy in ("kopf", "aiohttp", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        settings = load(config_file)
        os.environ.update(_proxy_env(settings))  # before the first client looks at it
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_run(kubeconfig, settings, listen or None, port))
    except MoorageError as error:
        raise click.ClickException(str(error)) from error


def _proxy_env(settings: Settings) -> dict[str, str]:
    """The proxy's variables for this process, which asks the API server directly."""
    env = dict(settings.proxy.env())
    server = os.environ.get("KUBERNETES_SERVICE_HOST", "")
    return env | {"NO_PROXY": ",".join(filter(None, [env.get("NO_PROXY"), server]))} if env else {}


async def _run(kubeconfig: Path | None, settings: Settings, listen: str | None, reports: ReportsPort | None) -> None:
    await run(await Operator.connect(kubeconfig, settings), kubeconfig, listen, reports=reports)
