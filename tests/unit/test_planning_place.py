"""Placed: which GPUs a Model gets, as status and manifests say it."""

from dataclasses import replace
from typing import Any

from moorage.placement.inventory import NodePool
from moorage.planning.types import Answer
from moorage.sizing.facts import header_facts
from moorage.sizing.gguf import read_gguf_header
from tests.support.world import GGUF, World, gpu_node, model
from tests.unit.model_shapes import MODELS as SHAPES


def big_header() -> str:
    """What the resolver keeps of the header of Llama 3.1 8B, Q4_K_M."""
    return str(header_facts(read_gguf_header(SHAPES["llama31-8b Q4_K_M"].header))["header"])


FLEET = [gpu_node("small", 8188), gpu_node("middle", 24564, 2), gpu_node("large", 81559, 8)]


def placed(need: str, *, nodes: list | None = None, **spec) -> World:
    """A Model that needs `need` on each GPU, resolved but not downloaded."""
    accelerator = {"vendor": "Auto", "memoryPerGPUOverride": need, **spec.pop("accelerator", {})}
    world = World(model(accelerator=accelerator, **spec))
    world.nodes = FLEET if nodes is None else nodes
    world.settle()
    world.resolved = Answer(world.asked[0].inputs, GGUF)
    return world.settle()


def test_the_smallest_class_that_fits_is_chosen_before_the_download():
    world = placed("10Gi")
    assert world.condition("Placed")[:2] == ("True", "Placed")
    placement = world.model["status"]["placement"]
    assert (placement["gpuClass"], placement["count"], placement["vendor"]) == ("24Gi", 1, "Nvidia")
    assert "24Gi" in placement["reason"]
    assert {r["reason"] for r in placement["rejected"]} >= {"TooSmall"}
    assert world.phase == "Downloading"


def test_what_fits_nowhere_is_blocked_with_both_numbers():
    world = placed("100Gi")
    status, reason, message = world.condition("Placed")
    assert (status, reason) == ("False", "NoGPUFits")
    assert "100" in message
    assert "large" in message
    assert world.phase == "Blocked"
    assert world.download is None


def test_gpus_promised_to_others_are_not_promised_again():
    first = placed("10Gi", nodes=[gpu_node("only", 24564)])
    world = World(model("second", accelerator={"vendor": "Auto", "memoryPerGPUOverride": "10Gi"}))
    world.nodes = [gpu_node("only", 24564)]
    world.reservations = first.plan().reserve
    assert world.reservations
    world.settle()
    world.resolved = Answer(world.asked[0].inputs, GGUF)
    world.settle()
    assert world.condition("Placed")[:2] == ("False", "NoGPUFree")
    assert world.phase == "Placing"
    world.reservations = ()
    world.settle()
    assert world.condition("Placed")[0] == "True"


def test_the_pod_is_held_to_gpus_that_suffice():
    world = placed("10Gi").answer_resolve(GGUF).download_done()
    spec = world.manifests[("Deployment", "tiny")]["spec"]["template"]["spec"]
    assert "nodeName" not in spec
    required = spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    expressions = [e for term in required["nodeSelectorTerms"] for e in term["matchExpressions"]]
    assert any(e["key"] == "nvidia.com/gpu.memory" for e in expressions)
    assert spec["containers"][0]["resources"]["limits"] == {"nvidia.com/gpu": "1"}


def test_a_bound_pod_keeps_its_place_whatever_the_cluster_becomes():
    world = placed("10Gi").answer_resolve(GGUF).download_done().pod(ready=True).token()
    before = world.children[("Deployment", "tiny")]["inputsHash"]
    world.nodes = [gpu_node("huge", 180000, 8)]
    world.settle()
    assert world.condition("Placed")[0] == "True"
    assert world.children[("Deployment", "tiny")]["inputsHash"] == before
    assert world.phase == "Ready"


def test_a_sleeping_model_needs_no_free_gpu_to_be_ready():
    busy = gpu_node("only", 24564)
    world = placed("10Gi", nodes=[busy], replicas=0)
    world.pods["stranger"] = {
        "name": "s", "namespace": "x", "uid": "s", "node": "only", "phase": "Running",
        "gpus": {"nvidia.com/gpu": 1}, "labels": {},
    }  # fmt: skip
    world.answer_resolve(GGUF).download_done()
    assert world.phase == "ScaledToZero"
    assert world.condition("Ready")[:2] == ("True", "ScaledToZero")


