"""Takes the gateways' usage reports, on a port of its own, from whoever has the shared token.

    POST /v1/usage            Authorization: Bearer TOKEN

401 without the token, 400 for what is no report, 413 for one that is too long, 503 until the operator has read the
cluster: a gateway tries again with its next report, which holds the same and more.
"""

import hmac
import logging
from collections.abc import Callable
from pathlib import Path

from aiohttp import web

from moorage.control import metrics
from moorage.errors import InvalidSpec
from moorage.usage import LONGEST_BYTES, PATH, Report

log = logging.getLogger(__name__)

SHORTEST_TOKEN = 16


def read_token(path: Path) -> bytes:
    """The shared token; raises InvalidSpec where the file cannot be read or holds none to speak of."""
    try:
        token = path.read_bytes().strip()
    except OSError as error:
        raise InvalidSpec("InvalidSettings", f"token of usage reports: {error}") from error
    if len(token) < SHORTEST_TOKEN:
        raise InvalidSpec("InvalidSettings", f"token of usage reports in {path}: it has {SHORTEST_TOKEN} bytes or more")
    return token


def application(token: Path, take: Callable[[Report], str | None]) -> web.Application:
    """The receiver. `take` gets each report and answers the epoch, or None while it is too early.

    The token is read for each report, so that a new one counts as soon as the kubelet has put it there.
    """

    async def usage(request: web.Request) -> web.Response:
        if not _permitted(request, token):
            return _refusal(401, "Authorization: Bearer TOKEN is missing or wrong; both sides read the same Secret")
        try:
            report = Report.parse(await request.read())
        except web.HTTPRequestEntityTooLarge:
            return _refusal(413, f"a report has at most {LONGEST_BYTES} bytes")
        except InvalidSpec as error:
            return _refusal(400, error.message)
        epoch = take(report)
        if epoch is None:
            return _refusal(503, "the operator is starting; send it again")
        metrics.USAGE_REPORTS.labels("200").inc()
        return web.json_response({"epoch": epoch})

    app = web.Application(client_max_size=LONGEST_BYTES)
    app.add_routes([web.post(PATH, usage)])
    return app


def _permitted(request: web.Request, token_file: Path) -> bool:
    try:
        token = read_token(token_file)
    except InvalidSpec as error:
        log.warning("usage reports are refused: %s", error.message)
        return False
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    same = hmac.compare_digest(given.strip().encode(errors="surrogateescape"), token)
    return scheme.lower() == "bearer" and same


def _refusal(status: int, message: str) -> web.Response:
    metrics.USAGE_REPORTS.labels(str(status)).inc()
    if status != 503:
        log.warning("a usage report was refused (%d): %s", status, message)
    return web.json_response({"error": message}, status=status)
