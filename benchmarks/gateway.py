"""The gateway beside nginx + Lua and LiteLLM doing the same: CPU for each request and each streamed chunk, what they add
to the time, and who closes the engine when the client goes; then what only the gateway does: holding, retargeting, a
million requests, and a million on a day on which nothing goes right.

Needs nginx with its Lua module, lua-cjson and wrk (Debian: nginx libnginx-mod-http-lua lua-cjson wrk) for all parts but
`day` and `cluster`; installs LiteLLM from PyPI into a cache folder, and compiles the gateway's data path. Each proxy has
one process on one core, everything else the other cores. Writes benchmarks/results/gateway.md; with --only, those parts of it.
"""

import argparse
import asyncio
import contextlib
import os
import shutil
import statistics
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import TypeVar

import uvloop

from benchmarks.proxies import alone, load, page, peers
from benchmarks.proxies.engines import Paced, short_answers
from benchmarks.proxies.load import spread
from benchmarks.proxies.peers import Proxy

RESULTS = Path(__file__).parent / "results/gateway.md"
ROUNDS = 7
SLOW_ROUNDS = 3  # of LiteLLM, whose figures are far from all others
STREAMS = 100
INTERPRETED = "Moorage, interpreted"
REQUESTS = 1_000_000
PARTS = ("requests", "streams", "held", "retarget", "cluster", "soak", "day")
WITHOUT_NGINX = {"cluster", "day"}
Peer = Callable[[Path, str], AbstractContextManager[Proxy]]
T = TypeVar("T")


def main() -> None:
    """Measure, print, and write the page."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument(
        "--only", action="append", choices=PARTS, metavar="PART", help=f"one of {', '.join(PARTS)}; may be repeated"
    )
    options.add_argument("--requests", type=int, default=REQUESTS, help="of `soak` and `day` (default: %(default)s)")
    options.add_argument("--without-litellm", action="store_true", help="LiteLLM takes minutes")
    given = options.parse_args()
    parts = [part for part in PARTS if part in (given.only or PARTS)]
    missing = [name for name in ("nginx", "wrk") if shutil.which(name) is None]
    if missing and not WITHOUT_NGINX.issuperset(parts):
        raise SystemExit(f"not installed: {', '.join(missing)}; see --help")
    when = page.provenance()
    with tempfile.TemporaryDirectory() as made:
        found = dict(_measured(Path(made), parts, given))
    for lines in found.values():
        print("\n".join(lines))
    if given.only:
        page.renew(RESULTS, found, when)
    else:
        beside, only = [page.block(p, found[p]) for p in PARTS[:2]], [page.block(p, found[p]) for p in PARTS[2:]]
        RESULTS.write_text(
            "\n".join([*_header(when), *beside, "## What only the gateway does", "", ""]) + "".join(only)
        )


def _measured(folder: Path, parts: list[str], given: argparse.Namespace) -> Iterator[tuple[str, list[str]]]:
    moorage = partial(peers.moorage, code=peers.compiled(folder))
    peers_of: dict[str, Peer] = {
        "Moorage": moorage,
        INTERPRETED: partial(peers.moorage, name=INTERPRETED),
        "nginx + Lua": peers.nginx,
    }
    if not given.without_litellm and {"requests", "streams"} & set(parts):
        peers.installed_litellm()
        peers_of["LiteLLM"] = peers.litellm
    with contextlib.ExitStack() as stack:
        engine = ""
        if not WITHOUT_NGINX.issuperset(parts):
            engine = stack.enter_context(short_answers(folder / "engine", peers.free_port()))
        measures: dict[str, Callable[[], list[str]]] = {
            "requests": lambda: _short(folder, engine, peers_of),
            "streams": lambda: asyncio.run(_streamed(folder, peers_of)),
            "held": lambda: asyncio.run(alone.held(folder, engine, moorage)),
            "retarget": lambda: asyncio.run(alone.retarget(folder, moorage)),
            "cluster": lambda: asyncio.run(alone.cluster(folder, moorage)),
            "soak": lambda: alone.soak(folder, engine, moorage, given.requests),
            "day": lambda: uvloop.run(alone.day(folder, moorage, given.requests)),
        }
        for part in parts:
            yield part, measures[part]()


def _header(when: str) -> list[str]:
    return [
        "# The gateway, beside nginx + Lua and LiteLLM",
        "",
        f"{when} Median (min..max). CPU is user and system time",
        "of the proxy's one process, on a core of its own as far as the machine has one to spare: good as a ratio. `python -m benchmarks.gateway` repeats it.",
        f"Moorage runs on {_version()}, compiled as in its image (docs/adr/0026-compiled-data-path.md), and once more interpreted.",
        "All put three parameters into a chat where the client has none and exchange the model's name.",
        f"nginx 1.22 + lua-nginx-module 0.10.23 + lua-cjson 2.1; {peers.LITELLM.replace('[proxy]==', ' ')}, one worker, no database.",
        "Parts with a note of their own were measured anew later (`--only PART`).",
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


if __name__ == "__main__":
    main()
