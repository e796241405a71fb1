"""etcd, API server, controller manager and scheduler, as processes of the host."""

from pathlib import Path

from . import config, pki
from .api import Api
from .network import Plan, free_ports
from .runner import Runner

PORTS = ["etcd", "etcd-peer", "kube-controller-manager", "kube-scheduler", "kwok"]
# No node: nobody uses these addresses, they only have to be well-formed (RFC 5737 keeps the second one free).
_ALONE = "127.0.0.1"
_ADVERTISED_ALONE = "198.51.100.1"
_SERVICES_ALONE = "10.96.0.0/16"


def start(runner: Runner, plan: Plan | None, node: str) -> Api:
    """Start the control plane and wait until it serves the default ServiceAccount.

    Raises StartError when a part of it ends or is not ready in time.
    """
    state = runner.state
    api_ports = [] if plan else ["kube-apiserver"]
    state.ports = free_ports([*PORTS, *api_ports])
    address, port = (plan.host, 6443) if plan else (_ALONE, state.ports["kube-apiserver"])
    state.server = f"https://{address}:{port}"
    state.save()
    secrets = state.folder / "pki"
    first_service = plan.first_service if plan else "10.96.0.1"
    tokens = pki.make(secrets, addresses=[address, first_service], node=node)
    config.write_kubeconfigs(state, secrets / "ca.crt", tokens)
    api = Api(state.server, secrets / "ca.crt", tokens["admin"])

    runner.start("etcd", _etcd(state.folder, state.ports))
    runner.start("kube-apiserver", _apiserver(secrets, state.ports, plan, address, port))
    runner.wait("kube-apiserver", api.ready, 180)
    runner.start("kube-controller-manager", _controller_manager(state.folder, state.ports))
    runner.start("kube-scheduler", _scheduler(state.folder, state.ports))
    return api


def wait(runner: Runner, api: Api) -> None:
    """Wait for what the controller manager makes first, without which no pod is admitted."""
    runner.wait(
        "kube-controller-manager",
        lambda: (
            api.exists("/api/v1/namespaces/default/serviceaccounts/default")
            and api.exists("/api/v1/namespaces/default/configmaps/kube-root-ca.crt")
        ),
        180,
    )


def _etcd(folder: Path, ports: dict[str, int]) -> list[str]:
    client, peer = (f"http://127.0.0.1:{ports[name]}" for name in ("etcd", "etcd-peer"))
    return [
        *("--name=only", f"--data-dir={folder}/etcd", f"--initial-cluster=only={peer}"),
        *(f"--listen-client-urls={client}", f"--advertise-client-urls={client}"),
        *(f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}"),
        "--unsafe-no-fsync",  # a crash of the machine may lose the data, and then the cluster starts anew anyway
        "--log-level=warn",
    ]


def _apiserver(secrets: Path, ports: dict[str, int], plan: Plan | None, address: str, port: int) -> list[str]:
    return [
        f"--etcd-servers=http://127.0.0.1:{ports['etcd']}",
        *(f"--bind-address={address}", f"--secure-port={port}"),
        f"--advertise-address={address if plan else _ADVERTISED_ALONE}",
        f"--service-cluster-ip-range={plan.services if plan else _SERVICES_ALONE}",
        *(f"--tls-cert-file={secrets}/apiserver.crt", f"--tls-private-key-file={secrets}/apiserver.key"),
        *(f"--client-ca-file={secrets}/ca.crt", f"--token-auth-file={secrets}/tokens.csv"),
        *(f"--service-account-key-file={secrets}/sa.key", f"--service-account-signing-key-file={secrets}/sa.key"),
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
        *("--authorization-mode=Node,RBAC", "--allow-privileged"),
        # The second is on in OpenShift and off elsewhere; a chart that passes here installs in both.
        "--enable-admission-plugins=NodeRestriction,OwnerReferencesPermissionEnforcement",
        *(
            f"--kubelet-client-certificate={secrets}/kubelet-client.crt",
            f"--kubelet-client-key={secrets}/kubelet-client.key",
        ),
        "--kubelet-preferred-address-types=InternalIP",
    ]


def _controller_manager(folder: Path, ports: dict[str, int]) -> list[str]:
    return [
        f"--kubeconfig={folder}/pki/system:kube-controller-manager.kubeconfig",
        *("--bind-address=127.0.0.1", f"--secure-port={ports['kube-controller-manager']}"),
        f"--cert-dir={folder}/pki/controller-manager",
        *(f"--service-account-private-key-file={folder}/pki/sa.key", f"--root-ca-file={folder}/pki/ca.crt"),
        *("--use-service-account-credentials", "--leader-elect=false"),
        *("--kube-api-qps=200", "--kube-api-burst=400"),  # 20 a second, the default, distorts every burst
        "--horizontal-pod-autoscaler-sync-period=5s",  # instead of 15 s, which only makes people and tests wait
    ]


def _scheduler(folder: Path, ports: dict[str, int]) -> list[str]:
    return [
        f"--config={config.write_scheduler(folder)}",
        *("--bind-address=127.0.0.1", f"--secure-port={ports['kube-scheduler']}"),
        f"--cert-dir={folder}/pki/scheduler",
    ]
