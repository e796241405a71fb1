"""The gateway's certificate: read from two files, and again when they change, without a connection noticing."""

import asyncio
import logging
import ssl
from pathlib import Path

from moorage.errors import InvalidSpec

log = logging.getLogger(__name__)


class Certificate:
    """`context` is for the listener: each handshake gets the newest certificate that could be read.

    Raises InvalidSpec where the files cannot be used now; later the last good certificate stays.
    """

    def __init__(self, chain: Path, key: Path, poll: float) -> None:
        self._files = (chain, key)
        self._poll = poll
        self._seen = self._versions()
        self._newest = self._load()
        self.context = self._load()
        self.context.sni_callback = self._choose  # called for every client, whether it names a server or not

    async def follow(self) -> None:
        """Read the files again whenever they change, for ever."""
        while True:
            await asyncio.sleep(self._poll)
            versions = self._versions()
            if versions == self._seen:
                continue
            self._seen = versions
            try:
                self._newest = self._load()
                log.info("%s: a new certificate is in force", self._files[0])
            except InvalidSpec as error:
                log.error("%s; the last good certificate stays in force", error)

    def _load(self) -> ssl.SSLContext:
        # The kubelet swaps a mounted Secret by one link: both files are taken from the same side of it.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.set_alpn_protocols(["http/1.1"])
        try:
            chain, key = (path.resolve() for path in self._files)
            context.load_cert_chain(chain, key, password=_no_password)
        except (OSError, ValueError, RuntimeError) as error:  # ssl.SSLError is an OSError; links in a circle
            raise InvalidSpec(
                "InvalidSpec", f"no certificate from {self._files[0]} and {self._files[1]}: {error}"
            ) from None
        return context

    def _choose(self, connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        connection.context = self._newest

    def _versions(self) -> list[tuple[int, int] | None]:
        return [_version(path) for path in self._files]


def _version(path: Path) -> tuple[int, int] | None:
    try:
        facts = path.stat()
    except OSError:
        return None
    return facts.st_mtime_ns, facts.st_ino


def _no_password() -> bytes:
    """Rather than asking at a terminal that is not there."""
    raise ValueError("the key is encrypted")
