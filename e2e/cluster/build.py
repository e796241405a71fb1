"""Builds what is missing into the cache, and installs the few Debian packages that a node needs."""

import fcntl
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .components import Component, cache_root, locate
from .errors import BuildError

Say = Callable[[str], None]

# Debian package -> a program that it brings.
_NODE_PROGRAMS = {
    "runc": "runc",
    "iptables": "iptables",
    "nftables": "nft",
    "iproute2": "ip",
    "util-linux": "nsenter",
}
_CNI_PACKAGE = "containernetworking-plugins"
_CNI_PLUGINS = ("bridge", "host-local", "loopback", "portmap")
_CNI_FOLDERS = ("/usr/lib/cni", "/opt/cni/bin", "/usr/libexec/cni")


def build(components: list[Component], say: Say) -> None:
    """Build every component whose binaries are not there yet; one line per component."""
    missing = [c for c in components if any(locate(binary) is None for binary, _ in c.binaries)]
    if not missing:
        return
    if shutil.which("go") is None:
        raise BuildError(
            "building Kubernetes needs Go 1.26 or newer: install it, or name the binaries in MOORAGE_BIN_*"
        )
    for number, component in enumerate(missing, 1):
        with _only_one_builder(component):
            if all(locate(binary) is not None for binary, _ in component.binaries):
                continue  # another process built it while this one waited
            title = f"[{number}/{len(missing)}] {component.name} {component.version}"
            say(f"{title}: building, which takes minutes the first time")
            began = time.monotonic()
            _build_one(component)
            say(f"{title}: built in {time.monotonic() - began:.0f} s")


def _build_one(component: Component) -> None:
    folder = component.folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        for command, where in go_commands(component, Path(scratch)):
            environment = os.environ | {
                "CGO_ENABLED": "0",
                "GOBIN": scratch,
                "GOFLAGS": "-buildvcs=false",
                "GOWORK": "off",
            }
            done = subprocess.run(
                ["nice", "-n", "5", *command], cwd=where, env=environment, capture_output=True, text=True, check=False
            )
            if done.returncode != 0:
                tail = "\n".join(done.stderr.splitlines()[-20:])
                raise BuildError(f"{component.name} {component.version} does not build ({' '.join(command)}):\n{tail}")
        folder.mkdir(exist_ok=True)
        for binary, _ in component.binaries:
            (Path(scratch) / binary).replace(folder / binary)


def go_commands(component: Component, target: Path) -> list[tuple[list[str], Path]]:
    """The commands that leave the component's binaries in `target`, each with its working directory."""
    flags = ["-trimpath", "-ldflags", component.ldflags]
    if component.module is None:
        packages = [f"{package}@{component.version}" for _, package in component.binaries]
        return [(["go", "install", *flags, *packages], target)]
    return [
        (["go", "build", *flags, "-o", str(target / binary), package], component.module)
        for binary, package in component.binaries
    ]


@contextmanager
def _only_one_builder(component: Component) -> Iterator[None]:
    root = cache_root()
    root.mkdir(parents=True, exist_ok=True)
    with (root / f"{component.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def cni_folder() -> Path | None:
    """The folder with the CNI plugins that a node uses, or None."""
    named = os.environ.get("MOORAGE_BIN_CNI")
    for folder in [Path(named)] if named else map(Path, _CNI_FOLDERS):
        if all((folder / plugin).exists() for plugin in _CNI_PLUGINS):
            return folder
    return None


def ensure_node_packages(say: Say) -> None:
    """Install the programs that a node needs and that Debian (or Ubuntu) packages well; only the missing ones."""
    missing = [package for package, program in _NODE_PROGRAMS.items() if shutil.which(program) is None]
    if cni_folder() is None:
        missing.append(_CNI_PACKAGE)
    install(missing, say)


def install(packages: list[str], say: Say) -> None:
    """`apt-get install` these packages; nothing when the list is empty."""
    if not packages:
        return
    if shutil.which("apt-get") is None:
        raise BuildError(f"please install {' '.join(packages)}: there is no apt-get here to do it")
    say(f"installing Debian packages: {' '.join(packages)}")
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    command = ["apt-get", "install", "--yes", "--quiet", "--no-install-recommends", *packages]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:  # most likely old package lists
        subprocess.run(["apt-get", "update", "--quiet"], env=environment, capture_output=True, check=False)
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BuildError(f"apt-get could not install {' '.join(packages)}:\n{done.stderr.strip()}")
