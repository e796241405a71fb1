"""What a running cluster is made of: one JSON file, written before anything depends on it."""

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from .processes import Process

REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass
class State:
    """The record of one cluster.

    folder: holds everything of it. link: index of its network (network.Plan), None without a node.
    """

    folder: Path
    processes: list[Process] = field(default_factory=list)
    server: str = ""
    ports: dict[str, int] = field(default_factory=dict)
    link: int | None = None
    node: bool = False
    ready: bool = False

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def kubeconfig(self) -> Path:
        return self.folder / "kubeconfig"

    def log(self, component: str) -> Path:
        return self.folder / "logs" / f"{component}.log"

    def process(self, name: str) -> Process | None:
        """The latest process of this name."""
        return next((p for p in reversed(self.processes) if p.name == name), None)

    def add(self, process: Process) -> None:
        """Record a started process; it takes the place of an ended one of the same name."""
        self.processes = [p for p in self.processes if p.name != process.name]
        self.processes.append(process)
        self.save()

    def save(self) -> None:
        """Write the record; a reader sees the old one or the new one, never a half."""
        record = {key: value for key, value in vars(self).items() if key not in {"folder", "processes"}}
        record["processes"] = [process.as_json() for process in self.processes]
        self.folder.mkdir(parents=True, exist_ok=True)
        half = self.folder / "state.json.new"
        half.write_text(json.dumps(record, indent=1) + "\n")
        half.replace(self.folder / "state.json")


def clusters_folder() -> Path:
    return REPOSITORY / ".cluster"


def load(folder: Path) -> State | None:
    """The record in this folder, or None when no cluster was started there."""
    try:
        record: dict[str, Any] = json.loads((folder / "state.json").read_text())
    except FileNotFoundError:
        return None
    processes = [Process(**process) for process in record.pop("processes")]
    known = {entry.name for entry in fields(State)}  # an older kit may have written more
    return State(folder=folder, processes=processes, **{key: value for key, value in record.items() if key in known})


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Let one `up` or `down` of this cluster run at a time."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(folder.name + ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
