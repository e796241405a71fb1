"""An HTTP server on loopback that answers what a test scripted, for clients that are tested without an API server."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Self

import yaml
from aiohttp import web

Answer = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class ScriptedServer:
    """Answers every request by `answer`; `requests` and `bodies` keep what came. An async context manager."""

    def __init__(self, answer: Answer) -> None:
        self.requests: list[web.BaseRequest] = []
        self.bodies: list[bytes] = []
        self._answer = answer
        self.url = ""

    async def __aenter__(self) -> Self:
        self._runner = web.ServerRunner(web.Server(self._handle), shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        self.requests.append(request)
        self.bodies.append(await request.read())
        return await self._answer(request)

    def kubeconfig(self, path: Path, **user: object) -> Path:
        """Write a kubeconfig that leads here."""
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "c", "cluster": {"server": self.url}}],
            "users": [{"name": "u", "user": user}],
            "contexts": [
                {"name": "x", "context": {"cluster": "c", "user": "u", "namespace": "team-a"}},
                {"name": "elsewhere", "context": {"cluster": "c", "user": "u", "namespace": "team-b"}},
            ],
            "current-context": "x",
        }
        path.write_text(yaml.safe_dump(config))
        return path
