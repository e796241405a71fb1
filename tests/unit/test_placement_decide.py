"""The decision on simulated clusters: which GPU, why, and in what words."""

import pytest

from moorage.api.conditions import Reason
from moorage.placement.decide import decide
from moorage.placement.inventory import NodePool, Reservation, Taint
from moorage.placement.request import Candidate, Rejected, Rejection, Request
from tests.unit.placement_clusters import GPU, amd, bare, cluster, device, matches, node, pod, slice_of

OWNER = "team-a/model"


def asks(mib: int, *more: tuple[int, int], **changes) -> Request:
    """A request for one GPU with `mib`, or as many as each of `more` says."""
    return Request(OWNER, (Candidate(1, mib), *(Candidate(g, m) for g, m in more)), **changes)


MIXED = (node("n8", 8), node("n16", 16, 2), node("n24", 24, 2), node("n48", 48, 4), node("n80", 80, 8))


@pytest.mark.parametrize(
    ("mib", "where"),
    [(5000, "n8"), (7598, "n8"), (7599, "n16"), (15_000, "n16"), (20_000, "n24"), (40_000, "n48"), (75_000, "n80")],
)
def test_smallest_sufficient_class(mib, where):
    decision = decide(asks(mib), cluster(*MIXED))
    assert (decision.reason, decision.nodes) == (Reason.PLACED, (where,))
    assert decision.gpu_class == f"{where[1:]}Gi"


def test_the_next_class_where_the_smallest_is_taken():
    decision = decide(asks(5000), cluster(*MIXED, pods=[pod("x", "n8"), pod("y", "n16", 2)]))
    assert decision.nodes == ("n24",)
    assert decision.message == "needs 4.9Gi, fits on one 24Gi GPU (2 free on n24)"


def test_large_nodes_stay_whole():
    nodes = [node("big", 24, 8), node("broken", 24, 8), node("small", 24, 2), node("tiny", 24, 1)]
    taken = [pod("x", "broken", 5)]
    assert decide(asks(10_000), cluster(*nodes, pods=taken)).nodes == ("tiny",)
    assert decide(Request(OWNER, (Candidate(2, 10_000),)), cluster(*nodes, pods=taken)).nodes == ("small",)
    assert decide(Request(OWNER, (Candidate(4, 10_000),)), cluster(*nodes, pods=taken)).nodes == ("big",)


def test_more_gpus_where_one_is_too_small():
    decision = decide(asks(31_900, (2, 16_500), (4, 9000)), cluster(node("gpu-1", 24, 1), node("gpu-2", 24, 4)))
    assert decision.candidate == Candidate(2, 16_500)
    assert decision.nodes == ("gpu-2",)
    assert decision.message == "needs 16.2Gi on each of two GPUs, fits on two 24Gi GPUs of one node (4 free on gpu-2)"


def test_a_fixed_count_is_the_only_candidate():
    nodes = cluster(node("gpu-1", 24, 4))
    assert decide(asks(10_000, (2, 6000), count=2), nodes).candidate == Candidate(2, 6000)
    refused = decide(asks(10_000, (2, 6000), count=8), nodes)
    assert refused.reason is Reason.NO_GPU_FITS
    assert "on 8 GPUs" in refused.message
    assert "on 1, 2 it can" in refused.message


def test_too_large_for_all_names_need_and_largest():
    decision = decide(asks(31_900), cluster(node("gpu-1", 24), node("gpu-2", 16)))
    assert (decision.reason, decision.message) == (Reason.NO_GPU_FITS, "needs 31.2Gi, largest GPU is 24Gi (gpu-1)")
    assert decision.rejected == (Rejected(Rejection.TOO_SMALL, 2, "gpu-1", 23_806),)


def test_what_cannot_be_planned_is_told_where_the_nominal_size_would_do():
    message = decide(asks(24_000), cluster(node("gpu-1", 24))).message
    assert message == "needs 23.5Gi, largest GPU is 24Gi, of which 23.2Gi can be planned (gpu-1)"


