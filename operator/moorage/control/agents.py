"""Reads the agents on GPU nodes: what their GPUs hold, bounded in time and size.

An agent is believed about its own node only (the one its pod is bound to) and only in the namespace where the chart put
it. One that is silent or talks nonsense changes nothing: its last report grows old, and planners look at the age.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import aiohttp
import orjson

from moorage.control import bounded
from moorage.control.store import Key
from moorage.placement.gpu_report import GpuReport, from_json, totals_of, used_by_pod
from moorage.planning.types import Manifest

log = logging.getLogger(__name__)

PORT = 9445
PATH = "/v1/gpus"
PERIOD_SECONDS = 15.0
"""Between two readings of an agent that nobody waits for."""
EAGER_SECONDS = 1.0
TIMEOUT_SECONDS = 2.0
AT_ONCE = 32
FORGET_SECONDS = 600.0
"""A node whose agent has been silent for so long counts as one without."""
NEWS_MIB = 32
"""A pod's Model is looked at again when the memory of its GPUs has changed by so much."""

Where = tuple[str, str]


@dataclass
class _Node:
    """What is known of one node's agent; times are monotonic seconds."""

    tried: float = 0.0
    received: float = 0.0
    report: GpuReport | None = None
    failed: str = ""
    task: asyncio.Task[None] | None = None


@dataclass(frozen=True)
class Listeners:
    """Who hears of news: `totals()` when a node's GPUs or their sizes changed, `used(pod)` when the memory that a pod
    (namespace, name) holds did, `wake(key)` for those that wait for a node's report."""

    totals: Callable[[], None]
    used: Callable[[Where], None]
    wake: Callable[[Key], None]


class AgentReader:
    """Polls the agents that `pods` tells of (projections with node and ip)."""

    def __init__(self, pods: Callable[[], Iterable[Manifest]], listeners: Listeners, *, port: int = PORT) -> None:
        self._pods, self._tell, self._port = pods, listeners, port
        self._nodes: dict[str, _Node] = {}
        self._waiting: dict[Key, tuple[frozenset[str], float]] = {}
        self._places = asyncio.Semaphore(AT_ONCE)
        self._reports: tuple[float, Mapping[str, GpuReport]] | None = None
        self._session: aiohttp.ClientSession | None = None

    # -- what planners see ---------------------------------------------------------------------------------------------

    def reports(self) -> Mapping[str, GpuReport]:
        """The newest report of each node, its age counted up to now; put together anew with the next reading, or after
        a second."""
        now = time.monotonic()
        if self._reports is None or now - self._reports[0] >= 1:
            self._reports = now, {name: aged for name, node in self._nodes.items() if (aged := _aged(node, now))}
        return self._reports[1]

    def totals(self) -> dict[str, tuple[int, ...]]:
        """MiB of each GPU (or each MIG device, on a node that has only those), by node."""
        return {name: found for name, node in self._nodes.items() if node.report and (found := totals_of(node.report))}

    def waited(self, key: Key) -> float:
        """Seconds since `key` began to wait for memory; 0 where it does not."""
        known = self._waiting.get(key)
        return time.monotonic() - known[1] if known else 0.0

    def wait(self, key: Key, nodes: Iterable[str]) -> None:
        """Read the agents of `nodes` every second for `key`, until `forget`."""
        since = self._waiting[key][1] if key in self._waiting else time.monotonic()
        self._waiting[key] = (frozenset(nodes), since)

    def forget(self, key: Key) -> None:
        """`key` waits no longer."""
        self._waiting.pop(key, None)

    # -- reading -------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Poll until cancelled."""
        while True:
            self.poll()
            await asyncio.sleep(EAGER_SECONDS / 2)

    async def settle(self, timeout: float) -> None:
        """Ask every agent once and wait for the answers, `timeout` seconds at most."""
        self.poll()
        if tasks := [node.task for node in self._nodes.values() if node.task]:
            await asyncio.wait(tasks, timeout=timeout)

    async def close(self) -> None:
        """Stop all readings."""
        tasks = [node.task for node in self._nodes.values() if node.task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._session is not None:
            await self._session.close()

    def poll(self) -> None:
        """Begin the readings that are due; forget nodes that have been silent for too long."""
        now = time.monotonic()
        eager = {node for nodes, _ in self._waiting.values() for node in nodes}
        for pod in self._pods():
            node = self._nodes.setdefault(pod["node"], _Node())
            period = EAGER_SECONDS if pod["node"] in eager else PERIOD_SECONDS
            if node.task is None and (not node.tried or now - node.tried >= period):
                node.tried = now
                node.task = asyncio.create_task(self._read(pod["node"], pod["ip"], node))
        for name in [n for n, node in self._nodes.items() if now - max(node.tried, node.received) > FORGET_SECONDS]:
            del self._nodes[name]
            self._tell.totals()

    async def _read(self, name: str, ip: str, node: _Node) -> None:
        try:
            async with self._places:
                report = await self._get(ip)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            if not node.failed:
                log.warning("the agent of node %s cannot be read: %s", name, error or type(error).__name__)
            node.failed = str(error) or type(error).__name__
        else:
            node.failed = ""
            self._take(name, node, report)
        finally:
            node.task = None
        for key, (nodes, _) in tuple(self._waiting.items()):
            if name in nodes:
                self._tell.wake(key)

    async def _get(self, ip: str) -> GpuReport:
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=TIMEOUT_SECONDS))
        host = f"[{ip}]" if ":" in ip else ip
        async with self._session.get(f"http://{host}:{self._port}{PATH}", allow_redirects=False) as answer:
            if answer.status != 200:
                raise ValueError(f"it answered {answer.status}")
            return from_json(orjson.loads(await bounded.read(answer)))

    def _take(self, name: str, node: _Node, report: GpuReport) -> None:
        before, node.report, node.received = node.report, report, time.monotonic()
        self._reports = None
        if report.problem and before is not None and not before.problem:
            log.warning("node %s: %s", name, report.problem)
        if (totals_of(before) if before else ()) != totals_of(report):
            self._tell.totals()
        for pod in _news(before, report):
            self._tell.used(pod)


def _aged(node: _Node, now: float) -> GpuReport | None:
    if node.report is None:
        return None
    return replace(node.report, age_ms=node.report.age_ms + int((now - node.received) * 1000))


def _news(before: GpuReport | None, now: GpuReport) -> list[Where]:
    """Pods whose memory is told for the first time, or has changed by more than a little."""
    known = used_by_pod(before) if before else {}
    return [
        pod
        for pod, used in used_by_pod(now).items()
        if pod not in known or abs(sum(used) - sum(known[pod])) >= NEWS_MIB
    ]
