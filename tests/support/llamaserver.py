"""A real llama-server of the pinned build as a process, with the tiny model, to stand behind the gateway in tests."""

import contextlib
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from e2e.cluster.network import free_ports
from e2e.tinymodels.gguf_file import write_gguf
from tests.oracle.llamacpp import inside, unpacked

START_SECONDS = 120.0


@contextlib.contextmanager
def llama_server(*arguments: str, write: Callable[[Path], object] = write_gguf) -> Iterator[str]:
    """The `host:port` of a llama-server that has loaded the model of `write`, a tiny one; it ends with the block."""
    root = unpacked()
    (root / "models").mkdir(exist_ok=True)
    port = free_ports(["llama-server"])["llama-server"]
    with (
        tempfile.TemporaryDirectory(dir=root / "models") as folder,
        tempfile.TemporaryFile() as log,
    ):
        Path(folder).chmod(0o755)
        write(Path(folder) / "tiny.gguf")
        command = [
            *inside(root), "/usr/bin/llama-server", "-m", f"/models/{Path(folder).name}/tiny.gguf",
            "--host", "127.0.0.1", "--port", str(port), "--threads", "1", "--threads-batch", "1",
            "--parallel", "4", "--ctx-size", "8192", "--jinja", "--no-webui", *arguments,
        ]  # fmt: skip
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            _until_loaded(port, process)
            yield f"127.0.0.1:{port}"
        except AssertionError:
            log.seek(0)
            print(log.read()[-2000:].decode(errors="replace"))
            raise
        finally:
            process.kill()  # on SIGTERM it would hang with a request in flight
            process.wait()


def _until_loaded(port: int, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, "llama-server ended"
        with (
            contextlib.suppress(OSError, urllib.error.HTTPError),
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer,
        ):
            if answer.status == 200:
                return
        time.sleep(0.05)
    raise AssertionError(f"llama-server has not loaded the model within {START_SECONDS:g} s")
