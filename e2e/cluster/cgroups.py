"""The control groups under which a cluster's pods run: `/moorage-<link>` in every hierarchy, version 1 or 2.

Without a root of its own, a kubelet removes the pod groups of every other kubelet on the machine as orphans.
"""

from pathlib import Path

from .errors import ClusterError
from .processes import ticks

_CONTROLLERS = ("cpuset", "cpu", "io", "memory", "hugetlb", "pids")


def root_name(link: str) -> str:
    """The group's name, as the kubelet's `cgroupRoot` has it without the slash."""
    return f"moorage-{link}"


def parse_hierarchies(mountinfo: str) -> list[tuple[Path, str]]:
    """Mount point and type (`cgroup` or `cgroup2`) of each hierarchy in a mountinfo file (proc_pid_mountinfo(5))."""
    found = []
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        kind = right.split(" ", 1)[0]
        if kind in {"cgroup", "cgroup2"}:
            found.append((Path(left.split(" ")[4]), kind))
    return found


def _hierarchies() -> list[tuple[Path, str]]:
    return parse_hierarchies(Path("/proc/self/mountinfo").read_text())


def make(link: str) -> None:
    """Make the cluster's group everywhere."""
    for hierarchy, kind in _hierarchies():
        group = hierarchy / root_name(link)
        if kind == "cgroup2":
            _delegate(hierarchy)
        group.mkdir(exist_ok=True)
        for file in ("cpuset.cpus", "cpuset.mems"):  # version 1: empty in a new group, and then no process may enter
            if kind == "cgroup" and (hierarchy / file).exists():
                (group / file).write_text((hierarchy / file).read_text())


def _delegate(hierarchy: Path) -> None:
    for controller in _CONTROLLERS:
        try:
            (hierarchy / "cgroup.subtree_control").write_text(f"+{controller}")
        except OSError:
            continue  # not available here; the kubelet says which of them it misses


def remove(link: str) -> None:
    """Remove the group and all below it; raises ClusterError when a process stays in there."""
    for hierarchy, _ in _hierarchies():
        group = hierarchy / root_name(link)
        for _ in ticks(60):
            if _removed(group):
                break
        else:
            raise ClusterError(f"{group} still holds processes")


def _removed(group: Path) -> bool:
    if not group.exists():
        return True
    try:
        for inner in sorted((p for p in group.rglob("*") if p.is_dir()), key=lambda p: -len(p.parts)):
            inner.rmdir()
        group.rmdir()
    except OSError:  # the kernel is still letting go of ended processes
        return False
    return True
