"""One unary gRPC call over a Unix socket: all of gRPC that the agent needs, on the HTTP/2 of `h2`.

Protocol: https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md. One connection per call: a kubelet that was
restarted made a new socket, and an old connection would only tell of the old one.
"""

import socket
import struct
import time
from pathlib import Path

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import ConnectionTerminated, DataReceived, Event, ResponseReceived, StreamReset, TrailersReceived
from h2.exceptions import H2Error

from moorage.errors import MoorageError

MOST_BYTES = 16 << 20
"""As much as the kubelet's own clients take of this API (k8s.io/kubelet, podresources/client.go)."""
_READ = 1 << 16
_WINDOW = 1 << 20


class CallFailed(MoorageError):
    """The call did not come to an answer; the message says why."""


def call(path: Path, method: str, request: bytes = b"", *, timeout: float = 5.0) -> bytes:
    """The answer of `method` (`/package.Service/Method`) at the socket `path`, as protobuf bytes.

    Raises CallFailed: no socket, nobody there, more than `timeout` seconds or 16 MiB, a gRPC status other than OK.
    """
    deadline = time.monotonic() + timeout
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as wire:
            wire.settimeout(timeout)
            wire.connect(str(path))
            return _Call(wire, deadline).run(method, request)
    except TimeoutError as error:
        raise CallFailed(f"{path} did not answer within {timeout:.0f} s") from error
    except (OSError, H2Error, ValueError) as error:
        raise CallFailed(f"{path}: {error or type(error).__name__}") from error


class _Call:
    def __init__(self, wire: socket.socket, deadline: float) -> None:
        self._wire, self._deadline = wire, deadline
        self._http = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
        self._body = bytearray()
        self._headers: dict[str, str] = {}

    def run(self, method: str, request: bytes) -> bytes:
        http = self._http
        http.initiate_connection()
        http.increment_flow_control_window(_WINDOW)
        stream = http.get_next_available_stream_id()
        head = {
            ":method": "POST", ":scheme": "http", ":path": method, ":authority": "localhost",
            "content-type": "application/grpc", "te": "trailers",
        }  # fmt: skip
        http.send_headers(stream, list(head.items()))
        http.send_data(stream, struct.pack(">BI", 0, len(request)) + request, end_stream=True)
        while "grpc-status" not in self._headers:
            self._wire.sendall(http.data_to_send())
            self._wire.settimeout(max(self._deadline - time.monotonic(), 0.001))
            received = self._wire.recv(_READ)
            if not received:
                raise ValueError("the connection was closed before the answer ended")
            for event in http.receive_data(received):
                self._take(event)
        return self._message()

    def _take(self, event: Event) -> None:
        if isinstance(event, ResponseReceived | TrailersReceived):
            self._headers |= {str(k): str(v) for k, v in event.headers}
            if self._headers.get(":status") != "200":
                raise ValueError(f"HTTP status {self._headers.get(':status')}")
        elif isinstance(event, DataReceived):
            self._body += event.data
            if len(self._body) > MOST_BYTES:
                raise ValueError(f"the answer is longer than {MOST_BYTES} bytes")
            self._http.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, StreamReset | ConnectionTerminated):
            raise ValueError("the call was broken off by the other side")

    def _message(self) -> bytes:
        status = self._headers["grpc-status"]
        if status != "0":
            raise ValueError(f"gRPC status {status}: {self._headers.get('grpc-message', '')[:200]}")
        if len(self._body) < 5 or self._body[0]:
            raise ValueError("the answer is empty, or compressed although nobody asked for that")
        size = int.from_bytes(self._body[1:5])
        if len(self._body) != 5 + size:
            raise ValueError("the answer is not as long as it says")
        return bytes(self._body[5:])
