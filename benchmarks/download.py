"""`moorage download` beside `hf download` (huggingface_hub, Xet off), against the local hub on this machine.

Everything is measured from outside: CPU and memory by wait4, bytes by the hub's own log. The two take turns.
Writes benchmarks/results/download.md; `--only NAME` measures one table and prints it, `--runs N` sets the runs (5).
`moorage` verifies every byte in all tables; `hf download` checks sizes only.
"""

import argparse
import json
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks/results/download.md"
BIN = Path(sys.executable).parent
MB, GB = 10**6, 10**9

REPOS: dict[str, Any] = {
    "bench/40m": {"files": {"model.gguf": {"size": 40 * MB, "seed": 1}}},
    "bench/1280m": {"files": {"model.gguf": {"size": 1280 * MB, "seed": 2}}},
    "bench/2g": {"files": {"model.gguf": {"size": 2 * GB, "seed": 3}}},
    "bench/8g": {"files": {"model.gguf": {"size": 8 * GB, "seed": 4}}},
    "bench/gated": {"gated": "manual", "files": {"model.gguf": {"size": MB, "seed": 5}}},
}


@dataclass
class Used:
    """What one process took: CPU and wall seconds, peak memory in MiB, exit code."""

    cpu: float
    wall: float
    rss: float
    code: int


