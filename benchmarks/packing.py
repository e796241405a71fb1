"""How many of N Models fit: Moorage's placement beside kube-scheduler's default spreading, both bound by the real one.

Simulated nodes (kwok) in the proportions of a published trace, the real kube-apiserver and kube-scheduler with their
defaults. Both sides get the same Models in the same order, choose the number of GPUs alike (the fewest that fit), and
require the same memory per GPU by the same label: only the choice among nodes that would do differs. `placement.py` has
the trace and the mix, and the same comparison in a simulation of more nodes. Writes benchmarks/results/packing.md.
"""

import argparse
import asyncio
import itertools
import json
import os
import random
import statistics
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.placement import GPU, NODES, TRACES, Model, models, node, pod
from e2e.cluster import Cluster
from moorage.errors import ApiError
from moorage.kube.client import KubeClient
from moorage.kube.resources import PODS
from moorage.placement.affinity import merged
from moorage.placement.decide import decide
from moorage.placement.inventory import Inventory, build
from moorage.placement.memory import least_total_mib, usable_mib
from moorage.placement.request import Candidate, Decision, Request

RESULTS = Path(__file__).parent / "results/packing.md"
NAMESPACE = "packing"
LOADS = (60, 80, 100)
MIXES = ("multigpu20", "multigpu50")
CPUS_OF_A_GPU = 4
BIND_SECONDS = 30.0
PODS_MADE = itertools.count()
Plain = dict[str, Any]
Shape = tuple[int, ...]  # a row of NODES


