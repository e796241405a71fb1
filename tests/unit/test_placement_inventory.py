"""What nodes say about their GPUs, and who holds them."""

import pytest

from moorage.placement import memory, vendors
from moorage.placement.inventory import NO_DEVICE_PLUGIN, SHARED_GPU, UNKNOWN_MEMORY, NodePool, build
from tests.unit.placement_clusters import GPU, amd, bare, cluster, device, node, pod, slice_of


def pool_of(*nodes, **more):
    """The only pool of the only node."""
    (state,) = cluster(*nodes, **more).nodes
    (pool,) = state.pools
    return pool


@pytest.mark.parametrize("need", [0, 1, 7598, 7599, 10_000, 23_806, 23_807, 80_231, 143_000])
def test_least_total_is_the_inverse_of_usable(need):
    least = memory.least_total_mib(need)
    assert memory.usable_mib(least) >= need
    assert memory.usable_mib(least - 1) < max(need, 1)


def test_what_is_planned_is_less_than_what_the_label_says():
    pool = pool_of(node("h100", 80, 8))
    assert (pool.total_mib, pool.usable_mib, pool.count, pool.size_class) == (81_559, 80_231, 8, 80)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("24564MiB", "is '24564MiB', not a number of MiB"),
        ("0x10", "is '0x10', not a number"),
        ("", "is '', not a number"),
        ("24564.0", "is '24564.0', not a number"),
        ("1e5", "not a number"),
        ("٢٤٥٦٤", "not a number"),
        (" 24564", "not a number"),
        ("-24564", "is -24564, which is no size of a GPU"),
        ("0", "is 0, which is no size"),
        ("99999999", "is 99999999, which is no size"),
        ("9" * 40, "not a number of MiB"),
    ],
)
def test_nonsense_labels_are_unknown_with_a_reason(text, words):
    pool = pool_of(node("n", labels={"nvidia.com/gpu.memory": text}))
    assert (pool.problem, pool.total_mib, pool.usable_mib) == (UNKNOWN_MEMORY, 0, 0)
    assert pool.detail.startswith("label nvidia.com/gpu.memory ")
    assert words in pool.detail


def test_no_label_at_all():
    unlabelled = node("n") | {"labels": {"nvidia.com/gpu.product": "Tesla-X"}}
    pool = pool_of(unlabelled)
    assert pool.problem == UNKNOWN_MEMORY
    assert pool.detail == "no label, annotation or product table says how much memory its GPUs Tesla-X have"
    known = pool_of(unlabelled, products={"Tesla-X": 16_000})
    assert (known.total_mib, known.told_by) == (16_000, ("nvidia.com/gpu.product", "Tesla-X"))
    assert pool_of(unlabelled, products={"Tesla-X": "16Gi"}).total_mib == 16_384
    assert "the size of product Tesla-X is 'sixteen'" in pool_of(unlabelled, products={"Tesla-X": "sixteen"}).detail


@pytest.mark.parametrize(
    ("text", "mib", "words"),
    [
        ("40Gi", 40_960, ""),
        ("24564Mi", 24_564, ""),
        ("24564", 0, "which is no size of a GPU"),
        ("", 0, "not a quantity such as 24Gi"),
        ("24 GB", 0, "is '24 GB', not a quantity"),
        ("-5Gi", 0, "not a quantity"),
        ("9" * 400, 0, "annotation moorage.dev/gpu-memory is"),
    ],
)
def test_a_persons_annotation_wins_over_the_label(text, mib, words):
    pool = pool_of(node("n", annotations={memory.ANNOTATION: text}))
    assert (pool.total_mib, pool.label_mib) == (mib, 24_564)
    assert words in pool.detail
    assert bool(pool.problem) == (mib == 0)


