"""SIMULATED device plugin: offers the state file's GPUs to the real kubelet as `nvidia.com/gpu`.

    python -m e2e.gpusim.device_plugin STATE --folder /var/lib/kubelet/device-plugins

The kubelet's API v1beta1 (k8s.io/kubelet, pkg/apis/deviceplugin/v1beta1/api.proto). A container that gets GPUs sees
them in NVIDIA_VISIBLE_DEVICES, as NVIDIA's own plugin sets it; there is nothing behind them.
"""

import argparse
import contextlib
import logging
import threading
import time
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc

from e2e.gpusim.protobuf import fields
from moorage.agent import wire

RESOURCE = "nvidia.com/gpu"
SOCKET = "moorage-simulated-gpus.sock"
POLL_SECONDS = 0.2
log = logging.getLogger("gpusim")


def devices(state: Path) -> list[tuple[str, str]]:
    """(UUID, health) of each GPU in the state file."""
    lines = [line.split() for line in state.read_text().splitlines()]
    ill = {int(words[1]) for words in lines if words[:1] in (["health"], ["lost"])}
    uuids = [words[1] for words in lines if words[:1] == ["gpu"]]
    return [(uuid, "Unhealthy" if index in ill else "Healthy") for index, uuid in enumerate(uuids)]


class Plugin(grpc.GenericRpcHandler):
    """The service v1beta1.DevicePlugin, over bytes."""

    def __init__(self, state: Path) -> None:
        self._state = state
        self._handlers = {
            "GetDevicePluginOptions": grpc.unary_unary_rpc_method_handler(lambda _request, _context: b""),
            "ListAndWatch": grpc.unary_stream_rpc_method_handler(self._list_and_watch),
            "Allocate": grpc.unary_unary_rpc_method_handler(self._allocate),
            "PreStartContainer": grpc.unary_unary_rpc_method_handler(lambda _request, _context: b""),
        }

    def service(self, handler_call_details: Any) -> Any:
        return self._handlers.get(handler_call_details.method.removeprefix("/v1beta1.DevicePlugin/"))

    def _list_and_watch(self, _request: bytes, context: Any) -> Iterator[bytes]:
        """ListAndWatchResponse{devices: [Device{ID, health}]}, again whenever the file says otherwise."""
        told = None
        while context.is_active():
            if (now := devices(self._state)) != told:
                log.info("devices: %s", now)
                yield b"".join(fields((1, fields((1, uuid), (2, health)))) for uuid, health in now)
                told = now
            time.sleep(POLL_SECONDS)

    def _allocate(self, request: bytes, _context: Any) -> bytes:
        """AllocateRequest{container_requests: [{devices_ids}]} -> AllocateResponse{container_responses: [{envs}]}."""
        answers = []
        for container in wire.messages(memoryview(request), 1):
            ids = ",".join(wire.texts(container, 1))
            log.info("allocated: %s", ids)
            answers.append((1, fields((1, fields((1, "NVIDIA_VISIBLE_DEVICES"), (2, ids))))))
        return fields(*answers)


def register(folder: Path) -> None:
    """Tell the kubelet of the plugin: RegisterRequest{version, endpoint, resource_name}."""
    with grpc.insecure_channel(f"unix://{folder}/kubelet.sock") as channel:
        call = channel.unary_unary("/v1beta1.Registration/Register")
        call(fields((1, "v1beta1"), (2, SOCKET), (3, RESOURCE)), timeout=30)


def serve_once(state: Path, folder: Path, stop: threading.Event) -> None:
    """Serve until the kubelet was restarted: it empties the folder and makes a new socket, so all begins anew."""
    kubelet, own = folder / "kubelet.sock", folder / SOCKET
    while not kubelet.exists():  # a starting kubelet removes every socket in the folder, so it comes first
        if stop.wait(POLL_SECONDS):
            return
    own.unlink(missing_ok=True)
    server = grpc.server(futures.ThreadPoolExecutor(8), handlers=[Plugin(state)])
    server.add_insecure_port(f"unix://{own}")
    server.start()
    try:
        born = kubelet.stat().st_ino
        register(folder)
        log.info("registered %s", RESOURCE)
        while own.exists() and kubelet.exists() and kubelet.stat().st_ino == born and not stop.wait(POLL_SECONDS):
            pass
    finally:
        server.stop(grace=None).wait()


def run(state: Path, folder: Path, stop: threading.Event) -> None:
    """Offer the GPUs until `stop` is set, through restarts of the kubelet."""
    while not stop.is_set():
        with contextlib.suppress(FileNotFoundError):
            try:
                serve_once(state, folder, stop)
            except grpc.RpcError as error:
                log.warning("the kubelet did not take the registration: %s", error)
                stop.wait(0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("state", type=Path, help="the state file (see nvml_stub.c)")
    parser.add_argument("--folder", type=Path, default=Path("/var/lib/kubelet/device-plugins"))
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    with contextlib.suppress(KeyboardInterrupt):
        run(options.state, options.folder, threading.Event())


if __name__ == "__main__":
    main()
