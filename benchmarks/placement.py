"""Placement: the time of one decision in a large cluster, and how many of N Models fit, beside spreading.

Pure computation, no cluster. The node shapes and the share of multi-GPU Models are those of a published trace (Alibaba
cluster-trace-gpu-v2023, "Beware of Fragmentation", USENIX ATC 2023: its node list and its pod lists default,
multigpu20 and multigpu50); what the Models need is what llama.cpp takes for well-known ones.
Writes benchmarks/results/placement.md.
"""

import argparse
import os
import random
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moorage.placement.decide import decide
from moorage.placement.inventory import Inventory, build
from moorage.placement.memory import usable_mib
from moorage.placement.preempt import Resident, preempt
from moorage.placement.request import Candidate, Request

RESULTS = Path(__file__).parent / "results/placement.md"
GPU = "nvidia.com/gpu"
RUNS = 7
LOADS = (60, 80, 100)
Plain = dict[str, Any]

NODES = (
    # how many of the trace's 1,213 GPU nodes, GPUs on each, MiB of one GPU, CPUs, GiB of host memory
    (549, 8, 24_564, 96, 384),  # G2, undisclosed: taken for a 24 GiB card
    (387, 2, 15_360, 32, 128),  # T4
    (131, 2, 16_276, 64, 256),  # P100
    (39, 8, 81_559, 128, 768),  # G3, undisclosed: taken for an 80 GiB card
    (28, 4, 16_276, 64, 256),  # V100 of 16 GiB
    (21, 8, 32_510, 96, 384),  # V100 of 32 GiB
    (19, 1, 16_276, 32, 128),
    (17, 4, 15_360, 64, 256),
    (9, 4, 32_510, 64, 256),
    (8, 8, 16_276, 96, 384),
)
TRACES = {  # GPUs of a task -> tasks, of those that ask for GPUs
    "default (1 % of the Models on several GPUs)": {1: 6989, 2: 16, 4: 15, 8: 44},
    "multigpu20 (3 %)": {1: 6989, 2: 54, 4: 52, 8: 141},
    "multigpu50 (12 %)": {1: 6989, 2: 222, 4: 206, 8: 556},
}
SINGLE = (
    # weights, KV cache of 4 x 8,192 tokens, compute, in MiB, as llama.cpp's own dry run says
    ("Llama 3.2 1B Q8_0", 1252, 1024, 254),
    ("Llama 3.2 3B Q4_K_M", 1918, 3584, 256),
    ("Llama 3.1 8B Q4_K_M", 4403, 4096, 258),
    ("Llama 3.1 8B Q8_0", 7605, 4096, 258),
    ("Qwen3 4B Q4_K_M", 2375, 4608, 301),
    ("Qwen3 8B Q4_K_M", 4455, 4608, 304),
    ("Gemma 3 12B Q4_K_M", 6956, 2528, 519),
    ("Gemma 3 27B Q4_K_M", 15_773, 3184, 522),
    ("Mistral Small 24B Q4_K_M", 13_302, 5120, 266),
    ("Phi 4 14B Q4_K_M", 8354, 6400, 216),
    ("gpt-oss 20B MXFP4", 10_949, 786, 404),
    ("Qwen3 30B A3B Q4_K_M", 17_524, 3072, 300),
    ("Mixtral 8x7B Q4_K_M", 26_931, 4096, 224),
    ("Llama 3.3 70B Q4_K_M", 39_939, 10_240, 266),
    ("gpt-oss 120B MXFP4", 59_851, 1179, 404),
)
SEVERAL = {2: 23_100, 4: 22_700, 8: 21_000}
"""MiB on each GPU where a count is fixed: Llama 3.3 70B at Q4_K_M on 2, at Q8_0 on 4, at BF16 on 8."""


@dataclass(frozen=True)
class Model:
    """What one Model asks of the cluster; `host_mib` is the host memory that its pod requests."""

    candidates: tuple[Candidate, ...]
    host_mib: int


def main() -> None:
    """Measure, print, and write the page."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    lines = [_header(), *_speed(), "", *_packing()]
    text = "\n".join(lines) + "\n"
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(text)
    print(text)


def _header() -> str:
    run = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
    load = os.getloadavg()[0]
    return (
        f"# Placement\n\nCommit {run.stdout.strip()}; load average {load:.1f} on {os.cpu_count()} CPUs; "
        f"median (min..max). Times are CPU time. `python benchmarks/placement.py` repeats it.\n"
    )


# -- models and nodes -------------------------------------------------------------------------------------------------


def single(weights: int, cache: int, compute: int) -> Model:
    """Candidates of a llama.cpp Model: one GPU, or its layers in equal parts on 2, 4 or 8."""
    found = []
    for gpus in (1, 2, 4, 8):
        part = (weights + cache) // gpus + compute + 512
        found.append(Candidate(gpus, part + max(256, part // 50)))
    return Model(tuple(found), weights)


def models(chance: random.Random, counts: dict[int, int]) -> Iterator[Model]:
    """Models without end: the number of GPUs as in the trace, the need of one drawn evenly from the table."""
    while True:
        gpus = chance.choices(list(counts), list(counts.values()))[0]
        if gpus > 1:
            yield Model((Candidate(gpus, SEVERAL[gpus]),), SEVERAL[gpus] * gpus)
        else:
            _, weights, cache, compute = chance.choice(SINGLE)
            yield single(weights, cache, compute)


def node(name: str, gpus: int, mib: int) -> Plain:
    """A node as the operator's projection shows it."""
    labels = {
        "kubernetes.io/hostname": name,
        "nvidia.com/gpu.memory": str(mib),
        "nvidia.com/gpu.count": str(gpus),
        "nvidia.com/gpu.sharing-strategy": "none",
    }
    return {"name": name, "ready": True, "labels": labels, "taints": [], "gpus": {GPU: gpus}}


