"""The smallest changes that would give a Model a place, each proven by deciding again."""

import pytest

from moorage.placement.decide import decide
from moorage.placement.remedies import (
    CACHE,
    CONTEXT,
    COUNT,
    QUANTIZATION,
    SEQUENCES,
    Remedy,
    Settings,
    Space,
    remedies,
    sleep,
)
from moorage.placement.request import Candidate, Request
from tests.unit.placement_clusters import cluster, node, pod

WEIGHTS = {"Q8_0": 16_000, "Q6_K": 12_000, "Q4_K_M": 9000}
CACHES = {"f16": 16, "q8_0": 8.5, "q4_0": 4.5}
ASKED: list[Settings] = []


def need(settings: Settings) -> tuple[Candidate, ...] | None:
    """A model of 16,000 MiB with 8192 tokens for each of 4 requests, whose f16 cache takes 0.25 MiB a token."""
    ASKED.append(settings)
    if settings.get(CACHE) == "broken":
        return None
    tokens = int(settings.get(CONTEXT, 8192)) * int(settings.get(SEQUENCES, 4))
    cache = tokens * 0.25 * CACHES[str(settings.get(CACHE, "f16"))] / 16
    total = WEIGHTS[str(settings.get(QUANTIZATION, "Q8_0"))] + int(cache) + 1000
    return (Candidate(1, total), Candidate(2, total // 2 + 600))


def wanted(**changes) -> Request:
    return Request("a/new", need({}) or (), **changes)


SPACE = Space(8192, max_sequences=4, cache_types=("q8_0", "q4_0"), quantizations=("Q6_K", "Q4_K_M"))


def changes(found: tuple[Remedy, ...]) -> list[str]:
    return [remedy.change for remedy in found]


def test_the_smallest_change_of_each_kind():
    """25,192 MiB are needed, 23,806 can be planned on 24Gi."""
    found = remedies(wanted(), cluster(node("g1")), [], need=need, space=SPACE)
    assert changes(found) == [
        "maxSequences: 3",
        "kvCacheType: q8_0",
        "contextLength: 6656",
        "source.huggingFace.quantization: Q6_K",
    ]
    assert found[2].effect == "needs 23.2Gi, fits on one 24Gi GPU (1 free on g1)"
    assert found[3].effect == (
        "needs 20.7Gi, fits on one 24Gi GPU (1 free on g1); the need is Bounded, by the size of the file"
    )


def test_each_is_the_smallest():
    """One step less of a change does not help."""
    inventory = cluster(node("g1"))
    for settings, helps in [({CONTEXT: 6656}, True), ({CONTEXT: 7168}, False), ({SEQUENCES: 3}, True)]:
        candidates = need(settings)
        assert candidates is not None
        assert decide(Request("a/new", candidates), inventory).placed is helps


def test_pairs_where_no_single_change_helps():
    found = remedies(wanted(), cluster(node("g1", 16)), [], need=need, space=Space(8192, cache_types=("q8_0", "q4_0")))
    assert found == ()
    space = Space(8192, max_sequences=4, cache_types=("q4_0",), quantizations=("Q6_K",))
    (pair,) = remedies(wanted(), cluster(node("g1", 16)), [], need=need, space=space)
    assert pair.change == "source.huggingFace.quantization: Q6_K, contextLength: 2560"


def test_a_fixed_count_that_could_be_another():
    request = wanted(count=1)
    found = remedies(request, cluster(node("g1", 16, 2)), [], need=need, space=Space(8192, counts=(2, 4)))
    assert changes(found) == [f"{COUNT}: 2"]
    assert found[0].effect.endswith("fits on two 16Gi GPUs of one node (2 free on g1)")


def test_another_models_sleep():
    pods = [pod("x", "g2", namespace="b", labels={"moorage.dev/model": "x"}), pod("stranger", "g3")]
    inventory = cluster(node("g1", 8), node("g2", 48), node("g3", 48), pods=pods)
    found = sleep(wanted(), inventory, [], [{"b/x": "b/X", "b/elsewhere": "b/elsewhere"}])
    assert found == Remedy("replicas: 0 of b/X", "needs 24.7Gi, fits on one 48Gi GPU (1 free on g2)")
    assert sleep(wanted(), inventory, [], [{"b/elsewhere": "b/elsewhere"}]) is None
    assert sleep(wanted(), cluster(node("g1", 8)), [], [{"b/x": "b/X"}]) is None


def test_a_later_group_sleeps_only_where_no_earlier_one_helps():
    both = [{"moorage.dev/model": name} for name in ("x", "y")]
    pods = [pod("x", "g1", 2, namespace="a", labels=both[0]), pod("y", "g1", 2, namespace="b", labels=both[1])]
    inventory = cluster(node("g1", 48, 4), pods=pods)
    groups = [{"a/x": "a/x"}, {"b/y": "b/y"}]
    for own, change in [(groups, "a/x"), (groups[::-1], "b/y"), ([{}, groups[1]], "b/y")]:
        found = sleep(wanted(), inventory, [], own)
        assert found is not None
        assert found.change == f"replicas: 0 of {change}"


def test_nothing_is_said_of_what_has_a_place_and_nothing_where_nothing_helps():
    assert remedies(wanted(), cluster(node("g1", 48)), [], need=need, space=SPACE) == ()
    assert remedies(wanted(), cluster(node("g1", 8)), [], need=need, space=SPACE) == ()


def test_a_change_with_which_the_engine_cannot_run_is_none():
    found = remedies(wanted(), cluster(node("g1")), [], need=need, space=Space(512, cache_types=("broken", "q4_0")))
    assert changes(found) == ["kvCacheType: q4_0"]


@pytest.mark.parametrize("length", [512, 513, 1000, 1024, 131_072, 1_000_000])
def test_the_search_is_short(length):
    ASKED.clear()

    def heavy(settings: Settings) -> tuple[Candidate, ...]:
        ASKED.append(settings)
        return (Candidate(1, 20_000 + int(settings.get(CONTEXT, length))),)

    found = remedies(Request("a/new", heavy({})), cluster(node("g1", 24)), [], need=heavy, space=Space(length))
    fits = 23_806 - 20_000
    assert found == () if length <= fits else changes(found) == [f"contextLength: {fits // 512 * 512}"]
    assert len(ASKED) < 20


def test_of_thirty_quantizations_the_largest_that_fits_is_found_in_a_few_tries():
    ASKED.clear()
    kinds = tuple(f"Q{size}" for size in range(30_000, 0, -1000))

    def smaller(settings: Settings) -> tuple[Candidate, ...]:
        ASKED.append(settings)
        return (Candidate(1, int(str(settings.get(QUANTIZATION, "Q31000"))[1:])),)

    found = remedies(
        Request("a/new", smaller({})), cluster(node("g1")), [], need=smaller, space=Space(512, quantizations=kinds)
    )
    assert changes(found) == [f"{QUANTIZATION}: Q23000"]
    assert len(ASKED) < 12
