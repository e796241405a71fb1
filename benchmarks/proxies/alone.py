"""What only the gateway does: holding, retargeting, a million requests, and a day on which nothing goes right.

Every part returns the lines that stand on the page.
"""

import asyncio
import contextlib
import os
import re
import socket
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from benchmarks.control_loop import Plane
from benchmarks.proxies import load, peers
from benchmarks.proxies.load import spread
from benchmarks.proxies.peers import Proxy
from moorage import names
from moorage.kube.resources import MODEL_ALIASES
from tests.process.gateway.acts import ACTS
from tests.process.gateway.hostileday import Day
from tests.process.gateway.moody import MoodyEngine
from tests.process.gateway.support import get
from tests.support.bed import Bed

HELD = 1000
CLIENTS = 16
TURNS = 50
POINTS = 10


class Moorage(Protocol):
    """Our gateway, compiled: in front of `engine`, or with a table from where `source` says."""

    def __call__(self, folder: Path, engine: str, *, source: tuple[str, ...] = ()) -> AbstractContextManager[Proxy]: ...


async def held(folder: Path, engine: str, moorage: Moorage) -> list[str]:
    """A thousand requests that wait for an engine."""
    took, sizes = [], []
    for number in range(3):
        where = folder / f"held-{number}"
        with moorage(where, "") as proxy:
            await asyncio.sleep(0.5)
            before = proxy.rss()
            tasks = [asyncio.create_task(load.ask(proxy.address, load.chat_body(1000))) for _ in range(HELD)]
            await asyncio.sleep(4)
            assert not any(task.done() for task in tasks), "an answer without an engine"
            sizes.append((proxy.rss() - before) / HELD / 1000)
            _write(where / "routes.yaml", peers.routes(engine))
            began = time.perf_counter()
            statuses = [(await task)[0] for task in tasks]
            took.append((time.perf_counter() - began) * 1e3)
            assert statuses == [200] * HELD, "a held request failed"
    return [
        f"- {HELD} requests held while no engine is there, then released: 0 errors, {spread(sizes)} kB each, all answered {spread(took, 0)} ms after the routes file was written."
    ]


def _write(file: Path, text: str) -> None:
    other = file.with_suffix(".new")
    other.write_text(text)
    other.replace(file)


# Retargeting


async def retarget(folder: Path, moorage: Moorage) -> list[str]:
    """The alias moves by the routes file."""
    where = folder / "retarget"
    async with _named_engines("127.0.0.1") as engines:

        async def point(turn: int) -> None:
            _write(where / "routes.yaml", peers.routes(engines[turn]))

        with moorage(where, engines[0]) as proxy:
            times, asked = await _moving(proxy, point)
    return [
        f"- {TURNS} retargets by the routes file under load ({asked} requests, 0 failed): the first answer of the new target comes "
        f"{spread(times, 0)} ms after the file was written (it is looked at every 20 ms and believed at the second look)."
    ]  # fmt: skip


async def cluster(folder: Path, moorage: Moorage) -> list[str]:
    """The alias moves by a patch that a real API server gets: kube-apiserver and etcd, no node, no operator."""
    with Plane(f"{os.environ.get('MOORAGE_TEST_CLUSTER', 'bench')}-gateway") as plane:
        kubeconfig = plane.cluster.kubeconfig
        patches: list[float] = []
        async with Bed.made(kubeconfig) as bed, _named_engines(_own_address()) as engines:
            for name, engine in zip("ab", engines, strict=True):
                await bed.model(name, maxSequences=64)
                await bed.kube.create(_slice(bed.namespace, name, engine))
            await bed.create("ModelAlias", "chat", {"targets": [{"modelRef": {"name": "a"}}]})

            async def point(turn: int) -> None:
                spec = {"targets": [{"modelRef": {"name": "ab"[turn]}}]}
                began = time.perf_counter()
                await bed.kube.merge_patch(MODEL_ALIASES, bed.namespace, "chat", {"spec": spec})
                patches.append((time.perf_counter() - began) * 1e3)

            source = ("--kubeconfig", str(kubeconfig), "--default-namespace", bed.namespace)
            with moorage(folder / "cluster", "", source=source) as proxy:
                times, asked = await _moving(proxy, point)
    return [
        f"- {TURNS} retargets by a patch of the ModelAlias at a real API server under load ({asked} requests, 0 failed): the first "
        f"answer of the new target comes p50 {statistics.median(times):.0f} ms, p95 {_percentile(times, 0.95):.0f} ms after the patch was sent; "
        f"the API server's own answer to it takes {statistics.median(patches):.0f} ms and {_percentile(patches, 0.95):.0f} ms of that. To reach: p50 < 20, all < 100."
    ]  # fmt: skip


async def _moving(proxy: Proxy, point: Callable[[int], Awaitable[None]]) -> tuple[list[float], int]:
    """`point` moves the alias to the first or second engine, again and again while clients ask without a pause.

    Milliseconds from each call to the first answer of the new engine, and the number of requests.
    """
    answers: list[tuple[float, int, bytes]] = []
    while (await load.ask(proxy.address, load.chat_body(1000)))[0] != 200:  # until the table is there
        await asyncio.sleep(0.1)
    stop = asyncio.Event()

    async def client() -> None:
        while not stop.is_set():
            status, body = await load.ask(proxy.address, load.chat_body(1000))
            answers.append((time.perf_counter(), status, body))

    clients, times = [asyncio.create_task(client()) for _ in range(CLIENTS)], []
    for turn in range(1, TURNS + 1):
        await asyncio.sleep(0.1)
        name, began, seen = b"ab"[turn % 2 : turn % 2 + 1], time.perf_counter(), len(answers)
        moving = asyncio.ensure_future(point(turn % 2))
        while not any(body == name for _, _, body in answers[seen:]):
            await asyncio.sleep(0.0005)
        times.append((next(at for at, _, body in answers[seen:] if body == name) - began) * 1e3)
        await moving
    stop.set()
    await asyncio.gather(*clients)
    failed = [(status, body) for _, status, body in answers if status != 200]
    assert not failed, f"requests failed while the alias moved: {failed[:3]}"
    return times, len(answers)


