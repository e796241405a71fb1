"""The kopf side: settings and the watches of the three kinds. kopf is the process' shell, nothing is decided here."""

import asyncio
import logging
from collections.abc import Iterator
from itertools import chain, repeat
from pathlib import Path
from typing import Any, cast

import kopf
from aiohttp import web

from moorage import names
from moorage.control.endpoints import ReportsPort, serve, serve_reports
from moorage.control.operator import PAGE, Operator
from moorage.control.store import ALIAS, DOWNLOAD, MODEL
from moorage.errors import MoorageError
from moorage.kube.login import log_in

log = logging.getLogger(__name__)

PLURALS = {MODEL: "models", DOWNLOAD: "modeldownloads", ALIAS: "modelaliases"}


class Patience:
    """Pauses between attempts to reach the API server, in seconds: growing to half a minute, and never given up.

    kopf's own list ends after nine attempts and the process with it; an API server may be away for longer.
    """

    def __iter__(self) -> Iterator[float]:
        """1, 2, 4, 8, 16, 30, 30, ..."""
        return chain((1.0, 2.0, 4.0, 8.0, 16.0), repeat(30.0))


class NoDiff(kopf.DiffBaseStorage):
    """No last-handled state: nothing here handles differences, and kopf copies every object twice to find them."""

    def build(self, **_: Any) -> kopf.BodyEssence:
        """Of every object the same: nothing."""
        return cast(kopf.BodyEssence, {})

    def fetch(self, **_: Any) -> None:
        """Nothing is stored."""

    def store(self, **_: Any) -> None:
        """Nothing is written."""


def configure(settings: kopf.OperatorSettings) -> None:
    """kopf's settings: no peering, no scanning, no Events of its own, watches that notice a dead connection."""
    settings.peering.standalone = True
    settings.scanning.disabled = True
    settings.posting.enabled = False
    settings.watching.chunk_size = PAGE
    settings.watching.server_timeout = 300
    settings.watching.client_timeout = 360
    settings.networking.request_timeout = 30
    settings.networking.connect_timeout = 10
    settings.networking.error_backoffs = Patience()
    settings.queueing.idle_timeout = 0.5  # a task per object stays that long; thousands of them after each list
    settings.persistence.diffbase_storage = NoDiff()
    settings.persistence.finalizer = f"{names.GROUP}/finalizer"  # never set: no handler of ours needs one


def registry(
    operator: Operator, kubeconfig: Path | None, listen: str | None, reports: ReportsPort | None = None
) -> kopf.OperatorRegistry:
    """Handlers that feed `operator` from kopf's watches and tie its life to kopf's."""
    handlers = kopf.OperatorRegistry()
    web_runner: list[web.AppRunner] = []

    @kopf.on.login(registry=handlers)
    async def login(**_: Any) -> kopf.ConnectionInfo:
        return await _connection(kubeconfig)

    @kopf.on.startup(registry=handlers, errors=kopf.ErrorsMode.PERMANENT)  # else tried again over what runs already
    async def start(settings: kopf.OperatorSettings, **_: Any) -> None:
        configure(settings)
        if listen:
            web_runner.append(await serve(operator, listen))
        if reports:
            web_runner.append(await serve_reports(operator, reports))
        await operator.start()

    @kopf.on.cleanup(registry=handlers)
    async def stop(**_: Any) -> None:
        await operator.stop()
        for runner in web_runner:
            await runner.cleanup()

    for kind, plural in PLURALS.items():
        _watch(handlers, operator, kind, plural)
    return handlers


async def _connection(kubeconfig: Path | None) -> kopf.ConnectionInfo:
    """The client's own way into the cluster, so that kopf can never end up in another one.

    A token is given as it is now; kopf logs in again when the server no longer takes it.
    """
    found = await log_in(kubeconfig)
    scheme, _, token = (await found.authorization() or "").partition(" ")
    return kopf.ConnectionInfo(
        server=found.server,
        ca_path=found.ca_file,
        insecure=not found.verified,
        certificate_path=found.certificate_file,
        private_key_path=found.key_file,
        scheme=scheme or None,
        token=token or None,
        proxy_url=found.proxy,
        default_namespace=found.namespace,
    )


def _watch(handlers: kopf.OperatorRegistry, operator: Operator, kind: str, plural: str) -> None:
    @kopf.on.event(names.GROUP, names.VERSION, plural, registry=handlers, id=plural)
    async def seen(event: Any, **_: Any) -> None:
        obj = event["object"]
        if event["type"] == "DELETED":
            operator.drop(kind, obj)
        else:
            operator.put(kind, obj)


async def run(
    operator: Operator,
    kubeconfig: Path | None,
    listen: str | None,
    stop: asyncio.Event | None = None,
    *,
    reports: ReportsPort | None = None,
) -> None:
    """Run `operator` in this event loop until `stop` is set or the process is told to end.

    Raises the MoorageError for which it could not start.
    """
    try:
        await kopf.operator(
            registry=registry(operator, kubeconfig, listen, reports),
            clusterwide=True,
            standalone=True,
            stop_flag=stop,
        )
    except Exception as error:  # kopf wraps what a start failed for, and runs no cleanup then
        await operator.stop()
        raise (error.__cause__ if isinstance(error.__cause__, MoorageError) else error) from None
