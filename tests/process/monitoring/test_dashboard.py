"""The chart's dashboard: a real Prometheus reads the real pages, and every query of every panel finds something."""

import asyncio
import contextlib
import json
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from aiohttp import web

from charts.dashboard import dashboard
from moorage.agent import metrics as agent
from moorage.control import metrics as control
from moorage.control.metrics import Now
from moorage.control.store import Key
from moorage.placement.gpu_report import Gpu, GpuReport, Holder
from tests.process.gateway.support import OK, RawEngine, always, chat, model, serving
from tests.process.monitoring.test_alerts import RULES
from tests.support.prometheus import Prometheus, scraping

PHASES = [(Key("Model", "a", "m"), "Blocked"), (Key("ModelDownload", "a", "d"), "Failed")]
NOW = Now(queue_depth=3, gateways=1, api_requests={"get": 7}, phases=PHASES)
GPUS = (
    Gpu(
        0, "GPU-0", product="L4", total_mib=23034, used_mib=9040, utilization_percent=37, pods=(Holder("a", "p", "c"),)
    ),
    Gpu(1, "GPU-1", product="L4", problem="GPU is lost"),
)


Query = tuple[str, str, str]


def queries() -> list[Query]:
    """Panel, PromQL with what Grafana would put for its variables, and legend."""
    found = []
    for panel in json.loads(dashboard())["panels"]:
        for target in panel.get("targets", ()):
            expr = target["expr"].replace("$__rate_interval", "15s")
            found.append((panel["title"], re.sub(r"\$(model|namespace)", ".*", expr), target["legendFormat"]))
    return found


def something_happened() -> None:
    """Count one of everything that only happens now and then."""
    control.PASS_SECONDS.labels("Model").observe(0.01)
    control.PASS_FAILURES.labels("Model", "KeyError").inc()
    control.SLEEPS.labels("Idle").inc()
    control.DOWNLOAD_FAILURES.labels("Network").inc()
    control.DOWNLOAD_RETRIES.labels("Network").inc()


@contextlib.asynccontextmanager
async def page(text: Any) -> AsyncIterator[str]:
    """`host:port` where /metrics has what `text()` makes."""

    async def answer(_request: web.Request) -> web.Response:
        return web.Response(body=text(), content_type="text/plain", charset="utf-8")

    app = web.Application()
    app.add_routes([web.get("/metrics", answer)])
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        host, port = runner.addresses[0][:2]
        yield f"{host}:{port}"
    finally:
        await runner.cleanup()


async def test_every_panel_shows_something(tmp_path: Path):
    something_happened()
    gpus = agent.registry(lambda: GpuReport("n", 10, gpus=GPUS, problem="no driver", pods_problem="no kubelet"))
    async with (
        page(lambda: control.render(lambda: NOW)) as operator,
        page(lambda: agent.render(gpus)) as agents,
        RawEngine(always(OK)) as engine,
        serving([model("m", engine)]) as bed,
    ):
        assert (await bed.ask(chat())).status == 200
        assert (await bed.ask({"model": "nobody", "messages": []})).status == 404
        host, port = bed.gateway.admin_address
        targets = {"operator": operator, "gateway": f"{host}:{port}", "agent": agents}
        await asyncio.to_thread(look, tmp_path, targets)


def look(folder: Path, targets: dict[str, str]) -> None:
    """Ask everything until all is there, and say what stays empty."""
    with scraping(folder, targets, RULES) as prometheus:
        empty = queries()
        for _ in range(180):  # a rate takes two scrapes
            empty = [query for query in empty if not _shown(prometheus, query)]
            if not empty:
                return
            time.sleep(1)
        assert empty == []


def _shown(prometheus: Prometheus, query: Query) -> bool:
    panel, expr, legend = query
    samples = prometheus.query(expr)
    wanted = set(re.findall(r"{{(\w+)}}", legend)) - {"node"}  # which the ServiceMonitor puts in
    for sample in samples:
        assert wanted <= set(sample["metric"]), f"{panel}: a blank in the legend {legend}: {sample}"
    return bool(samples)


def test_every_variable_has_a_value():
    assert [expr for _, expr, _ in queries() if "$" in expr] == []