@contextlib.asynccontextmanager
async def _named_engines(host: str) -> AsyncIterator[list[str]]:
    """Two engines that answer `a` and `b`."""

    async def serve(name: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
                await reader.readexactly(length)
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 1\r\n\r\n" + name)

    servers = [await asyncio.start_server(lambda r, w, n=name: serve(n, r, w), host, 0) for name in (b"a", b"b")]
    try:
        yield [f"{host}:{server.sockets[0].getsockname()[1]}" for server in servers]
    finally:
        for server in servers:
            server.close()


def _own_address() -> str:
    """An address of this machine that an EndpointSlice may hold: none of the loopback. Nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))
        return str(probe.getsockname()[0])


def _slice(namespace: str, model: str, engine: str) -> dict[str, Any]:
    """What Kubernetes makes of a Model's Service and its one ready pod."""
    host, _, port = engine.rpartition(":")
    labels = {names.MANAGED_BY: "moorage", names.COMPONENT: "server", names.MODEL_LABEL: model}
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": f"{model}-bench", "namespace": namespace, "labels": labels},
        "addressType": "IPv4",
        "ports": [{"name": names.ENGINE_PORT_NAME, "port": int(port), "protocol": "TCP"}],
        "endpoints": [{"addresses": [host], "conditions": {"ready": True}}],
    }


def _percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(int(len(values) * share), len(values) - 1)]


# Many requests


def soak(folder: Path, engine: str, moorage: Moorage, requests: int) -> list[str]:
    """Well-behaved requests as fast as they go."""
    where, sizes, done, failed = folder / "soak", [], 0, 0
    with moorage(where, engine) as proxy:
        load.short(proxy, folder, 1000, 64, 2, alternate=True)
        began = time.perf_counter()
        while done < requests:
            run = load.short(proxy, folder, 1000, 64, 5, alternate=True)
            done, failed = done + run.requests, failed + run.failed
            sizes.append((done, proxy.rss() / 1e6))
        took = time.perf_counter() - began
    assert failed == 0, "a request failed in the soak"
    return [
        f"- {done:,} requests in {took:.0f} s, every second one a stream of ten chunks, on 64 connections: {failed} failed. {_flat(sizes)}"
    ]


async def day(folder: Path, moorage: Moorage, requests: int) -> list[str]:
    """The same with everything that happens on real days at once; every request is accounted for (`hostileday`)."""
    sizes: list[tuple[int, float]] = []
    async with MoodyEngine() as engine:
        with moorage(folder / "day", engine.address) as proxy:
            made = Day(
                engine,
                proxy.address,
                await _admin(folder / "day/log"),
                lambda text: _write(folder / "day/routes.yaml", text),
                requests,
                every=lambda done: sizes.append((done, proxy.rss() / 1e6)),
            )
            await _until_closed(made)
            opened = proxy.files()
            began = time.perf_counter()
            await made.run(ACTS)
            took = time.perf_counter() - began
            await made.check(idle=4.0)
            assert proxy.files() <= opened, f"{proxy.files()} open files, {opened} before"
    ended = made.ended
    return [
        f"- A hostile day: {ended.total():,} requests in {took:.0f} s, {made.steady:,} of them of well-behaved clients on {made.connections} connections, 0 of those failed. Around them {sum(made.acts.values()):,} "
        f"acts of {len(ACTS)} kinds: clients that leave within streams, queues and pipelines, read slowly, send half, too much or nonsense; engines that reset, break off, lie and answer 500; keys with limits of "
        f"requests, tokens and places; requests held for a Model that sleeps every other second; another table every second; {made.scrapes} scrapes. Gateway and clients count the same to the last one: {ended['ok']:,} answered, "
        f"{ended['cancelled']:,} cancelled, {ended['error']:,} failed as they had to, {ended['refused']:,} refused; at the end nothing in flight or held, no connection and no file left open, every place of every key free. {_flat(sizes)}"
    ]  # fmt: skip


async def _until_closed(made: Day) -> None:
    """Wait until the table with its keys is in force."""
    made.begin()
    status = 200
    while status != 401:
        await asyncio.sleep(0.05)
        async with made.client() as client:
            await client.send(get("/v1/models"))
            status = (await client.reply()).status
    made.baseline = await made.refused()


async def _admin(log: Path) -> tuple[str, int]:
    """Where the gateway says that its admin port is, which it does once it listens."""
    async with asyncio.timeout(20):
        while not (found := re.search(r"admin on (\S+):(\d+)", await asyncio.to_thread(log.read_text))):
            await asyncio.sleep(0.05)
    return found[1], int(found[2])


def _flat(sizes: list[tuple[int, float]]) -> str:
    points = [sizes[round(n * (len(sizes) - 1) / (POINTS - 1))] for n in range(POINTS)]
    told = ", ".join(f"{size:.1f}" for _, size in points)
    return f"Resident MB at ten points between the first {points[0][0]:,} requests and the end: {told}."