class Bench:
    """A hub as a process of its own, a scratch folder, and the two commands."""

    def __init__(self, folder: Path, url: str, runs: int) -> None:
        self.folder, self.url, self.runs = folder, url, runs
        self.dest = folder / "out"

    def moorage(self, repo: str, *options: str) -> list[str]:
        command = [BIN / "moorage", "download", "--allow-loopback", "--endpoint", self.url, "--repo", repo]
        return [*map(str, command), "--dest", str(self.dest), *options]

    def hf(self, repo: str) -> list[str]:
        return [str(BIN / "hf"), "download", repo, "--local-dir", str(self.dest)]

    def start(self, command: list[str]) -> subprocess.Popen[bytes]:
        hub = {"HF_ENDPOINT": self.url, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(self.folder / "hf-home")}
        quiet = {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_UPDATE_CHECK": "1"}
        null = subprocess.DEVNULL
        return subprocess.Popen(command, stdout=null, stderr=null, env={**os.environ, **hub, **quiet})

    def run(self, command: list[str]) -> Used:
        begin = time.monotonic()
        process = self.start(command)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        cpu = usage.ru_utime + usage.ru_stime
        return Used(cpu, time.monotonic() - begin, usage.ru_maxrss / 1024, process.returncode)

    def fresh(self, command: list[str]) -> Used:
        """A run into an empty folder, which must end well."""
        self.clear()
        used = self.run(command)
        if used.code:
            raise SystemExit(f"{command[1:3]} ended with {used.code}")
        return used

    def turns(self, commands: dict[str, list[str]]) -> dict[str, list[Used]]:
        """`runs` runs of each, taking turns."""
        taken: dict[str, list[Used]] = {name: [] for name in commands}
        for _ in range(self.runs):
            for name, command in commands.items():
                taken[name].append(self.fresh(command))
        return taken

    def clear(self) -> None:
        for folder in (self.dest, self.folder / "hf-home"):
            shutil.rmtree(folder, ignore_errors=True)

    def control(self, path: str, method: str = "GET", body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data=data, method=method)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def limit(self, *, connection: int = 0, total: int = 0) -> None:
        self.control("/_limits", "PUT", {"connectionRate": connection, "rate": total})

    def sent(self) -> int:
        """Body bytes of files sent since the log was last cleared."""
        return sum(r["sent"] for r in self.control("/_log") if "model.gguf" in r["path"])


@contextmanager
def bench(runs: int) -> Iterator[Bench]:
    with tempfile.TemporaryDirectory(prefix="bench-download-", dir=os.environ.get("BENCH_DIR")) as name:
        folder = Path(name)
        (folder / "root").mkdir()
        (folder / "root/hub.json").write_text(json.dumps({"tokens": {}, "repos": REPOS}))
        small = folder / "root/bench/small"
        for number in range(10_000):
            path = small / str(number % 100) / f"{number}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(str(number))
        command = [sys.executable, "-m", "e2e.hub", "--root", str(folder / "root"), "--port", "0", "--rescan", "1e9"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        try:
            assert process.stdout
            yield Bench(folder, json.loads(process.stdout.readline())["url"], runs)
        finally:
            process.terminate()
            process.wait(10)


def mid(values: list[float], form: str = ".2f") -> str:
    """Median and spread."""
    return f"{statistics.median(values):{form}} ({min(values):{form}}..{max(values):{form}})"


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def cpu(b: Bench) -> str:
    """CPU per GB, 2 GB file, no limits."""
    commands = {
        "hf download (no checksum)": b.hf("bench/2g"),
        "moorage, 8 connections": b.moorage("bench/2g"),
        "moorage, 1 connection": b.moorage("bench/2g", "--connections", "1"),
        "moorage, no checksum": b.moorage("bench/2g", "--verify", "none"),
    }
    taken = b.turns(commands)
    peer = statistics.median(u.cpu for u in taken["hf download (no checksum)"])
    rows = []
    for name, runs in taken.items():
        ratio = statistics.median(u.cpu for u in runs) / peer
        rows.append([name, mid([u.cpu / 2 for u in runs]), f"{ratio:.2f}", mid([2000 / u.wall for u in runs], ".0f")])
    return table(["2 GB file, loopback", "CPU-s per GB", "ratio to hf", "MB/s"], rows)


def connections(b: Bench) -> str:
    """A source that gives each connection 16 MB/s."""
    b.limit(connection=16 * MB)
    counts = (1, 2, 4, 8, 16)
    commands = {str(n): b.moorage("bench/1280m", "--connections", str(n)) for n in counts}
    taken = b.turns({"hf": b.hf("bench/1280m"), **commands})
    b.limit()
    speed = {name: [1280 / u.wall for u in runs] for name, runs in taken.items()}
    one = statistics.median(speed["1"])
    rows = [["hf download", "1", mid(speed["hf"], ".0f"), f"{statistics.median(speed['hf']) / one:.2f}"]]
    for name in map(str, counts):
        rows.append(["moorage", name, mid(speed[name], ".0f"), f"{statistics.median(speed[name]) / one:.2f}"])
    return table(["1.28 GB, 16 MB/s per connection", "connections", "MB/s, all in", "ratio to one"], rows)


def kills(b: Bench) -> str:
    """kill -9 at a random time, then a run to the end: bytes the source had to send, over the file's size."""
    rows = []
    for name, repo, size, count, command in (
        ("moorage", "bench/40m", 40 * MB, 10 * b.runs, b.moorage("bench/40m")),
        ("moorage", "bench/2g", 2 * GB, 10 * b.runs, b.moorage("bench/2g")),
        ("hf download", "bench/2g", 2 * GB, b.runs, b.hf("bench/2g")),
    ):
        # Slower than loopback, so that the kill falls into the transfer and not into start-up; hf needs no mercy.
        b.limit(total=size // 2)
        whole, ratios = b.fresh(command).wall, []
        for _ in range(count):
            b.clear()
            b.control("/_log", "DELETE")
            killed = b.start(command)
            time.sleep(random.uniform(0.1, whole * 0.95))
            killed.kill()
            killed.wait()
            used = b.run(command)  # moorage's exit code 0 says that the sha256 is right
            if used.code:
                raise SystemExit(f"{name} did not recover: {used.code}")
            ratios.append(b.sent() / size)
        b.limit()
        rows.append([name, repo.removeprefix("bench/"), str(count), mid(ratios, ".3f")])
    return table(["kill -9 once, at a random time, then to the end", "file", "times", "bytes sent / size"], rows)


def memory(b: Bench) -> str:
    """Peak resident memory by file size."""
    rows = []
    for repo in ("40m", "2g", "8g"):
        taken = b.turns({"hf": b.hf(f"bench/{repo}"), "moorage": b.moorage(f"bench/{repo}")})
        rows.append([repo, *(mid([u.rss for u in taken[name]], ".0f") for name in ("moorage", "hf"))])
    return table(["file", "moorage, peak MiB", "hf download, peak MiB"], rows)


def refusals(b: Bench) -> str:
    """Seconds to a permanent error, the start of Python included."""
    rows = []
    for what, repo in (("no such repository", "bench/nothing"), ("gated", "bench/gated")):
        times: dict[str, list[float]] = {"moorage": [], "hf": []}
        for _ in range(b.runs):
            for name, command in (("moorage", b.moorage(repo)), ("hf", b.hf(repo))):
                b.clear()
                used = b.run(command)
                if not used.code:
                    raise SystemExit(f"{name} took {repo} for good")
                times[name].append(used.wall)
        rows.append([what, *(mid(t) for t in times.values())])
    return table(["permanent error", "moorage, s", "hf download, s"], rows)


def small(b: Bench) -> str:
    """10,000 files of a few bytes."""
    taken = b.turns({"moorage": b.moorage("bench/small"), "hf download": b.hf("bench/small")})
    rows = [
        [name, mid([u.wall for u in runs], ".1f"), mid([u.cpu for u in runs], ".1f")] for name, runs in taken.items()
    ]
    return table(["10,000 files", "seconds", "CPU-s"], rows)


TABLES: dict[str, Callable[[Bench], str]] = {
    "cpu": cpu,
    "connections": connections,
    "kills": kills,
    "memory": memory,
    "refusals": refusals,
    "small": small,
}


def heading() -> str:
    libraries = ", ".join(f"{name} {version(name)}" for name in ("huggingface_hub", "isal"))
    return (
        "# Downloads\n\n"
        f"Made by `benchmarks/download.py`, {time.strftime('%Y-%m-%d', time.gmtime())}: Python "
        f"{platform.python_version()}, {libraries}, {os.cpu_count()} CPU cores shared with the hub process and with "
        f"other work (load {os.getloadavg()[1]:.1f}); medians (least..most), runs taking turns. "
        "`moorage` hashes every byte; `hf download` (Xet off) compares sizes only.\n"
    )


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--only", choices=TABLES)
    options.add_argument("--runs", type=int, default=5)
    asked = options.parse_args()
    parts = []
    with bench(asked.runs) as b:
        for name, measure in TABLES.items():
            if asked.only in (None, name):
                b.clear()
                parts.append(f"## {measure.__doc__.strip()}\n\n{measure(b)}" if measure.__doc__ else measure(b))
                print(parts[-1], flush=True)
    if not asked.only:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text("\n".join([heading(), *parts]))


if __name__ == "__main__":
    main()