def test_all_taken_names_the_holders():
    nodes = [node("gpu-1", 12), node("gpu-2", 24, 2), node("gpu-0", 8)]
    taken = [
        pod("x-7d9f", "gpu-1", labels={"moorage.dev/model": "x"}),
        pod("notebook", "gpu-2", 2, namespace="ml"),
        pod("done", "gpu-2", 2, phase="Succeeded"),
    ]
    decision = decide(asks(10_400), cluster(*nodes, pods=taken))
    assert decision.reason is Reason.NO_GPU_FREE
    assert (
        decision.message
        == "needs 10.2Gi; all 3 GPUs of 12Gi or more are taken (gpu-1: team-a/x; gpu-2: pod ml/notebook)"
    )
    assert Rejected(Rejection.TAKEN, 2, "gpu-1", 0) in decision.rejected


def test_not_enough_on_one_node():
    request = Request(OWNER, (Candidate(2, 20_000),))
    nodes = [node("gpu-1", 24, 2), node("gpu-2", 24, 2)]
    decision = decide(request, cluster(*nodes, pods=[pod("x", "gpu-1"), pod("y", "gpu-2")]))
    assert decision.reason is Reason.NO_GPU_FREE
    assert "needs 19.6Gi on each of two GPUs of one node; of 4 GPUs of 24Gi or more 2 are free" in decision.message
    assert "the most free on one node is 1" in decision.message


@pytest.mark.parametrize(
    ("changes", "reason", "words"),
    [
        ({"unschedulable": True}, Rejection.CORDONED, "gpu-9 would do but is cordoned"),
        ({"ready": False}, Rejection.NOT_READY, "gpu-9 would do but is not ready"),
        (
            {"taints": [{"key": "team", "value": "b", "effect": "NoSchedule"}]},
            Rejection.TAINTED,
            "gpu-9 would do but has taint team, which spec.tolerations does not tolerate",
        ),
    ],
)
def test_a_node_that_must_not_be_used(changes, reason, words):
    decision = decide(asks(31_900), cluster(node("gpu-1", 24), node("gpu-9", 80, **changes)))
    assert decision.reason is Reason.NO_GPU_FITS
    assert decision.message == f"needs 31.2Gi, largest GPU is 24Gi (gpu-1); {words}"
    assert Rejected(reason, 1, "gpu-9", 80_231) in decision.rejected


def test_tolerated_taints_and_the_taint_of_gpu_nodes():
    gpu_taint = {"key": GPU, "value": "present", "effect": "NoSchedule"}
    team = {"key": "team", "value": "b", "effect": "NoExecute"}
    nodes = cluster(node("gpu-1", 24, taints=[gpu_taint, team, {"key": "soft", "effect": "PreferNoSchedule"}]))
    assert not decide(asks(1000), nodes).placed
    request = asks(1000, tolerations=[{"key": "team", "operator": "Equal", "value": "b"}])
    decision = decide(request, nodes)
    assert decision.placed
    assert matches(decision, nodes.nodes[0], request)


def test_the_spec_chooses_nodes():
    nodes = cluster(node("gpu-1", 24, labels={"zone": "a"}), node("gpu-2", 80, labels={"zone": "b"}))
    assert decide(asks(1000, node_selector={"zone": "b"}), nodes).nodes == ("gpu-2",)
    terms = [{"matchExpressions": [{"key": "zone", "operator": "NotIn", "values": ["a"]}]}]
    required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}
    assert decide(asks(1000, node_affinity=required), nodes).nodes == ("gpu-2",)
    assert decide(asks(1000, volume_nodes=frozenset({"gpu-2"})), nodes).nodes == ("gpu-2",)
    refused = decide(asks(1000, node_selector={"zone": "c"}), nodes)
    assert refused.reason is Reason.NO_GPU_FITS
    assert (
        "gpu-1 would do but is not among the nodes that spec.nodeSelector selects (and 1 more node)" in refused.message
    )


def test_no_gpu_anywhere():
    decision = decide(asks(1000), cluster(bare("cpu-1"), bare("cpu-2")))
    assert decision.reason is Reason.NO_GPU_FITS
    assert decision.message == "needs 1.0Gi; no node that it may use offers nvidia.com/gpu or amd.com/gpu"
    assert decision.rejected == (Rejected(Rejection.NO_GPU, 2, "cpu-1", 0),)
    assert not decide(asks(1000), cluster()).placed


