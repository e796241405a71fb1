"""What is sent through a proxy, and what is read off it."""

import asyncio
import json
import re
import socket
import statistics
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.proxies.engines import Paced
from benchmarks.proxies.peers import KEY, Proxy

_HEADERS = f"Host: bench\r\nContent-Type: application/json\r\nAuthorization: Bearer {KEY}\r\n"
_WRK = """
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.headers["Authorization"] = "Bearer %s"
wrk.body = [[%s]]
%s
done = function(summary, latency, requests)
  local e = summary.errors
  io.write(string.format("RESULT %%d %%d %%d %%d %%d\\n", summary.requests, summary.duration,
    e.connect + e.read + e.write + e.status + e.timeout, latency:percentile(50), latency:percentile(99)))
end
"""
_ALTERNATE = """
local paths, turn = {"/v1/chat/completions", "/v1/completions"}, 0
request = function() turn = turn + 1; return wrk.format(nil, paths[turn % 2 + 1]) end
"""


@dataclass(frozen=True)
class Short:
    """A run of short answers: CPU microseconds of the proxy for each, microseconds until the answer."""

    cpu: float
    p50: int
    p99: int
    per_second: float
    failed: int
    requests: int


def chat_body(size: int, **more: object) -> str:
    """A chat of about `size` bytes."""
    empty = {"model": "chat", "messages": [{"role": "user", "content": ""}], "max_tokens": 100, "user": "u-1", **more}
    empty["messages"] = [{"role": "user", "content": "x" * (size - len(json.dumps(empty)))}]
    return json.dumps(empty)


def short(proxy: Proxy, folder: Path, size: int, connections: int, seconds: float, *, alternate: bool = False) -> Short:
    """Requests of `size` bytes one after the other on each of `connections`, by wrk; `alternate`: every second a stream."""
    script = folder / "wrk.lua"
    script.write_text(_WRK % (KEY, chat_body(size), _ALTERNATE if alternate else ""))
    url = f"http://{proxy.address[0]}:{proxy.address[1]}/v1/chat/completions"
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds:g}s", "--timeout", "30s", "-s", str(script), url]
    before = proxy.cpu()
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    spent = proxy.cpu() - before
    found = re.search(r"RESULT (\d+) (\d+) (\d+) (\d+) (\d+)", output)
    if not found:
        raise SystemExit(f"wrk: {output}")
    requests, took, failed, p50, p99 = map(int, found.groups())
    return Short(spent / max(requests, 1) * 1e6, p50, p99, requests / took * 1e6, failed, requests)


@dataclass(frozen=True)
class Streams:
    """A run of streams: CPU microseconds of the proxy for each chunk, microseconds from the engine's write to the client."""

    cpu: float
    p50: float
    p99: float
    chunks: int


async def streams(proxy: Proxy, count: int) -> Streams:
    """`count` streams at once, to their ends."""
    before = proxy.cpu()
    found = await asyncio.gather(*(_stream(proxy, n / count * 0.02) for n in range(count)))
    spent = proxy.cpu() - before
    delays = sorted(delay for delays in found for delay in delays)
    return Streams(
        spent / len(delays) * 1e6, delays[len(delays) // 2] / 1e3, delays[len(delays) * 99 // 100] / 1e3, len(delays)
    )


async def _stream(proxy: Proxy, wait: float) -> list[int]:
    await asyncio.sleep(wait)
    reader, writer = await asyncio.open_connection(*proxy.address)
    writer.write(request(chat_body(1000, stream=True)))
    delays, rest = [], b""
    while data := await reader.read(1 << 16):
        now = time.perf_counter_ns()
        rest += data
        *events, rest = rest.split(b"\n\n")
        stamps = (re.search(rb'"content":"(\d{20})"', event) for event in events)
        delays += [now - int(stamp[1]) for stamp in stamps if stamp]
        if any(b"[DONE]" in event for event in events):
            break
    writer.close()
    return delays


def request(body: str) -> bytes:
    """One POST."""
    return f"POST /v1/chat/completions HTTP/1.1\r\n{_HEADERS}Content-Length: {len(body)}\r\n\r\n{body}".encode()


async def disconnects(proxy: Proxy, engine: Paced, count: int, limit: float = 3.0) -> list[float | None]:
    """Milliseconds from a client's closing, before anything was answered, to the engine's seeing it; None: not in time."""
    found: list[float | None] = []
    for _ in range(count):
        _, writer = await asyncio.open_connection(*proxy.address)
        body = {"model": "chat", "messages": [{"role": "user", "content": "be silent"}]}
        writer.write(request(json.dumps(body)))
        began, waiting, gone = time.perf_counter(), engine.waiting, len(engine.gone)
        while engine.waiting == waiting and time.perf_counter() - began < 10:
            await asyncio.sleep(0.005)
        left = time.perf_counter()
        writer.transport.abort()
        while len(engine.gone) == gone and time.perf_counter() - left < limit:
            await asyncio.sleep(0.0005)
        found.append((engine.gone[-1] - left) * 1e3 if len(engine.gone) > gone else None)
    return found


async def ask(address: tuple[str, int], body: str) -> tuple[int, bytes]:
    """Status and body of one answer on a connection of its own."""
    reader, writer = await asyncio.open_connection(*address)
    writer.write(request(body))
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"(?i)content-length: (\d+)", head)
    data = await reader.readexactly(int(length[1])) if length else await reader.read()
    writer.close()
    return int(head.split()[1]), data


def spread(values: list[float], digits: int = 1) -> str:
    """Median (smallest..largest)."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}..{max(values):.{digits}f})"


def reachable(address: tuple[str, int]) -> bool:
    """Whether somebody listens there."""
    with socket.socket() as probe:
        return probe.connect_ex(address) == 0