def test_several_gpus_of_one_node_share_the_layers_equally():
    world = placed("20Gi", accelerator={"count": 2}).answer_resolve(GGUF).download_done()
    container = world.manifests[("Deployment", "tiny")]["spec"]["template"]["spec"]["containers"][0]
    args = container["args"]
    assert args[args.index("--tensor-split") + 1] == "1,1"
    assert container["resources"]["limits"] == {"nvidia.com/gpu": "2"}


def test_a_gpu_without_an_image_for_it_is_not_served_on_the_cpu():
    world = placed("10Gi")
    world.defaults = replace(world.defaults, llamacpp_nvidia_image="")
    world.answer_resolve(GGUF).download_done()
    assert world.condition("Serving")[:2] == ("False", "ImageRequired")
    assert ("Deployment", "tiny") not in world.children


def test_a_model_is_never_in_its_own_way():
    world = placed("10Gi", nodes=[gpu_node("only", 24564)]).answer_resolve(GGUF).download_done()
    world.pod(ready=True, node="only", gpus={"nvidia.com/gpu": 1}, namespace="ns").token()
    before = world.children[("Deployment", "tiny")]["inputsHash"]
    world.change(accelerator={"vendor": "Auto", "memoryPerGPUOverride": "12Gi"}).settle()
    assert world.condition("Placed")[0] == "True", "a Recreate rollout frees the GPU that it needs"
    assert world.children[("Deployment", "tiny")]["inputsHash"] != before


def test_what_would_help_is_said_and_proven():
    header = big_header()
    world = World(model(accelerator={"vendor": "Nvidia"}, contextLength=32768))
    world.nodes = [gpu_node("only", 8188)]
    world.settle()
    world.resolved = Answer(world.asked[0].inputs, {**GGUF, "facts": {**GGUF["facts"], "header": header}})
    world.settle()
    assert world.condition("Placed")[:2] == ("False", "NoGPUFits")
    remedies = world.model["status"]["remedies"]
    changes = {r["change"].partition(":")[0]: r["change"] for r in remedies}
    assert "contextLength" in changes
    smaller = int(changes["contextLength"].partition(": ")[2])
    world.change(contextLength=smaller).settle()
    assert world.condition("Placed")[0] == "True", "the remedy is proven"
    assert "remedies" not in world.model["status"]


def refused_on(mib: int, quantizations: list[dict[str, Any]], **spec: Any) -> World:
    """Llama 3.1 8B at Q4_K_M on a node whose GPU has `mib`; its repository also has `quantizations`."""
    facts = {**GGUF["facts"], "header": big_header()}
    known = [{"name": "Q4_K_M", "sizeBytes": 4_920_734_272}, *quantizations]
    world = World(model(accelerator={"vendor": "Nvidia"}, contextLength=512, maxSequences=1, **spec))
    world.nodes = [gpu_node("only", mib)]
    world.settle()
    world.resolved = Answer(world.asked[0].inputs, {**GGUF, "facts": facts, "quantizations": known})
    return world.settle()


SMALLER = [
    {"name": "Q3_K_M", "sizeBytes": 4_018_917_824},
    {"name": "Q2_K", "sizeBytes": 3_179_131_328},
    {"name": "IQ1_S", "sizeBytes": 2_019_629_056},
]


def test_a_smaller_quantization_of_the_repository_is_offered_the_largest_that_fits():
    world = refused_on(5120, SMALLER)
    assert world.condition("Placed")[:2] == ("False", "NoGPUFits")
    kept = world.model["status"]["source"]["quantizations"]
    assert [q["name"] for q in kept] == ["Q4_K_M", "Q3_K_M", "Q2_K", "IQ1_S"]
    found = {r["change"]: r["effect"] for r in world.model["status"]["remedies"]}
    assert list(found) == ["source.huggingFace.quantization: Q2_K"]
    effect = found["source.huggingFace.quantization: Q2_K"]
    assert effect.startswith("needs 4.")
    assert effect.endswith("fits on one 5Gi GPU (1 free on only); the need is Bounded, by the size of the file")


def test_no_quantization_is_offered_where_none_fits_or_none_is_known():
    assert "remedies" not in refused_on(2048, SMALLER).model["status"]
    assert "remedies" not in refused_on(5120, []).model["status"]


