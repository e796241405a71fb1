"""Gateways that report to an operator under test: scripted ones that say what they are told, and real ones."""

import asyncio
import contextlib
import threading
import urllib.request
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from aiohttp import ClientError, ClientSession

from e2e.cluster.network import free_ports
from moorage.control.endpoints import ReportsPort
from moorage.control.operator import Operator
from moorage.control.settings import Settings
from moorage.gateway.app import Gateway
from moorage.gateway.cluster import ClusterRoutes
from moorage.gateway.ledger import Ledger
from moorage.gateway.reporter import Operator as OperatorAddress
from moorage.gateway.reporter import Pace, Reporter
from moorage.gateway.routes import Hold, Snapshot
from moorage.kube.client import KubeClient
from moorage.usage import PATH, Report
from tests.process.gateway.support import QUICK, Bed, RawEngine, address
from tests.support.bed import SETTINGS, running_operator

TOKEN = "a-token-for-the-tests"


class Reports:
    """The port on which operators take reports, one after the other, and a gateway that sends some."""

    def __init__(self, kubeconfig: Path, folder: Path, namespace: str) -> None:
        self._kubeconfig, self._namespace = kubeconfig, namespace
        self._token_file = folder / "token"
        self._token_file.write_text(TOKEN)
        self.address = f"127.0.0.1:{free_ports(['reports'])['reports']}"
        self.port = ReportsPort(self.address, self._token_file)
        self._models: dict[str, dict[str, int]] = {}
        self._aliases: dict[str, dict[str, int]] = {}

    @contextmanager
    def operator(self, settings: Settings = SETTINGS) -> Iterator[Operator]:
        with running_operator(self._kubeconfig, settings, reports=self.port) as made:
            stop = threading.Event()
            beating = threading.Thread(target=self._beat, args=(stop,), daemon=True)
            beating.start()
            try:
                yield made
            finally:
                stop.set()
                beating.join()

    def _beat(self, stop: threading.Event) -> None:
        """Say again what was said last: on a slow machine too a gateway that is silent for a minute counts as gone."""
        headers = {"Authorization": f"Bearer {TOKEN}"}
        while not stop.wait(5):
            if not self._models and not self._aliases:
                continue  # nobody has spoken yet
            again = urllib.request.Request(f"http://{self.address}{PATH}", self._report(), headers)
            with contextlib.suppress(OSError):
                urllib.request.urlopen(again, timeout=5).close()

    def _report(self) -> bytes:
        names = {"models": dict(self._models), "aliases": dict(self._aliases)}
        body = {"gateway": "g", "instance": "instance-1", **names}
        return Report.model_validate(body).dump()

    async def say(self, model: str = "", alias: str = "", **use: int) -> None:
        """A gateway tells of one Model or alias, and of all others what it told before; `wanted` is now."""
        if "wanted" in use:
            use["wantedAt"] = int(datetime.now().timestamp())
        if model:
            self._models[f"{self._namespace}/{model}"] = use
        if alias:
            self._aliases[f"{self._namespace}/{alias}"] = use
        report = self._report()
        headers = {"Authorization": f"Bearer {TOKEN}"}
        async with ClientSession() as session:
            for _ in range(2):  # what follows the first answer holds all names
                try:
                    async with session.post(f"http://{self.address}{PATH}", data=report, headers=headers) as answer:
                        assert answer.status == 200, await answer.text()
                except ClientError as error:
                    raise AssertionError("the operator takes no reports") from error

    @asynccontextmanager
    async def gateway(self, engines: Mapping[str, RawEngine], pace: Pace | None = None) -> AsyncIterator[Bed]:
        """A real gateway that follows the cluster and reports to the operator.

        Simulated pods run nothing: where the cluster says that a Model has a ready one, its engine of `engines` is
        asked instead.
        """
        gateway = Gateway(QUICK)

        def apply(found: Snapshot) -> None:
            models = {
                name: replace(model, endpoints=(address(engines[name]),))
                if model.endpoints and name in engines
                else model
                for name, model in found.models.items()
            }
            gateway.apply(Snapshot(models, found.routes, found.listed, found.keys, closed=found.closed))

        health = gateway.proxy.health
        ledger = Ledger("g", self._namespace, gateway.stats, gateway.demand, gateway.proxy.fleet, health.failed_over)
        reporter = Reporter(ledger, OperatorAddress(f"http://{self.address}", self._token_file, QUICK), pace)
        gateway.demand.on_ask = health.on_change = reporter.hurry
        await gateway.start(("127.0.0.1", 0), ("127.0.0.1", 0))
        async with await KubeClient.connect(self._kubeconfig, user_agent="gateway-test") as client:
            follow = ClusterRoutes(client, self._namespace, Hold(), apply).follow()
            tasks = [asyncio.create_task(follow), asyncio.create_task(reporter.run())]
            try:
                yield Bed(gateway)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                await gateway.stop()
