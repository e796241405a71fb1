"""The gateway beside nginx + Lua and LiteLLM doing the same: CPU for each request and each streamed chunk, what they add
to the time, and who closes the engine when the client goes; then what only the gateway does: holding, retargeting, and
a million requests.

Needs nginx with its Lua module, lua-cjson and wrk (Debian: nginx libnginx-mod-http-lua lua-cjson wrk); installs LiteLLM
from PyPI into a cache folder (`--without-litellm`: not), and compiles the gateway's data path. Each proxy has one process on one core, everything else the
other cores. Writes benchmarks/results/gateway.md.
"""

import asyncio
import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import TypeVar

from benchmarks.proxies import load, peers
from benchmarks.proxies.engines import Paced, short_answers
from benchmarks.proxies.load import spread
from benchmarks.proxies.peers import Proxy

RESULTS = Path(__file__).parent / "results/gateway.md"
ROUNDS = 7
SLOW_ROUNDS = 3  # of LiteLLM, whose figures are far from all others
STREAMS = 100
INTERPRETED = "Moorage, interpreted"
HELD = 1000
SOAK = 1_000_000
Peer = Callable[[Path, str], AbstractContextManager[Proxy]]
T = TypeVar("T")


def main() -> None:
    """Measure, print, and write the page."""
    missing = [name for name in ("nginx", "wrk") if shutil.which(name) is None]
    if missing:
        raise SystemExit(f"not installed: {', '.join(missing)}; see this file's first lines")
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        moorage = partial(peers.moorage, code=peers.compiled(folder))
        interpreted = partial(peers.moorage, name=INTERPRETED)
        peers_of: dict[str, Peer] = {"Moorage": moorage, INTERPRETED: interpreted, "nginx + Lua": peers.nginx}
        if "--without-litellm" not in sys.argv:
            peers.installed_litellm()
            peers_of["LiteLLM"] = peers.litellm
        port = peers.free_port()
        with short_answers(folder / "engine", port) as engine:
            parts = [*_short(folder, engine, peers_of), *asyncio.run(_streamed(folder, peers_of))]
            parts += ["## What only the gateway does", "", *asyncio.run(_held(folder, engine, moorage))]
            parts += [*asyncio.run(_retarget(folder, engine, moorage)), *_soak(folder, engine, moorage)]
    page = "\n".join([*_header(load_before), *parts])
    print(page)
    RESULTS.write_text(page + "\n")


def _header(load_before: float) -> list[str]:
    run = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
    cpus = os.cpu_count() or 1
    crowded = (
        ""
        if load_before <= cpus
        else " OTHER WORK KEPT THE MACHINE BUSY: times and rates mean little here, CPU is dearer for all."
    )
    return [
        "# The gateway, beside nginx + Lua and LiteLLM",
        "",
        f"Commit {run.stdout.strip()}; load average before it {load_before:.1f} on {cpus} CPUs; median (min..max).{crowded} CPU is user and system time",
        "of the proxy's one process, on a core of its own as far as the machine has one to spare: good as a ratio. `python -m benchmarks.gateway` repeats it.",
        f"Moorage runs on {_version()}, compiled as in its image (docs/adr/0026-compiled-data-path.md), and once more interpreted.",
        "All put three parameters into a chat where the client has none and exchange the model's name.",
        f"nginx 1.22 + lua-nginx-module 0.10.23 + lua-cjson 2.1; {peers.LITELLM.replace('[proxy]==', ' ')}, one worker, no database.",
        "",
    ]


def _version() -> str:
    run = subprocess.run([peers.python(), "--version"], capture_output=True, text=True, check=True)
    return f"{'Debian' if peers.python().startswith('/usr/bin/') else 'this machine'}'s {run.stdout.strip()}"


@contextlib.contextmanager
def _all(folder: Path, engine: str, peers_of: dict[str, Peer], what: str) -> Iterator[list[Proxy]]:
    """All proxies in front of `engine`, each on the last core."""
    with contextlib.ExitStack() as stack:
        found = [
            stack.enter_context(peer(folder / f"{what}-{number}", engine))
            for number, peer in enumerate(peers_of.values())
        ]
        for proxy in found:
            _pin(proxy.pid)
        yield found