def test_unknown_memory_is_never_guessed():
    nodes = cluster(node("gpu-1", 24, labels={"nvidia.com/gpu.memory": "24564MiB"}), node("gpu-2", 8))
    decision = decide(asks(10_000), nodes)
    assert decision.reason is Reason.UNKNOWN_GPU_MEMORY
    assert "needs 9.8Gi; the memory of 1 GPU is not known" in decision.message
    assert "gpu-1: label nvidia.com/gpu.memory is '24564MiB', not a number of MiB" in decision.message
    small = decide(asks(5000), nodes)
    assert small.nodes == ("gpu-2",), "a GPU that is known comes first"
    taken = decide(asks(5000), nodes.with_pods([pod("x", "gpu-2")]))
    assert taken.reason is Reason.NO_GPU_FREE


def test_an_override_takes_gpus_of_unknown_size_last_and_on_the_persons_word():
    nodes = cluster(node("gpu-1", 24, labels={"nvidia.com/gpu.memory": ""}), node("gpu-2", 24))
    request = asks(90_000, memory_override_mib=10_240)
    assert decide(request, nodes).nodes == ("gpu-2",)
    decision = decide(request, nodes.with_pods([pod("x", "gpu-2")]))
    assert decision.nodes == ("gpu-1",)
    assert decision.message.startswith("needs 10.0Gi (as spec.accelerator.memoryPerGPUOverride says), fits on one GPU")
    assert all(matches(decision, n) for n in nodes.nodes)


def test_reservations_are_taken_and_ones_own_are_not():
    nodes = cluster(node("gpu-1", 24))
    other = Reservation("team-b/other", "gpu-1", (GPU, 0), 1)
    refused = decide(asks(1000), nodes, [other])
    assert refused.reason is Reason.NO_GPU_FREE
    assert "the only GPU of 24Gi or more is taken (gpu-1: promised to team-b/other)" in refused.message
    assert decide(asks(1000), nodes, [Reservation(OWNER, "gpu-1", (GPU, 0), 1)]).placed


def test_a_decision_reserves_what_it_plans():
    decision = decide(asks(1000, replicas=3), cluster(node("gpu-1", 24, 2), node("gpu-2", 24, 2)))
    assert sorted(decision.nodes) == ["gpu-1", "gpu-1", "gpu-2"]
    assert set(decision.reservations(OWNER)) == {
        Reservation(OWNER, "gpu-1", (GPU, 0), 1),
        Reservation(OWNER, "gpu-2", (GPU, 0), 1),
    }
    assert len(decision.reservations(OWNER)) == 3


def test_replicas_spread_over_nodes():
    nodes = cluster(node("gpu-1", 24, 4), node("gpu-2", 24, 4), node("gpu-3", 80, 4))
    assert sorted(decide(asks(1000, replicas=2), nodes).nodes) == ["gpu-1", "gpu-2"]
    assert decide(asks(1000, placed=("gpu-1",)), nodes).nodes == ("gpu-2",)
    some = decide(asks(30_000, replicas=6), nodes)
    assert (len(some.nodes), some.missing, some.placed) == (4, 2, True)
    assert "4 of 6 replicas fit on one 80Gi GPU each" in some.message


def test_all_replicas_on_the_node_that_holds_the_volume():
    nodes = cluster(node("gpu-1", 24, 1), node("gpu-2", 24, 4))
    decision = decide(asks(1000, replicas=2, one_node=True), nodes)
    assert decision.nodes == ("gpu-2", "gpu-2")
    assert [n.name for n in nodes.nodes if matches(decision, n)] == ["gpu-2"]


def test_what_the_model_holds_itself_is_free_when_it_is_replaced():
    nodes = cluster(node("gpu-1", 24), pods=[pod("m-1", "gpu-1", labels={"moorage.dev/model": "model"})])
    assert not decide(asks(1000), nodes).placed
    assert decide(asks(1000, replacing=True), nodes).placed
    others = cluster(node("gpu-1", 24), pods=[pod("x", "gpu-1")])
    assert not decide(asks(1000, replacing=True), others).placed


