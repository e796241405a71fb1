"""A real Prometheus of Debian's, and its promtool: what judges alerts and what answers a dashboard's queries."""

import contextlib
import json
import shutil
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from e2e.cluster.network import free_ports
from tests.support import debian

START_SECONDS = 60.0
Vector = list[dict[str, Any]]


def program(name: str) -> Path:
    """`prometheus` or `promtool`; both are linked against nothing but libc."""
    return debian.unpacked("prometheus-bookworm", "bookworm", ["prometheus"], finish=_trim) / "usr/bin" / name


def _trim(root: Path) -> None:
    """The package brings 300 MB of what its web pages need."""
    for path in [path for path in root.iterdir() if path.name != "usr"]:
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    for path in [path for path in (root / "usr").iterdir() if path.name != "bin"]:
        shutil.rmtree(path)
    for path in [path for path in (root / "usr/bin").iterdir() if path.name not in ("prometheus", "promtool")]:
        path.unlink()


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """`promtool ARGUMENTS`, ended."""
    command = [str(program("promtool")), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


class Prometheus:
    """A running Prometheus on loopback."""

    def __init__(self, url: str) -> None:
        self._url = url

    def query(self, expr: str) -> Vector:
        """The instant vector of a query; raises AssertionError with Prometheus' words where it is none."""
        asked = f"{self._url}/api/v1/query?{urllib.parse.urlencode({'query': expr})}"
        try:
            with urllib.request.urlopen(asked, timeout=30) as answer:
                found: Vector = json.load(answer)["data"]["result"]
                return found
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{expr}: {error.read().decode()}") from error


@contextlib.contextmanager
def scraping(folder: Path, targets: Mapping[str, str], rules: Path) -> Iterator[Prometheus]:
    """A Prometheus that reads each `job: host:port` every second until the block ends."""
    jobs = [{"job_name": job, "static_configs": [{"targets": [target]}]} for job, target in targets.items()]
    timing = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config = folder / "prometheus.yml"
    config.write_text(yaml.safe_dump({"global": timing, "scrape_configs": jobs, "rule_files": [str(rules.resolve())]}))
    address = f"127.0.0.1:{free_ports(['prometheus'])['prometheus']}"
    command = [
        str(program("prometheus")), f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address}", "--log.level=warn",
    ]  # fmt: skip
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        _until_ready(f"http://{address}/-/ready", process, folder / "log")
        yield Prometheus(f"http://{address}")
    finally:
        process.kill()
        process.wait()


def _until_ready(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5):
            return
        time.sleep(0.05)
    raise AssertionError(f"Prometheus is not ready: {log.read_text()[-2000:]}")