def test_the_agents_report_wins_and_the_smallest_gpu_counts():
    pool = pool_of(node("n", 24, 2, annotations={memory.ANNOTATION: "40Gi"}), reports={"n": [24_100, 11_500]})
    assert (pool.total_mib, pool.usable_mib, pool.label_mib) == (11_500, 11_500 * 990 // 1000 - 512, 24_564)


@pytest.mark.parametrize(
    ("labels", "mib"),
    [
        ({"amd.com/gpu.vram": "64G"}, 65_536),
        ({"amd.com/gpu.vram": "191G", "beta.amd.com/gpu.vram.191G": "8"}, 195_584),
        ({"beta.amd.com/gpu.vram.16G": "1"}, 16_384),
        ({"beta.amd.com/gpu.vram": "16G"}, 16_384),
        ({"beta.amd.com/gpu.vram.16G": "1", "beta.amd.com/gpu.vram.64G": "1"}, 16_384),
        ({"amd.com/gpu.vram": "65536M"}, 65_536),
        ({"amd.com/gpu.vram": "64"}, 0),
        ({"amd.com/gpu.vram": "64 G"}, 0),
        ({"amd.com/gpu.vram": "G"}, 0),
        ({"amd.com/gpu.vram": "999999999T"}, 0),
        ({}, 0),
    ],
)
def test_amd_labels(labels, mib):
    pool = pool_of({"name": "n", "ready": True, "labels": labels, "gpus": {"amd.com/gpu": 1}})
    assert (pool.vendor, pool.total_mib) == ("AMD", mib)
    assert pool.problem == ("" if mib else UNKNOWN_MEMORY)
    assert pool.usable_mib == (memory.usable_mib(mib - 512) if mib else 0), "the label is rounded to whole GiB"


@pytest.mark.parametrize(
    "labels",
    [
        {"nvidia.com/gpu.sharing-strategy": "time-slicing", "nvidia.com/gpu.replicas": "4"},
        {"nvidia.com/gpu.sharing-strategy": "mps"},
        {"nvidia.com/gpu.replicas": "2"},
        {"nvidia.com/gpu.product": "NVIDIA-L4-SHARED"},
    ],
)
def test_shared_gpus_cannot_be_used(labels):
    pool = pool_of(node("n", labels=labels))
    assert pool.problem == SHARED_GPU
    assert "so no Model has one's memory to itself" in pool.detail


def test_replicas_zero_means_that_sharing_is_off():
    assert pool_of(node("n", labels={"nvidia.com/gpu.replicas": "0"})).problem == ""


def test_a_device_plugin_that_is_down_or_missing():
    down = pool_of(node("n", 24, 0))
    assert (down.problem, down.count) == (NO_DEVICE_PLUGIN, 0)
    assert "offers no nvidia.com/gpu" in down.detail
    missing = pool_of(node("n") | {"gpus": {}})
    assert missing.problem == NO_DEVICE_PLUGIN
    assert "nothing offers nvidia.com/gpu: the device plugin does not run there" in missing.detail


def test_counts_may_be_texts_and_nonsense_counts_are_none():
    assert pool_of(node("n") | {"gpus": {GPU: "4"}}).count == 4
    assert pool_of(node("n") | {"gpus": {GPU: "four"}}).count == 0
    assert pool_of(node("n") | {"gpus": {GPU: "-1"}}).count == 0


def test_who_holds_what():
    pods = [
        pod("m-5d-x", "n", 2, labels={"moorage.dev/model": "m"}),
        pod("m-5d-y", "n", 1, labels={"moorage.dev/model": "m"}),
        pod("bound", "n", 1, phase="Pending", namespace="b"),
        pod("gone", "n", 4, phase="Failed"),
        pod("unbound", "", 4, phase="Pending"),
        pod("elsewhere", "other", 4),
        pod("intel", "n", 4, resource="gpu.intel.com/i915"),
    ]
    inventory = cluster(node("n", 24, 8), pods=pods)
    (pool,) = inventory.nodes[0].pools
    assert inventory.used(pool) == 4
    assert inventory.holders(pool) == {"pod b/bound": 1, "team-a/m": 3}
    assert inventory.without(["team-a/m"]).used(pool) == 1


def test_the_inventory_stays_as_it_is_when_pods_come():
    first = cluster(node("a"), node("b"))
    second = first.with_pods([pod("x", "a")])
    assert [first.used(n.pools[0]) for n in first.nodes] == [0, 0]
    assert [second.used(n.pools[0]) for n in second.nodes] == [1, 0]
    assert second.nodes is first.nodes
    assert second == build([node("b"), node("a")], [pod("x", "a")])


def test_devices_of_dra_drivers():
    other = {"name": "mig-0", "attributes": {"type": {"string": "mig"}}, "capacity": {"memory": {"value": "10Gi"}}}
    qualified = {
        "name": "gpu-2",
        "attributes": {"gpu.nvidia.com/type": {"string": "gpu"}},
        "capacity": {"gpu.nvidia.com/memory": {"value": "24564Mi"}},
    }
    tainted = device("gpu-3", 24) | {"taints": [{"key": "x", "effect": "NoExecute"}]}
    unsized = {"name": "gpu-4", "attributes": {"type": {"string": "gpu"}}, "capacity": {"memory": {"value": "lots"}}}
    slices = [
        slice_of("n", [device("gpu-9", 80)], generation=1),
        slice_of("n", [device("gpu-0", 24), device("gpu-1", 16), other, qualified, tainted, unsized], generation=2),
        {"node": None, "driver": "gpu.nvidia.com", "pool": "net", "devices": [device("x", 24)]},
        {"node": "n", "driver": "nic.example.com", "pool": "n", "devices": [device("x", 24)]},
    ]
    claims = [{"holder": "a/m", "devices": [{"driver": "gpu.nvidia.com", "pool": "n", "device": "gpu-2"}]}]
    inventory = cluster(bare("n"), resource_slices=slices, claims=claims)
    (state,) = inventory.nodes
    assert [(p.total_mib, p.count, inventory.used(p), p.product) for p in state.pools] == [
        (0, 1, 0, ""),
        (16_380, 1, 0, "NVIDIA L4"),
        (24_564, 2, 1, ""),
    ]
    assert state.pools[0].problem == UNKNOWN_MEMORY
    assert state.pools[2].book == ("gpu.nvidia.com", 24_564)


def test_where_both_books_are_there_claims_count_in_the_device_plugins():
    claims = [
        {"namespace": "a", "name": "c", "devices": [{"driver": "gpu.nvidia.com", "pool": "n", "device": "gpu-0"}]}
    ]
    slices = [slice_of("n", [device("gpu-0", 24), device("gpu-1", 24)])]
    inventory = cluster(node("n", 24, 2), resource_slices=slices, claims=claims, pods=[pod("x", "n")])
    (state,) = inventory.nodes
    assert state.both_books
    assert [(p.resource, p.count, inventory.used(p)) for p in state.pools] == [(GPU, 2, 2)]


def test_room_of_node_pools():
    pool = NodePool("p", {"pool": "p"}, 24_564, 1, maximum=3)
    inventory = cluster(node("a", labels={"pool": "p"}), node("b"), amd("c", "16G"), node_pools=[pool])
    assert inventory.room == {"p": 2}


@pytest.mark.parametrize(
    ("state", "room"),
    [
        ({}, 1),
        ({"ready": False}, 2),
        ({"ready": False, "taints": [("node.kubernetes.io/not-ready", "NoSchedule")]}, 2),
        ({"taints": [("startup-taint.cluster-autoscaler.kubernetes.io/gpu-driver", "NoSchedule")]}, 2),
        ({"taints": [("karpenter.sh/unregistered", "NoExecute")]}, 2),
        ({"gpus": {GPU: 0}}, 2),
        ({"ready": False, "taints": [("node.kubernetes.io/unreachable", "NoSchedule")]}, 1),
        ({"unschedulable": True}, 1),
        ({"taints": [("example.com/team", "NoSchedule")]}, 1),
    ],
)  # fmt: skip
def test_a_node_that_is_still_starting_is_on_its_way(state, room):
    taints = [{"key": key, "value": "", "effect": effect} for key, effect in state.pop("taints", ())]
    joined = {**node("a", labels={"pool": "p"}), "taints": taints, **state}
    assert cluster(joined, node_pools=[NodePool("p", {"pool": "p"}, 24_564, 1, maximum=2)]).room == {"p": room}


def test_which_resources_are_gpus():
    assert [r for r in ("nvidia.com/gpu", "nvidia.com/mig-1g.10gb", "amd.com/gpu", "cpu", "nvidia.com/gpu.shared")
            if vendors.is_gpu(r)] == ["nvidia.com/gpu", "nvidia.com/mig-1g.10gb", "amd.com/gpu"]  # fmt: skip
