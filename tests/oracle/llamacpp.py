"""Real llama.cpp as the judge of the estimate: its allocator's dry run on a header, without a GPU and without weights.

Debian sid's packages are unpacked once into the cache; `ggml-rpc-server` on loopback stands for a GPU, and
`llama-fit-params` (or the first lines of `llama-server`) says how much that GPU would have to hold. A sparse file
makes a header into a whole model of any size.
"""

import contextlib
import os
import re
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from e2e.cluster.network import free_ports
from images.recipes import LLAMACPP_BUILD, check_llamacpp_build
from tests.support import debian

PACKAGES = ("base-files", "llama.cpp-tools-extra", "libggml0-backend-rpc")
RPC_SERVER = "/usr/libexec/x86_64-linux-gnu/llama/bin/ggml-rpc-server"
START_SECONDS = 120
RUN_SECONDS = 120
_PROJECTOR = re.compile(r"\[mtmd\] adding ([\d.]+) MiB to fit_params_target for device (RPC\d+|CPU)")
_SERVER_ROW = re.compile(r"\|\s+- (RPC\d+|Host)\b.*?(\d+) =\s+(\d+) \+\s+(\d+) \+\s+(\d+)")


class Held(NamedTuple):
    """MiB on one device, cut to whole numbers."""

    weights: int
    cache: int
    compute: int


@dataclass(frozen=True)
class LlamaCpp:
    """An unpacked llama.cpp and the devices it may use; `addresses` are host:port of its RPC servers."""

    root: Path
    addresses: tuple[str, ...]

    def model(self, name: str, header: bytes, data_bytes: int) -> str:
        """A sparse file with `header` and room for the weights; its path as the programs see it."""
        path = self.root / "models" / f"{re.sub(r'[^a-zA-Z0-9.-]', '-', name)}.gguf"
        path.parent.mkdir(exist_ok=True)
        with path.open("wb") as file:
            file.write(header)
            file.truncate(-(-len(header) // 32) * 32 + data_bytes)
        return f"/models/{path.name}"

    def dry_run(self, model: str, *arguments: object, devices: int = 1) -> dict[str, Held]:
        """What `llama-fit-params` finds for each device (RPC0, RPC1, ..) and for Host."""
        command = self._command("/usr/bin/llama-fit-params", model, devices, arguments)
        ended = subprocess.run(
            [*command, "--fit-print", "on"], capture_output=True, text=True, timeout=RUN_SECONDS, check=False
        )
        rows = [line.split() for line in ended.stdout.splitlines()]
        found = {row[0]: Held(*map(int, row[1:4])) for row in rows if row and row[0].startswith(("RPC", "Host"))}
        assert "Host" in found, ended.stderr[-2000:]
        return found

    def server_dry_run(self, model: str, *arguments: object) -> dict[str, Held]:
        """The same from llama-server, which is stopped before it loads anything."""
        found: dict[str, Held] = {}
        for line in self._server(model, "--no-warmup", *arguments):
            if row := _SERVER_ROW.search(line):
                found[row[1]] = Held(int(row[3]), int(row[4]), int(row[5]))
            if "Host" in found:
                break
        return found

    def projector_dry_run(self, model: str, projector: str, *arguments: object, devices: int = 1) -> dict[str, float]:
        """MiB that llama-server's own dry run of `projector` finds for each device and for CPU."""
        found: dict[str, float] = {}
        for line in self._server(model, "--mmproj", projector, *arguments, devices=devices):
            if row := _PROJECTOR.search(line):
                found[row[2]] = float(row[1])
            elif found:
                break
        return found

    def _server(self, model: str, *arguments: object, devices: int = 1) -> Iterator[str]:
        """Lines of llama-server's log; who stops reading stops the server. Raises AssertionError where it ends."""
        command = self._command("/usr/bin/llama-server", model, devices, arguments)
        quiet = ["--fit", "on", "--host", "127.0.0.1", "--port", str(free_ports(["server"])["server"]), "-lv", "5"]
        lines: list[str] = []
        with _ended(
            subprocess.Popen([*command, *quiet], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        ) as process:
            for line in process.stdout or ():
                lines.append(line)
                yield line
        raise AssertionError("".join(lines[-20:]))

    def _command(self, program: str, model: str, devices: int, arguments: tuple[object, ...]) -> list[str]:
        where = ["--rpc", ",".join(self.addresses[:devices])]
        share = ["-ts", ",".join(["1"] * devices)] if devices > 1 else []
        layers = [] if "-ngl" in arguments else ["-ngl", "999"]
        return [*inside(self.root), program, "-m", model, *where, *share, *layers, *map(str, arguments)]


@contextlib.contextmanager
def running(devices: int) -> Iterator[LlamaCpp]:
    """llama.cpp of the pinned build with `devices` devices on loopback."""
    root = unpacked()
    with contextlib.ExitStack() as stack:
        addresses = tuple(stack.enter_context(_device(root)) for _ in range(devices))
        yield LlamaCpp(root, addresses)


def unpacked() -> Path:
    """The root file system in the cache, made on first use; raises where sid has another build than the pinned one."""
    # Snapshots of sid older than a week count as expired.
    options = ['--aptopt=Acquire::Check-Valid-Until "false"']
    name = f"llamacpp-{LLAMACPP_BUILD.read_text().strip()}"
    return debian.unpacked(name, "sid", PACKAGES, options=options, finish=_check_build)


def _check_build(root: Path) -> None:
    command = [*inside(root), "/usr/bin/llama-fit-params", "--version"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True)
    check_llamacpp_build(printed.stdout + printed.stderr, LLAMACPP_BUILD.read_text())


def inside(root: Path) -> list[str]:
    """How a program of the unpacked root file system is started."""
    alone = [] if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user"]
    return [*alone, "chroot", str(root)]


@contextlib.contextmanager
def _device(root: Path) -> Iterator[str]:
    """One RPC server; what it claims to be is never allocated."""
    port = free_ports(["rpc"])["rpc"]
    command = [*inside(root), RPC_SERVER, "--device", "CPU", "--host", "127.0.0.1", "--port", str(port)]
    with _ended(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)) as process:
        _wait_for(port, process)
        yield f"127.0.0.1:{port}"


@contextlib.contextmanager
def _ended(process: "subprocess.Popen[str] | subprocess.Popen[bytes]") -> Iterator["subprocess.Popen[str]"]:
    try:
        yield process  # type: ignore[misc]
    finally:
        process.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()


def _wait_for(port: int, process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, "the RPC server ended"
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    raise AssertionError(f"the RPC server does not listen within {START_SECONDS} s")
