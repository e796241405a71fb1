"""From `kubectl apply` to Ready, on the one-machine cluster: a 64 MiB model from a hub limited to 16 MiB/s (4.0 s).

The whole way is real: hub, download Job, volume, Deployment, llama-server, warm-up. The split is taken from outside, by
watching the objects, so the operator cannot flatter itself. Writes benchmarks/results/apply_to_ready.md.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

from e2e.cluster import Cluster
from e2e.demo import Demo
from moorage.errors import NotFound
from moorage.kube.client import KubeClient
from moorage.kube.resources import CLAIMS, DEPLOYMENTS, JOBS, MODEL_DOWNLOADS, MODELS, PODS, Resource

RUNS = 5
RATE = 16 << 20
RESULTS = Path(__file__).parent / "results/apply_to_ready.md"

STEPS = (
    ("source resolved, Job made", "operator"),
    ("download pod started", "cluster"),
    ("files verified (4.0 s are the source's)", "download"),
    ("Deployment made", "operator"),
    ("server container started", "cluster"),
    ("server ready (its probe asks each second)", "engine"),
    ("one token through the Service, Ready", "operator"),
)

Object = dict[str, Any]


def running(pod: Object | None) -> bool:
    states = [c.get("state", {}) for c in ((pod or {}).get("status") or {}).get("containerStatuses", ())]
    return bool(states) and all("waiting" not in s for s in states)


async def one_pod(kube: KubeClient, label: str) -> Object | None:
    pods, _ = await kube.list(PODS, "default", label_selector=label)
    return pods[0] if pods else None


async def get(kube: KubeClient, resource: Resource, name: str) -> Object | None:
    try:
        return await kube.get(resource, "default", name)
    except NotFound:
        return None


def condition(obj: Object | None, kind: str) -> bool:
    found = ((obj or {}).get("status") or {}).get("conditions", ())
    return any(c["type"] == kind and c["status"] == "True" for c in found)


async def run(kube: KubeClient, name: str) -> list[float]:
    """Seconds after apply at which each of STEPS was done."""
    spec = {
        "source": {"huggingFace": {"repo": "moorage/harbor-llama-GGUF"}},
        "accelerator": {"vendor": "None"},
        "benchmark": {"enabled": False},
        "resources": {"requests": {"cpu": "500m"}},
        "storage": {"deleteAfterUnused": "1s"},
    }
    body = {"apiVersion": "moorage.dev/v1alpha1", "kind": "Model", "metadata": {"name": name, "namespace": "default"}}
    began = time.monotonic()
    await kube.apply({**body, "spec": spec}, field_manager="person")
    download = ""

    async def state(step: int) -> bool:
        nonlocal download
        model = await get(kube, MODELS, name)
        download = (((model or {}).get("status") or {}).get("source") or {}).get("downloadName") or download
        if step == 0:
            return bool(download) and await get(kube, JOBS, download) is not None
        if step == 1:
            return running(await one_pod(kube, f"moorage.dev/download={download}"))
        if step == 2:
            return condition(await get(kube, MODEL_DOWNLOADS, download), "Verified")
        if step == 3:
            return await get(kube, DEPLOYMENTS, name) is not None
        pod = await one_pod(kube, f"moorage.dev/model={name}")
        return running(pod) if step == 4 else condition(pod, "Ready") if step == 5 else condition(model, "Ready")

    times = []
    for step in range(len(STEPS)):
        while not await state(step):
            if time.monotonic() - began > 120:
                raise SystemExit(f"{name}: {STEPS[step][0]}: not within two minutes")
            await asyncio.sleep(0.02)
        times.append(time.monotonic() - began)
    await kube.delete(MODELS, "default", name)
    await gone(kube, download)
    return times


async def gone(kube: KubeClient, download: str) -> None:
    """Return once nothing is left of a run: the claim goes last, with the pod that has it mounted."""
    deadline = time.monotonic() + 120
    for resource in (MODEL_DOWNLOADS, CLAIMS):
        while await get(kube, resource, download) is not None and time.monotonic() < deadline:
            await asyncio.sleep(0.2)


def limit(demo: Demo, rate: int | None) -> None:
    service = json.loads(demo.kubectl("-n", "hub", "get", "service", "hub", "-o", "json"))
    url = f"http://{service['spec']['clusterIP']}:8090/_limits"
    data = json.dumps({"rate": rate}).encode()
    urllib.request.urlopen(urllib.request.Request(url, data, method="PUT"), timeout=10).close()


async def measure(demo: Demo) -> list[list[float]]:
    assert demo.cluster is not None
    async with await KubeClient.connect(demo.cluster.kubeconfig) as kube:
        await run(kube, "warm-up")
        return [await run(kube, f"run-{i}") for i in range(RUNS)]


def table(runs: list[list[float]], load: float) -> str:
    parts = [[r[i] - (r[i - 1] if i else 0.0) for r in runs] for i in range(len(STEPS))]
    rows = [
        f"| {what} | {who} | {statistics.median(took):.2f} ({min(took):.2f}..{max(took):.2f}) "
        f"| {statistics.median(r[i] for r in runs):.2f} |"
        for i, ((what, who), took) in enumerate(zip(STEPS, parts, strict=True))
    ]
    whole = [r[-1] for r in runs]
    own = [sum(parts[i][n] for i, (_, who) in enumerate(STEPS) if who == "operator") for n in range(len(runs))]
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()
    return "\n".join(
        [
            "# From apply to Ready: 64 MiB at 16 MiB/s",
            "",
            f"Median of {len(runs)} runs (min..max), seconds; commit {commit}; load average {load:.1f} on "
            f"{os.cpu_count()} CPUs. Peer on the same kind of machine: LLMKube 10.9 s (one run).",
            "",
            "| step | whose time | took | done at |",
            "|---|---|---|---|",
            *rows,
            "",
            f"**Ready after {statistics.median(whole):.2f} s** ({min(whole):.2f}..{max(whole):.2f}); to reach: below 7. "
            f"The operator's own share: {statistics.median(own):.2f} s; to reach: below 1 s.",
            "",
        ]
    )


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    demo = Demo(name="bench")
    try:
        for step in (demo.up, demo.load_images, demo.install, demo.hub):
            step()
        limit(demo, RATE)
        runs = asyncio.run(measure(demo))
    finally:
        Cluster(demo.name).down()
    text = table(runs, os.getloadavg()[0])
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
