"""Starts the programs of one cluster and waits for them; says what went wrong in terms of their own logs."""

import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from . import network, processes
from .components import locate
from .errors import StartError
from .state import State

_LAST_LINES = 15


@dataclass
class Runner:
    """What `up` does to one cluster.

    enter: the command line that leads into the node's namespaces; empty until there is a node.
    """

    state: State
    enter: list[str] = field(default_factory=list)

    def start(
        self, name: str, arguments: list[str], *, in_node: bool = False, environment: dict[str, str] | None = None
    ) -> None:
        """Start a component's binary of the same name and record it."""
        command = [str(program(name)), *arguments]
        if in_node:
            command = [*self.enter, *command]
        log = self.state.log(name)
        variables = network.without_proxy(os.environ) | (environment or {})
        self.state.add(processes.start(name, command, log, environment=variables, wrapped=in_node))

    def wait(self, name: str, ready: Callable[[], bool], seconds: float) -> None:
        """Wait until `ready()`. Raises StartError when any recorded process ends before, or the time is over."""
        for _ in processes.ticks(seconds, 0.05):
            if ready():
                return
            for process in self.state.processes:
                if not processes.alive(process):
                    raise self._failure(process.name, "has ended")
        raise self._failure(name, f"is not ready after {seconds:.0f} s")

    def _failure(self, name: str, what: str) -> StartError:
        log = self.state.log(name)
        lines = "\n".join("  | " + line for line in last_lines(log))
        return StartError(
            f"{name} {what}; the end of {log}:\n{lines}\n"
            f"clean up with `python -m e2e.cluster down {self.state.name}`, or just run `up` again"
        )


def program(binary: str) -> Path:
    """The path of a built binary; raises StartError when it is not built."""
    path = locate(binary)
    if path is None:
        raise StartError(f"{binary} is not built: run `python -m e2e.cluster build`")
    return path


def kubectl(state: State, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run kubectl as the administrator."""
    command = [str(program("kubectl")), f"--kubeconfig={state.kubeconfig}", *arguments]
    variables = os.environ | network.without_proxy(os.environ)
    return subprocess.run(command, env=variables, capture_output=True, text=True, check=False)


def last_lines(log: Path, count: int = _LAST_LINES) -> list[str]:
    """The last lines of a log, each cut to a readable length."""
    try:
        text = log.read_text(errors="replace")
    except FileNotFoundError:
        return ["(it wrote nothing)"]
    return [line[:400] for line in text.splitlines()[-count:]] or ["(it wrote nothing)"]
