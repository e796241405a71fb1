"""GPUs that DRA gives out: the pod asks by a claim, the template is made and cleaned up, what is held is seen."""

import pytest

from moorage.control import dra
from moorage.placement.inventory import NodePool, Reservation
from tests.support.world import GGUF, SAFETENSORS, World, gpu_node, model
from tests.unit.placement_clusters import bare, device, slice_of


def on_devices(gib: int = 24, **spec) -> World:
    world = World(model(accelerator={"vendor": "Auto", "memoryPerGPUOverride": "10Gi"}, **spec))
    world.nodes = [{**bare("dra-1"), "unschedulable": False, "taints": [], "annotations": {}}]
    world.slices = [slice_of("dra-1", [device("gpu-0", gib)])]
    return world


def pod_spec(world: World) -> dict:
    return world.manifests[("Deployment", "tiny")]["spec"]["template"]["spec"]


def templates(world: World) -> list[str]:
    return sorted(name for kind, name in world.children if kind == "ResourceClaimTemplate")


def test_the_pod_asks_by_a_claim_and_for_no_extended_resource():
    world = on_devices().answer_resolve(GGUF).download_done()
    (name,) = templates(world)
    spec = pod_spec(world)
    assert spec["resourceClaims"] == [{"name": "gpu", "resourceClaimTemplateName": name}]
    (container,) = spec["containers"]
    assert container["resources"]["claims"] == [{"name": "gpu"}]
    assert "limits" not in container["resources"]
    template = world.manifests[("ResourceClaimTemplate", name)]
    (request,) = template["spec"]["spec"]["devices"]["requests"]
    assert request["exactly"]["deviceClassName"] == "gpu.nvidia.com"
    assert template["spec"]["metadata"]["labels"]["moorage.dev/model"] == "tiny"
    assert template["metadata"]["ownerReferences"][0]["name"] == "tiny"


def test_where_a_device_plugin_offers_the_same_gpus_the_plugin_is_asked():
    world = on_devices()
    world.nodes = [gpu_node("dra-1", 24_564)]
    world.answer_resolve(GGUF).download_done()
    assert templates(world) == []
    assert pod_spec(world)["containers"][0]["resources"]["limits"] == {"nvidia.com/gpu": "1"}
    assert "resourceClaims" not in pod_spec(world)


def test_a_running_model_is_left_alone_and_a_new_need_gets_a_new_template():
    world = on_devices().answer_resolve(GGUF).download_done()
    (first,) = templates(world)
    world.pod(ready=True, node="dra-1").token()
    assert world.phase == "Ready"
    world.slices = [slice_of("dra-1", [device("gpu-0", 24), device("gpu-1", 80)], generation=2)]
    world.settle()
    assert templates(world) == [first], "a larger device is no reason to move"
    world.change(accelerator={"vendor": "Auto", "memoryPerGPUOverride": "40Gi"}).settle()
    assert len(templates(world)) == 2, "the old one stays until its pods are gone"
    world.pods.clear()
    world.pod("p2", ready=True, node="dra-1").token()
    (second,) = templates(world)
    assert second != first


def test_a_template_that_someone_deleted_is_made_again():
    world = on_devices().answer_resolve(GGUF).download_done()
    (name,) = templates(world)
    del world.children[("ResourceClaimTemplate", name)]
    world.pod(phase="Pending", node="", containers=[], unschedulable="0/1 nodes are available: resourceclaimtemplate")
    assert templates(world) == [name]


def test_a_pod_that_waits_goes_over_to_devices_when_the_plugin_goes():
    world = on_devices()
    world.nodes = [gpu_node("dra-1", 24_564)]
    world.answer_resolve(GGUF).download_done()
    world.pod(phase="Pending", node="", containers=[])
    world.nodes = [{**gpu_node("dra-1", 24_564), "gpus": {}}]
    world.settle()
    assert "resourceClaims" in pod_spec(world)


CLAIM = {
    "metadata": {"name": "p-1-gpu-x", "namespace": "ns"},
    "status": {
        "allocation": {"devices": {"results": [{"driver": "gpu.nvidia.com", "pool": "dra-1", "device": "gpu-0"}]}},
        "reservedFor": [{"resource": "pods", "name": "p-1", "uid": "u"}],
    },
}
DEVICES = [{"driver": "gpu.nvidia.com", "pool": "dra-1", "device": "gpu-0"}]


@pytest.mark.parametrize(
    ("labels", "reserved", "holder"),
    [
        ({"moorage.dev/model": "tiny"}, True, "ns/tiny"),
        ({"moorage.dev/model": "tiny"}, False, "ns/tiny"),
        ({}, True, "pod ns/p-1"),
        ({}, False, ""),
    ],
)
def test_who_holds_a_claim(labels, reserved, holder):
    status = CLAIM["status"] if reserved else {"allocation": CLAIM["status"]["allocation"]}
    found = dra.resource_claim({"metadata": {**CLAIM["metadata"], "labels": labels}, "status": status})
    assert found == {"namespace": "ns", "name": "p-1-gpu-x", "holder": holder, "devices": DEVICES}


def test_claims_that_hold_no_gpu_are_nobodys_business():
    other = {"driver": "nic.example.com", "pool": "dra-1", "device": "eth-0"}
    admin = {**DEVICES[0], "adminAccess": True}
    for results in ([], [other], [admin]):
        status = {"allocation": {"devices": {"results": results}}}
        assert dra.resource_claim({"metadata": CLAIM["metadata"], "status": status}) is None


