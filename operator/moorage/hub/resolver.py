"""Name resolution that refuses forbidden addresses: checked after resolving, so that no name can hide one."""

import socket

from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver

from moorage.sources import HostPolicy


class CheckedResolver(AbstractResolver):
    """The system's resolver behind a HostPolicy; raises SourceError(HostNotAllowed)."""

    def __init__(self, policy: HostPolicy) -> None:
        self._policy = policy
        self._system = ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Addresses of `host`, all of them allowed."""
        found = await self._system.resolve(host, port, family)
        self._policy.check_addresses(host, [answer["host"] for answer in found])
        return found

    async def close(self) -> None:
        """Nothing is held."""
        await self._system.close()
