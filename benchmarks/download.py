"""`moorage download` beside `hf download` (huggingface_hub), against the local hub on this machine.

Everything is measured from outside: CPU and memory by wait4, bytes by the hub's own log. The two take turns.
`moorage` verifies every byte in all tables; `hf download` checks sizes only.

Writes benchmarks/results/download.md, one part after the other; a part replaces what the file had of it. `--only PART`
(repeatable) measures some of them, `--runs N` sets the runs (5). With 5 runs on two cores and a disk of 200 MB/s: cpu
6 min, connections 10 (one connection at 16 MB/s is slow by intent), kills 15, memory 8, errors 2, small 4. BENCH_DIR
is where files go; on tmpfs (/dev/shm) kills take a third of that.
"""

import argparse
import hashlib
import json
import os
import platform
import random
import re
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
ALSO_SEEN = (
    "Runs that were worse than those below, on the same machine: CPU per GB 0.90 of hf's when nothing else ran, and"
    " about 0.80 over TLS; 6.68 times one connection with 8 on a disk in use by others (hence tmpfs); one kill -9 of"
    " fifty at 1.057 of a 2 GB file when deaths came by the clock and not by bytes."
)
"""Figures that a median of one run hides."""
BIN = Path(sys.executable).parent
MB, GB = 10**6, 10**9