def main() -> None:
    """Start a cluster, measure, print, and write the page."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--runs", type=int, default=5, help="seeds")
    options.add_argument("--share", type=int, default=20, help="one node for so many of the trace")
    options.add_argument("--cluster", default="packing", help="name of the cluster to start")
    chosen = options.parse_args()
    shapes = [shape for shape in NODES for _ in range(max(round(shape[0] / chosen.share), 1))]
    with _cluster(chosen.cluster, shapes) as kubeconfig:
        lines = asyncio.run(_measure(kubeconfig, shapes, chosen.runs))
    text = "\n".join(lines) + "\n"
    RESULTS.write_text(text)
    print(text)


# -- the cluster ------------------------------------------------------------------------------------------------------


@contextmanager
def _cluster(name: str, shapes: list[Shape]) -> Iterator[Path]:
    cluster = Cluster(name)
    cluster.up(control_plane=True, kwok=True)
    kubectl = [str(cluster.binary("kubectl")), "--kubeconfig", str(cluster.kubeconfig)]
    objects = [_node(index, shape) for index, shape in enumerate(shapes)]
    objects.append({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    try:
        items = json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
        subprocess.run([*kubectl, "apply", "-f", "-"], input=items, text=True, check=True, stdout=subprocess.DEVNULL)
        for wait in (
            ["--for=condition=Ready", "nodes", "--all", "--timeout=120s"],
            ["--for=create", "serviceaccount/default", "-n", NAMESPACE, "--timeout=60s"],
        ):
            subprocess.run([*kubectl, "wait", *wait], check=True, stdout=subprocess.DEVNULL)
        yield cluster.kubeconfig
    finally:
        cluster.down()


def _node(index: int, shape: Shape) -> Plain:
    _, gpus, mib, cpus, gib = shape
    seen = node(f"n{index:04}", gpus, mib)
    room = {"cpu": str(cpus), "memory": f"{gib}Gi", "pods": "110", GPU: str(gpus)}
    meta = {"name": seen["name"], "labels": seen["labels"], "annotations": {"kwok.x-k8s.io/node": "fake"}}
    return {"apiVersion": "v1", "kind": "Node", "metadata": meta, "status": {"capacity": room, "allocatable": room}}


# -- one run ----------------------------------------------------------------------------------------------------------


@dataclass
class Run:
    """One side with one seed: what it placed so far, and what the scheduler refused although it was planned."""

    kube: KubeClient
    bare: Inventory
    placed: list[tuple[Model, int]] = field(default_factory=list)
    pods: list[Plain] = field(default_factory=list)
    broken: int = 0
    seconds: list[float] = field(default_factory=list)

    async def moorage(self, number: int, model: Model) -> None:
        """As the operator does it: decide, then let kube-scheduler bind what the decision asks for."""
        begin = time.perf_counter()
        found = decide(Request(f"a/m{number}", model.candidates), self.bare.with_pods(self.pods))
        self.seconds.append(time.perf_counter() - begin)
        if found.candidate is None:
            return
        if not await self._bind(number, model, found.candidate, _affinity(found)):
            self.broken += 1

    async def spreading(self, number: int, model: Model) -> None:
        """The same requirement and nothing preferred: kube-scheduler's own scores choose."""
        for candidate in model.candidates:
            key = {"key": f"{GPU}.memory", "operator": "Gt", "values": [str(least_total_mib(candidate.mib) - 1)]}
            terms = {"nodeSelectorTerms": [{"matchExpressions": [key]}]}
            required = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}}
            if await self._bind(number, model, candidate, required):
                return

    async def _bind(self, number: int, model: Model, candidate: Candidate, affinity: Plain) -> bool:
        """Whether the scheduler binds the pod; one that it refuses is taken away again."""
        name = f"p{next(PODS_MADE)}"  # never the name of one that is being deleted
        requests = {"cpu": str(CPUS_OF_A_GPU * candidate.gpus), "memory": f"{model.host_mib}Mi"}
        resources = {"requests": requests, "limits": {GPU: str(candidate.gpus)}}
        spec = {"affinity": affinity, "containers": [{"name": "c", "image": "x", "resources": resources}]}
        await self.kube.create(
            {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": NAMESPACE}, "spec": spec}
        )
        where = await self._answered(name)
        if not where:
            await self.kube.delete(PODS, NAMESPACE, name)
            return False
        self.pods.append(pod(number, where, candidate.gpus))
        self.placed.append((model, candidate.gpus))
        return True

    async def _answered(self, name: str) -> str:
        """The node of a pod, empty where the scheduler has said that there is none."""
        deadline = time.monotonic() + BIND_SECONDS
        while time.monotonic() < deadline:
            found = await self.kube.get(PODS, NAMESPACE, name)
            if where := found["spec"].get("nodeName"):
                return str(where)
            told = {c["type"]: c for c in found.get("status", {}).get("conditions", ())}
            if told.get("PodScheduled", {}).get("reason") == "Unschedulable":
                return ""
            await asyncio.sleep(0.02)
        raise TimeoutError(f"kube-scheduler said nothing of pod {name} within {BIND_SECONDS:g} s")


def _affinity(found: Decision) -> Plain:
    return merged(None, found.affinity)


async def _clear(kube: KubeClient) -> None:
    """Delete all pods, so that the next run finds the nodes empty."""

    async def gone(name: str) -> None:
        with suppress(ApiError):
            await kube.delete(PODS, NAMESPACE, name)

    while found := (await kube.list(PODS, NAMESPACE))[0]:
        await asyncio.gather(
            *(gone(one["metadata"]["name"]) for one in found if "deletionTimestamp" not in one["metadata"])
        )
        await asyncio.sleep(0.2)


# -- all runs ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Served:
    """What came out: Models that fit, of all and of those that need several GPUs of one node; GPUs in use; in %."""

    models: float
    several: float
    gpus: float
    broken: int
    milliseconds: float


async def _measure(kubeconfig: Path, shapes: list[Shape], runs: int) -> list[str]:
    bare = build([node(f"n{i:04}", shape[1], shape[2]) for i, shape in enumerate(shapes)])
    lines, broken, times = [], 0, []
    async with await KubeClient.connect(kubeconfig, user_agent="packing") as kube:
        for name, counts in [item for item in TRACES.items() if item[0].startswith(MIXES)]:
            for load in LOADS:
                found: dict[str, list[Served]] = {"moorage": [], "spreading": []}
                totals = []
                for seed in range(runs):
                    asked = _asked(random.Random(seed), shapes, counts, load)
                    totals.append(len(asked))
                    for side in found if seed % 2 else reversed(list(found)):  # neither side always goes first
                        found[side].append(await _side(kube, bare, side, asked, shapes))
                broken += sum(s.broken for s in found["moorage"])
                times += [s.milliseconds for s in found["moorage"]]
                cells = " | ".join(_cell(found[side]) for side in found)
                lines.append(f"| {name} | {load} % | {statistics.median(totals):.0f} | {cells} |")
                print(lines[-1], flush=True)
    return [*_head(shapes, runs), *lines, "", *_foot(broken, times)]


async def _side(kube: KubeClient, bare: Inventory, side: str, asked: list[Model], shapes: list[Shape]) -> Served:
    run = Run(kube, bare)
    place: Callable[[int, Model], Awaitable[None]] = getattr(run, side)
    for number, model in enumerate(asked):
        await place(number, model)
    await _clear(kube)
    several = [m for m in asked if len(m.candidates) == 1]
    return Served(
        100 * len(run.placed) / len(asked),
        100 * sum(len(m.candidates) == 1 for m, _ in run.placed) / max(len(several), 1) if several else 100.0,
        100 * sum(gpus for _, gpus in run.placed) / sum(s[1] for s in shapes),
        run.broken,
        statistics.median(run.seconds) * 1000 if run.seconds else 0.0,
    )


def _asked(chance: random.Random, shapes: list[Shape], counts: dict[int, int], load: int) -> list[Model]:
    """Models whose GPUs (of the fewest with which each fits the largest GPU) are `load` % of the cluster's."""
    capacity, largest = sum(s[1] for s in shapes), max(s[2] for s in shapes)
    asked, wanted = [], 0
    for model in models(chance, counts):
        wanted += next(c.gpus for c in model.candidates if c.mib <= usable_mib(largest))
        if wanted > capacity * load / 100:
            return asked
        asked.append(model)
    return asked


def _cell(found: list[Served]) -> str:
    models_ = sorted(s.models for s in found)
    several, gpus = statistics.median(s.several for s in found), statistics.median(s.gpus for s in found)
    return f"{statistics.median(models_):.1f} ({models_[0]:.1f}..{models_[-1]:.1f}) [{several:.0f}], {gpus:.0f}"


def _head(shapes: list[Shape], runs: int) -> list[str]:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
    nodes = "; ".join(f"{shapes.count(s)} x {s[1]} GPUs of {s[2]} MiB" for s in dict.fromkeys(shapes))
    return [
        "# Packing under the real kube-scheduler",
        "",
        f"Commit {commit.stdout.strip()}; load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} CPUs; "
        f"{runs} seeds, median (min..max). `python -m benchmarks.packing` repeats it.",
        "",
        f"{len(shapes)} simulated nodes (kwok) with {sum(s[1] for s in shapes)} GPUs in the proportions of the Alibaba "
        f"cluster-trace-gpu-v2023: {nodes}.",
        "",
        "Models come one after another and stay; the mix, and how many GPUs each takes, are those of "
        "[placement.md](placement.md), from the trace's lists. Every pod is bound by kube-scheduler with its default "
        "plugins and weights. *Spreading*: the memory of a GPU is required by the node's label, and the scheduler's scores "
        "choose the node. *Moorage*: the affinity of its decision besides. Both try one GPU, then two, four and eight of "
        "a node. In % of N; in brackets of those that need several GPUs of one node; then the GPUs in use.",
        "",
        "| multi-GPU Models as in trace | load | N | Moorage | spreading |",
        "|---|---|---|---|---|",
    ]


def _foot(broken: int, times: list[float]) -> list[str]:
    return [
        f"Decisions that kube-scheduler did not carry out: {broken}. One decision took {statistics.median(times):.1f} ms "
        "(wall time, on the busy machine).",
        "",
        "Beyond a load of 80 % not all Models can fit: the largest GPUs are few, and who refuses a large Model has room for "
        "several small ones, so the share of N alone says little there; the one in brackets does. Simulated nodes run "
        "nothing: this is about who gets a place, not about speed.",
    ]


if __name__ == "__main__":
    main()
