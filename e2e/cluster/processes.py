"""Starting processes that outlive this one, and stopping exactly those again.

A record names a process by its id, its start time and the boot of the machine, so that an id that the kernel has
given to somebody else is never signalled.
"""

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

_POLL = 0.02  # seconds between two looks at a process that is to end


@dataclass(frozen=True)
class Process:
    """A started process.

    start: clock ticks since boot, field 22 of /proc/PID/stat (proc_pid_stat(5)).
    wrapped: the process is `nsenter`, and the program itself is its only child.
    """

    name: str
    pid: int
    start: int
    boot: str
    command: list[str]
    log: str
    environment: dict[str, str] = field(default_factory=dict)
    wrapped: bool = False

    def as_json(self) -> dict[str, object]:
        return asdict(self)


def boot_id() -> str:
    """A random name that the kernel gives each boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def parse_stat(text: str) -> tuple[str, int]:
    """The state letter and the start time in a line of /proc/PID/stat, whose program name may hold spaces and `)`."""
    fields = text[text.rindex(")") + 2 :].split()
    return fields[0], int(fields[19])


def start_time(pid: int) -> int | None:
    """When this process started, in clock ticks since boot; None when it has ended (a zombie has)."""
    try:
        state, start = parse_stat(Path(f"/proc/{pid}/stat").read_text())
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if state in "ZX" else start


def alive(process: Process) -> bool:
    """Is this very process still running?"""
    return process.boot == boot_id() and start_time(process.pid) == process.start


def start(
    name: str, command: list[str], log: Path, *, environment: dict[str, str] | None = None, wrapped: bool = False
) -> Process:
    """Start a program in a session of its own, its output appended to `log`."""
    extra = environment or {}
    log.parent.mkdir(parents=True, exist_ok=True)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    try:
        # Not subprocess: its object would complain, at exit, about a child that is meant to go on.
        pid = os.posix_spawnp(
            command[0],
            command,
            {**os.environ, **extra},
            setsid=True,
            setsigmask=[],
            setsigdef=[signal.SIGPIPE, signal.SIGINT],
            file_actions=[(os.POSIX_SPAWN_DUP2, nothing, 0), *((os.POSIX_SPAWN_DUP2, output, fd) for fd in (1, 2))],
        )
    finally:
        os.close(output)
        os.close(nothing)
    begun = start_time(pid)
    return Process(name, pid, -1 if begun is None else begun, boot_id(), command, str(log), extra, wrapped)


def program_pid(process: Process) -> int:
    """The id of the program itself, which for a wrapped process is not the recorded one.

    Raises ProcessLookupError when it has ended.
    """
    if not alive(process):
        raise ProcessLookupError(process.name)
    if not process.wrapped:
        return process.pid
    children = _children(process.pid)
    if not children:
        raise ProcessLookupError(process.name)
    return children[0]


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def stop(process: Process, *, patience: float = 5.0) -> None:
    """End the process: SIGTERM, and SIGKILL after `patience` seconds. Nothing happens when it has already ended."""
    members = _members(process)
    _signal(members, signal.SIGTERM)
    if not _gone(members, patience):
        _signal(members, signal.SIGKILL)
        _gone(members, 10.0)


def kill(victims: list[Process]) -> None:
    """End all these processes at once with SIGKILL and wait until they are gone."""
    members = [member for process in victims for member in _members(process)]
    _signal(members, signal.SIGKILL)
    _gone(members, 10.0)


def _members(process: Process) -> list[tuple[int, int]]:
    """Id and start time of the process, and of the program in it when it is a wrapper; empty when it has ended."""
    if not alive(process):
        return []
    inner = [(pid, start_time(pid)) for pid in (_children(process.pid) if process.wrapped else [])]
    return [*((pid, start) for pid, start in inner if start is not None), (process.pid, process.start)]


def _signal(members: list[tuple[int, int]], number: int) -> None:
    for pid, start in members:
        if start_time(pid) == start:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue


def _gone(members: list[tuple[int, int]], wait: float) -> bool:
    for _ in ticks(wait, _POLL):
        for pid, _start in members:
            _reap(pid)
        if all(start_time(pid) != start for pid, start in members):
            return True
    return False


def _reap(pid: int) -> None:
    """Collect the exit status if the process is a child of this very process (it is, in tests)."""
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return


def ticks(seconds: float, pause: float = 0.1) -> Iterator[None]:
    """Yield at once, and then again after each pause, until the time is over."""
    end = time.monotonic() + seconds
    while True:
        yield
        if time.monotonic() >= end:
            return
        time.sleep(pause)
