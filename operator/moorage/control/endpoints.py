"""The operator's own HTTP endpoints: /healthz, /readyz and /metrics, and on another port the gateways' reports."""

from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from moorage.control import metrics
from moorage.control.operator import Operator
from moorage.control.reports import application, read_token
from moorage.errors import InvalidSpec


def parse_listen(text: str) -> tuple[str, int]:
    """`HOST:PORT` as a pair; raises InvalidSpec with what is expected."""
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdigit() or int(port) > 65535:
        raise InvalidSpec("InvalidListen", f"an address to listen on is HOST:PORT, such as 0.0.0.0:8080, not {text!r}")
    return host.strip("[]") or "0.0.0.0", int(port)


async def serve(operator: Operator, listen: str) -> web.AppRunner:
    """Answer on `listen` until the returned runner is cleaned up."""

    async def healthz(_request: web.Request) -> web.Response:
        problem = operator.failed()
        return web.Response(text=problem or "ok", status=500 if problem else 200)

    async def readyz(_request: web.Request) -> web.Response:
        return web.Response(text="ok" if operator.ready else "starting", status=200 if operator.ready else 503)

    async def numbers(_request: web.Request) -> web.Response:
        return web.Response(body=metrics.render(lambda: _now(operator)), content_type="text/plain", charset="utf-8")

    app = web.Application()
    app.add_routes([web.get("/healthz", healthz), web.get("/readyz", readyz), web.get("/metrics", numbers)])
    return await _run(app, listen)


@dataclass(frozen=True)
class ReportsPort:
    """Where usage reports are taken, and the file with the token that gateways bear."""

    listen: str
    token_file: Path


async def serve_reports(operator: Operator, port: ReportsPort) -> web.AppRunner:
    """Take usage reports until the returned runner is cleaned up; raises InvalidSpec where there is no token."""
    read_token(port.token_file)
    return await _run(application(port.token_file, operator.heard), port.listen)


async def _run(app: web.Application, listen: str) -> web.AppRunner:
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, *parse_listen(listen)).start()
    return runner


def _now(operator: Operator) -> metrics.Now:
    return metrics.Now(
        operator.queue.depth, operator.usage.gateways, dict(operator.kube.requests), operator.store.phases()
    )
