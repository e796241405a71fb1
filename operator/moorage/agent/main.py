"""The `moorage agent` command.

Exit codes: 0 stopped on request, 1 could not listen, 2 wrong usage, 3 there is no NVML here (no library, no driver).
"""

import asyncio
import logging
import signal
import socket
import sys
from functools import partial
from pathlib import Path

import click

from moorage.agent import podresources
from moorage.agent.nvml import NoDriver, Nvml
from moorage.agent.sampler import Sampler
from moorage.agent.server import serve

NO_DRIVER_EXIT = 3
log = logging.getLogger(__name__)


def _address(_ctx: click.Context, _param: click.Parameter, value: str) -> tuple[str, int]:
    host, colon, port = value.rpartition(":")
    if not colon or not host or not port.isdecimal() or int(port) > 65535:
        raise click.BadParameter(f"{value!r} is not HOST:PORT")
    return host.strip("[]"), int(port)


@click.command("agent")
@click.option(
    "--listen",
    default="0.0.0.0:9445",
    show_default=True,
    callback=_address,
    metavar="HOST:PORT",
    help="/v1/gpus, /metrics and /healthz.",
)
@click.option(
    "--kubelet-socket",
    type=click.Path(dir_okay=False, path_type=Path),
    default=podresources.SOCKET,
    show_default=True,
    help="The kubelet's PodResources API: whose the GPUs are.",
)
@click.option(
    "--nvml",
    type=click.Path(dir_okay=False, path_type=Path),
    help="NVML's library; absent: libnvidia-ml.so.1 where the linker finds it.",
)
@click.option(
    "--node", envvar="NODE_NAME", default=socket.gethostname, help="Name of this node; absent: NODE_NAME, the host's."
)
@click.option("--verbose", is_flag=True, help="Log more.")
def command(listen: tuple[str, int], kubelet_socket: Path, nvml: Path | None, node: str, verbose: bool) -> None:
    """Tell what the GPUs of this node have and use, and which pods hold them.

    Runs on every GPU node, as the chart's DaemonSet; asks NVML and the kubelet, and has no rights in the cluster.

    \b
    Examples
      moorage agent
      moorage agent --listen 127.0.0.1:9445 --nvml /usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1
      curl http://127.0.0.1:9445/v1/gpus

    \b
    Exit codes
      0  stopped on request
      1  could not listen at the address
      2  wrong usage
      3  there is no NVML here: no library, or no driver
    """
    level = logging.DEBUG if verbose else logging.INFO
    logging.basicConfig(level=level, stream=sys.stderr, format="%(asctime)s %(levelname)-7s %(name)s: %(message)s")
    try:
        driver = Nvml(nvml)
    except NoDriver as error:
        click.echo(
            f"Error: {error}. The agent runs on nodes with an NVIDIA driver, in pods whose runtime class (usually "
            "nvidia) brings the driver's libraries.",
            err=True,
        )
        sys.exit(NO_DRIVER_EXIT)
    whose, offered = partial(podresources.holders, kubelet_socket), partial(podresources.offered, kubelet_socket)
    sampler = Sampler(node, driver, whose, offered)
    try:
        asyncio.run(_run(sampler, *listen))
    except OSError as error:
        raise click.ClickException(f"cannot listen at {listen[0]}:{listen[1]}: {error.strerror}") from error


async def _run(sampler: Sampler, host: str, port: int) -> None:
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    runner = await serve(sampler.report, host, port)
    sampler.start()
    first = sampler.report()
    log.info("node %s: %d GPUs, driver %s; %s:%d/v1/gpus", first.node, len(first.gpus), first.driver, host, port)
    if first.pods_problem:
        log.warning("whose the GPUs are is not known: %s", first.pods_problem)
    await stopped.wait()
    sampler.stop()
    await runner.cleanup()
