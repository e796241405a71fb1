"""Which programs make a cluster, in which versions, and where they are on this machine."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

GO_MODULE = Path(__file__).parent / "go"
KUBERNETES = "v1.36.3"
_VERSION_PACKAGES = ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")


@dataclass(frozen=True)
class Component:
    """One thing to build.

    binaries: file name -> Go package. module: the folder whose go.mod pins everything, or None when the packages are
    installed as their authors release them (`go install PACKAGE@VERSION`). sources: folders whose content is part of
    the version, because the program is ours.
    """

    name: str
    version: str
    group: str
    binaries: tuple[tuple[str, str], ...]
    module: Path | None = None
    sources: tuple[Path, ...] = ()
    ldflags: str = "-s -w"

    @property
    def folder(self) -> Path:
        """Where the built binaries are cached."""
        version = self.version
        if self.sources:
            version += "-" + digest(self.sources)
        return cache_root() / self.name / version


def cache_root() -> Path:
    """`$MOORAGE_CACHE`, or moorage's folder in the user's cache folder."""
    if chosen := os.environ.get("MOORAGE_CACHE"):
        return Path(chosen).resolve()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "moorage"


def digest(folders: tuple[Path, ...]) -> str:
    """Twelve hex digits over the names and bytes of the Go files in these folders."""
    total = hashlib.sha256()
    for folder in folders:
        for file in sorted([*folder.glob("*.go"), *folder.glob("go.*")]):
            total.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return total.hexdigest()[:12]


def _version_flags() -> str:
    major, minor, _ = KUBERNETES.removeprefix("v").split(".")
    values = {"gitVersion": KUBERNETES, "gitMajor": major, "gitMinor": minor}
    flags = [f"-X {package}.{key}={value}" for package in _VERSION_PACKAGES for key, value in values.items()]
    return " ".join(["-s -w", *flags])


def _kubernetes(name: str, group: str) -> Component:
    package = f"k8s.io/kubernetes/cmd/{name}"
    return Component(name, KUBERNETES, group, ((name, package),), GO_MODULE, ldflags=_version_flags())


def _ours(name: str, group: str) -> Component:
    return Component(name, "src", group, ((name, f"./{name}"),), GO_MODULE, sources=(GO_MODULE / name,))


def _released(name: str, version: str, group: str, *packages: str) -> Component:
    return Component(name, version, group, tuple((package.rsplit("/", 1)[1], package) for package in packages))


_CONTAINERD = "github.com/containerd/containerd/v2/cmd/"
_COREDNS = GO_MODULE / "coredns"

# In the order in which they are built: what the most people wait for comes first.
COMPONENTS: tuple[Component, ...] = (
    _kubernetes("kube-apiserver", "control-plane"),
    _kubernetes("kube-controller-manager", "control-plane"),
    _kubernetes("kube-scheduler", "control-plane"),
    _kubernetes("kubectl", "control-plane"),
    Component("etcd", "v3.6.8", "control-plane", (("etcd", "go.etcd.io/etcd/server/v3"),), GO_MODULE),
    _released("kwok", "v0.8.0", "simulation", "sigs.k8s.io/kwok/cmd/kwok"),
    _ours("provisioner", "storage"),
    _released("helm", "v4.3.1", "tools", "helm.sh/helm/v4/cmd/helm"),
    _released(
        "containerd", "v2.2.1", "node", *(_CONTAINERD + x for x in ("containerd", "containerd-shim-runc-v2", "ctr"))
    ),
    _kubernetes("kubelet", "node"),
    _kubernetes("kube-proxy", "node"),
    Component("coredns", "v1.14.3", "node", (("coredns", "."),), _COREDNS, sources=(_COREDNS,)),
    _ours("netpol", "node"),
    _ours("pause", "node"),
    _ours("smoke", "node"),
)

CONTROL_PLANE = frozenset({"control-plane"})
NODE = frozenset({"control-plane", "storage", "node"})
SIMULATION = frozenset({"simulation", "storage"})
EVERYTHING = frozenset(component.group for component in COMPONENTS)


def of_groups(groups: frozenset[str]) -> list[Component]:
    """The components of these groups, in build order."""
    return [component for component in COMPONENTS if component.group in groups]


def locate(binary: str) -> Path | None:
    """The path of a program: `$MOORAGE_BIN_<NAME>` before the cache; None when it is in neither.

    Raises KeyError for a program that no component has.
    """
    variable = "MOORAGE_BIN_" + binary.upper().replace("-", "_")
    if named := os.environ.get(variable):
        return Path(named).resolve()
    component = next((c for c in COMPONENTS if binary in dict(c.binaries)), None)
    if component is None:
        raise KeyError(binary)
    path = component.folder / binary
    return path if path.exists() else None
