"""Decisions against the real kube-scheduler: every kind of GPU node, planned one by one, and bound where planned."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from moorage.control import projections
from moorage.placement.affinity import merged
from moorage.placement.decide import decide
from moorage.placement.inventory import Inventory, build
from moorage.placement.request import Candidate, Decision, Request
from tests.conftest import TestCluster
from tests.support.eventually import eventually
from tests.support.nodes import until_ready

pytestmark = pytest.mark.api

NAMESPACE = "placement"
MEMORY, GPU, AMD = "nvidia.com/gpu.memory", "nvidia.com/gpu", "amd.com/gpu"
SHARED = {"nvidia.com/gpu.sharing-strategy": "time-slicing", "nvidia.com/gpu.replicas": "4"}
SIZE = "moorage.dev/gpu-memory"
Manifest = dict[str, Any]


def node(name: str, gpus: int = 0, resource: str = GPU, *, labels: Manifest, **more: Any) -> Manifest:
    room = {"cpu": "32", "memory": "256Gi", "pods": "110"} | ({resource: str(gpus)} if gpus else {})
    host = {} if more.pop("hostless", False) else {"kubernetes.io/hostname": name}
    notes = {"kwok.x-k8s.io/node": "fake", **more.pop("annotations", {})}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "annotations": notes, "labels": {**host, **labels}},
        "spec": {"taints": more.pop("taints", [])},
        "status": {"capacity": room, "allocatable": room},
    }


def resource_slice(name: str, mib: int, count: int) -> Manifest:
    devices = [
        {
            "name": f"gpu-{i}",
            "attributes": {"type": {"string": "gpu"}, "productName": {"string": f"GPU {mib}"}},
            "capacity": {"memory": {"value": f"{mib}Mi"}},
        }
        for i in range(count)
    ]
    pool = {"name": name, "generation": 1, "resourceSliceCount": 1}
    spec = {"driver": "gpu.nvidia.com", "nodeName": name, "pool": pool, "devices": devices}
    return {"apiVersion": "resource.k8s.io/v1", "kind": "ResourceSlice", "metadata": {"name": name}, "spec": spec}


DEVICE_CLASS = {
    "apiVersion": "resource.k8s.io/v1",
    "kind": "DeviceClass",
    "metadata": {"name": "gpu.nvidia.com"},
    "spec": {"selectors": [{"cel": {"expression": "device.attributes['gpu.nvidia.com'].type == 'gpu'"}}]},
}
NODES = [
    node("n16", 1, labels={MEMORY: "16380"}),
    node("n24", 1, labels={MEMORY: "24564"}, taints=[{"key": GPU, "effect": "NoSchedule"}]),
    node("n80", 2, labels={MEMORY: "81559"}),
    node("annotated", 1, labels={}, annotations={SIZE: "40Gi"}),
    node("hostless", 1, labels={}, annotations={SIZE: "44Gi"}, hostless=True),
    node("lies", 1, labels={MEMORY: "81559"}, annotations={SIZE: "8Gi"}),
    node("shared", 4, labels={MEMORY: "24564", **SHARED}),
    node("nonsense", 1, labels={MEMORY: "0x10"}),
    node("mi64", 2, AMD, labels={"amd.com/gpu.vram": "64G"}),
    node("mi192", 1, AMD, labels={"amd.com/gpu.vram": "192G"}),
    node("dra20", labels={}),
    node("dra30", labels={}),
    node("dra141", labels={}),
    node("both", 1, labels={MEMORY: "32510"}),
]
SLICES = [
    resource_slice("dra20", 20_475, 1),
    resource_slice("dra30", 30_720, 1),
    resource_slice("dra141", 143_771, 2),
    resource_slice("both", 32_510, 1),
]


class Bench:
    """Plans by what the cluster shows, makes the pod, and tells where the scheduler put it."""

    def __init__(self, cluster: TestCluster) -> None:
        self._kubectl = cluster.kubectl
        self._pods = 0

    def items(self, kind: str) -> list[Manifest]:
        found: list[Manifest] = json.loads(self._kubectl("get", kind, "-A", "-o", "json").stdout)["items"]
        return found

    def inventory(self) -> Inventory:
        names = {n["metadata"]["name"] for n in NODES}
        pods = [p for p in map(projections.pod, self.items("pods")) if p and p["gpus"]]
        nodes = [n for n in map(projections.node, self.items("nodes")) if n and n["name"] in names]
        specs = [s["spec"] for s in self.items("resourceslices")]
        slices = [{**s, "node": s["nodeName"], "pool": s["pool"]["name"]} for s in specs]
        allocated = [c for c in self.items("resourceclaims") if (c.get("status") or {}).get("allocation")]
        claims = [{"holder": "a/m", "devices": c["status"]["allocation"]["devices"]["results"]} for c in allocated]
        return build(nodes, pods, slices, claims=claims)

    def apply(self, *objects: Manifest) -> None:
        self._kubectl(
            "apply", "-f", "-", input=json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)})
        )

    async def place(self, *candidates: Candidate, **asked: Any) -> tuple[Decision, str]:
        """The decision, and the node that the scheduler chose."""
        self._pods += 1
        name = f"m{self._pods}"
        decision = decide(Request(f"{NAMESPACE}/{name}", candidates, **asked), self.inventory())
        assert decision.placed, decision.message
        assert decision.candidate is not None
        container: Manifest = {"name": "c", "image": "x", "resources": {}}
        spec: Manifest = {"affinity": merged(None, decision.affinity), "tolerations": list(decision.tolerations)}
        if decision.claim_template is not None:
            meta = {"name": name, "namespace": NAMESPACE}
            template = {"kind": "ResourceClaimTemplate", "metadata": meta, "spec": decision.claim_template}
            self.apply({"apiVersion": "resource.k8s.io/v1", **template})
            spec["resourceClaims"] = [{"name": "gpu", "resourceClaimTemplateName": name}]
            container["resources"] = {"claims": [{"name": "gpu"}]}
        else:
            container["resources"] = {"limits": {decision.resource: str(decision.candidate.gpus)}}
        self.pod(name, {**spec, "containers": [container]})
        await eventually(lambda: self._bound(name), what=f"{decision.message}: the pod is bound", every=0.2)
        return decision, self._bound(name)

    def pod(self, name: str, spec: Manifest) -> None:
        self.apply(
            {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": NAMESPACE}, "spec": spec}
        )

    def _bound(self, name: str) -> str:
        template = "jsonpath={.spec.nodeName}"
        return self._kubectl("get", "pod", name, "-n", NAMESPACE, "-o", template).stdout


@pytest.fixture
def bench(kwok_cluster: TestCluster) -> Iterator[Bench]:
    kubectl = kwok_cluster.kubectl
    names = [f"node/{n['metadata']['name']}" for n in NODES]
    kubectl("create", "namespace", NAMESPACE, check=False)
    made = Bench(kwok_cluster)
    made.apply(*NODES, *SLICES, DEVICE_CLASS)
    until_ready(kwok_cluster, *(n["metadata"]["name"] for n in NODES))
    kubectl("wait", "--for=create", "--timeout=110s", "-n", NAMESPACE, "serviceaccount/default")
    yield made
    kubectl("delete", "pods", "--all", "-n", NAMESPACE, "--force", "--grace-period=0")
    kubectl("delete", "resourceclaimtemplates", "--all", "-n", NAMESPACE)
    kubectl("wait", "--for=delete", "--timeout=110s", "-n", NAMESPACE, "resourceclaims", "--all")
    kubectl("delete", *names, "deviceclass/gpu.nvidia.com", *(f"resourceslice/{s['metadata']['name']}" for s in SLICES))


async def test_what_is_planned_is_bound(bench: Bench):
    """The smallest class first, by label, annotation, vendor's list and device, until nothing is left."""
    order = ["n16", "dra20", "n24", "dra30", "both", "annotated", "hostless", "mi64", "mi64", "n80", "n80"]
    for wanted in [*order, "dra141", "dra141", "mi192"]:
        decision, node_name = await bench.place(Candidate(1, 10_000))
        assert (decision.nodes, node_name) == ((wanted,), wanted), decision.message
    full = decide(Request("a/one-more", (Candidate(1, 10_000),)), bench.inventory())
    assert full.reason == "NoGPUFree"


async def test_the_plan_holds_against_the_schedulers_spreading(bench: Bench):
    """The planned nodes have 31 of 32 CPUs requested already: the default scores would go elsewhere."""
    busy = {"containers": [{"name": "c", "image": "x", "resources": {"requests": {"cpu": "31"}}}]}
    for name in ("n16", "dra20", "n24"):
        bench.pod(f"busy-{name}", {**busy, "nodeName": name})
    for wanted in ("n16", "dra20", "n24"):
        _, node_name = await bench.place(Candidate(1, 10_000))
        assert node_name == wanted


async def test_several_gpus_an_exact_class_and_one_node(bench: Bench):
    pair, node_name = await bench.place(Candidate(1, 200_000), Candidate(2, 100_000))
    assert (pair.dra, node_name) == (True, "dra141")
    exact, node_name = await bench.place(Candidate(1, 10_000), exact_class=True)
    assert node_name == exact.nodes[0] == "n16"
    pinned, node_name = await bench.place(Candidate(1, 10_000), one_node=True)
    assert node_name == pinned.nodes[0] == "dra20"
