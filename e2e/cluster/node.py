"""The node: a machine made of namespaces, with containerd, kubelet, kube-proxy and CoreDNS in it."""

import subprocess
import urllib.request
from pathlib import Path

from . import cgroups, config, network, oci, processes
from .api import Api
from .build import cni_folder
from .errors import ClusterError, StartError
from .network import Plan
from .runner import Runner, program
from .state import State

PAUSE_IMAGE = "localhost/moorage/pause:1"
_INIT = Path(__file__).parent / "node-init.sh"
_SOCKET_PATH_LIMIT = 107  # bytes, sun_path of unix(7) less its final zero


def prepare(runner: Runner, name: str) -> Plan:
    """Make the namespaces and the cable, and start containerd, which needs no API server."""
    state = runner.state
    folder = state.folder
    if len(str(socket(folder))) > _SOCKET_PATH_LIMIT:
        raise ClusterError(f"{socket(folder)} is too long for a socket's path: put the repository in a shorter one")
    state.add(processes.start("node", _init_command(folder, name), state.log("node"), wrapped=True))
    runner.wait("node", (folder / "node-ready").exists, 120)
    record = state.process("node")
    assert record is not None
    pid = processes.program_pid(record)
    runner.enter = _enter(pid)

    plan = network.connect(pid)
    state.link = plan.index
    state.save()
    network.configure_host(plan)
    for arguments in network.node_commands(plan):
        _run([*runner.enter, "ip", *arguments])

    cgroups.make(plan.link)
    config.write_node(state, plan, cni_folder() or Path(), PAUSE_IMAGE)
    search = f"{program('containerd').parent}:/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"
    runner.start("containerd", [f"--config={folder}/containerd.toml"], in_node=True, environment={"PATH": search})
    return plan


def start(runner: Runner, plan: Plan, name: str) -> None:
    """Start what talks to the API server."""
    folder = runner.state.folder
    runner.wait("containerd", lambda: _ctr(folder, "version").returncode == 0, 120)
    load(runner.state, [_pause_archive(folder)])
    runner.start(
        "kubelet",
        [
            *(f"--config={folder}/kubelet.json", f"--kubeconfig={folder}/pki/system:node:{name}.kubeconfig"),
            *(f"--hostname-override={name}", f"--node-ip={plan.node}", f"--cert-dir={folder}/pki/kubelet"),
        ],
        in_node=True,
    )
    runner.start("kube-proxy", [f"--config={folder}/kube-proxy.json", f"--hostname-override={name}"], in_node=True)
    runner.start("coredns", [f"-conf={folder}/Corefile"], in_node=True)


def wait(runner: Runner, plan: Plan, api: Api, name: str) -> None:
    """Wait until the node takes pods and their names and Services work."""
    runner.wait("kubelet", lambda: api.node_ready(name), 180)
    runner.wait("kube-proxy", lambda: _answers(f"http://{plan.node}:10256/healthz"), 120)
    runner.wait("coredns", lambda: _answers(f"http://{plan.node}:8181/ready"), 120)


def load(state: State, archives: list[Path]) -> None:
    """Import OCI archives under the names that are written in them; raises ClusterError with ctr's complaint."""
    if not state.node:
        raise ClusterError(f"cluster {state.name} has no node to load images into")
    for archive in archives:
        done = _ctr(state.folder, "--namespace=k8s.io", "images", "import", str(archive))
        if done.returncode != 0:
            raise ClusterError(f"{archive} could not be imported: {done.stderr.strip()}")


def clear(state: State) -> None:
    """Remove what the node left outside its namespaces, whose processes have ended. Safe to repeat."""
    if state.link is None:
        return
    plan = Plan(state.link)
    network.disconnect(plan)
    cgroups.remove(plan.link)


def socket(folder: Path) -> Path:
    """containerd's socket."""
    return folder / "containerd.sock"


def _init_command(folder: Path, name: str) -> list[str]:
    namespaces = ["--mount", "--net", "--pid", "--uts", "--ipc", "--mount-proc"]
    return [
        "unshare",
        *namespaces,
        "--fork",
        "--kill-child",
        "sh",
        str(_INIT),
        str(folder),
        name,
        str(program("pause")),
    ]


def _enter(pid: int) -> list[str]:
    return ["nsenter", f"--target={pid}", "--mount", "--net", "--pid", "--uts", "--ipc", "--"]


def _pause_archive(folder: Path) -> Path:
    archive = folder / "pause.tar"
    oci.write_archive(archive, PAUSE_IMAGE, program("pause"), command=["/pause"])
    return archive


def _ctr(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [str(program("ctr")), f"--address={socket(folder)}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def _answers(url: str) -> bool:
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise StartError(f"{' '.join(command)}: {done.stderr.strip()}")
