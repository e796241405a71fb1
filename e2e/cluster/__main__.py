"""The command line: `python -m e2e.cluster COMMAND`."""

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from . import build, components, network, smoke
from .cluster import Cluster
from .errors import ClusterError

_GROUPS = {"control-plane": components.CONTROL_PLANE, "node": components.NODE}


def main(arguments: list[str] | None = None) -> int:
    """Run one command; its exit status."""
    options = parse(sys.argv[1:] if arguments is None else arguments)
    try:
        options.run(options)
    except ClusterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def parse(arguments: list[str]) -> argparse.Namespace:
    """The options; `rest` holds what follows the first `--`, which is another program's business."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    options = parser().parse_args(arguments[:end])
    options.rest = arguments[end + 1 :]
    return options


def parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    root = argparse.ArgumentParser("python -m e2e.cluster", description="A real Kubernetes on this machine.")
    commands = root.add_subparsers(required=True, metavar="COMMAND")

    build_command = _command(commands, "build", "build what is missing into the cache", _build)
    build_command.add_argument("--only", choices=sorted(_GROUPS), help="no more than this needs")

    up = _command(commands, "up", "start a cluster", _up, named=True)
    up.add_argument("--control-plane", action="store_true", help="no node: objects only; needs no root")
    up.add_argument("--kwok", action="store_true", help="simulate nodes with the annotation kwok.x-k8s.io/node: fake")

    _command(commands, "down", "stop a cluster and remove its data, all but the logs", _down, named=True)
    _command(commands, "status", "what runs", _status, named=True)
    load = _command(commands, "load", "import OCI archives into the node", _load, named=True)
    load.add_argument("archive", nargs="+", type=Path)
    _command(commands, "smoke", "check pods, Services, DNS, volumes, logs and exec", _smoke, named=True)
    _command(commands, "kubectl", "run kubectl: `kubectl NAME -- get pods`", _kubectl, named=True)
    path = _command(commands, "bin", "print the path of kubectl, helm, ctr, ...", _bin)
    path.add_argument("binary")
    return root


def _command(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    text: str,
    run: Callable[[argparse.Namespace], None],
    *,
    named: bool = False,
) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=text, description=text)
    command.set_defaults(run=run)
    if named:
        command.add_argument("name", help="the cluster: demo, test, ...")
    return command


def _say(text: str) -> None:
    print(text, flush=True)


def _build(options: argparse.Namespace) -> None:
    groups = _GROUPS[options.only] if options.only else components.EVERYTHING
    if groups & {"node"} and os.geteuid() == 0:
        build.ensure_node_packages(_say)
    wanted = components.of_groups(groups)
    build.build(wanted, _say)
    _say(f"{len(wanted)} components are in {components.cache_root()}")


def _up(options: argparse.Namespace) -> None:
    began = time.monotonic()
    cluster = Cluster(options.name, _say)
    cluster.up(control_plane=options.control_plane, kwok=options.kwok)
    took = time.monotonic() - began
    _say(f"cluster {cluster.name} is ready after {took:.1f} s: export KUBECONFIG={cluster.kubeconfig}")


def _down(options: argparse.Namespace) -> None:
    cluster = Cluster(options.name, _say)
    cluster.down()
    _say(f"cluster {cluster.name} is down; its last logs are in {cluster.folder}/logs")


def _status(options: argparse.Namespace) -> None:
    cluster = Cluster(options.name)
    rows = cluster.status()
    if not rows:
        raise ClusterError(f"cluster {options.name} is down")
    for name, pid, alive in rows:
        _say(f"{name:<26}{pid:>8}  {'running' if alive else 'ENDED'}")
    if not all(alive for _, _, alive in rows):
        raise ClusterError(f"cluster {options.name} is broken: see {cluster.folder}/logs, or run `up` again")


def _load(options: argparse.Namespace) -> None:
    Cluster(options.name, _say).load(*options.archive)


def _smoke(options: argparse.Namespace) -> None:
    smoke.run(Cluster(options.name, _say), _say)


def _kubectl(options: argparse.Namespace) -> None:
    cluster = Cluster(options.name, _say)
    kubectl = str(cluster.binary("kubectl"))
    os.environ.update(network.without_proxy(os.environ))
    os.execv(kubectl, [kubectl, "--kubeconfig", str(cluster.kubeconfig), *options.rest])


def _bin(options: argparse.Namespace) -> None:
    _say(str(Cluster("any", lambda text: print(text, file=sys.stderr)).binary(options.binary)))


if __name__ == "__main__":
    sys.exit(main())
