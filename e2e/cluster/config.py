"""The configuration files of a cluster. JSON where the reader takes YAML: the kit runs without a YAML library."""

import base64
import json
from pathlib import Path
from typing import Any

from . import cgroups
from .network import Plan
from .state import State

Json = dict[str, Any]


def write_kubeconfigs(state: State, authority: Path, tokens: dict[str, str]) -> None:
    """One kubeconfig per user beside the keys, and the administrator's as `kubeconfig`."""
    for user, token in tokens.items():
        name = "kubeconfig" if user == "admin" else f"pki/{user}.kubeconfig"
        _write(
            state.folder / name, kubeconfig(state.name, state.server, authority.read_bytes(), user, token), mode=0o600
        )


def kubeconfig(cluster: str, server: str, authority: bytes, user: str, token: str) -> Json:
    """How one user reaches the cluster."""
    trust = base64.b64encode(authority).decode()
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": cluster, "cluster": {"server": server, "certificate-authority-data": trust}}],
        "users": [{"name": user, "user": {"token": token}}],
        "contexts": [{"name": cluster, "context": {"cluster": cluster, "user": user}}],
        "current-context": cluster,
    }


def write_scheduler(folder: Path) -> Path:
    """kube-scheduler's configuration: no election, and no throttle that would distort a burst."""
    connection = {"kubeconfig": f"{folder}/pki/system:kube-scheduler.kubeconfig", "qps": 200, "burst": 400}
    content = {
        "apiVersion": "kubescheduler.config.k8s.io/v1",
        "kind": "KubeSchedulerConfiguration",
        "clientConnection": connection,
        "leaderElection": {"leaderElect": False},
    }
    return _write(folder / "scheduler.json", content)


def write_node(state: State, plan: Plan, plugins: Path, pause: str) -> None:
    """Everything that runs in the node reads: containerd, the CNI plugins, kubelet, kube-proxy and CoreDNS."""
    folder = state.folder
    (folder / "containerd.toml").write_text(containerd(folder, plugins, pause))
    _write(folder / "cni" / "net.d" / "10-node.conflist", cni(folder, plan))
    _write(folder / "kubelet.json", kubelet(folder, plan))
    _write(folder / "kube-proxy.json", kube_proxy(folder, plan))
    servers = nameservers(_resolv_conf().read_text())
    (folder / "resolv.conf").write_text("".join(f"nameserver {server}\n" for server in servers))
    (folder / "Corefile").write_text(corefile(folder, plan, servers))


def containerd(folder: Path, plugins: Path, pause: str) -> str:
    """containerd's configuration, version 3."""
    return f"""\
version = 3
root = "{folder}/containerd/root"
state = "{folder}/containerd/state"
[grpc]
address = "{folder}/containerd.sock"
[plugins."io.containerd.internal.v1.opt"]
path = "{folder}/containerd/opt"
[plugins."io.containerd.nri.v1.nri"]
disable = true
[plugins."io.containerd.cri.v1.images"]
snapshotter = "overlayfs"
[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = "{pause}"
[plugins."io.containerd.cri.v1.runtime"]
# without CAP_SYS_RESOURCE, which a virtual machine or container may lack, no sandbox starts otherwise
restrict_oom_score_adj = true
cdi_spec_dirs = ["{folder}/cdi"]
[plugins."io.containerd.cri.v1.runtime".cni]
bin_dirs = ["{plugins}"]
conf_dir = "{folder}/cni/net.d"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
SystemdCgroup = false
"""


def cni(folder: Path, plan: Plan) -> Json:
    """Pods hang on routed cables of their own (`ptp`): no bridge, so no need for the br_netfilter module."""
    ipam = {
        "type": "host-local",
        "dataDir": f"{folder}/cni/addresses",
        "ranges": [[{"subnet": plan.pods}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    # 1400: virtual machines and tunnels often have less than 1500, and then large answers from outside would hang.
    cable = {"type": "ptp", "ipMasq": False, "mtu": 1400, "ipam": ipam}
    port_map = {"type": "portmap", "capabilities": {"portMappings": True}}
    return {"cniVersion": "1.0.0", "name": plan.link, "plugins": [cable, port_map]}


def kubelet(folder: Path, plan: Plan) -> Json:
    """The kubelet's configuration: quick to report, slow to evict."""
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": f"{folder}/pki/ca.crt"},
        },
        "authorization": {"mode": "Webhook"},
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": "/" + cgroups.root_name(plan.link),
        "failCgroupV1": False,
        "failSwapOn": False,
        "containerRuntimeEndpoint": f"unix://{folder}/containerd.sock",
        "clusterDomain": "cluster.local",
        "clusterDNS": [plan.node],
        "resolvConf": f"{folder}/resolv.conf",
        "maxPods": 250,
        "serializeImagePulls": False,
        "kubeAPIQPS": 200,
        "kubeAPIBurst": 400,
        "nodeStatusUpdateFrequency": "1s",  # default 10 s: so long a new device stays unseen
        "syncFrequency": "5s",  # default 1 min: so long a failed volume or device preparation waits
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        "imageGCHighThresholdPercent": 100,  # never: nobody can pull an imported image again
    }


def kube_proxy(folder: Path, plan: Plan) -> Json:
    """kube-proxy's configuration. It leaves the connection tracking limits, which belong to the host, alone."""
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": {"kubeconfig": f"{folder}/pki/system:kube-proxy.kubeconfig"},
        "mode": "iptables",
        "clusterCIDR": plan.pods,
        "conntrack": {"maxPerCore": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
        "iptables": {"minSyncPeriod": "100ms"},
        "oomScoreAdj": 0,
    }


def corefile(folder: Path, plan: Plan, servers: list[str]) -> str:
    """CoreDNS answers for Services, and asks the host's name servers, if it has any, for the rest."""
    forward = f"    forward . {' '.join(servers)}\n" if servers else ""
    return f"""\
.:53 {{
    errors
    bind {plan.node}
    ready {plan.node}:8181
    kubernetes cluster.local in-addr.arpa ip6.arpa {{
        kubeconfig {folder}/pki/system:coredns.kubeconfig
        fallthrough in-addr.arpa ip6.arpa
    }}
{forward}}}
"""


def nameservers(resolv_conf: str) -> list[str]:
    """The name servers that can be reached from a network namespace of its own: not those of the loopback."""
    lines = (line.split() for line in resolv_conf.splitlines())
    servers = [words[1] for words in lines if len(words) > 1 and words[0] == "nameserver"]
    return [server for server in servers if not server.startswith("127.") and server != "::1"]


def _resolv_conf() -> Path:
    """systemd-resolved keeps the real servers elsewhere."""
    resolved = Path("/run/systemd/resolve/resolv.conf")
    return resolved if resolved.exists() else Path("/etc/resolv.conf")


def _write(path: Path, content: Json, mode: int = 0o644) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=mode)
    path.write_text(json.dumps(content, indent=1) + "\n")
    return path
