"""What is not Kubernetes itself: rights and StorageClasses, the volume provisioner, NetworkPolicies, and kwok."""

from pathlib import Path

from .errors import StartError
from .network import Plan
from .runner import Runner, kubectl

_MANIFESTS = Path(__file__).parent / "manifests"
_FAKE_NODE_ADDRESS = "10.255.255.1"
_PODS_ALONE = "10.244.0.0/16"


def apply(runner: Runner) -> None:
    """Create the kit's own objects."""
    state = runner.state
    files = [_MANIFESTS / "rights.yaml", _MANIFESTS / "storage.yaml"]
    if state.node:
        files.append(_MANIFESTS / "storage-sized.yaml")
    done = kubectl(state, "apply", "--server-side", "--validate=false", *(f"--filename={file}" for file in files))
    if done.returncode != 0:
        raise StartError(f"the kit's own objects could not be created: {done.stderr.strip()}")


def start_provisioner(runner: Runner) -> None:
    """Start the maker of volumes; in the node, if there is one, because it mounts."""
    folder = runner.state.folder
    (folder / "volumes").mkdir(exist_ok=True)
    arguments = [f"--kubeconfig={folder}/pki/system:provisioner.kubeconfig", f"--root={folder}/volumes"]
    runner.start("provisioner", arguments, in_node=runner.state.node)


def start_netpol(runner: Runner) -> None:
    """Start what enforces NetworkPolicies, in the node: its rules end with the node's network namespace."""
    folder = runner.state.folder
    arguments = [f"--kubeconfig={folder}/pki/system:netpol.kubeconfig", f"--ready={_netpol_ready(folder)}"]
    runner.start("netpol", arguments, in_node=True)


def wait_netpol(runner: Runner) -> None:
    """Wait until policies are enforced."""
    runner.wait("netpol", _netpol_ready(runner.state.folder).exists, 30)


def _netpol_ready(folder: Path) -> Path:
    return folder / "netpol-ready"


def start_kwok(runner: Runner, plan: Plan | None) -> None:
    """Start the simulator of nodes that carry the annotation `kwok.x-k8s.io/node: fake`, and of their pods."""
    folder, ports = runner.state.folder, runner.state.ports
    arguments = [
        *(f"--kubeconfig={folder}/pki/kwok.kubeconfig", f"--config={_MANIFESTS / 'kwok-stages.yaml'}"),
        "--manage-nodes-with-annotation-selector=kwok.x-k8s.io/node=fake",
        *(f"--cidr={plan.simulated_pods if plan else _PODS_ALONE}", f"--node-ip={_FAKE_NODE_ADDRESS}"),
        *("--node-lease-duration-seconds=40", f"--server-address=127.0.0.1:{ports['kwok']}"),
    ]
    runner.start("kwok", arguments)
