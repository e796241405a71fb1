"""The kopf side: settings and the watches of the three kinds. kopf is the process' shell, nothing is decided here."""

import asyncio
import logging
import os
from pathlib import Path
from typing import Any

import kopf
from aiohttp import web

from moorage import names
from moorage.control.endpoints import serve
from moorage.control.operator import Operator
from moorage.control.settings import Settings
from moorage.control.store import ALIAS, DOWNLOAD, MODEL

log = logging.getLogger(__name__)

PLURALS = {MODEL: "models", DOWNLOAD: "modeldownloads", ALIAS: "modelaliases"}


def configure(settings: kopf.OperatorSettings) -> None:
    """kopf's settings: no peering, no scanning, no Events of its own, watches that notice a dead connection."""
    settings.peering.standalone = True
    settings.scanning.disabled = True
    settings.posting.enabled = False
    settings.watching.chunk_size = 500
    settings.watching.server_timeout = 300
    settings.watching.client_timeout = 360
    settings.networking.request_timeout = 30
    settings.networking.connect_timeout = 10
    settings.persistence.finalizer = f"{names.GROUP}/finalizer"  # never set: no handler of ours needs one


def registry(operator: Operator, kubeconfig: Path | None, listen: str | None) -> kopf.OperatorRegistry:
    """Handlers that feed `operator` from kopf's watches and tie its life to kopf's."""
    handlers = kopf.OperatorRegistry()
    web_runner: list[web.AppRunner] = []

    @kopf.on.login(registry=handlers)
    def login(**kwargs: Any) -> Any:
        if kubeconfig is None and "KUBECONFIG" not in os.environ:
            return kopf.login_with_service_account(**kwargs) or kopf.login_via_client(**kwargs)
        if kubeconfig is not None:
            os.environ["KUBECONFIG"] = str(kubeconfig)  # the only way to tell kopf which file
        return kopf.login_via_client(**kwargs)  # knows exec plugins and tokens, as kubectl does

    @kopf.on.startup(registry=handlers)
    async def start(settings: kopf.OperatorSettings, **_: Any) -> None:
        configure(settings)
        if listen:
            web_runner.append(await serve(operator, listen))
        await operator.start()

    @kopf.on.cleanup(registry=handlers)
    async def stop(**_: Any) -> None:
        await operator.stop()
        for runner in web_runner:
            await runner.cleanup()

    for kind, plural in PLURALS.items():
        _watch(handlers, operator, kind, plural)
    return handlers


def _watch(handlers: kopf.OperatorRegistry, operator: Operator, kind: str, plural: str) -> None:
    @kopf.on.event(names.GROUP, names.VERSION, plural, registry=handlers, id=plural)
    async def seen(event: Any, **_: Any) -> None:
        obj = event["object"]
        if event["type"] == "DELETED":
            operator.drop(kind, obj)
        else:
            operator.put(kind, obj)


async def run(
    kubeconfig: Path | None, settings: Settings, listen: str | None, stop: asyncio.Event | None = None
) -> None:
    """Run the operator in this event loop until `stop` is set or the process is told to end."""
    operator = await Operator.connect(kubeconfig, settings)
    await kopf.operator(
        registry=registry(operator, kubeconfig, listen),
        clusterwide=True,
        standalone=True,
        stop_flag=stop,
    )
