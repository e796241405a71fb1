"""The `moorage gateway` command: options, signals, exit codes.

Exit codes: 0 drained after SIGTERM or SIGINT, 1 a fault of this program, 2 wrong usage, 3 could not start (the address
is taken, the routes file cannot be used, or there is no way into a cluster).
"""

import asyncio
import contextlib
import gc
import logging
import resource
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import uvloop

from moorage.errors import InvalidSpec, MoorageError
from moorage.gateway import server
from moorage.gateway.app import Address, Gateway
from moorage.gateway.ledger import Ledger
from moorage.gateway.reporter import Operator, Reporter
from moorage.gateway.routes import Hold
from moorage.gateway.routes_file import RoutesFile
from moorage.gateway.settings import Settings
from moorage.gateway.tls import Certificate

COULD_NOT_START = 3
_DEFAULTS = Settings()
log = logging.getLogger(__name__)


class HostPort(click.ParamType[Address]):
    """HOST:PORT, with an IPv6 host in brackets."""

    name = "HOST:PORT"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Address:
        """Split `value`."""
        if isinstance(value, tuple):
            return value
        host, colon, port = str(value).rpartition(":")
        if not colon or not host or not port.isdecimal() or int(port) > 65535:
            self.fail(f"{value!r} is not HOST:PORT", param, ctx)
        return host.strip("[]"), int(port)


_HELP = """Serve one OpenAI-compatible address for all models.

    Requests go to the Model or alias that they name; an alias adds its parameters, and a request for a sleeping Model
    waits for it.

    \b
    Examples
      moorage gateway --routes routes.yaml
      moorage gateway --kubeconfig ~/.kube/config --default-namespace team-a

    \b
    Exit codes
      0    drained after SIGTERM or SIGINT
      1    a fault of this program
      2    wrong usage
      3    could not start: an address is taken, the routes file cannot be used, or there is no way into a cluster
    """


@click.command("gateway", help=_HELP)
@click.option("--listen", type=HostPort(), default="0.0.0.0:8000", show_default=True, help="Where clients come.")
@click.option(
    "--admin",
    type=HostPort(),
    default="127.0.0.1:8001",
    show_default=True,
    help="/metrics, /healthz and /readyz, and nothing else.",
)
@click.option(
    "--routes",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Routing table; read again within 100 ms of a change. Absent: the Models and aliases of a cluster.",
)
@click.option(
    "--kubeconfig",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Cluster to follow; absent: KUBECONFIG, or the one this runs in.",
)
@click.option(
    "--default-namespace",
    help="Where a name without a namespace is looked up; absent: the pod's or the kubeconfig's own, else `default`.",
)
@click.option(
    "--tls-cert",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Serve HTTPS with this certificate chain (PEM); read again when it changes.",
)
@click.option("--tls-key", type=click.Path(dir_okay=False, path_type=Path), help="The certificate's private key (PEM).")
@click.option(
    "--require-keys",
    is_flag=True,
    help="Serve only who has an API key: a Secret that `moorage key create` makes (with --routes: one of the file).",
)
@click.option(
    "--keys-namespace",
    help="Where the Secrets of API keys are; absent: the pod's or the kubeconfig's own namespace.",
)
@click.option(
    "--operator",
    "operator_url",
    metavar="URL",
    help="Tell the operator there (http://HOST:PORT) who is used and who is wanted; absent: no Model is woken.",
)
@click.option(
    "--operator-token-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="What the operator wants to see; read again when it changes.",
)
@click.option("--max-body-bytes", type=click.IntRange(1024), default=_DEFAULTS.max_body_bytes, show_default=True)
@click.option("--max-connections", type=click.IntRange(1), default=_DEFAULTS.max_connections, show_default=True)
@click.option(
    "--hold-max-pending",
    type=click.IntRange(0, 10_000),
    default=_DEFAULTS.hold_max_pending,
    show_default=True,
    help="Requests that may wait for a Model called by its own name; an alias says it itself.",
)
@click.option(
    "--hold-timeout",
    type=click.FloatRange(0, 3600),
    default=_DEFAULTS.hold_timeout,
    show_default=True,
    help="Seconds that one of them waits at most.",
)
@click.option(
    "--hold-keepalive",
    type=click.FloatRange(0),
    default=_DEFAULTS.hold_keepalive,
    show_default=True,
    help="Seconds between SSE comments to streams that wait for a Model; 0: none. Commits status 200.",
)
@click.option(
    "--drain-delay",
    type=click.FloatRange(0),
    default=_DEFAULTS.drain_delay,
    show_default=True,
    help="Seconds from SIGTERM until no connection is accepted any more.",
)
@click.option(
    "--grace-period",
    type=click.FloatRange(1),
    default=_DEFAULTS.grace_period,
    show_default=True,
    help="The pod's terminationGracePeriodSeconds; requests get all of it but 5 s.",
)
@click.option("--verbose", is_flag=True, help="Log more.")
def command(
    listen: Address,
    admin: Address,
    routes: Path | None,
    kubeconfig: Path | None,
    default_namespace: str | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    require_keys: bool,
    keys_namespace: str | None,
    operator_url: str | None,
    operator_token_file: Path | None,
    max_body_bytes: int,
    max_connections: int,
    hold_max_pending: int,
    hold_timeout: float,
    hold_keepalive: float,
    drain_delay: float,
    grace_period: float,
    verbose: bool,
) -> None:
    """See _HELP."""
    if routes and (kubeconfig or default_namespace or keys_namespace or operator_url):
        raise click.UsageError(
            "--kubeconfig, --default-namespace, --keys-namespace and --operator go with a cluster, not with --routes"
        )
    level = logging.DEBUG if verbose else logging.INFO
    logging.basicConfig(level=level, stream=sys.stderr, format="%(asctime)s %(levelname)-7s %(name)s: %(message)s")
    settings = replace(
        _DEFAULTS,
        max_body_bytes=max_body_bytes,
        max_connections=max_connections,
        hold_max_pending=hold_max_pending,
        hold_timeout=hold_timeout,
        hold_keepalive=hold_keepalive,
        drain_delay=drain_delay,
        grace_period=grace_period,
    )
    if bool(tls_cert) != bool(tls_key):
        raise click.UsageError("--tls-cert and --tls-key come together")
    source = Source(routes, kubeconfig, default_namespace, require_keys, keys_namespace)
    operator = _operator(operator_url, operator_token_file, settings)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        sys.exit(runner.run(_serve(settings, Doors(listen, admin, tls_cert, tls_key), source, operator)))


