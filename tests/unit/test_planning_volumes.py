"""Where pods with a model's volume may run: the download beside the server, replicas of one claim together."""

from typing import Any

from moorage import names
from moorage.control.projections import pod as projected
from moorage.kube.resources import CLAIMS, NODES, PODS, VOLUMES
from moorage.placement.matching import PREFERRED, REQUIRED
from moorage.planning.types import Server
from moorage.planning.volumes import mountable, one_node
from tests.support.world import GGUF, World, gpu_node, model
from tests.unit.test_control_wakeups import Desk


def volume(modes: tuple[str, ...] = ("ReadWriteOnce",), **facts: Any) -> dict[str, Any]:
    """A bound claim's volume that any node can mount, unless `facts` say otherwise."""
    return {"claim": "files", "bound": True, "accessModes": list(modes), "nodes": None, "mounted": {}, **facts}


def job_pod(world: World) -> dict[str, Any]:
    found = next(m for (kind, _), m in world.manifests.items() if kind == "Job")
    return dict(found["spec"]["template"]["spec"])


def server_pod(world: World) -> dict[str, Any]:
    return dict(world.manifests[("Deployment", "tiny")]["spec"]["template"])


def required_nodes(pod: dict[str, Any]) -> list[str]:
    terms = pod["affinity"]["nodeAffinity"][REQUIRED]["nodeSelectorTerms"]
    return [value for term in terms for field in term["matchFields"] for value in field["values"]]


# -- the Job --------------------------------------------------------------------------------------------------------


def test_a_volume_that_is_still_to_be_made_goes_where_the_servers_will_be():
    world = World(model())
    taint = {"key": "team", "operator": "Exists"}
    world.server = Server(node_selector={"disk": "fast"}, tolerations=(taint,), nodes=("gpu-1",))
    pod = job_pod(world.answer_resolve(GGUF))
    assert pod["nodeSelector"] == {"disk": "fast"}
    assert required_nodes(pod) == ["gpu-1"]
    assert taint in pod["tolerations"]
    assert "nvidia.com/gpu" in [t["key"] for t in pod["tolerations"]], "GPU nodes keep other pods off by a taint"


def test_a_volume_for_many_nodes_binds_the_job_to_none():
    world = World(model(storage={"accessModes": ["ReadWriteMany"]}))
    world.server = Server(node_selector={"disk": "fast"}, nodes=("gpu-1",))
    pod = job_pod(world.answer_resolve(GGUF))
    assert not {"nodeSelector", "affinity", "tolerations"} & pod.keys()


def test_files_are_verified_again_beside_the_pods_that_mount_them():
    world = World(model())
    world.volume = volume(mounted={"n2": ["server-1"]})
    assert required_nodes(job_pod(world.answer_resolve(GGUF))) == ["n2"]


def test_a_volume_of_one_node_needs_no_pin_but_its_taints_are_tolerated():
    world = World(model())
    world.volume = volume(nodes=["gpu-1"])
    pod = job_pod(world.answer_resolve(GGUF))
    assert "affinity" not in pod, "kube-scheduler keeps to the volume's own node affinity"
    assert "nvidia.com/gpu" in [t["key"] for t in pod["tolerations"]]


def test_a_volume_that_a_stranger_holds_elsewhere_is_told():
    world = World(model()).answer_resolve(GGUF)
    job = world.job()
    world.volume = volume(mounted={"n1": ["backup-0"], "n2": ["d"]})
    world.pods["d"] = {
        "name": "d", "uid": "d", "owner": job["uid"], "labels": job["labels"], "phase": "Pending", "node": "n2",
        "ip": "", "ready": False, "gpus": {}, "created": "2026", "unschedulable": "", "deleting": False,
        "containers": [{"name": "download", "ready": False, "restarts": 0, "startedAt": None, "terminated": None,
                        "last": None, "waiting": {"reason": "ContainerCreating"}}],
    }  # fmt: skip
    world.settle()
    status, reason, message = world.of_download("Downloaded")
    assert (status, reason) == ("False", "VolumeInUse")
    assert "backup-0" in message
    assert "n1" in message
    assert world.condition("Downloaded")[1] == "VolumeInUse", "its Models say so, too"


# -- the servers ----------------------------------------------------------------------------------------------------


def serving(**facts: Any) -> World:
    world = World(model(replicas=2)).answer_resolve(GGUF)
    world.volume = volume(**facts)
    return world.download_done()


def test_pods_of_a_volume_for_one_node_keep_together():
    template = server_pod(serving())
    term = template["spec"]["affinity"]["podAffinity"][REQUIRED][0]
    assert term["topologyKey"] == "kubernetes.io/hostname"
    assert term["labelSelector"]["matchLabels"].items() <= template["metadata"]["labels"].items(), "the first one fits"
    assert template["metadata"]["labels"][names.CLAIM_LABEL] == "files"


def test_pods_of_a_shared_volume_spread_as_they_like():
    for world in (serving(modes=("ReadWriteOnce", "ReadWriteMany")), serving(nodes=["n1"])):
        template = server_pod(world)
        assert "affinity" not in template["spec"], "the volume's own node affinity holds pods together, or nothing"
        assert names.CLAIM_LABEL not in template["metadata"]["labels"]


