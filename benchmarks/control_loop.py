"""The operator's control loop on a real API server: apply to Deployment, a burst, and many Models at rest.

One control plane of the kit (API server, etcd, controller manager, scheduler; no node, so no kubelet's work is in it), the
operator as a process of its own with a ServiceAccount and a FlowSchema of its own, so that the API server counts its
requests. Times are seen from outside, by a watch. Writes benchmarks/results/operator.md; `--models 10000` takes a while.
"""

import argparse
import asyncio
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from e2e.cluster import Cluster
from moorage.kube.client import KubeClient
from moorage.kube.resources import DEPLOYMENTS, MODELS, SERVICES
from tests.support.bed import Bed

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results/operator.md"
USER = "operator-under-test"
PORT = 18098
ONE_BY_ONE, APART_SECONDS = 30, 1.0
BURST = 200
RESTARTS = 5
REST_SECONDS = 120.0
SETTLED_SHARE, SETTLED_SECONDS = 0.05, 5.0
TICKS = os.sysconf("SC_CLK_TCK")
WRITES = ("apply", "patch", "create", "delete")


# -- the cluster, and what it counts ---------------------------------------------------------------------------


class Plane:
    """A control plane with our kinds, a user for the operator, and that user's requests."""

    def __init__(self, name: str) -> None:
        self.cluster = Cluster(name)

    def __enter__(self) -> "Plane":
        self.cluster.up(control_plane=True)
        self.kubectl("apply", "--server-side", "-f", str(ROOT / "crds"))
        self.kubectl("wait", "--for=condition=Established", "--timeout=30s", "crd", "--all")
        self.kubectl("apply", "-f", "-", stdin=yaml.safe_dump_all(_user()))
        return self

    def __exit__(self, *_: object) -> None:
        self.cluster.down()

    def kubectl(self, *args: str, stdin: str | None = None) -> str:
        command = [str(self.cluster.binary("kubectl")), "--kubeconfig", str(self.cluster.kubeconfig), *args]
        return subprocess.run(command, input=stdin, capture_output=True, text=True, check=True, timeout=120).stdout

    def kubeconfig(self, folder: Path) -> Path:
        """A kubeconfig of the operator's ServiceAccount."""
        config = yaml.safe_load(self.cluster.kubeconfig.read_text())
        token = self.kubectl("-n", "default", "create", "token", USER, "--duration=24h").strip()
        for cluster in config["clusters"]:
            authority = cluster["cluster"].get("certificate-authority")
            if authority:
                cluster["cluster"]["certificate-authority"] = str(self.cluster.kubeconfig.parent / authority)
        config["users"] = [{"name": u["name"], "user": {"token": token}} for u in config["users"]]
        path = folder / "kubeconfig"
        path.write_text(yaml.safe_dump(config))
        return path

    def requests(self) -> int:
        """Requests of the operator's user so far; a watch counts once."""
        pattern = re.compile(rf'dispatched_requests_total{{flow_schema="{USER}".*}} ([0-9.e+]+)$', re.MULTILINE)
        return int(sum(float(n) for n in pattern.findall(self.kubectl("get", "--raw", "/metrics"))))


def _user() -> list[dict[str, Any]]:
    subject = {"kind": "ServiceAccount", "serviceAccount": {"name": USER, "namespace": "default"}}
    everything = {"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "clusterScope": True, "namespaces": ["*"]}
    account = {"kind": "ServiceAccount", "name": USER, "namespace": "default"}
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"}
    schema = {
        "priorityLevelConfiguration": {"name": "workload-high"},
        "matchingPrecedence": 100,
        "distinguisherMethod": {"type": "ByUser"},
        "rules": [
            {
                "subjects": [subject],
                "resourceRules": [everything],
                "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}],
            }
        ],
    }
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": USER, "namespace": "default"}},
        {
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": USER},
            "subjects": [account], "roleRef": role,
        },
        {"apiVersion": "flowcontrol.apiserver.k8s.io/v1", "kind": "FlowSchema", "metadata": {"name": USER}, "spec": schema},
    ]  # fmt: skip


# -- the operator, seen from outside -----------------------------------------------------------------------------