def _operator(url: str | None, token_file: Path | None, settings: Settings) -> Operator | None:
    if bool(url) != bool(token_file):
        raise click.UsageError("--operator and --operator-token-file come together")
    if not url or not token_file:
        return None
    try:
        return Operator(url, token_file, settings)
    except InvalidSpec as error:
        raise click.BadParameter(str(error), param_hint="--operator") from None


@dataclass(frozen=True)
class Doors:
    """Where people come in: clients, with HTTPS where there is a certificate, and those who watch."""

    listen: Address
    admin: Address
    tls_cert: Path | None = None
    tls_key: Path | None = None

    @asynccontextmanager
    async def opened(self, gateway: Gateway) -> AsyncIterator[None]:
        """Listen; the certificate follows its files. Raises MoorageError or OSError."""
        if not self.tls_cert or not self.tls_key:
            await gateway.start(self.listen, self.admin)
            yield
            return
        certificate = Certificate(self.tls_cert, self.tls_key, gateway.settings.certificate_poll)
        await gateway.start(self.listen, self.admin, certificate.context)
        async with _running(certificate.follow):
            yield


@dataclass(frozen=True)
class Feed:
    """A source of routing tables that can be used: `follow` it for ever; `namespace` is that of bare names."""

    follow: Callable[[], Coroutine[Any, Any, None]]
    namespace: str = ""


@dataclass(frozen=True)
class Source:
    """Where routing tables come from: a file, or a cluster."""

    routes: Path | None
    kubeconfig: Path | None = None
    default_namespace: str | None = None
    require_keys: bool = False
    keys_namespace: str | None = None

    @asynccontextmanager
    async def open(self, gateway: Gateway) -> AsyncIterator[Feed]:
        """The source, as long as it is needed. Raises MoorageError or OSError where it cannot be used."""
        settings = gateway.settings
        hold = Hold(settings.hold_max_pending, settings.hold_timeout)
        if self.routes:
            file = RoutesFile(self.routes, hold, gateway.apply, settings.routes_poll, closed=self.require_keys)
            file.load()
            yield Feed(file.follow)
            return
        # Only here: it takes half a second and 40 MiB that a gateway without a cluster need not pay.
        from moorage.gateway.cluster import ClusterRoutes  # noqa: PLC0415
        from moorage.kube.client import KubeClient  # noqa: PLC0415

        async with await KubeClient.connect(self.kubeconfig, user_agent="moorage-gateway") as client:
            namespace = self.default_namespace or client.namespace
            log.info("names without a namespace are looked up in %s", namespace)
            keys = (self.keys_namespace or client.namespace) if self.require_keys else None
            log.info("API keys are Secrets in %s", keys) if keys else log.warning("open: no API key is needed")
            yield Feed(ClusterRoutes(client, namespace, hold, gateway.apply, keys).follow, namespace)


async def _serve(settings: Settings, doors: Doors, source: Source, operator: Operator | None) -> int:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    _raise_file_limit()
    gateway = Gateway(settings)
    try:
        async with source.open(gateway) as feed, doors.opened(gateway):
            _calm_collector()
            log.info("data path: %s", "interpreted" if server.__file__.endswith(".py") else "compiled")
            log.info("serving on %s:%d, admin on %s:%d", *gateway.address, *gateway.admin_address)
            async with _running(feed.follow), _reporting(gateway, feed.namespace, operator):
                await stop.wait()
                await gateway.drain()
    except (MoorageError, OSError) as error:
        log.error("could not start: %s", error)
        await gateway.stop()
        return COULD_NOT_START
    await gateway.stop()
    return 0


@asynccontextmanager
async def _running(what: Callable[[], Coroutine[Any, Any, None]]) -> AsyncIterator[None]:
    """`what` goes on beside the body, and ends with it."""
    task = asyncio.create_task(what())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@asynccontextmanager
async def _reporting(gateway: Gateway, namespace: str, operator: Operator | None) -> AsyncIterator[None]:
    """Tell `operator` what happens in the body; where there is none, say what that means."""
    if operator is None:
        if namespace:
            log.warning("no --operator: no Model is woken by requests, and usage stands only in this pod's metrics")
        yield
        return
    stats, demand, fleet, health = gateway.stats, gateway.demand, gateway.proxy.fleet, gateway.proxy.health
    ledger = Ledger(socket.gethostname(), namespace, stats, demand, fleet, health.failed_over)
    reporter = Reporter(ledger, operator)
    demand.on_ask = health.on_change = reporter.hurry
    async with _running(reporter.run):
        yield
    await reporter.finish(gateway.settings.last_report_timeout)


def _calm_collector() -> None:
    """Look for cycles rarely, and never at what was made before the first request: requests leave none behind."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


def _raise_file_limit() -> None:
    """As many sockets as the system lets us have: each request takes two."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
