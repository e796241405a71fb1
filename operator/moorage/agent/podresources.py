"""Which container holds which GPU, by the kubelet's PodResources API (v1).

Fields: k8s.io/kubelet, pkg/apis/podresources/v1/api.proto. The socket is the node's, so the answer is about this node
only, and whoever may read it needs no rights in the cluster.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

from moorage.agent import wire
from moorage.agent.grpc import CallFailed, call
from moorage.placement.gpu_report import Holder
from moorage.placement.vendors import DRA_DRIVERS, is_gpu

SOCKET = Path("/var/lib/kubelet/pod-resources/kubelet.sock")
LIST = "/v1.PodResourcesLister/List"
ALLOCATABLE = "/v1.PodResourcesLister/GetAllocatableResources"

# Of ListPodResourcesResponse, PodResources, ContainerResources, ContainerDevices, DynamicResource and ClaimResource
_PODS = 1
_NAME, _NAMESPACE, _CONTAINERS = 1, 2, 3
_DEVICES, _DYNAMIC = 2, 5
_RESOURCE, _IDS = 1, 2
_CLAIM_RESOURCES = 4
_DRIVER, _DEVICE = 2, 4
_ALLOCATABLE_DEVICES = 1  # of AllocatableResourcesResponse

Holders = Mapping[str, tuple[Holder, ...]]
"""By device: the UUID of a GPU or MIG device (device plugin), or `gpu-MINOR` (DRA)."""


def holders(path: Path = SOCKET) -> Holders:
    """Who holds what on this node; raises CallFailed."""
    try:
        return parse(call(path, LIST))
    except ValueError as error:
        raise CallFailed(f"{path}: the kubelet's answer makes no sense: {error}") from error


def offered(path: Path = SOCKET) -> frozenset[str]:
    """UUIDs of the GPUs that device plugins offer here, given out or not; empty where the kubelet does not say.

    Kubelets before 1.23 do not know the call, and DRA's devices are not told.
    """
    try:
        answer = memoryview(call(path, ALLOCATABLE))
        return frozenset(device for told in wire.messages(answer, _ALLOCATABLE_DEVICES) for device in _plugged(told))
    except (CallFailed, ValueError):
        return frozenset()


def parse(answer: bytes) -> Holders:
    """The holders in a ListPodResourcesResponse; raises ValueError."""
    found: dict[str, list[Holder]] = defaultdict(list)
    for pod in wire.messages(memoryview(answer), _PODS):
        for container in wire.messages(pod, _CONTAINERS):
            holder = Holder(wire.text(pod, _NAMESPACE), wire.text(pod, _NAME), wire.text(container, _NAME))
            for device in _devices(container):
                if holder not in found[device]:
                    found[device].append(holder)
    return {device: tuple(who) for device, who in found.items()}


def _devices(container: memoryview) -> Iterator[str]:
    for devices in wire.messages(container, _DEVICES):
        yield from _plugged(devices)
    for claim in wire.messages(container, _DYNAMIC):
        for resource in wire.messages(claim, _CLAIM_RESOURCES):
            if wire.text(resource, _DRIVER) in DRA_DRIVERS:
                yield wire.text(resource, _DEVICE)


def _plugged(devices: memoryview) -> Iterator[str]:
    """The GPUs among a ContainerDevices."""
    if is_gpu(wire.text(devices, _RESOURCE)):
        yield from map(_physical, wire.texts(devices, _IDS))


def _physical(device: str) -> str:
    """The UUID in a device plugin's id: shared GPUs are offered as UUID::1, UUID::2 and so on."""
    return device.partition("::")[0]