class Process:
    """A running operator: its CPU seconds, memory and own counters."""

    def __init__(self, kubeconfig: Path, folder: Path) -> None:
        self.started = time.monotonic()
        self.log = (folder / "operator.log").open("ab")
        command = [sys.executable, "-m", "moorage", "operator", "--kubeconfig", str(kubeconfig)]
        command += ["--listen", f"127.0.0.1:{PORT}"]
        self.popen = subprocess.Popen(command, stdout=self.log, stderr=self.log, cwd=ROOT)

    def cpu(self) -> float:
        fields = Path(f"/proc/{self.popen.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def rss(self, what: str = "VmRSS") -> float:
        """MiB; `VmHWM` is the peak."""
        status = Path(f"/proc/{self.popen.pid}/status").read_text()
        return int(re.search(rf"{what}:\s+(\d+)", status)[1]) / 1024  # type: ignore[index]

    def metrics(self) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/metrics", timeout=10) as answer:
            return str(answer.read().decode())

    def writes(self) -> int:
        text = self.metrics()
        found = re.findall(r'moorage_api_requests{verb="(\w+)"} ([0-9.]+)', text)
        return int(sum(float(n) for verb, n in found if verb in WRITES))

    async def ready(self) -> float:
        """Seconds from start until /readyz says ok."""
        while True:
            assert self.popen.poll() is None, "the operator ended; see its log"
            if await asyncio.to_thread(_says_ok):
                return time.monotonic() - self.started
            await asyncio.sleep(0.02)

    async def settled(self) -> tuple[float, float]:
        """Seconds and CPU seconds from start until it used less than 5 % of a core for 5 s."""
        quiet_since, quiet_cpu, last, at = 0.0, 0.0, self.cpu(), time.monotonic()
        while True:
            await asyncio.sleep(0.25)
            now, used = time.monotonic(), self.cpu()
            if (used - last) / (now - at) >= SETTLED_SHARE:
                quiet_since = 0.0
            elif not quiet_since:
                quiet_since, quiet_cpu = at, last
            elif now - quiet_since > SETTLED_SECONDS:
                return quiet_since - self.started, quiet_cpu
            last, at = used, now

    def stop(self) -> None:
        self.popen.terminate()
        self.popen.wait(30)
        self.log.close()


def _says_ok() -> bool:
    with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{PORT}/readyz", timeout=5) as answer:
        return bool(answer.status == 200)
    return False


@contextmanager
def operator(plane: Plane, folder: Path) -> Iterator[Process]:
    process = Process(plane.kubeconfig(folder), folder)
    try:
        yield process
    finally:
        process.stop()


class Sightings:
    """When a watch first showed each Deployment."""

    def __init__(self) -> None:
        self.at: dict[str, float] = {}

    @asynccontextmanager
    async def watching(self, kube: KubeClient, namespace: str) -> AsyncIterator[None]:
        _, version = await kube.list(DEPLOYMENTS, namespace)

        async def follow() -> None:
            async with kube.watch(DEPLOYMENTS, namespace, resource_version=version, seconds=1800) as batches:
                async for batch in batches:
                    for event in batch:
                        if event.type == "ADDED":
                            self.at.setdefault(event.object["metadata"]["name"], time.monotonic())

        task = asyncio.create_task(follow())
        await asyncio.sleep(0.2)
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def wait(self, names: list[str], limit: float) -> None:
        deadline = time.monotonic() + limit
        while missing := [n for n in names if n not in self.at]:
            assert time.monotonic() < deadline, f"{len(missing)} Deployments are missing, {missing[0]} first"
            await asyncio.sleep(0.005)


# -- what is measured --------------------------------------------------------------------------------------------


@dataclass
class Figures:
    models: int
    load: list[float] = field(default_factory=list)
    one: list[float] = field(default_factory=list)
    burst: list[float] = field(default_factory=list)
    burst_requests: float = 0.0
    burst_cpu: float = 0.0
    made_seconds: float = 0.0
    made_requests: float = 0.0
    ready: list[float] = field(default_factory=list)
    settled: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    rss: list[float] = field(default_factory=list)
    peak: list[float] = field(default_factory=list)
    start_requests: list[int] = field(default_factory=list)
    start_writes: list[int] = field(default_factory=list)
    rest_requests: float = 0.0
    rest_writes: int = 0
    rest_cpu: float = 0.0

    def note_load(self) -> None:
        self.load.append(os.getloadavg()[0])


async def apply(bed: Bed, name: str, **spec: Any) -> float:
    """Seconds at which the API server took the Model (its pods find no node)."""
    began = time.monotonic()
    await bed.model(name, nodeSelector={"no": "such"}, **spec)
    return began


async def latency(plane: Plane, folder: Path, figures: Figures) -> None:
    """One by one, then all at once."""
    with operator(plane, folder) as process:
        await process.ready()
        async with Bed.made(plane.cluster.kubeconfig) as bed:
            await bed.ready_download()
            seen = Sightings()
            async with seen.watching(bed.kube, bed.namespace):
                await apply(bed, "warm-up")
                await seen.wait(["warm-up"], 60)
                await process.settled()
                figures.note_load()
                for i in range(ONE_BY_ONE):
                    began = await apply(bed, f"one-{i}")
                    await seen.wait([f"one-{i}"], 60)
                    figures.one.append(seen.at[f"one-{i}"] - began)
                    await asyncio.sleep(APART_SECONDS)
                await process.settled()
                figures.note_load()
                before, cpu = plane.requests(), process.cpu()
                began = time.monotonic()
                wanted = [f"burst-{i}" for i in range(BURST)]
                times = await asyncio.gather(*(apply(bed, name) for name in wanted))
                await seen.wait(wanted, 600)
                figures.burst = [seen.at[name] - began for name in wanted]
                assert len(times) == BURST
                await process.settled()
                figures.burst_requests = (plane.requests() - before) / BURST
                figures.burst_cpu = process.cpu() - cpu


async def at_rest(plane: Plane, folder: Path, figures: Figures) -> None:
    """Many Models at replicas 0 that share one download: made once, then restarts, then peace."""
    async with Bed.made(plane.cluster.kubeconfig) as bed:
        await bed.ready_download()
        with operator(plane, folder) as process:
            await process.ready()
            before, began = plane.requests(), time.monotonic()
            limit = asyncio.Semaphore(32)

            async def make(name: str) -> None:
                async with limit:
                    await apply(bed, name, replicas=0)

            await asyncio.gather(*(make(f"m-{i}") for i in range(figures.models)))
            await all_asleep(bed, figures.models)
            figures.made_seconds = time.monotonic() - began
            await process.settled()
            figures.made_requests = (plane.requests() - before) / figures.models
        for _ in range(RESTARTS):
            figures.note_load()
            before = plane.requests()
            with operator(plane, folder) as process:
                figures.ready.append(await process.ready())
                seconds, cpu = await process.settled()
                figures.settled.append(seconds)
                figures.cpu.append(cpu)
                figures.rss.append(process.rss())
                figures.peak.append(process.rss("VmHWM"))
                figures.start_requests.append(plane.requests() - before)
                figures.start_writes.append(process.writes())
        with operator(plane, folder) as process:
            await process.ready()
            await process.settled()
            before, writes, cpu = plane.requests(), process.writes(), process.cpu()
            await asyncio.sleep(REST_SECONDS)
            figures.rest_requests = (plane.requests() - before) / REST_SECONDS * 60
            figures.rest_writes = process.writes() - writes
            figures.rest_cpu = (process.cpu() - cpu) / REST_SECONDS * 1000


async def all_asleep(bed: Bed, models: int) -> None:
    deadline = time.monotonic() + 60 + models * 0.2
    while True:
        counts = {r.plural: len((await bed.kube.list(r, bed.namespace))[0]) for r in (DEPLOYMENTS, SERVICES)}
        items, _ = await bed.kube.list(MODELS, bed.namespace)
        asleep = sum(1 for m in items if (m.get("status") or {}).get("phase") == "ScaledToZero")
        if asleep == models and set(counts.values()) == {models}:
            return
        assert time.monotonic() < deadline, f"{asleep} of {models} are asleep, {json.dumps(counts)}"
        await asyncio.sleep(0.5)


# -- what comes out ----------------------------------------------------------------------------------------------


def spread(values: list[float], unit: str = "") -> str:
    return f"{statistics.median(values):.2f}{unit} ({min(values):.2f}..{max(values):.2f})"


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(int(len(values) * share), len(values) - 1)]