def test_only_a_source_that_names_a_quantization_can_have_another():
    world = refused_on(5120, SMALLER)
    source = {"http": {"url": "https://example.com/a.gguf", "sha256": "a" * 64}}
    world.change(source=source).settle()
    world.resolved = Answer(world.asked[0].inputs, {**GGUF, "facts": {**GGUF["facts"], "header": big_header()}})
    world.settle()
    assert "quantizations" not in world.model["status"]["source"]
    assert "remedies" not in world.model["status"]


def test_when_no_node_of_a_pool_came_what_else_would_help_is_said():
    pool = NodePool("big", {"pool": "big"}, 24564, 1, 1)
    facts = {**GGUF["facts"], "header": big_header()}
    world = World(model(accelerator={"vendor": "Nvidia"}, contextLength=32768))
    world.nodes, world.node_pools = [gpu_node("only", 12282)], (pool,)
    world.settle()
    world.resolved = Answer(world.asked[0].inputs, {**GGUF, "facts": facts})
    world.settle()
    assert "remedies" not in world.model["status"], "a node may still come"
    world.model["status"]["placement"]["latePools"] = ["big"]
    world.settle()
    assert world.condition("Placed")[1] == "NoNodeCame"
    assert [r["change"].partition(":")[0] for r in world.model["status"]["remedies"]] == [
        "maxSequences",
        "kvCacheType",
        "contextLength",
    ]


# -- files whose header tells nothing, and figures of a person --------------------------------------------------------


def answered(files: dict, *, size: int, accelerator: dict | None = None) -> World:
    """A Model on GPUs, of `size` bytes of files of which `files` is known."""
    world = World(model(accelerator={"vendor": "Auto", **(accelerator or {})}))
    world.nodes = [*FLEET, gpu_node("eight", 24564, 8)]
    return world.answer_resolve({**GGUF, "files": [{**GGUF["files"][0], "sizeBytes": size}], "facts": files})


def test_files_without_a_known_header_count_by_their_size():
    """Once 0 MiB: 172 GB of weights went to one GPU of 8 GiB."""
    world = answered(GGUF["facts"], size=20 << 30)
    memory, placement = world.model["status"]["memory"], world.model["status"]["placement"]
    assert memory["perGpuMiB"] == [20480 + 4096 + 2048]
    assert (memory["confidence"], memory["weightsMiB"]) == ("Guess", 20480)
    assert memory["reasons"] == ["the header of the files is not known; counted by the files"]
    assert (placement["gpuClass"], placement["count"]) == ("80Gi", 1)
    assert answered(GGUF["facts"], size=172 << 30).model["status"]["placement"]["count"] == 4


UNSIZED = {"format": "Safetensors", "mainFile": "config.json", "unsized": "config.json lacks hidden_size"}


def test_a_model_in_unknown_words_is_a_guess_that_a_person_may_override():
    world = answered(UNSIZED, size=20 << 30)
    assert world.model["status"]["memory"]["reasons"] == ["config.json lacks hidden_size; counted by the files"]
    assert world.model["status"]["memory"]["confidence"] == "Guess"
    assert world.model["status"]["source"]["unsized"] == "config.json lacks hidden_size"
    assert world.model["status"]["placement"]["gpuClass"] == "80Gi"
    told = answered(UNSIZED, size=20 << 30, accelerator={"memoryPerGPUOverride": "22Gi"})
    assert told.condition("Placed")[:2] == ("True", "Placed")
    assert told.model["status"]["placement"]["gpuClass"] == "24Gi"


def test_an_override_below_the_weights_is_taken_but_not_in_silence():
    facts = {**GGUF["facts"], "header": big_header()}
    low = answered(facts, size=5 << 30, accelerator={"memoryPerGPUOverride": "1Gi"})
    status, reason, message = low.condition("Placed")
    assert (status, reason) == ("True", "Placed")
    assert message.endswith(
        "; accelerator.memoryPerGPUOverride 1Gi is less than the weights alone, 4.3Gi on each GPU: "
        "the server will run out of memory"
    )
    assert "less than" not in answered(facts, size=5 << 30, accelerator={"memoryPerGPUOverride": "5Gi"}).message
    nothing = answered(facts, size=5 << 30, accelerator={"memoryPerGPUOverride": "0"})
    assert "Override 0 is less than" in nothing.condition("Placed")[2]