def test_a_replica_without_room_beside_the_volume_says_why():
    world = serving(nodes=["n1"])
    world.pod(ready=True).token()
    world.pod("p2", phase="Pending", node="", unschedulable="0/3 nodes are available: 1 Insufficient memory, 2 others.")
    _, _, message = world.condition("Serving")
    assert "1 of 2" in message
    assert "claim files is ReadWriteOnce" in message
    assert "node n1 alone" in message
    assert "ReadWriteMany" in message
    assert "Insufficient memory" in message


def test_two_replicas_on_gpus_go_to_one_node_where_the_claim_is_for_one():
    world = World(model(replicas=2, accelerator={"vendor": "Nvidia", "memoryPerGPUOverride": "10Gi"}))
    world.nodes = [gpu_node("a", 24576), gpu_node("b", 24576), gpu_node("pair", 24576, gpus=2)]
    world.answer_resolve(GGUF)
    assert {r.node for r in world.plan().reserve} == {"pair"}
    world.model["spec"]["storage"] = {"accessModes": ["ReadWriteMany"]}
    assert len({r.node for r in world.plan().reserve}) == 2


def test_a_gpu_elsewhere_is_no_help_to_a_volume_of_one_node():
    world = World(model(accelerator={"vendor": "Nvidia", "memoryPerGPUOverride": "10Gi"}))
    world.nodes = [gpu_node("a", 24576), gpu_node("b", 24576)]
    world.volume = volume(nodes=["b"])
    world.answer_resolve(GGUF)
    assert {r.node for r in world.plan().reserve} == {"b"}


# -- what the mirrors tell ------------------------------------------------------------------------------------------


def test_modes_decide_and_pods_that_leave_do_not_count():
    assert one_node(volume(("ReadWriteOncePod",)))
    assert not one_node(volume(("ReadWriteOnce", "ReadOnlyMany")))
    held = volume(mounted={"n1": ["p1"]}, nodes=["n1", "n2"])
    assert mountable(held) == {"n1"}
    assert mountable(held, leaving=["p1"]) == {"n1", "n2"}
    assert mountable(volume(("ReadWriteMany",), mounted={"n1": ["p1"]})) is None
    assert mountable(None) is None


ZONE = {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a"]}]}


def pod_of(claim: str, node: str, phase: str = "Running") -> dict[str, Any]:
    volumes = [{"name": "v", "persistentVolumeClaim": {"claimName": claim}}]
    return {"spec": {"nodeName": node, "volumes": volumes, "containers": []}, "status": {"phase": phase}}


def test_claim_volume_nodes_and_pods_are_put_together():
    desk = Desk()
    wanted = {"source": {"persistentVolumeClaim": {"claimName": "files"}}}
    key = desk.put("ModelDownload", "d", wanted)
    for name, zone in (("n1", "a"), ("n2", "b"), ("n3", "a")):
        node = {"metadata": {"name": name, "uid": name, "labels": {"zone": zone}}, "spec": {}, "status": {}}
        desk.children.mirrors[NODES]._put(("", name), node)
    spec = {"accessModes": ["ReadWriteOnce"], "volumeName": "pv"}
    desk.appears(CLAIMS, "files", spec=spec, status={"phase": "Bound"})
    desk.woken.clear()
    claim_ref = {"namespace": "n", "name": "files"}
    affinity = {"required": {"nodeSelectorTerms": [ZONE]}}
    pv = {"metadata": {"name": "pv", "uid": "pv"}, "spec": {"claimRef": claim_ref, "nodeAffinity": affinity}}
    desk.children.mirrors[VOLUMES]._put(("", "pv"), pv)
    assert desk.woken == [key], "the download looks again when its volume appears"
    desk.woken.clear()
    desk.appears(PODS, "p1", **pod_of("files", "n3"))
    assert desk.woken == [key]
    desk.woken.clear()
    desk.appears(PODS, "p2", **pod_of("files", "n3"))
    assert not desk.woken, "another pod on the same node changes nothing"
    assert desk.children.volume(("n", "files")) == {
        "claim": "files", "bound": True, "accessModes": ["ReadWriteOnce"],
        "nodes": ["n1", "n3"], "pools": [], "mounted": {"n3": ["p1", "p2"]},
    }  # fmt: skip
    desk.appears(PODS, "p1", **pod_of("files", "n3", "Succeeded"))
    desk.goes(PODS, "p2")
    assert desk.woken == [key]
    found = desk.children.volume(("n", "files"))
    assert found is not None
    assert not found["mounted"]


def test_a_strangers_pod_without_gpus_or_claims_is_not_kept():
    pod = pod_of("files", "n1")
    pod["metadata"] = {"name": "p", "namespace": "n", "uid": "u"}
    assert projected(pod) is not None
    del pod["spec"]["volumes"]
    assert projected(pod) is None


def test_preferences_of_the_spec_stay_beside_ours():
    theirs = {"podAffinity": {PREFERRED: [{"weight": 1}]}, "podAntiAffinity": {PREFERRED: [{"weight": 2}]}}
    world = World(model(affinity=theirs)).answer_resolve(GGUF)
    world.volume = volume()
    affinity = server_pod(world.download_done())["spec"]["affinity"]
    assert affinity["podAffinity"][PREFERRED] == [{"weight": 1}]
    assert affinity["podAntiAffinity"] == theirs["podAntiAffinity"]
    assert len(affinity["podAffinity"][REQUIRED]) == 1