def _pin(pid: int) -> None:
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(int(task.name), {os.cpu_count() - 1})  # type: ignore[operator]


def _interleaved(proxies: list[Proxy], measure: Callable[[Proxy], T]) -> dict[str, list[T]]:
    """Rounds over all proxies, so that what else the machine does meets each of them."""
    found: dict[str, list[T]] = defaultdict(list)
    for number in range(ROUNDS):
        for proxy in proxies:
            if proxy.name != "LiteLLM" or number < SLOW_ROUNDS:
                found[proxy.name].append(measure(proxy))
    return found


def _ratio(found: dict[str, list[float]], name: str, digits: int = 2) -> str:
    """To nginx, round by round."""
    pairs = zip(found[name], found["nginx + Lua"], strict=False)
    return f"{statistics.median(one / other for one, other in pairs):.{digits}f}"


def _short(folder: Path, engine: str, peers_of: dict[str, Peer]) -> list[str]:
    direct = Proxy("direct", ("127.0.0.1", int(engine.rpartition(":")[2])), os.getpid())
    with _all(folder, engine, peers_of, "short") as proxies:
        for proxy in proxies:
            load.short(proxy, folder, 1000, 8, 1)  # warm
        small = _interleaved(proxies, lambda proxy: load.short(proxy, folder, 1000, 32, 3))
        large = _interleaved(proxies, lambda proxy: load.short(proxy, folder, 120_000, 32, 3))
        alone = _interleaved([direct, *proxies], lambda proxy: load.short(proxy, folder, 1000, 1, 1))
    for runs in (*small.values(), *large.values(), *alone.values()):
        assert sum(run.failed for run in runs) == 0, "a request failed"
    rows = ["## CPU for each request, and what is added to its time", ""]
    rows += [
        "| | CPU µs, 1 kB | to nginx | CPU µs, 120 kB | to nginx | added µs, p50 of one connection | requests/s, 32 connections |"
    ]
    rows += ["|---|---|---|---|---|---|---|"]
    cpu = {name: [run.cpu for run in runs] for name, runs in small.items()}
    big = {name: [run.cpu for run in runs] for name, runs in large.items()}
    for name in peers_of:
        added = [float(run.p50 - base.p50) for run, base in zip(alone[name], alone["direct"], strict=False)]
        rate = spread([run.per_second for run in small[name]], 0)
        rows.append(
            f"| {name} | {spread(cpu[name])} | {_ratio(cpu, name)} | {spread(big[name], 0)} | {_ratio(big, name)} | {spread(added, 0)} | {rate} |"
        )
    return [
        *rows,
        "",
        "To reach: 1.5 x nginx at most. lua-cjson changes some requests on the way (`[]` becomes `{}`, large integers lose digits); orjson does not.",
        "",
    ]


