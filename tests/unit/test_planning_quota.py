"""Quotas and limit ranges of a namespace: what a server's pod would be refused for, before its files are fetched."""

import pytest

from moorage.planning.quota import admitted, amount, refusal
from tests.support.world import GGUF, World, gpu_node, model

SERVER = {"requests": {"memory": "4500Mi"}, "limits": {"nvidia.com/gpu": "1"}}
GPUS = {"requests.nvidia.com/gpu": "4"}


def quota(hard: dict, used: dict | None = None, *selectors: dict, name: str = "team-gpus") -> dict:
    return {"name": name, "hard": hard, "used": used or {}, "selectors": list(selectors)}


def limits(**item) -> dict:
    return {"name": "defaults", "items": [{"type": "Container", **item}]}


@pytest.mark.parametrize(
    ("text", "value"),
    [("4", 4), ("500m", 0.5), ("1Gi", 2**30), ("1.5Gi", 1.5 * 2**30), ("2k", 2000), ("1e3", 1000), ("nonsense", 0)],
)
def test_quantities(text, value):
    assert amount(text) == value


@pytest.mark.parametrize(
    ("quotas", "ranges", "told"),
    [
        ([quota(GPUS, GPUS)], [], "4 of 4 nvidia.com/gpu in use (quota team-gpus)"),
        ([quota(GPUS, {"requests.nvidia.com/gpu": "3"})], [], None),
        ([quota({"requests.amd.com/gpu": "0"})], [], None),
        (
            [quota({"requests.memory": "8Gi"}, {"requests.memory": "5Gi"})],
            [],
            "5Gi of 8Gi requests.memory in use (quota team-gpus); the server needs 4.4Gi",
        ),
        ([quota({"memory": "4Gi"})], [], "0 of 4Gi memory in use (quota team-gpus); the server needs 4.4Gi"),
        ([quota({"pods": "2"}, {"pods": "2"})], [], "2 of 2 pods in use (quota team-gpus); the server needs 1"),
        (
            [quota({"limits.memory": "64Gi"})],
            [],
            "quota team-gpus counts limits.memory, so every pod has to say it; set spec.resources.limits.memory",
        ),
        ([quota({"limits.memory": "64Gi"})], [limits(default={"memory": "8Gi"})], None),
        (
            [],
            [limits(default={"memory": "512Mi"})],
            "limit range defaults gives containers a memory limit of 512Mi, and the server requests 4.4Gi; set "
            "spec.resources.limits.memory",
        ),
        (
            [],
            [limits(max={"memory": "4Gi"})],
            "limit range defaults gives containers a memory limit of 4Gi, and the server requests 4.4Gi; set "
            "spec.resources.limits.memory",
        ),
        (
            [],
            [limits(default={"memory": "8Gi"}, max={"memory": "6Gi"})],
            "limit range defaults allows at most 6Gi of memory in a container; the server needs 8.0Gi",
        ),
        (
            [],
            [limits(min={"memory": "8Gi"})],
            "limit range defaults wants at least 8Gi of memory in a container; the server requests 4.4Gi",
        ),
        ([], [{"name": "claims", "items": [{"type": "PersistentVolumeClaim", "max": {"storage": "1Gi"}}]}], None),
    ],
)  # fmt: skip
def test_what_a_server_would_be_refused_for(quotas, ranges, told):
    assert refusal(SERVER, {}, None, quotas, ranges) == told


@pytest.mark.parametrize(
    ("selector", "priority", "counted"),
    [
        ({"scopeName": "BestEffort", "operator": "Exists"}, None, False),
        ({"scopeName": "NotBestEffort", "operator": "Exists"}, None, True),
        ({"scopeName": "Terminating", "operator": "Exists"}, None, False),
        ({"scopeName": "NotTerminating", "operator": "Exists"}, None, True),
        ({"scopeName": "PriorityClass", "operator": "In", "values": ["high"]}, "high", True),
        ({"scopeName": "PriorityClass", "operator": "In", "values": ["high"]}, None, False),
        ({"scopeName": "PriorityClass", "operator": "NotIn", "values": ["high"]}, "high", False),
        ({"scopeName": "PriorityClass", "operator": "Exists"}, "high", True),
        ({"scopeName": "PriorityClass", "operator": "DoesNotExist"}, None, True),
        ({"scopeName": "CrossNamespacePodAffinity", "operator": "Exists"}, None, False),
    ],
)
def test_quotas_with_scopes_count_the_pods_they_are_for(selector, priority, counted):
    assert bool(refusal(SERVER, {}, priority, [quota(GPUS, GPUS, selector)], [])) == counted


