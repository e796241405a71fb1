"""One cluster: what the command line and the tests call."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from . import addons, build, components, controlplane, network, node, processes, state
from .errors import ClusterError
from .runner import Runner, kubectl, program
from .state import State

Say = Callable[[str], None]


def _quiet(_: str) -> None:
    return


class Cluster:
    """A cluster by its name. Nothing happens before `up`.

    >>> cluster = Cluster("test")
    >>> cluster.up(control_plane=True)  # doctest: +SKIP
    """

    def __init__(self, name: str, say: Say = _quiet) -> None:
        if not (name.isascii() and name.replace("-", "").isalnum() and name.islower() and len(name) <= 20):
            raise ClusterError(f"a cluster's name is up to 20 lower-case letters, digits and dashes, not {name!r}")
        self.name = name
        self.folder = state.clusters_folder() / name
        self.node_name = f"{name}-node"
        self._say = say

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig. It exists while the cluster is up."""
        return self.folder / "kubeconfig"

    def up(self, *, control_plane: bool = False, kwok: bool = False) -> None:
        """Start the cluster, or return when it already runs like this.

        control_plane: etcd, API server, controller manager and scheduler only; needs no root.
        kwok: pods on nodes with the annotation `kwok.x-k8s.io/node: fake` are simulated.

        Raises BuildError and StartError; a repeated `up` first clears away what is left.
        """
        wanted = components.CONTROL_PLANE if control_plane else components.NODE
        if kwok:
            wanted |= components.SIMULATION
        if not control_plane:
            _need_root()
            build.ensure_node_packages(self._say)
        build.install(["openssl"] if shutil.which("openssl") is None else [], self._say)
        build.build(components.of_groups(wanted), self._say)
        with state.locked(self.folder):
            running = self._running()
            if running and (control_plane or running.node):
                self._say(f"cluster {self.name} is already up")
                self._complete(running, kwok=kwok)
                return
            if state.load(self.folder):
                self._say(f"cluster {self.name} is not whole or not as asked for: starting it anew")
            self._clear()
            self._start(with_node=not control_plane, kwok=kwok)

    def down(self) -> None:
        """Stop everything of this cluster and remove its data, all but the logs. Safe to repeat, and after a crash."""
        with state.locked(self.folder):
            self._clear()

    def load(self, *archives: Path) -> None:
        """Import OCI archives into the node, where `imagePullPolicy: IfNotPresent` finds them."""
        node.load(self._state(), list(archives))

    def binary(self, name: str) -> Path:
        """The path of one of the kit's programs (`kubectl`, `helm`, `ctr`), built now if need be."""
        owner = next((c for c in components.COMPONENTS if name in dict(c.binaries)), None)
        if owner is None:
            raise ClusterError(f"the kit has no program {name!r}")
        build.build([owner], self._say)
        return program(name)

    def kubectl(self, *arguments: str) -> str:
        """Run kubectl as the administrator and return its output; raises ClusterError with its complaint."""
        done = kubectl(self._state(), *arguments)
        if done.returncode != 0:
            raise ClusterError(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def status(self) -> list[tuple[str, int, bool]]:
        """Name, process id and liveness of every component; empty when the cluster is not up."""
        found = state.load(self.folder)
        return [(p.name, p.pid, processes.alive(p)) for p in found.processes] if found else []

    def stop(self, component: str, *, patience: float = 5.0) -> None:
        """Stop one component (`kubelet`, `kube-apiserver`), for tests of outages; SIGKILL after `patience` seconds."""
        process = self._state().process(component)
        if process is None:
            raise ClusterError(f"cluster {self.name} has no component {component!r}")
        processes.stop(process, patience=patience)

    def restart(self, component: str) -> None:
        """Start a stopped (or stop and start a running) component with the arguments that it had."""
        self.stop(component)
        record = self._state()
        old = record.process(component)
        assert old is not None
        record.add(
            processes.start(component, old.command, Path(old.log), environment=old.environment, wrapped=old.wrapped)
        )

    def pid(self, component: str) -> int:
        """The process id of a running component; raises ClusterError when it does not run."""
        process = self._state().process(component)
        if process is None or not processes.alive(process):
            raise ClusterError(f"{component} does not run in cluster {self.name}")
        return processes.program_pid(process)

    @property
    def host_address(self) -> str:
        """The host's address as pods see it: where a test's own server is reached."""
        link = self._state().link
        if link is None:
            raise ClusterError(f"cluster {self.name} has no node")
        return network.Plan(link).host

    def _state(self) -> State:
        found = state.load(self.folder)
        if found is None or not found.ready:
            raise ClusterError(f"cluster {self.name} is not up")
        return found

    def _running(self) -> State | None:
        """The record of the cluster if all of it is up."""
        found = state.load(self.folder)
        healthy = found is not None and found.ready and all(processes.alive(process) for process in found.processes)
        return found if healthy else None

    def _complete(self, running: State, *, kwok: bool) -> None:
        if kwok and not running.process("kwok"):
            runner = Runner(running)
            self._add(runner, None if running.link is None else network.Plan(running.link), kwok=True)

    def _add(self, runner: Runner, plan: network.Plan | None, *, kwok: bool) -> None:
        """Add what is not Kubernetes itself and not there yet."""
        if not runner.state.process("provisioner"):
            addons.apply(runner)
            addons.start_provisioner(runner)
            if runner.state.node:
                addons.start_netpol(runner)
        if kwok:
            addons.start_kwok(runner, plan)

    def _start(self, *, with_node: bool, kwok: bool) -> None:
        shutil.rmtree(self.folder / "logs", ignore_errors=True)
        record = State(self.folder, node=with_node)
        record.save()
        runner = Runner(record)
        plan = node.prepare(runner, self.node_name) if with_node else None
        api = controlplane.start(runner, plan, self.node_name)
        if plan:
            node.start(runner, plan, self.node_name)
        if plan or kwok:
            self._add(runner, plan, kwok=kwok)
        controlplane.wait(runner, api)
        if plan:
            node.wait(runner, plan, api, self.node_name)
            addons.wait_netpol(runner)
        record.ready = True
        record.save()

    def _clear(self) -> None:
        found = state.load(self.folder)
        if found is None:
            return
        processes.kill(found.processes)  # nothing of it will be read again
        node.clear(found)
        for entry in self.folder.iterdir():
            if entry.is_dir() and entry.name != "logs":
                shutil.rmtree(entry)
            elif not entry.is_dir() and entry.name != "state.json":
                entry.unlink()
        (self.folder / "state.json").unlink()  # last: until here a failed `down` can be repeated


def _need_root() -> None:
    if os.geteuid() != 0:
        raise ClusterError("a node needs root (namespaces, mounts, control groups); `--control-plane` does not")