def pod(number: int, where: str, gpus: int) -> Plain:
    """A Model's running pod."""
    labels = {"moorage.dev/model": f"m{number}"}
    return {
        "namespace": "a",
        "name": f"m{number}-x",
        "node": where,
        "phase": "Running",
        "gpus": {GPU: gpus},
        "labels": labels,
    }


# -- speed ------------------------------------------------------------------------------------------------------------


def _speed() -> list[str]:
    chance = random.Random(1)
    nodes = [node(f"gpu-{i:04}", 8, chance.choice([16_380, 24_564, 49_140, 81_559])) for i in range(1000)]
    bare = build(nodes)
    pods: list[Plain] = []
    held = dict.fromkeys((n["name"] for n in nodes), 0)
    while len(pods) < 2000:
        name, gpus = chance.choice(nodes)["name"], chance.choice([1, 1, 1, 2, 4])
        if held[name] + gpus <= 8:
            held[name] += gpus
            pods.append(pod(len(pods), name, gpus))
    present = bare.with_pods(pods)
    stream = models(chance, TRACES["multigpu50 (12 %)"])
    promises = [
        r for i in range(50) for r in decide(Request(f"b/{i}", next(stream).candidates), present).reservations(f"b/{i}")
    ]
    asked = [Request("c/new", next(stream).candidates) for _ in range(100)]
    full = _filled(nodes)
    idle = [Resident(f"a/m{i}", 60 + i % 977, 7200) for i in range(8000)]
    rows = [
        ("one decision (50 Models promised, not bound)", _times(lambda i: decide(asked[i], present, promises), 100)),
        ("a refusal: every GPU is taken", _times(lambda i: decide(asked[i], full), 100)),
        (
            "whom to put to sleep: 8,000 idle Models on 8,000 GPUs",
            _times(lambda i: preempt(asked[i], full, residents=idle), 20),
        ),
        ("pods changed: count again who holds what", _times(lambda _: bare.with_pods(pods), 20)),
        ("nodes changed: read all labels again", _times(lambda _: build(nodes, pods), 20)),
    ]
    table = [f"| {name} | {_spread(times, 1000)} | {_percentile(times, 95) * 1000:.1f} |" for name, times in rows]
    together = statistics.median(rows[0][1]) + statistics.median(rows[3][1])
    return [
        "## Time of one decision: 1,000 nodes of 8 GPUs, 2,000 Models",
        "",
        "| what | ms | 95 % within |",
        "|---|---|---|",
        *table,
        "",
        f"A decision after a pod changed: {together * 1000:.1f} ms; to reach: below 20 ms.",
    ]


def _filled(nodes: list[Plain]) -> Inventory:
    names = [n["name"] for n in nodes for _ in range(8)]
    return build(nodes, [pod(i, name, 1) for i, name in enumerate(names)])


def _times(call: Callable[[int], object], runs: int) -> list[float]:
    call(0)
    found = []
    for index in range(runs):
        begin = time.process_time()
        call(index)
        found.append(time.process_time() - begin)
    return found


# -- packing ----------------------------------------------------------------------------------------------------------


def _packing() -> list[str]:
    lines = [
        "## How many of N Models fit",
        "",
        "Models come one after another and stay. N is so large that their GPUs (of the fewest with which each fits",
        "the cluster's largest) are a share of the cluster's: the load. Beyond 80 % not all can fit: the largest GPUs",
        "are few, and a Model that takes two smaller ones instead counts for one in the load. Then a policy that",
        "refuses large Models serves a larger number of small ones.",
        "",
        "*Spreading* is kube-scheduler's default score (the node with most CPU and memory left, among those with the",
        "GPUs), simulated, with random ties: *knowing sizes* with the memory label required and the same choice of",
        "one, two, four or eight GPUs; *counting GPUs* without, as a Deployment with `nvidia.com/gpu: 1`, whose",
        "Models fail where the GPU is too small. In % of N; in brackets of those that need several GPUs of one node;",
        f"then the GPUs in use. {RUNS} seeds.",
        "",
        "| multi-GPU Models as in trace | load | N | Moorage | spreading, knowing sizes | spreading, counting GPUs |",
        "|---|---|---|---|---|---|",
    ]
    for name, counts in TRACES.items():
        for load in LOADS:
            runs = [_run(random.Random(seed), counts, load) for seed in range(RUNS)]
            count = statistics.median(total for total, _ in runs)
            cells = [_cell([served[policy] for _, served in runs]) for policy in range(3)]
            lines.append(f"| {name} | {load} % | {count:.0f} | {' | '.join(cells)} |")
    lines += ["", *_legend()]
    return lines