def test_slices_of_other_drivers_and_of_no_node_are_left_out():
    spec = {"driver": "gpu.nvidia.com", "nodeName": "n", "pool": {"name": "n", "generation": 3}, "devices": []}
    assert dra.resource_slice({"spec": spec}) == {
        "node": "n", "driver": "gpu.nvidia.com", "pool": "n", "generation": 3, "devices": [],
    }  # fmt: skip
    assert dra.resource_slice({"spec": {**spec, "driver": "nic.example.com"}}) is None
    assert dra.resource_slice({"spec": {**spec, "nodeName": None, "allNodes": True}}) is None


# -- nodes with devices that are still to come -------------------------------------------------------------------------

POOL = NodePool("dra", {"pool": "dra"}, 24_564, 2, maximum=1, resource="gpu.nvidia.com", dra=True)
LARGER = NodePool("large", {"pool": "large"}, 81_559, 2, maximum=1, resource="gpu.nvidia.com", dra=True)


def awaiting(*nodes: dict, pools: tuple[NodePool, ...] = (POOL, LARGER)) -> World:
    """A Model for which a node has to come, its pod refused by the scheduler."""
    world = World(model(accelerator={"vendor": "Auto", "memoryPerGPUOverride": "10Gi"}))
    world.nodes, world.node_pools = list(nodes), pools
    world.answer_resolve(GGUF).download_done()
    return world.pod(phase="Pending", node="", containers=[], unschedulable="0/0 nodes: cannot allocate all claims")


def joined(pool: NodePool) -> dict:
    labels = {"kubernetes.io/hostname": "new", **pool.labels}
    return {**bare("new", labels=labels), "unschedulable": False, "taints": [], "annotations": {}}


def node_terms(world: World) -> list[dict]:
    affinity = pod_spec(world)["affinity"]["nodeAffinity"]
    return affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]


def test_a_pool_of_devices_is_waited_for_by_a_pod_with_a_claim():
    world = awaiting()
    assert world.condition("Placed")[1] == "WaitingForNode"
    assert "waiting for a node of pool dra with 2 24Gi GPUs" in world.condition("Placed")[2]
    assert node_terms(world) == [{"matchExpressions": [{"key": "pool", "operator": "In", "values": ["dra"]}]}]
    (name,) = templates(world)
    (request,) = world.manifests[("ResourceClaimTemplate", name)]["spec"]["spec"]["devices"]["requests"]
    assert request["exactly"]["selectors"][0]["cel"]["expression"].endswith(">= 0"), "any device that is large enough"
    assert world.plan().reserve[0].book == ("gpu.nvidia.com", 24_564)


def test_the_template_stays_when_the_node_and_then_its_devices_come():
    world = awaiting()
    before = pod_spec(world)
    world.nodes = [joined(POOL)]
    world.settle()
    assert world.condition("Placed")[1] == "WaitingForNode", "its driver has published nothing yet"
    world.slices = [slice_of("new", [device("gpu-0", 24), device("gpu-1", 24)])]
    world.settle()
    assert world.condition("Placed")[:2] == ("True", "Placed")
    world.pod(node="new", ready=True).token()
    assert (world.phase, pod_spec(world)) == ("Ready", before)


def test_the_next_pool_of_devices_is_tried_after_the_deadline():
    world = awaiting().later(901).settle()
    assert "waiting for a node of pool large" in world.condition("Placed")[2]
    assert node_terms(world) == [{"matchExpressions": [{"key": "pool", "operator": "In", "values": ["large"]}]}]
    world.pod(phase="Pending", node="", containers=[], unschedulable="no").later(901).settle()
    assert world.condition("Placed")[1] == "NoNodeCame"
    assert {v for t in node_terms(world) for e in t["matchExpressions"] for v in e["values"]} == {"dra", "large"}


def test_nodes_that_would_do_but_are_full_are_not_shut_out():
    full = {**bare("dra-1"), "unschedulable": False, "taints": [], "annotations": {}}
    world = World(model(accelerator={"vendor": "Auto", "memoryPerGPUOverride": "10Gi"}))
    world.nodes, world.node_pools = [full], (POOL,)
    world.slices = [slice_of("dra-1", [device("gpu-0", 24)])]
    world.reservations = (Reservation("ns/other", "dra-1", ("gpu.nvidia.com", 24_564), 1),)
    world.answer_resolve(GGUF).download_done()
    assert world.condition("Placed")[1] == "WaitingForNode"
    assert [t["matchExpressions"][0]["values"] for t in node_terms(world)] == [["dra-1"], ["dra"]]


def test_a_device_that_is_there_is_taken_without_a_word_on_pools():
    world = on_devices()
    world.node_pools = (POOL,)
    world.answer_resolve(GGUF).download_done()
    assert world.condition("Placed")[:2] == ("True", "Placed")
    assert "pool" not in str(pod_spec(world).get("affinity"))


def test_one_whose_arguments_depend_on_the_size_takes_a_little_more_than_the_values_say():
    world = World(model(contextLength=8192, accelerator={"vendor": "Auto"}))
    world.node_pools = (POOL,)
    world.answer_resolve(SAFETENSORS).download_done()
    (name,) = templates(world)
    (request,) = world.manifests[("ResourceClaimTemplate", name)]["spec"]["spec"]["devices"]["requests"]
    assert "quantity('25087Mi')" in request["exactly"]["selectors"][0]["cel"]["expression"]
