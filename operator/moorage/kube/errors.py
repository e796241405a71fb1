"""From what the API server answers, or fails to, to the exceptions of `moorage.errors`.

A failed answer carries a `Status` object: https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/status/
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import aiohttp
import orjson

from moorage.errors import ApiError, Conflict, Forbidden, Gone, Invalid, NotFound, Throttled, Unavailable

# What a broken or silent connection raises below us; all of it means "try again".
TRANSPORT_ERRORS = (aiohttp.ClientError, TimeoutError, OSError)

# The reason given where the API server does not know the kind at all (a CRD that is not installed, an older cluster).
KIND_NOT_SERVED = "KindNotServed"

# Server-side apply answers 500 without a reason (Kubernetes 1.36) where a field does not fit the schema.
_NOT_IN_SCHEMA = "failed to create typed patch object"

_MESSAGE_LIMIT = 1024
_BY_STATUS: dict[int, type[ApiError]] = {
    400: Invalid,
    401: Forbidden,
    403: Forbidden,
    404: NotFound,
    408: Unavailable,
    409: Conflict,
    410: Gone,
    413: Invalid,
    422: Invalid,
    429: Throttled,
}


def from_response(code: int, body: bytes, headers: Mapping[str, str], request: str) -> ApiError:
    """The error of an answer with HTTP status `code` >= 400; `request` ("GET /api/v1/...") is told where no name is."""
    status = _status(body)
    if status is None:
        text = body.decode(errors="replace").strip() or f"HTTP {code}"
        reason = KIND_NOT_SERVED if code == 404 else ""
        return _error(code, reason, f"{text} ({request})", retry_after(headers))
    if not status.get("details", {}).get("name"):
        status = {**status, "message": f"{status.get('message') or f'HTTP {code}'} ({request})"}
    return from_status({**status, "code": code}, retry_after(headers))


def from_status(status: Mapping[str, Any], wait: float | None = None) -> ApiError:
    """The error of a `Status` object, also as the `object` of a watch event of type ERROR."""
    details = status.get("details") or {}
    code = int(status.get("code") or 0)
    seconds = details.get("retryAfterSeconds")
    reason = str(status.get("reason") or "")
    if code == 404 and not details.get("name"):
        reason = KIND_NOT_SERVED
    wait = wait if wait is not None else float(seconds) if seconds else None
    return _error(code, reason, str(status.get("message") or reason or f"HTTP {code}"), wait)


def from_exception(error: BaseException, request: str) -> Unavailable:
    """The error of a request that got no whole answer: refused, reset, timed out, cut in the middle."""
    what = str(error) or type(error).__name__
    if isinstance(error, TimeoutError):
        what = f"no answer in time: {what}"
    return Unavailable(_one_line(f"{what} ({request})"), reason=type(error).__name__)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds named by a `Retry-After` header, given as seconds or as a date (RFC 9110, 10.2.3); None without one."""
    text = headers.get("Retry-After")
    if not text:
        return None
    if text.strip().isdigit():
        return float(text)
    try:
        then = parsedate_to_datetime(text)
    except ValueError:
        return None
    then = then if then.tzinfo else then.replace(tzinfo=UTC)
    return max(0.0, (then - datetime.now(UTC)).total_seconds())


def _error(code: int, reason: str, message: str, wait: float | None) -> ApiError:
    kind = _BY_STATUS.get(code, Unavailable if code == 0 or code >= 500 else ApiError)
    if code == 500 and message.startswith(_NOT_IN_SCHEMA):
        kind, reason = Invalid, "Invalid"
    return kind(_one_line(message), status=code, reason=reason, retry_after=wait)


def _one_line(text: str) -> str:
    """An apply conflict lists its fields line by line; a condition's message is one line and bounded."""
    return " ".join(text.split())[:_MESSAGE_LIMIT]


def _status(body: bytes) -> dict[str, Any] | None:
    try:
        status = orjson.loads(body)
    except ValueError:
        return None
    return status if isinstance(status, dict) and status.get("kind") == "Status" else None
