"""What the download tests share: repositories on disk, certificates."""

import hashlib
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.support.eventually import PATIENCE

ROOT = Path(__file__).resolve().parents[3]


def make_repo(
    root: Path, repo: str, content: dict[str, bytes], *, tokens: dict[str, str] | None = None, **config
) -> Path:
    """Write a repository and its part of hub.json; `config` as in e2e/hub/store.py."""
    folder = root / repo
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    path = root / "hub.json"
    hub = json.loads(path.read_text()) if path.exists() else {"tokens": {}, "repos": {}}
    hub["tokens"] |= tokens or {}
    if config:
        hub["repos"].setdefault(repo.split("@", maxsplit=1)[0], {}).update(config)
    path.write_text(json.dumps(hub))
    return folder


def self_signed(folder: Path) -> tuple[str, str]:
    """Certificate and key for 127.0.0.1, made by the openssl command."""
    certificate, key = folder / "cert.pem", folder / "key.pem"
    options = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=127.0.0.1"
    command = ["openssl", *options.split(), "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*command, "-out", str(certificate), "-keyout", str(key)], check=True, capture_output=True)
    return str(certificate), str(key)


class Outcome:
    """What a finished `moorage download` left: exit code, the JSON result, its log, and how long it took."""

    def __init__(self, code: int, stdout: str, stderr: str, seconds: float) -> None:
        self.code, self.stderr, self.seconds = code, stderr, seconds
        lines = stdout.strip().splitlines()
        self.result = json.loads(lines[-1]) if lines else {}

    @property
    def reason(self) -> str:
        return self.result.get("reason", "")

    def __repr__(self) -> str:
        return f"<{self.code} {self.result} {self.seconds:.1f}s\n{self.stderr[-3000:]}>"


class Downloader:
    """Runs `moorage download` as a process against `hub`, into `dest`."""

    def __init__(self, hub: Any, dest: Path) -> None:
        self.hub, self.dest = hub, dest

    def command(self, repo: str, *options: str) -> list[str]:
        base = [sys.executable, "-m", "moorage", "download", "--allow-loopback", "--dest", str(self.dest)]
        return [*base, "--endpoint", self.hub.url, "--repo", repo, *options]

    def start(self, repo: str, *options: str, **more: Any) -> subprocess.Popen[str]:
        """The running process; the caller ends it."""
        env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT / "operator"), **more.pop("env", {})}
        command = more.pop("command", None) or self.command(repo, *options)
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env, cwd=self.dest.parent, **more
        )

    def run(self, repo: str, *options: str, timeout: float = PATIENCE, **more: Any) -> Outcome:
        """Run to the end, which must come within `timeout` seconds."""
        return self.wait(self.start(repo, *options, **more), timeout)

    def wait(self, process: subprocess.Popen[str], timeout: float = PATIENCE) -> Outcome:
        started = time.monotonic()
        try:
            stdout, stderr = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            _, stderr = process.communicate()
            raise AssertionError(f"still running after {timeout} s: {stderr[-3000:]}") from None
        return Outcome(process.returncode, stdout, stderr, time.monotonic() - started)

    def published(self) -> list[Path]:
        """Folders with a manifest."""
        return sorted({p.parent for p in self.dest.glob("*/*manifest.json")}) if self.dest.exists() else []

    def check(self, files: dict[str, bytes]) -> Path:
        """Exactly these files must lie published, nothing else, and nothing be left over."""
        (folder,) = self.published()
        found = {
            str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
            for p in folder.rglob("*")
            if p.is_file() and p.name not in ("manifest.json", ".moorage-manifest.json")
        }
        wanted = {name: hashlib.sha256(data).hexdigest() for name, data in files.items() if name != "manifest.json"}
        assert found == wanted
        left = [p for p in (self.dest / ".moorage").rglob("*") if p.name != "lock"]
        assert not left, left
        return folder


class HubProcess:
    """The local hub as a process of its own, where it must not share a processor core's attention with the test."""

    def __init__(self, root: Path) -> None:
        command = [sys.executable, "-m", "e2e.hub", "--root", str(root), "--port", "0"]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        assert self._process.stdout
        self.url = json.loads(self._process.stdout.readline())["url"]

    def requests(self) -> list[dict[str, Any]]:
        with urllib.request.urlopen(f"{self.url}/_log", timeout=30) as answer:
            return json.load(answer)

    def __enter__(self) -> "HubProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.communicate(timeout=PATIENCE)


class Rows:
    """Rows of a table, run a few at a time because they mostly wait; `result` gives a row's own outcome or error."""

    def __init__(self, rows: Mapping[str, Callable[[], Any]], at_once: int = 6) -> None:
        self._pool = ThreadPoolExecutor(at_once)
        self._made = {name: self._pool.submit(row) for name, row in rows.items()}

    def result(self, name: str) -> Any:
        return self._made[name].result()

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)


def eventually(predicate: Callable[[], Any], timeout: float = PATIENCE, what: str = "") -> Any:
    """The first true value of `predicate`; AssertionError after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while True:
        value = predicate()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout:g} s: {what or predicate}; last: {value!r}")
        time.sleep(0.01)