def test_weights_attract():
    nodes = cluster(node("gpu-1", 24), node("gpu-2", 24), node("gpu-3", 48))
    assert decide(asks(1000, weights_on=frozenset({"gpu-2"})), nodes).nodes == ("gpu-2",)
    far = decide(asks(1000, weights_on=frozenset({"gpu-3"})), nodes)
    assert far.nodes == ("gpu-1",), "no node fetches the files again, so a larger class is never worth it"


def test_shared_gpus_are_nobodys():
    shared = {"nvidia.com/gpu.sharing-strategy": "time-slicing", "nvidia.com/gpu.replicas": "4"}
    nodes = cluster(node("gpu-1", 24, 8, labels=shared), node("gpu-2", 24))
    decision = decide(asks(1000), nodes)
    assert decision.nodes == ("gpu-2",)
    assert [n.name for n in nodes.nodes if matches(decision, n)] == ["gpu-2"]
    assert Rejected(Rejection.SHARED_GPU, 1, "gpu-1", 23_806) in decision.rejected


def test_a_mig_slice_serves_what_fits_into_it_and_never_two_of_them():
    labels = {
        "nvidia.com/mig.strategy": "single",
        "nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB-MIG-1g.10gb",
        "nvidia.com/gpu.memory": "9728",
    }
    single = cluster(node("mig-1", 80, 7, labels=labels))
    assert decide(asks(8000), single).placed
    assert decide(asks(12_000, (2, 7000)), single).reason is Reason.NO_GPU_FITS
    resource = "nvidia.com/mig-1g.10gb"
    mixed = node("mig-2", 80, labels={f"{resource}.memory": "9728"}) | {"gpus": {GPU: 1, resource: 3}}
    decision = decide(asks(8000), cluster(mixed))
    assert (decision.resource, decision.gpu_class) == (resource, "10Gi")
    assert decide(asks(20_000), cluster(mixed)).resource == GPU


def test_vendors():
    nodes = cluster(node("nv", 24), amd("mi", "16G"), amd("mi-big", "191G", 8))
    assert decide(asks(10_000), nodes).resource == "amd.com/gpu"
    assert decide(asks(10_000, vendor="Nvidia"), nodes).resource == GPU
    large = decide(asks(100_000, vendor="AMD"), nodes)
    assert (large.nodes, large.vendor, large.gpu_class) == (("mi-big",), "AMD", "191Gi")
    assert [n.name for n in nodes.nodes if matches(large, n)] == ["mi-big"]
    refused = decide(asks(100_000, vendor="Nvidia"), nodes)
    assert refused.message == "needs 97.7Gi, largest GPU is 24Gi (nv)"


def test_a_node_pool_at_zero_is_waited_for():
    labels = {"pool": "big"}
    pools = [NodePool("big", labels, 81_559, 2, maximum=2, taints=(Taint(GPU, "", "NoSchedule"),))]
    nodes = cluster(node("gpu-1", 24), node_pools=pools)
    assert decide(asks(1000), nodes).placed
    decision = decide(asks(50_000), nodes)
    assert decision.reason is Reason.WAITING_FOR_NODE
    assert (
        decision.message == "needs 48.9Gi, which no node has free; waiting for a node of pool big with 2 80Gi GPUs "
        "(2 of 2 nodes may still come)"
    )
    arrived = cluster(node("new", 80, 2, labels=labels), node_pools=pools)
    assert matches(decision, arrived.nodes[0])
    promises = [r for name in ("a/a", "a/b", "a/c") for r in decide(asks(50_000), nodes, []).reservations(name)]
    spread = [promises[0], *decide(asks(50_000), nodes, promises[:1]).reservations("a/b")]
    assert len({(r.node, r.owner) for r in spread}) == 2
    full: list[Reservation] = []
    for number in range(5):
        made = decide(asks(50_000), nodes, full)
        assert made.reason is (Reason.WAITING_FOR_NODE if number < 4 else Reason.NO_GPU_FITS)
        full += made.reservations(f"a/{number}")


