"""The numbers of a run, and the HTTP server that tells them."""

import json
import socket
import threading
import time
from collections import deque
from enum import StrEnum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from moorage.download.content import Content, WrongBytes
from moorage.errors import SourceError
from moorage.sources import Reason

_WINDOW_SECONDS = 5.0


class PortTaken(Exception):
    """Progress cannot be told where it was asked for."""


class Phase(StrEnum):
    """What the run is at."""

    RESOLVING = "Resolving"
    CHECKING = "Checking"
    DOWNLOADING = "Downloading"
    VERIFYING = "Verifying"
    PUBLISHING = "Publishing"
    DONE = "Done"
    FAILED = "Failed"


class Progress:
    """Counts bytes that are safely on disk; the count never goes back, even where bytes had to be fetched again."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.phase = Phase.RESOLVING
        self.retries = 0
        self.last_error: dict[str, Any] | None = None
        self._faults = {"stalls": 0, "wrongBytes": 0, "changedOnDisk": 0}
        self._contents: list[Content] = []
        self._files = self._files_done = self._total = self._done = 0
        self._samples: deque[tuple[float, int]] = deque()

    def plan(self, contents: list[Content]) -> None:
        """What is to be done."""
        with self._lock:
            self._contents = contents
            self._files = sum(len(c.paths) for c in contents)
            self._total = sum(c.size * len(c.paths) for c in contents)

    def failed(self, error: SourceError, file: str | None) -> None:
        """An attempt failed."""
        with self._lock:
            self.retries += 1
            self._count(error)
            self.last_error = {"reason": error.reason, "message": error.message[:500], "file": file}

    def ended(self, error: SourceError, file: str | None) -> None:
        """The run has failed."""
        with self._lock:
            if isinstance(error, WrongBytes):
                self._count(error)  # other attempts have been counted as they failed
            self.last_error = {"reason": error.reason, "message": error.message[:500], "file": file}
            self.phase = Phase.FAILED

    def _count(self, error: SourceError) -> None:
        if isinstance(error, WrongBytes):
            self._faults["changedOnDisk" if error.on_disk else "wrongBytes"] += 1
        elif error.reason == Reason.STALLED:
            self._faults["stalls"] += 1

    @property
    def counts(self) -> dict[str, Any]:
        """Repeated requests; transfers given up as stalled; verifications that failed, by where bytes went wrong."""
        with self._lock:
            return {"retries": self.retries, "faults": dict(self._faults)}

    def file_done(self, content: Content) -> None:
        """All paths of a content are verified."""
        with self._lock:
            self._files_done += len(content.paths)

    def sample(self) -> None:
        """Take the numbers for the speed; call it about once a second."""
        now, done = time.monotonic(), self._safe()
        with self._lock:
            self._samples.append((now, done))
            while now - self._samples[0][0] > _WINDOW_SECONDS:
                self._samples.popleft()

    def _safe(self) -> int:
        safe = sum(c.safe * len(c.paths) for c in self._contents)
        with self._lock:
            self._done = max(self._done, safe)
            return self._done

    def snapshot(self) -> dict[str, Any]:
        """The answer of `GET /progress`."""
        done = self._safe()
        with self._lock:
            speed = self._speed()
            left = self._total - done
            return {
                "phase": self.phase.value,
                "files": {"total": self._files, "done": self._files_done},
                "bytes": {"total": self._total, "done": done},
                "bytesPerSecond": speed,
                "remainingSeconds": -(-left // speed) if speed else (0 if not left and self._total else None),
                "retries": self.retries,
                "faults": dict(self._faults),
                "lastError": self.last_error,
            }

    def _speed(self) -> int:
        if len(self._samples) < 2 or self.phase is not Phase.DOWNLOADING:
            return 0
        (begin, before), (end, after) = self._samples[0], self._samples[-1]
        return int((after - before) / (end - begin)) if end > begin else 0


class _Handler(BaseHTTPRequestHandler):
    progress: Progress
    protocol_version = "HTTP/1.1"
    timeout = 10

    def do_GET(self) -> None:
        """Answer `/progress`."""
        known = self.path.partition("?")[0] == "/progress"
        body = json.dumps(self.progress.snapshot()).encode() if known else b"{}"
        self.send_response(200 if known else 404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """The log has better things to tell."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    address_family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET

    def server_bind(self) -> None:
        """Listen on every address of both families."""
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A reader that leaves is no news."""


def serve(progress: Progress, port: int) -> None:
    """Answer `GET /progress` on `port` until the process ends; raises PortTaken."""
    handler = type("Handler", (_Handler,), {"progress": progress})
    try:
        server = _Server(("::" if _Server.address_family == socket.AF_INET6 else "", port), handler)
    except OSError as error:
        raise PortTaken(f"cannot listen on port {port}: {error.strerror}") from error
    threading.Thread(target=server.serve_forever, name="status", daemon=True).start()
