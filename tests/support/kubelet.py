"""A kubelet's PodResources API on a socket, by another implementation of gRPC (grpcio) than the agent's own."""

import time
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc

from e2e.gpusim.protobuf import field, fields

NUMA = field(3, field(1, b"\x08\x01"))


def plugin_devices(resource: str, *ids: str) -> bytes:
    """ContainerDevices, with the topology that a real kubelet adds."""
    return fields((1, resource), *((2, i) for i in ids)) + NUMA


def claim(driver: str, device: str) -> bytes:
    """DynamicResource of one allocated device."""
    return fields((2, "claim"), (3, "ns"), (4, fields((1, field(1, "cdi")), (2, driver), (3, "pool"), (4, device))))


def pod(namespace: str, name: str, *, devices: tuple[bytes, ...] = (), claims: tuple[bytes, ...] = ()) -> bytes:
    """PodResources with one container `engine`, and CPUs that nobody asked about."""
    cpus = b"\x18\x01"  # cpu_ids 3: varint 1
    inside = fields((1, "engine"), *((2, d) for d in devices)) + cpus + fields(*((5, c) for c in claims))
    return fields((1, name), (2, namespace), (3, inside))


def answer(*pods: bytes) -> bytes:
    """ListPodResourcesResponse."""
    return fields(*((1, p) for p in pods))


def allocatable(*devices: bytes) -> bytes:
    """AllocatableResourcesResponse of some ContainerDevices, and CPUs."""
    return fields(*((1, d) for d in devices)) + b"\x10\x01"


class Kubelet(grpc.GenericRpcHandler):
    """`answer` is what List answers, `allocatable` what GetAllocatableResources does (None: it is an old kubelet that
    does not know the call); `status` a gRPC status to answer with instead, `hang` no answer at all."""

    def __init__(self) -> None:
        self.answer = b""
        self.allocatable: bytes | None = None
        self.status: grpc.StatusCode | None = None
        self.hang = 0.0
        self.calls = 0

    def service(self, handler_call_details: Any) -> Any:
        if handler_call_details.method == "/v1.PodResourcesLister/GetAllocatableResources":
            told = self.allocatable
            return None if told is None else grpc.unary_unary_rpc_method_handler(lambda _request, _context: told)
        if handler_call_details.method != "/v1.PodResourcesLister/List":
            return None
        return grpc.unary_unary_rpc_method_handler(self._list)

    def _list(self, _request: bytes, context: Any) -> bytes:
        self.calls += 1
        if self.hang:
            time.sleep(self.hang)
        if self.status:
            context.abort(self.status, "too many of you")
        return self.answer


@contextmanager
def kubelet(socket: Path) -> Iterator[Kubelet]:
    made = Kubelet()
    server = grpc.server(futures.ThreadPoolExecutor(4), handlers=[made])
    server.add_insecure_port(f"unix://{socket}")
    server.start()
    try:
        yield made
    finally:
        server.stop(grace=None).wait()