def test_devices_of_dra_drivers_are_claimed_by_size():
    nodes = cluster(
        bare("dra-1"),
        bare("dra-2"),
        resource_slices=[
            slice_of("dra-1", [device("gpu-0", 16)]),
            slice_of("dra-2", [device("gpu-0", 24), device("gpu-1", 24)]),
        ],
        claims=[{"holder": "team-a/x", "devices": [{"driver": "gpu.nvidia.com", "pool": "dra-1", "device": "gpu-0"}]}],
    )
    decision = decide(asks(10_000), nodes)
    assert (decision.nodes, decision.dra, decision.resource) == (("dra-2",), True, "gpu.nvidia.com")
    assert decision.claim_template is not None
    request = decision.claim_template["spec"]["devices"]["requests"][0]
    names = [a["name"] for a in request["firstAvailable"]]
    assert (names[0], names[7], len(names)) == ("c16", "c24", 8)
    assert request["firstAvailable"][0]["selectors"][0]["cel"]["expression"] == (
        "device.capacity['gpu.nvidia.com'].memory.compareTo(quantity('10619Mi')) >= 0 && "
        "device.capacity['gpu.nvidia.com'].memory.compareTo(quantity('16380Mi')) <= 0"
    )
    two = decide(Request(OWNER, (Candidate(2, 20_000),)), nodes)
    assert two.nodes == ("dra-2",)
    assert two.claim_template is not None
    devices = two.claim_template["spec"]["devices"]
    assert devices["requests"][0]["exactly"]["count"] == 2
    assert devices["constraints"] == [{"requests": ["gpu"], "matchAttribute": "gpu.nvidia.com/productName"}]
    taken = decide(Request(OWNER, (Candidate(2, 20_000),)), nodes, two.reservations("b/b"))
    assert taken.reason is Reason.NO_GPU_FREE


def test_never_both_books_of_one_node():
    both = node("both", 24)
    nodes = cluster(
        both,
        bare("dra"),
        resource_slices=[slice_of("both", [device("gpu-0", 24)]), slice_of("dra", [device("gpu-0", 80)])],
        claims=[{"holder": "team-a/x", "devices": [{"driver": "gpu.nvidia.com", "pool": "both", "device": "gpu-0"}]}],
    )
    decision = decide(asks(10_000), nodes)
    assert (decision.nodes, decision.dra) == (("dra",), True)
    assert [n.name for n in nodes.nodes if matches(decision, n)] == ["dra"]
    free = decide(asks(10_000), nodes.with_pods([]))
    assert (free.nodes, free.dra, free.resource) == (("both",), False, GPU)


def test_more_held_than_offered_is_none_free():
    """A GPU that turned unhealthy leaves the node's allocatable while its pod stays."""
    nodes = cluster(node("gpu-1", 24, 1), pods=[pod("x", "gpu-1"), pod("y", "gpu-1")])
    assert decide(asks(1000), nodes).message.startswith("needs 1.0Gi; the only GPU of 24Gi or more is taken")


def test_a_way_that_places_all_replicas_comes_before_one_that_places_some():
    nodes = cluster(node("big", 80, 1), node("pair-1", 24, 2), node("pair-2", 24, 2))
    decision = decide(asks(40_000, (2, 21_000), replicas=2), nodes)
    assert (decision.candidate, decision.nodes) == (Candidate(2, 21_000), ("pair-1", "pair-2"))
    assert decide(asks(40_000, (2, 21_000)), nodes).nodes == ("big",)


def test_replicas_spread_over_nodes_whose_devices_differ():
    slices = [slice_of("dra-1", [device("gpu-0", 24), device("gpu-1", 48)]), slice_of("dra-2", [device("gpu-0", 48)])]
    nodes = cluster(bare("dra-1"), bare("dra-2"), resource_slices=slices)
    assert decide(asks(30_000, replicas=2), nodes).nodes == ("dra-1", "dra-2")
    assert decide(asks(1000, replicas=3), nodes).nodes == ("dra-1", "dra-2", "dra-1")


def test_a_need_that_is_not_known_yet_is_not_told_as_none():
    """Of a pre-filled claim the header is read later."""
    message = decide(asks(0), cluster(node("gpu-1"))).message
    assert message == "needs a GPU, fits on one 24Gi GPU (1 free on gpu-1)"