def test_devices_of_claims_are_counted_by_their_class():
    asked = quota({"gpu.nvidia.com.deviceclass.resource.k8s.io/devices": "2"},
                  {"gpu.nvidia.com.deviceclass.resource.k8s.io/devices": "1"})  # fmt: skip
    assert refusal({"requests": {"memory": "1Gi"}}, {"gpu.nvidia.com": 1}, None, [asked], []) is None
    told = refusal({"requests": {"memory": "1Gi"}}, {"gpu.nvidia.com": 2}, None, [asked], [])
    assert told == "1 of 2 gpu.nvidia.com in use (quota team-gpus); the server needs 2"


# -- in a Model's plan ------------------------------------------------------------------------------------------------


def gpu_model(**spec) -> World:
    world = World(model(accelerator={"vendor": "Auto", "memoryPerGPUOverride": "10Gi"}, **spec))
    world.nodes = [gpu_node("only", 24_564)]
    return world


def test_it_is_said_before_the_download_and_undone_when_the_quota_has_room():
    world = gpu_model()
    world.quotas = (quota(GPUS, GPUS),)
    world.settle()
    world.settle().answer_source()
    assert world.condition("Placed")[:2] == ("False", "QuotaExceeded")
    assert world.condition("Placed")[2] == "4 of 4 nvidia.com/gpu in use (quota team-gpus)"
    assert (world.phase, world.download) == ("Blocked", None)
    assert world.plan().reserve == (), "what it may not have it does not keep from others"
    world.quotas = (quota(GPUS, {"requests.nvidia.com/gpu": "3"}),)
    world.settle()
    assert world.condition("Placed")[0] == "True"
    assert world.download is not None


def test_what_runs_is_not_asked_again():
    world = gpu_model().answer_resolve(GGUF).download_done().pod(ready=True, gpus={"nvidia.com/gpu": 1}).token()
    world.quotas = (quota(GPUS, GPUS),)
    world.settle()
    assert world.phase == "Ready"


def test_a_pod_that_is_counted_already_is_not_counted_twice():
    world = gpu_model().answer_resolve(GGUF).download_done()
    world.quotas = (quota(GPUS, GPUS),)
    world.pod(phase="Pending", node="", containers=[])
    assert world.condition("Placed")[0] == "True"


def test_models_on_the_cpu_are_asked_too():
    world = World(model())
    world.quotas = (quota({"requests.memory": "1Gi"}),)
    world.settle()
    world.settle().answer_source()
    assert world.condition("Placed")[:2] == ("False", "QuotaExceeded")


def test_asleep_nothing_is_needed():
    world = gpu_model(replicas=0)
    world.quotas = (quota(GPUS, GPUS),)
    world.answer_resolve(GGUF).download_done()
    assert world.phase == "ScaledToZero"


@pytest.mark.parametrize(
    ("quotas", "told"),
    [
        ([quota(GPUS, {"requests.nvidia.com/gpu": "1"})], (3, "")),
        (
            [quota(GPUS, {"requests.nvidia.com/gpu": "2"})],
            (2, "2 of 4 nvidia.com/gpu in use (quota team-gpus)"),
        ),
        ([quota({"requests.memory": "10Gi"})], (2, "0 of 10Gi requests.memory in use (quota team-gpus)")),
        ([quota({"pods": "9"}), quota({"pods": "1"}, name="small")], (1, "0 of 1 pods in use (quota small)")),
        ([quota({"requests.amd.com/gpu": "0"})], (3, "")),
    ],
)
def test_how_many_servers_are_admitted(quotas, told):
    assert admitted(3, SERVER, {}, None, quotas, []) == told


@pytest.mark.parametrize(("replicas", "admits"), [(2, ""), (3, "; the namespace admits 2 of 3 servers: 2 of 4 ")])
def test_the_servers_of_a_model_are_counted_together_before_the_download(replicas, admits):
    """Those that are admitted serve; that there will be no more is known before gigabytes are fetched."""
    world = World(model(replicas=replicas, accelerator={"vendor": "Auto", "memoryPerGPUOverride": "10Gi"}))
    world.nodes = [gpu_node("only", 24_564, 8)]
    world.quotas = (quota(GPUS, {"requests.nvidia.com/gpu": "2"}),)
    world.settle().answer_source()
    status, reason, message = world.condition("Placed")
    assert (status, reason) == ("True", "Placed")
    assert admits in message
    assert ("the namespace admits" in message) == bool(admits)
    assert world.condition("Downloaded")[1] == "Downloading"
