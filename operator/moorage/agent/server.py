"""The agent's HTTP endpoints: the report for the operator, metrics for Prometheus, health for the kubelet."""

from collections.abc import Callable

import orjson
from aiohttp import web

from moorage.agent import metrics
from moorage.placement.gpu_report import GpuReport, to_json

REPORT_PATH = "/v1/gpus"


def application(report: Callable[[], GpuReport]) -> web.Application:
    """`/v1/gpus`, `/metrics`, `/healthz`; anybody who reaches the port may read them, and nobody may write."""
    registry = metrics.registry(report)

    async def gpus(_request: web.Request) -> web.Response:
        return web.Response(body=orjson.dumps(to_json(report())), content_type="application/json")

    async def numbers(_request: web.Request) -> web.Response:
        return web.Response(body=metrics.render(registry), content_type="text/plain", charset="utf-8")

    async def healthz(_request: web.Request) -> web.Response:
        # A lost driver is no reason to restart the agent: it is what the agent is there to tell.
        return web.Response(text="ok")

    made = web.Application()
    made.add_routes([web.get(REPORT_PATH, gpus), web.get("/metrics", numbers), web.get("/healthz", healthz)])
    return made


async def serve(report: Callable[[], GpuReport], host: str, port: int) -> web.AppRunner:
    """Answer at `host` and `port` until the returned runner is cleaned up; raises OSError where the port is taken."""
    runner = web.AppRunner(application(report), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, host, port).start()
    return runner