REPOS: dict[str, Any] = {
    "bench/40m": {"files": {"model.gguf": {"size": 40 * MB, "seed": 1}}},
    "bench/1280m": {"files": {"model.gguf": {"size": 1280 * MB, "seed": 2}}},
    "bench/2g": {"files": {"model.gguf": {"size": 2 * GB, "seed": 3}}},
    "bench/6g": {"files": {"model.gguf": {"size": 6 * GB, "seed": 4}}},
    "bench/gated": {"gated": "manual", "files": {"model.gguf": {"size": MB, "seed": 5}}},
    "bench/private": {"private": True, "allow": ["nobody"], "files": {"model.gguf": {"size": MB, "seed": 5}}},
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

    def hf(self, repo: str, *options: str, xet: bool = False) -> list[str]:
        command = ["env", f"HF_HUB_DISABLE_XET={0 if xet else 1}", str(BIN / "hf"), "download", repo]
        return [*command, "--local-dir", str(self.dest), *options]

    def start(self, command: list[str]) -> subprocess.Popen[bytes]:
        hub = {"HF_ENDPOINT": self.url, "HF_HOME": str(self.folder / "hf-home")}
        quiet = {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_UPDATE_CHECK": "1"}
        null = subprocess.DEVNULL
        # Compiled modules are kept, as in an image: neither is to pay for compiling its own.
        compiled = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(self.folder / "compiled")}
        return subprocess.Popen(command, stdout=null, stderr=null, env={**os.environ, **hub, **quiet, **compiled})

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

    def turns(self, commands: dict[str, list[str]], fewer: dict[str, int] | None = None) -> dict[str, list[Used]]:
        """`runs` runs of each, or `fewer` of some, taking turns."""
        taken: dict[str, list[Used]] = {name: [] for name in commands}
        for turn in range(self.runs):
            for name, command in commands.items():
                if turn < (fewer or {}).get(name, self.runs):
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


def bounds(b: Bench) -> dict[str, float]:
    """What limits any downloader here, in MB/s: the source over one connection, the volume, one core's sha256."""
    block, found = random.randbytes(MB), {}
    url = f"{b.url}/bench/2g/resolve/main/model.gguf"
    begin, size = time.monotonic(), 0
    with urllib.request.urlopen(url, timeout=60) as answer:
        while chunk := answer.read(1 << 20):
            size += len(chunk)
    found["the source, one connection"] = size / MB / (time.monotonic() - begin)
    begin, path = time.monotonic(), b.folder / "written"
    with path.open("wb") as file:
        for _ in range(1000):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    found["the volume's writes"] = 1000 / (time.monotonic() - begin)
    path.unlink()
    begin, sums = time.process_time(), hashlib.sha256()
    for _ in range(500):
        sums.update(block)
    found["sha256 on one core"] = 500 / (time.process_time() - begin)
    return found


def cpu(b: Bench) -> str:
    """CPU per GB, no limits"""
    hf = "hf download, no checksum"
    commands = {
        hf: b.hf("bench/2g"),
        "hf download, Xet left on (this hub has none)": b.hf("bench/2g", xet=True),
        "moorage, 8 connections": b.moorage("bench/2g"),
        "moorage, 1 connection": b.moorage("bench/2g", "--connections", "1"),
        "moorage, no checksum": b.moorage("bench/2g", "--verify", "none"),
    }
    for command in list(commands.values())[::2]:
        b.fresh(command)  # compiles, and warms the hub
    limits = bounds(b)
    taken = b.turns(commands)
    peer = statistics.median(u.cpu for u in taken[hf])
    rows = []
    for name, runs in taken.items():
        ratio = statistics.median(u.cpu for u in runs) / peer
        rows.append([name, mid([u.cpu / 2 for u in runs]), f"{ratio:.2f}", mid([2000 / u.wall for u in runs], ".0f")])
    lowest = min(limits, key=lambda name: limits[name])
    told = ", ".join(f"{name} {speed:.0f} MB/s" for name, speed in limits.items())
    bound = (
        f"\nBounds just before: {told}. The lowest is {lowest}. Speed is that of a shared disk; CPU is what counts.\n"
    )
    return table(["2 GB file, loopback", "CPU-s per GB", "ratio to hf", "MB/s"], rows) + bound


def connections(b: Bench) -> str:
    """A source that gives each connection 16 MB/s"""
    b.limit(connection=16 * MB)
    counts = (1, 2, 4, 8, 16)
    commands = {str(n): b.moorage("bench/1280m", "--connections", str(n)) for n in counts}
    slow = {"hf": 2, "1": 2, "2": 2}  # they take 80 s a run and vary by a hundredth
    taken = b.turns({"hf": b.hf("bench/1280m"), **commands}, slow)
    b.limit()
    speed = {name: [1280 / u.wall for u in runs] for name, runs in taken.items()}
    one = statistics.median(speed["1"])
    rows = [["hf download", "1", mid(speed["hf"], ".0f"), f"{statistics.median(speed['hf']) / one:.2f}"]]
    for name in map(str, counts):
        rows.append(["moorage", name, mid(speed[name], ".0f"), f"{statistics.median(speed[name]) / one:.2f}"])
    bound = "\nThe source binds; the start of the process (a third of a second) is in every figure.\n"
    return table(["1.28 GB, 16 MB/s per connection", "connections", "MB/s, all in", "ratio to one"], rows) + bound


def kills(b: Bench) -> str:
    """kill -9 once, after a random part of the bytes, then a run to the end"""
    rows = []
    for name, repo, size, count, command in (
        ("moorage", "bench/40m", 40 * MB, 10 * b.runs, b.moorage("bench/40m")),
        ("moorage", "bench/2g", 2 * GB, 10 * b.runs, b.moorage("bench/2g")),
        ("hf download", "bench/2g", 2 * GB, b.runs, b.hf("bench/2g")),
    ):
        b.limit(total=size // 2)  # slower than loopback, so that the kill falls where it should
        ratios = []
        for _ in range(count):
            b.clear()
            b.control("/_log", "DELETE")
            killed, share = b.start(command), random.uniform(0.01, 0.99)
            while b.sent() < share * size and killed.poll() is None:
                time.sleep(0.01)
            killed.kill()
            killed.wait()
            used = b.run(command)  # moorage's exit code 0 says that the sha256 is right
            if used.code:
                raise SystemExit(f"{name} did not recover: {used.code}")
            ratios.append(b.sent() / size)
        b.limit()
        worst = sorted(ratios)[int(len(ratios) * 0.9)]
        rows.append([name, repo.removeprefix("bench/"), str(count), mid(ratios, ".3f"), f"{worst:.3f}"])
    return table(["", "file", "times", "bytes sent / size", "nine of ten below"], rows)


def memory(b: Bench) -> str:
    """Peak resident memory by file size"""
    rows = []
    for repo in ("40m", "2g", "6g"):
        taken = b.turns({"hf": b.hf(f"bench/{repo}"), "moorage": b.moorage(f"bench/{repo}")}, {"hf": 2, "moorage": 3})
        rows.append([repo, *(mid([u.rss for u in taken[name]], ".0f") for name in ("moorage", "hf"))])
    return table(["file", "moorage, peak MiB", "hf download, peak MiB"], rows)


def errors(b: Bench) -> str:
    """Seconds to a permanent error, the start of Python included"""
    gone = ["--revision", "no-such-branch"]
    cases = {
        "no such repository": (b.moorage("bench/nothing"), b.hf("bench/nothing")),
        "private, no token": (b.moorage("bench/private"), b.hf("bench/private")),
        "gated": (b.moorage("bench/gated"), b.hf("bench/gated")),
        "no such revision": (b.moorage("bench/40m", *gone), b.hf("bench/40m", *gone)),
        "no such file": (b.moorage("bench/40m", "--file", "x.gguf"), b.hf("bench/40m", "x.gguf")),
        "nothing matches": (b.moorage("bench/40m", "--include", "*.bin"), b.hf("bench/40m", "--include", "*.bin")),
        "one bit wrong, always": (b.moorage("bench/40m"), b.hf("bench/40m")),
        "a page to sign in, always": (b.moorage("bench/40m"), b.hf("bench/40m")),
    }
    faults = {
        "one bit wrong, always": {"kind": "corrupt", "at": 22 * MB},
        "a page to sign in, always": {"kind": "html"},
    }
    rows = []
    for what, commands in cases.items():
        if fault := faults.get(what):
            b.control("/_rules", "POST", {**fault, "path": "model.gguf", "server": "cdn", "count": None})
        taken: tuple[list[Used], list[Used]] = ([], [])
        for _ in range(b.runs):
            for runs, command in zip(taken, commands, strict=True):
                b.clear()
                runs.append(b.run(command))
        b.control("/_rules", "DELETE")
        cells = [mid([u.wall for u in runs]) + f", exit {runs[0].code}" for runs in taken]
        rows.append([what, *cells])
    return table(["permanent error", "moorage, s", "hf download, s"], rows)


def small(b: Bench) -> str:
    """10,000 files of a few bytes"""
    both = {"moorage": b.moorage("bench/small"), "hf download": b.hf("bench/small")}
    taken = b.turns(both, {"moorage": 3, "hf download": 2})
    rows = [
        [name, mid([u.wall for u in runs], ".1f"), mid([u.cpu for u in runs], ".1f")] for name, runs in taken.items()
    ]
    return table(["10,000 files", "seconds", "CPU-s"], rows)


TABLES: dict[str, Callable[[Bench], str]] = {
    "cpu": cpu,
    "connections": connections,
    "kills": kills,
    "memory": memory,
    "errors": errors,
    "small": small,
}


def heading() -> str:
    libraries = ", ".join(f"{name} {version(name)}" for name in ("huggingface_hub", "isal"))
    return (
        "# Downloads\n\n"
        f"Made by `benchmarks/download.py`: Python {platform.python_version()}, {libraries}, {os.cpu_count()} CPU cores"
        " shared with the hub process and with other work; medians (least..most), runs taking turns. `moorage` hashes"
        " every byte; `hf download` compares sizes only.\n\n"
        f"{ALSO_SEEN}\n"
    )


def conditions(begin: float) -> str:
    day, load = time.strftime("%Y-%m-%d %H:%M", time.gmtime()), os.getloadavg()
    where = "tmpfs" if os.environ.get("BENCH_DIR", "").startswith("/dev/shm") else "disk"
    return f"\n{day} UTC, on {where}, {(time.monotonic() - begin) / 60:.0f} min, load at its end {load[1]:.1f}.\n"


def save(title: str, text: str) -> None:
    """Put a part into the results, in the place it had, else in its order."""
    old = RESULTS.read_text() if RESULTS.exists() else ""
    parts = dict(re.findall(r"^## (.+?)\n\n(.*?)(?=^## |\Z)", old, re.MULTILINE | re.DOTALL))
    parts[title] = text
    order = [str(measure.__doc__) for measure in TABLES.values()]
    sections = [f"## {name}\n\n{parts[name].strip()}\n" for name in order if name in parts]
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text("\n".join([heading(), *sections]))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--only", choices=TABLES, action="append", help="repeatable; all without")
    options.add_argument("--runs", type=int, default=5)
    asked = options.parse_args()
    with bench(asked.runs) as b:
        for name, measure in TABLES.items():
            if asked.only and name not in asked.only:
                continue
            begin = time.monotonic()
            b.clear()
            text = measure(b) + conditions(begin)
            print(f"## {measure.__doc__}\n\n{text}", flush=True)
            save(str(measure.__doc__), text)


if __name__ == "__main__":
    main()
