"""The proxies, each as a process of its own that does the same: three parameters where the client has none, and the
engine's name of the model.

- Moorage's gateway as its image has it: the data path compiled, and Debian's Python where there is one; with routes
  from a file and every rule of it in force. Once more interpreted, as from a checkout.
- nginx with Lua and lua-cjson (Debian's packages), one worker.
- LiteLLM's proxy with one worker, installed from PyPI into a cache folder of its own; no database, no callbacks.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "moorage/benchmarks"
LITELLM = "litellm[proxy]==1.106.2"
KEY = "sk-benchmark-0123456789abcdef"
DEFAULTS = {"temperature": 0.7, "top_p": 0.9, "stop": ["###"]}
_TICK = os.sysconf("SC_CLK_TCK")


@dataclass
class Proxy:
    """A proxy that runs: where it listens, and the process whose cost counts."""

    name: str
    address: tuple[str, int]
    pid: int

    def cpu(self) -> float:
        """CPU seconds, user and system, since it started."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(") ")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICK

    def rss(self) -> int:
        """Resident bytes."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def files(self) -> int:
        """Open files, sockets among them."""
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


def routes(engine: str, **more: object) -> str:
    model = {"name": "m", "endpoints": [engine] if engine else [], **more}
    alias = {
        "name": "chat",
        "targets": [{"model": "m"}],
        "request": {"defaults": DEFAULTS},
        "hold": {"maxPending": 2000},
    }
    return yaml.safe_dump({"models": [model], "aliases": [alias]})


@contextlib.contextmanager
def _process(
    name: str, command: list[str], port: int, log: Path, worker: Callable[[int], int] = lambda pid: pid, **env: str
) -> Iterator[Proxy]:
    with log.open("w") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, env={**os.environ, **env}, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 120
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{name} does not start:\n{log.read_text()[-2000:]}")
            time.sleep(0.1)
        yield Proxy(name, ("127.0.0.1", port), worker(process.pid))
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def compiled(folder: Path) -> Path:
    """A copy of our code in `folder` with the extension modules that the image has."""
    code = shutil.copytree(ROOT / "operator", folder / "compiled")
    subprocess.run([sys.executable, str(ROOT / "images/native.py"), str(code)], check=True, capture_output=True)
    return code


@contextlib.contextmanager
def moorage(
    folder: Path, engine: str, *, code: Path = ROOT / "operator", name: str = "Moorage", source: tuple[str, ...] = ()
) -> Iterator[Proxy]:
    """Our gateway; its routes are `folder`/routes.yaml, unless options say where else the `source` of its table is."""
    folder.mkdir()
    file, port = folder / "routes.yaml", free_port()
    file.write_text(routes(engine))
    command = [python(), "-m", "moorage", "gateway", "--listen", f"127.0.0.1:{port}", "--admin", "127.0.0.1:0"]
    options = [*(source or ("--routes", str(file))), "--drain-delay", "0"]
    path = f"{code}:{sysconfig.get_path('purelib')}"
    with _process(name, [*command, *options], port, folder / "log", PYTHONPATH=path) as proxy:
        yield proxy


def python() -> str:
    """The image's interpreter, where this machine has it: others are built with other optimisations."""
    return shutil.which("python3.11", path="/usr/bin") or sys.executable


_NGINX = """
load_module modules/ndk_http_module.so; load_module modules/ngx_http_lua_module.so;
worker_processes 1; daemon off; pid {folder}/pid; error_log {folder}/error.log error;
events {{ worker_connections 8192; }}
http {{
  access_log off; client_body_buffer_size 1m; client_body_temp_path {folder}; proxy_temp_path {folder};
  keepalive_requests 1000000000; client_max_body_size 32m;
  init_by_lua_block {{ cjson = require "cjson" }}
  upstream engine {{ server {engine}; keepalive 512; keepalive_requests 1000000000; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location /v1/ {{
      rewrite_by_lua_block {{
        ngx.req.read_body()
        local ok, body = pcall(cjson.decode, ngx.req.get_body_data())
        if not ok then return ngx.exit(400) end
        if body.model ~= "chat" then return ngx.exit(404) end
        if body.temperature == nil then body.temperature = 0.7 end
        if body.top_p == nil then body.top_p = 0.9 end
        if body.stop == nil then body.stop = {{"###"}} end
        body.model = "m"
        ngx.req.set_body_data(cjson.encode(body))
      }}
      proxy_pass http://engine; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off;
    }}
  }}
}}
"""


@contextlib.contextmanager
def nginx(folder: Path, engine: str) -> Iterator[Proxy]:
    """nginx with Lua; its worker's cost counts."""
    folder.mkdir()
    port = free_port()
    (folder / "nginx.conf").write_text(_NGINX.format(folder=folder, port=port, engine=engine))

    def worker(master: int) -> int:
        return int(Path(f"/proc/{master}/task/{master}/children").read_text().split()[0])

    # Debian's modules lie beside its nginx.
    (folder / "modules").symlink_to("/usr/lib/nginx/modules")
    command = ["nginx", "-c", str(folder / "nginx.conf"), "-p", str(folder)]
    with _process("nginx + Lua", command, port, folder / "log", worker) as proxy:
        yield proxy


@contextlib.contextmanager
def litellm(folder: Path, engine: str) -> Iterator[Proxy]:
    """LiteLLM's proxy."""
    folder.mkdir()
    port = free_port()
    parameters = {"model": "openai/m", "api_base": f"http://{engine}/v1", "api_key": "none", **DEFAULTS}
    config = {
        "model_list": [{"model_name": "chat", "litellm_params": parameters}],
        "general_settings": {"master_key": KEY},
        "litellm_settings": {"telemetry": False, "num_retries": 0},
    }
    (folder / "config.yaml").write_text(json.dumps(config))
    command = [
        str(installed_litellm()),
        "--config",
        str(folder / "config.yaml"),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--num_workers",
        "1",
    ]
    with _process(
        "LiteLLM", command, port, folder / "log", LITELLM_LOG="ERROR", LITELLM_LOCAL_MODEL_COST_MAP="True"
    ) as proxy:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health/liveliness", timeout=5).read()
                break
            time.sleep(0.5)
        yield proxy


def installed_litellm() -> Path:
    """LiteLLM's command, installed where it is not yet."""
    folder = CACHE / LITELLM.replace("[proxy]", "").replace("==", "-")
    command = folder / "bin/litellm"
    if not command.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(folder / "bin/pip"), "install", "--quiet", LITELLM], check=True)
    return command
