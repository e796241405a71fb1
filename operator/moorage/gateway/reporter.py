"""Tells the operator what the `ledger` holds: as soon as somebody wants a Model that sleeps, else every few seconds.

Nothing here is in a request's way: a report is made in the event loop's spare moments, and an operator that is away,
slow or of another opinion costs nobody but this task anything. It is tried again for ever.
"""

import asyncio
import contextlib
import logging
import random
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import orjson

from moorage.errors import InvalidSpec, Unavailable
from moorage.gateway.ledger import Ledger
from moorage.gateway.settings import Settings
from moorage.gateway.upstream import EngineEndpoint, Headers
from moorage.usage import ALIVE_SECONDS, CHANGED_SECONDS, PATH, Report

log = logging.getLogger(__name__)

_LONGEST_ANSWER = 64 << 10


@dataclass(frozen=True)
class Pace:
    """Seconds: see `moorage.usage` for the first two."""

    changed: float = CHANGED_SECONDS
    alive: float = ALIVE_SECONDS
    glance: float = 0.5  # until it is told that a Model is in use which was idle: it could be put to sleep meanwhile
    urgent: float = 0.05  # at least between two reports of demand, which come with every request for a sleeping Model
    answer: float = 5.0  # that the operator has for one
    first_retry: float = 0.2  # doubled from one failure to the next
    last_retry: float = 2.0


class Operator:
    """The operator's address, and the token that it wants to see."""

    def __init__(self, url: str, token_file: Path, settings: Settings) -> None:
        """Raises InvalidSpec where `url` is not `http://HOST[:PORT]`."""
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname or parts.path not in ("", "/") or parts.query or parts.username:
            raise InvalidSpec("InvalidSpec", f"{url!r} is not http://HOST[:PORT]")
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        self.url = url
        self._endpoint = EngineEndpoint(f"{host}:{parts.port or 80}", settings)
        self._token_file = token_file
        self._token: tuple[tuple[int, int], bytes] = ((0, 0), b"")  # which version of the file said what

    async def post(self, body: bytes, timeout: float) -> bytes:
        """Send a report; what came back. Raises Unavailable where that is no 200 within `timeout` seconds."""
        token = self._read_token()
        head = b"%bcontent-length: %d\r\nauthorization: Bearer %b\r\n\r\n" % (
            self._endpoint.head(PATH.encode()), len(body), token,
        )  # fmt: skip
        answer = _Answer()
        call = self._endpoint.call(head, body, answer, time.monotonic())
        try:
            async with asyncio.timeout(timeout):
                return await answer.body
        except TimeoutError:
            raise Unavailable(f"no answer within {timeout:g} s") from None
        finally:
            if not answer.over:
                call.abort()

    def close(self) -> None:
        """Close the connection."""
        self._endpoint.retire()

    def _read_token(self) -> bytes:
        """The token, read again whenever its file has changed (the kubelet replaces mounted Secrets)."""
        try:
            facts = self._token_file.stat()
            version = facts.st_mtime_ns, facts.st_ino
            if version != self._token[0]:
                self._token = version, self._token_file.read_bytes().strip()
        except OSError as error:
            raise Unavailable(f"the token cannot be read: {error}") from None
        token = self._token[1]
        if not token or not token.isascii() or not token.decode().isprintable():
            raise Unavailable(f"{self._token_file} holds no token")
        return token


class _Answer:
    """One answer of the operator; see upstream.Receiver."""

    def __init__(self) -> None:
        self.body: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self.over = False
        self._status = 0
        self._data = b""

    def on_head(self, status: int, headers: Headers) -> None:
        self._status = status

    def on_data(self, data: bytes, last: bool) -> None:
        self._data += data
        self.over = last
        if self.body.done() or not (last or len(self._data) > _LONGEST_ANSWER):
            return
        if self._status == 200 and last:
            self.body.set_result(self._data)
        else:
            text = self._data[:200].decode(errors="replace").strip()
            self.body.set_exception(Unavailable(f"answered {self._status}: {text!r}"))

    def on_broken(self, why: str, answered: bool) -> None:
        self.over = True
        if not self.body.done():
            self.body.set_exception(Unavailable(why))


class Reporter:
    """Sends reports until it is cancelled."""

    def __init__(self, ledger: Ledger, operator: Operator, pace: Pace | None = None) -> None:
        self._ledger = ledger
        self._operator = operator
        self._pace = pace or Pace()
        self._urgent = asyncio.Event()
        self._epoch = ""
        self._failures = 0
        self._sent_at = float("-inf")

    def hurry(self) -> None:
        """Somebody wants a Model that sleeps: do not wait for the next report."""
        self._urgent.set()

    async def run(self) -> None:
        """Report for ever; the first time at once."""
        while True:
            try:
                await self._step()
            except Exception:  # a defect must not end the reports of the rest of this process' life
                log.exception("a defect: no usage report could be made")
                self._failures += 1
                await asyncio.sleep(self._pause())

    async def _step(self) -> None:
        report = self._ledger.report()
        if self._urgent.is_set() or self._news(report):
            self._urgent.clear()
            if await self._deliver(report):
                return
            await asyncio.sleep(self._pause())
        await self._wait()

    async def finish(self, timeout: float) -> None:
        """The last words of this process: its numbers count even if it ends between two reports."""
        try:
            async with asyncio.timeout(timeout):
                while await self._deliver(self._ledger.report()):
                    pass
        except TimeoutError:
            log.warning("the operator did not take the last usage report in time")
        self._operator.close()

    def _news(self, report: Report) -> bool:
        wait = self._pace.changed if report.models or report.aliases else self._pace.alive
        return bool(self._failures) or time.monotonic() - self._sent_at >= wait

    def _pause(self) -> float:
        if not self._failures:
            return self._pace.urgent
        wait = min(self._pace.last_retry, self._pace.first_retry * 2.0 ** min(self._failures - 1, 10))
        return wait * random.uniform(0.75, 1.0)

    async def _wait(self) -> None:
        ends = time.monotonic() + self._pace.changed
        while not self._failures and (left := ends - time.monotonic()) > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(left, self._pace.glance)):
                    await self._urgent.wait()
                    return
            if self._ledger.newly_busy():
                self._urgent.set()

    async def _deliver(self, report: Report) -> bool:
        """Send `report`; True where the operator turns out to be a new one, which has to be told everything."""
        try:
            answer = await self._operator.post(report.dump(), self._pace.answer)
            epoch = _epoch(answer)
        except Unavailable as error:
            self._failures += 1
            if self._failures == 1:
                log.warning("the operator at %s does not take usage reports: %s; trying on", self._operator.url, error)
            return False
        if self._failures or not self._epoch:
            log.info("the operator at %s takes usage reports", self._operator.url)
        self._failures = 0
        self._sent_at = time.monotonic()
        self._ledger.told(report)
        known, self._epoch = self._epoch, epoch
        if known and known != epoch:
            log.info("the operator has started anew: telling it everything")
            self._ledger.start_over()
            return True
        return False


def _epoch(answer: bytes) -> str:
    try:
        epoch = orjson.loads(answer)["epoch"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        epoch = None
    if not isinstance(epoch, str) or not epoch:
        raise Unavailable("its answer has no epoch")
    return epoch