async def _streamed(folder: Path, peers_of: dict[str, Peer]) -> list[str]:
    found: dict[str, list[load.Streams]] = defaultdict(list)
    gone: dict[str, list[float | None]] = {}
    async with Paced().serving() as engine:
        direct = Proxy("direct", ("127.0.0.1", int(engine.address.rpartition(":")[2])), os.getpid())
        with _all(folder, engine.address, peers_of, "stream") as proxies:
            for number in range(ROUNDS):
                for proxy in (direct, *proxies):
                    # LiteLLM takes minutes for a hundred streams at once.
                    if proxy.name != "LiteLLM":
                        found[proxy.name].append(await load.streams(proxy, STREAMS))
                    elif number < SLOW_ROUNDS:
                        found[proxy.name].append(await load.streams(proxy, STREAMS // 10))
            for proxy in proxies:
                gone[proxy.name] = await load.disconnects(proxy, engine, 20 if proxy.name != "LiteLLM" else 3)
    rows = [
        f"## CPU for each streamed chunk: {STREAMS} streams of {engine.chunks} chunks, 50 a second (LiteLLM: {STREAMS // 10} streams)",
        "",
    ]
    rows += [
        "| | CPU µs/chunk | to nginx | added µs/chunk, p50 | p99 | client gone -> engine's connection closed, ms |"
    ]
    rows += ["|---|---|---|---|---|---|"]
    cpu = {name: [run.cpu for run in runs] for name, runs in found.items()}
    for name in peers_of:
        added = [
            [getattr(run, p) - getattr(base, p) for run, base in zip(found[name], found["direct"], strict=False)]
            for p in ("p50", "p99")
        ]
        rows.append(
            f"| {name} | {spread(cpu[name])} | {_ratio(cpu, name)} | {spread(added[0], 0)} | {spread(added[1], 0)} | {_gone(gone[name])} |"
        )
    return [*rows, "", "To reach: 1.5 x nginx at most; closed within 50 ms.", ""]


def _gone(times: list[float | None]) -> str:
    seen = [value for value in times if value is not None]
    never = len(times) - len(seen)
    return (spread(seen) if seen else "") + (
        f"{'; ' if seen else ''}{never} of {len(times)} not within 3 s" if never else ""
    )


async def _held(folder: Path, engine: str, moorage: Peer) -> list[str]:
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


async def _retarget(folder: Path, engine: str, moorage: Peer) -> list[str]:
    """Two engines that say who they are; the alias moves between them while 16 clients ask without a pause."""

    async def serve(name: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
                await reader.readexactly(length)
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 1\r\n\r\n" + name)

    servers = [await asyncio.start_server(lambda r, w, n=name: serve(n, r, w), "127.0.0.1", 0) for name in (b"a", b"b")]
    engines = [f"127.0.0.1:{server.sockets[0].getsockname()[1]}" for server in servers]
    where, answers, times = folder / "retarget", [], []
    with moorage(where, engines[0]) as proxy:
        stop = asyncio.Event()

        async def client() -> None:
            while not stop.is_set():
                status, body = await load.ask(proxy.address, load.chat_body(1000))
                answers.append((time.perf_counter(), status, body))

        clients = [asyncio.create_task(client()) for _ in range(16)]
        for turn in range(1, 51):
            await asyncio.sleep(0.1)
            name = b"ab"[turn % 2 : turn % 2 + 1]
            _write(where / "routes.yaml", peers.routes(engines[turn % 2]))
            began, seen = time.perf_counter(), len(answers)
            while not any(body == name for _, _, body in answers[seen:]):
                await asyncio.sleep(0.0005)
            times.append((next(at for at, _, body in answers[seen:] if body == name) - began) * 1e3)
        stop.set()
        await asyncio.gather(*clients)
    for server in servers:
        server.close()
    failed = sum(status != 200 for _, status, _ in answers)
    assert failed == 0, "a request failed while the alias moved"
    return [
        f"- 50 retargets by the routes file under load ({len(answers)} requests, {failed} failed): the first answer of the new target comes "
        f"{spread(times, 0)} ms after the file was written (it is looked at every 20 ms and believed at the second look; from a cluster "
        "it takes 4 ms: `tests/api/test_gateway_cluster.py`)."
    ]  # fmt: skip


def _soak(folder: Path, engine: str, moorage: Peer) -> list[str]:
    where, sizes, done, failed = folder / "soak", [], 0, 0
    with moorage(where, engine) as proxy:
        load.short(proxy, folder, 1000, 64, 2, alternate=True)
        began = time.perf_counter()
        while done < SOAK:
            run = load.short(proxy, folder, 1000, 64, 5, alternate=True)
            done, failed = done + run.requests, failed + run.failed
            sizes.append((done, proxy.rss() / 1e6))
        took = time.perf_counter() - began
    points = [sizes[round(n * (len(sizes) - 1) / 9)] for n in range(10)]
    told = ", ".join(f"{mb:.1f}" for _, mb in points)
    assert failed == 0, "a request failed in the soak"
    return [
        f"- {done:,} requests in {took:.0f} s, every second one a stream of ten chunks, on 64 connections: {failed} failed. Resident MB at ten "
        f"points between the first {points[0][0]:,} requests and the end: {told}."
    ]  # fmt: skip


if __name__ == "__main__":
    main()
