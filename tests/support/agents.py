"""Agents of simulated nodes: their pods stand in the cluster, and the test answers in their place, on real sockets."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

from moorage import names
from moorage.control.agents import PORT
from moorage.kube.resources import PODS
from moorage.placement.gpu_report import Gpu, GpuReport, Holder, to_json
from tests.conftest import TestCluster
from tests.support.bed import Bed

RESERVED_MIB = 460


def gpu(index: int = 0, *, total: int = 24_564, used: int = 0, pod: tuple[str, str] | None = None) -> Gpu:
    """A GPU of which `pod` (namespace, name) holds all, with `used` MiB in use."""
    pods = (Holder(*pod, "engine"),) if pod else ()
    free = total - RESERVED_MIB - used
    return Gpu(index, f"GPU-{index}", index, "SIMULATED", total, RESERVED_MIB, used, free, 0, pods=pods)


class FakeAgent:
    """Answers the operator as the agent of one node; `gpus` is what it tells."""

    def __init__(self, node: str, address: str) -> None:
        self.node, self.address, self.gpus = node, address, (gpu(),)
        self.asked = 0

    async def handle(self, _request: web.Request) -> web.Response:
        self.asked += 1
        return web.json_response(to_json(GpuReport(self.node, 100, "580", self.gpus)))


@asynccontextmanager
async def agent(cluster: TestCluster, bed: Bed, node: str, address: str) -> AsyncIterator[FakeAgent]:
    """The agent of `node` in the bed's namespace, at a loopback `address` of its own."""
    made = FakeAgent(node, address)
    app = web.Application()
    app.add_routes([web.get("/v1/gpus", made.handle)])
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, address, PORT).start()
    name = f"agent-{node}"
    labels = {names.PART_OF: "moorage", names.COMPONENT: "agent"}
    spec = {"nodeName": node, "containers": [{"name": "agent", "image": "moorage:test"}]}
    meta = {"name": name, "namespace": bed.namespace, "labels": labels}
    await bed.kube.create({"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec})
    await bed.until(PODS, name, lambda pod: pod["status"].get("phase") == "Running")
    set_status(cluster, bed, name, {"podIP": address, "podIPs": [{"ip": address}]})
    try:
        yield made
    finally:
        await runner.cleanup()
        cluster.kubectl("-n", bed.namespace, "delete", "pod", name, "--grace-period=0", "--force")


def set_status(cluster: TestCluster, bed: Bed, pod: str, status: dict[str, Any]) -> None:
    """Say of a pod what its kubelet would."""
    patch = json.dumps({"status": status})
    cluster.kubectl("-n", bed.namespace, "patch", "pod", pod, "--subresource=status", "--type=merge", "-p", patch)