def table(f: Figures) -> str:
    commit = ["git", "rev-parse", "--short", "HEAD"]
    head = subprocess.run(commit, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    rows = [
        ("apply -> Deployment, one by one, p50", f"{percentile(f.one, 0.5) * 1000:.0f} ms", "< 25 ms"),
        ("the same, p95", f"{percentile(f.one, 0.95) * 1000:.0f} ms", "< 100 ms"),
        (f"{BURST} at once: all Deployments after", f"{max(f.burst):.1f} s", "< 5 s"),
        (f"{BURST} at once: requests per Model, Events included", f"{f.burst_requests:.1f}", "<= 6"),
        (f"{BURST} at once: CPU of the operator", f"{f.burst_cpu:.1f} s", ""),
        (
            f"{f.models:,} made, until all are asleep",
            f"{f.made_seconds:.0f} s, {f.made_requests:.1f} requests each",
            "",
        ),
        (f"{f.models:,}, restart -> ready (all listed)", spread(f.ready, " s"), ""),
        (f"{f.models:,}, restart -> settled", spread(f.settled, " s"), "< 4 s" if f.models == 1000 else "< 30 s"),
        (f"{f.models:,}, CPU until settled", spread(f.cpu, " s"), "< 3 s" if f.models == 1000 else ""),
        (f"{f.models:,}, RSS once settled", spread(f.rss, " MiB"), "< 110 MiB" if f.models == 1000 else "< 250 MiB"),
        (f"{f.models:,}, peak RSS", spread(f.peak, " MiB"), ""),
        (f"{f.models:,}, requests of a restart; writes", f"{max(f.start_requests)}; {max(f.start_writes)}", "-; 0"),
        (f"{f.models:,} at rest: requests a minute", f"{f.rest_requests:.1f}", "< 20"),
        (f"{f.models:,} at rest: writes in {REST_SECONDS:.0f} s", str(f.rest_writes), "0"),
        (f"{f.models:,} at rest: CPU", f"{f.rest_cpu:.1f} ms per s", ""),
    ]
    return "\n".join(
        [
            f"## {f.models:,} Models",
            "",
            f"Commit {head}; load average {min(f.load):.1f}..{max(f.load):.1f} on {os.cpu_count()} CPUs, which the API "
            f"server, etcd and others' work share; {len(f.one)} single Models, {RESTARTS} restarts, median (min..max). "
            "Settled: from then on under 5 % of a core for 5 s.",
            "",
            "| what | measured | to reach |",
            "|---|---|---|",
            *(f"| {what} | {value} | {goal} |" for what, value, goal in rows if value != "-"),
            "",
        ]
    )


HEADER = """\
# The operator's control loop

Real API server, etcd, controller manager and scheduler, no node. Each Model: a Deployment and a Service, source a
`downloadRef` of one Ready ModelDownload. Requests are counted by the API server (a FlowSchema of the operator's user).
Peers on the same kind of machine: LLMKube p50 16 ms, 200 in 9 s, 28 requests each; 1,000 at rest: restart 41 s, 22 CPU-s,
126 MiB. KubeAI p50 20 ms, 200 in 602 s; restart 8 s, 1.8 CPU-s, 92 MiB, 66 requests a minute at rest.
"""


def write(section: str, models: int) -> None:
    """Replace the section of this number of Models, keep the others."""
    known = RESULTS.read_text() if RESULTS.exists() else HEADER
    parts = {p.splitlines()[0]: f"## {p}" for p in known.split("\n## ")[1:]}
    parts[f"{models:,} Models"] = section
    order = sorted(parts, key=lambda title: int(title.split()[0].replace(",", "")))
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(HEADER + "\n" + "\n".join(parts[title].rstrip() + "\n" for title in order))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--models", type=int, default=1000)
    models = options.parse_args().models
    figures = Figures(models)
    with tempfile.TemporaryDirectory() as folder:
        for measure in (latency, at_rest):
            with Plane("opbench") as plane:
                asyncio.run(measure(plane, Path(folder), figures))
    text = table(figures)
    write(text, models)
    print(text)


if __name__ == "__main__":
    main()
