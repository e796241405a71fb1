"""One gateway: two listeners, one sweep, one routing table, and the way it ends."""

import asyncio
import contextlib
import logging
import ssl
import time
from dataclasses import replace
from typing import Any

from moorage.gateway.admin import Admin
from moorage.gateway.demand import Demand
from moorage.gateway.listening import ignore_newcomers
from moorage.gateway.metrics import Page
from moorage.gateway.proxy import Proxy
from moorage.gateway.routes import Snapshot
from moorage.gateway.server import Listener
from moorage.gateway.settings import Settings
from moorage.gateway.stats import Stats

log = logging.getLogger(__name__)

Address = tuple[str, int]
_BACKLOG = 4096
_LAST_WORDS = 0.05  # seconds for what was said to the last clients to leave this process


class Gateway:
    """The gateway without what feeds it tables: call `apply` with each."""

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or Settings()
        self.stats = Stats()
        self.demand = Demand()
        self.proxy = Proxy(self.settings, self.stats, self.demand)
        self.public = Listener(self.settings, self.proxy)
        # Nobody uploads there, and nobody there may use up what clients need.
        modest = replace(self.settings, max_body_bytes=1024, max_connections=256)
        page = Page(self.stats, self.proxy.fleet, self.proxy.health, lambda: len(self.public.connections))
        self.admin = Listener(modest, Admin(page.pieces, self._unready))
        self.address: Address = ("", 0)
        self.admin_address: Address = ("", 0)
        self._servers: list[asyncio.Server] = []
        self._draining = False
        self._sweeper: asyncio.TimerHandle | None = None

    def apply(self, snapshot: Snapshot) -> None:
        """Put a routing table in force, at once and for every request that has not been sent yet."""
        self.proxy.swap(snapshot)

    async def start(self, listen: Address, admin: Address, tls: ssl.SSLContext | None = None) -> None:
        """Listen on both addresses, for clients with `tls` if given; port 0 picks a free one. Raises OSError."""
        loop = asyncio.get_running_loop()
        limits = {"ssl_handshake_timeout": self.settings.handshake_timeout, "ssl_shutdown_timeout": _LAST_WORDS}
        options: dict[str, Any] = {"ssl": tls, **limits} if tls else {}
        for listener, (host, port), more in ((self.public, listen, options), (self.admin, admin, {})):
            server = await loop.create_server(listener.connect, host, port, backlog=_BACKLOG, **more)
            self._servers.append(server)
        self.address, self.admin_address = (server.sockets[0].getsockname()[:2] for server in self._servers)
        self._sweep()

    async def drain(self) -> None:
        """Go away without a failed request: say so, let traffic be led elsewhere, then wait for what is left."""
        ends = time.monotonic() + self.settings.grace_period - self.settings.grace_reserve
        self._draining = True
        self.public.drain()
        log.info("draining: not ready from now on")
        await asyncio.sleep(self.settings.drain_delay)
        if self._servers:
            ignore_newcomers(self._servers[0])
            await asyncio.sleep(self.settings.last_handshakes)
            self._servers[0].close()
        log.info("draining: no more connections, %d requests left", self.public.busy)
        while self.public.busy and time.monotonic() < ends:
            await asyncio.sleep(0.02)
            self.public.close_idle()
        log.info("drained: %d requests left", self.public.busy)
        self.public.shut_down()
        await asyncio.sleep(_LAST_WORDS)

    async def stop(self) -> None:
        """Drop what is left."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        for listener in (self.public, self.admin):
            listener.abort()
        self.proxy.fleet.close()
        for server in self._servers:
            server.close()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1):
                    await server.wait_closed()

    def _unready(self) -> str:
        if self._draining:
            return "draining"
        return "" if self.proxy.routed else "no routing table yet"

    def _sweep(self) -> None:
        try:
            self.public.sweep()
            self.admin.sweep()
            self.proxy.fleet.close_idle()
        finally:
            self._sweeper = asyncio.get_running_loop().call_later(self.settings.sweep_interval, self._sweep)