@dataclass(frozen=True)
class Served:
    """What came out of one run: Models that fit, of all and of those on a fixed number of GPUs; GPUs in use; in %."""

    models: float
    several: float
    gpus: float


def _cell(found: list[Served]) -> str:
    models, several = _spread([s.models for s in found]), statistics.median(s.several for s in found)
    return f"{models} [{several:.0f}], {statistics.median(s.gpus for s in found):.0f}"


def _run(chance: random.Random, counts: dict[int, int], load: int) -> tuple[int, tuple[Served, ...]]:
    shapes = [shape for shape in NODES for _ in range(max(round(shape[0] / 10), 1))]
    chance.shuffle(shapes)
    capacity, largest = sum(s[1] for s in shapes), max(s[2] for s in shapes)
    asked: list[Model] = []
    wanted = 0
    for model in models(chance, counts):
        wanted += next(c.gpus for c in model.candidates if c.mib <= usable_mib(largest))
        if wanted > capacity * load / 100:
            break
        asked.append(model)
    results = (
        _moorage(shapes, asked),
        _spreading(chance, shapes, asked, sizes=True),
        _spreading(chance, shapes, asked, sizes=False),
    )
    fixed = max(sum(len(m.candidates) == 1 for m in asked), 1)
    return len(asked), tuple(
        Served(
            100 * len(placed) / len(asked),
            100 * sum(len(m.candidates) == 1 for m, _ in placed) / fixed,
            100 * sum(gpus for _, gpus in placed) / capacity,
        )
        for placed in results
    )


def _moorage(shapes: list[tuple[int, ...]], asked: list[Model]) -> list[tuple[Model, int]]:
    """The Models that run, and on how many GPUs."""
    bare = build([node(f"n{i:04}", shape[1], shape[2]) for i, shape in enumerate(shapes)])
    pods: list[Plain] = []
    placed = []
    for number, model in enumerate(asked):
        decision = decide(Request(f"a/m{number}", model.candidates), bare.with_pods(pods))
        if decision.candidate is not None:
            pods.append(pod(number, decision.nodes[0], decision.candidate.gpus))
            placed.append((model, decision.candidate.gpus))
    return placed


def _spreading(
    chance: random.Random, shapes: list[tuple[int, ...]], asked: list[Model], *, sizes: bool
) -> list[tuple[Model, int]]:
    """kube-scheduler's LeastAllocated (CPU and memory, equal weights); 4 CPUs for each GPU are requested."""
    free = [shape[1] for shape in shapes]
    cpu, memory = [shape[3] for shape in shapes], [shape[4] * 1024 for shape in shapes]
    left = [(float(c), float(m)) for c, m in zip(cpu, memory, strict=True)]
    placed = []
    for model in asked:
        plans = model.candidates if sizes else model.candidates[:1]
        for plan in plans:
            able = [
                i
                for i, shape in enumerate(shapes)
                if free[i] >= plan.gpus and (not sizes or usable_mib(shape[2]) >= plan.mib)
            ]
            if able:
                best = max(able, key=lambda i: (left[i][0] / cpu[i] + left[i][1] / memory[i], chance.random()))
                free[best] -= plan.gpus
                left[best] = (left[best][0] - 4 * plan.gpus, left[best][1] - model.host_mib)
                if usable_mib(shapes[best][2]) >= plan.mib:
                    placed.append((model, plan.gpus))
                break
    return placed


def _legend() -> list[str]:
    single_names = ", ".join(name for name, *_ in SINGLE)
    shapes = "; ".join(f"{count} x {gpus} GPUs of {mib} MiB" for count, gpus, mib, *_ in NODES)
    return [
        f"Nodes of the trace (G2 and G3, which it does not name, taken for 24 and 80 GiB): {shapes}.",
        "",
        f"Models on one GPU, drawn evenly, each with 4 x 8,192 tokens: {single_names}. On a fixed number of GPUs: "
        + ", ".join(f"{gpus} x {mib} MiB" for gpus, mib in SEVERAL.items())
        + ".",
    ]


def _spread(values: list[float], scale: float = 1) -> str:
    found = sorted(v * scale for v in values)
    return f"{statistics.median(found):.1f} ({found[0]:.1f}..{found[-1]:.1f})"


def _percentile(values: list[float], share: int) -> float:
    return sorted(values)[min(len(values) * share // 100, len(values) - 1)]


if __name__ == "__main__":
    main()
