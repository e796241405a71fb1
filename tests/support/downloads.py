"""ModelDownloads under a test's hands on a real API server: the tests play the kubelet and the download's pod."""

import asyncio
import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from moorage import names
from moorage.kube.resources import MODEL_DOWNLOADS, PODS
from tests.conftest import TestCluster
from tests.support.bed import Bed, condition
from tests.support.eventually import PATIENCE

MIB = 1 << 20


class Scene:
    """ModelDownloads of one namespace, and the kubelet's part of them."""

    def __init__(self, bed: Bed, cluster: TestCluster) -> None:
        self.bed, self._cluster = bed, cluster

    async def made(self, name: str, repo: str = "org/one", **spec: Any) -> None:
        source = spec.pop("source", None) or {"huggingFace": {"repo": repo, **spec.pop("hub", {})}}
        await self.bed.create("ModelDownload", name, {"source": source, **spec})

    async def until(
        self, name: str, good: Callable[[dict[str, Any]], Any], timeout: float = PATIENCE
    ) -> dict[str, Any]:
        return await self.bed.until(MODEL_DOWNLOADS, name, lambda d: "status" in d and good(d["status"]), timeout)

    async def told(self, name: str, kind: str, reason: str, timeout: float = PATIENCE) -> str:
        """The message of a condition as soon as it has `reason`."""
        obj = await self.bed.until(MODEL_DOWNLOADS, name, lambda d: condition(d, kind).get("reason") == reason, timeout)
        return str(condition(obj, kind)["message"])

    async def pod(self, name: str) -> str:
        """The download's pod, as soon as there is one that lives."""

        async def found() -> str | None:
            for pod in (await self.bed.kube.list(PODS, self.bed.namespace))[0]:
                ours = pod["metadata"]["labels"].get(names.DOWNLOAD_LABEL) == name
                over = pod.get("status", {}).get("phase") in ("Succeeded", "Failed")
                if ours and not over and "deletionTimestamp" not in pod["metadata"]:
                    return str(pod["metadata"]["name"])
            return None

        return str(await self.bed.eventually(found))

    async def ends(self, name: str, code: int = 0, reason: str = "Complete", message: str = "done") -> None:
        """The download's pod ends with `code` and these last words."""
        words = {"reason": reason, "message": message} | ({} if code else {"manifestDigest": "d", "bytes": 1})
        ended = {"exitCode": code, "message": json.dumps(words), "finishedAt": "2026-01-01T00:00:09Z"}
        state = {"name": "download", "image": "i", "imageID": "", "ready": False, "restartCount": 0}
        status = {
            "phase": "Failed" if code else "Succeeded",
            "containerStatuses": [state | {"state": {"terminated": ended}}],
        }
        await self.kubelet_says(await self.pod(name), status)

    async def kubelet_says(self, pod: str, status: dict[str, Any]) -> None:
        patch = json.dumps({"status": status})
        where = ("-n", self.bed.namespace, "patch", "pod", pod, "--subresource=status", "--type=merge")
        await asyncio.to_thread(self._cluster.kubectl, *where, "-p", patch)

    async def apply(self, manifest: dict[str, Any]) -> None:
        await self.bed.kube.apply(manifest, field_manager="person")

    async def secret(self, name: str, **data: str) -> None:
        meta = {"name": name, "namespace": self.bed.namespace}
        await self.apply({"apiVersion": "v1", "kind": "Secret", "metadata": meta, "stringData": data})


class Truth:
    """A download pod's progress at an address of its own: 40 MiB/s, and now and then an answer from the past."""

    def __init__(self, host: str) -> None:
        self.began, self.total = time.monotonic(), 400 * MIB
        self.asked = 0
        truth = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = json.dumps(truth.answer()).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer((host, names.PROGRESS_PORT), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def restart(self) -> None:
        """Begin at the first byte again, as if the pod had just started."""
        self.began = time.monotonic()

    def done(self, ago: float = 0) -> int:
        return min(int((time.monotonic() - self.began - ago) * 40 * MIB), self.total)

    def answer(self) -> dict[str, Any]:
        self.asked += 1
        done = max(self.done(ago=1 if self.asked % 4 == 0 else 0), 0)
        left = (self.total - done) // (40 * MIB)
        return {
            "phase": "Downloading", "bytes": {"total": self.total, "done": done}, "files": {"total": 1, "done": 0},
            "bytesPerSecond": 40 * MIB, "remainingSeconds": left, "retries": 0,
        }  # fmt: skip
