"""From what a server said to a reason and a sentence.

Facts: `X-Error-Code` and statuses of the Hugging Face hub as huggingface_hub 2.4 reads them
(`utils/_http.py`, hf_raise_for_status); `RateLimit` is the IETF draft header the hub sends with 429.
"""

import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Protocol

from moorage.errors import SourceError
from moorage.sources.access import Access
from moorage.sources.reasons import CATALOG, Reason

_CODES = {
    "RepoNotFound": Reason.REPO_NOT_FOUND,
    "GatedRepo": Reason.GATED,
    "RevisionNotFound": Reason.REVISION_NOT_FOUND,
    "EntryNotFound": Reason.FILE_NOT_FOUND,
}
_OF_A_REPOSITORY = (Reason.REPO_NOT_FOUND, Reason.GATED, Reason.UNAUTHORIZED, Reason.NOT_A_HUB)
_SAID = 300


class Headers(Protocol):
    """Headers of an answer, looked up without regard to case."""

    def get(self, name: str, /) -> str | None:
        """The value of a header, None where it is absent."""


def source_error(reason: Reason, message: str, *, after: float | None = None) -> SourceError:
    """A SourceError whose `retryable` is what the table of reasons says; what a person must mend ends in how."""
    facts = CATALOG[reason]
    message = _shown(message)
    text = message if facts.retryable else f"{message}; {facts.advice}"
    return SourceError(reason.value, text, retryable=facts.retryable, retry_after=after)


def classify(
    status: int,
    headers: Headers,
    what: str,
    *,
    access: Access,
    now: datetime,
    api: bool = False,
    repository: str | None = None,
) -> SourceError:
    """What an answer other than success means; `api` says that metadata was asked for, not a file.

    `what` names the thing asked for in the message ("a.gguf of acme/model on https://hub"), `repository` what it is
    part of, because that is what rights are about; `access` tells "no token" from "the token may not"; `now` is
    needed for dates in Retry-After.
    """
    code = headers.get("X-Error-Code") or ""
    said = _printable(access.hide(headers.get("X-Error-Message") or ""))
    reason = _CODES.get(code) or _by_status(status)
    if api and reason is Reason.FILE_NOT_FOUND and not code:
        # Mirrors leave the code out; a hub at least answers in JSON, any other web server with a page.
        reason = Reason.REPO_NOT_FOUND if "json" in (headers.get("Content-Type") or "") else Reason.NOT_A_HUB
    after = retry_after(headers, now)
    if repository and (reason in _OF_A_REPOSITORY or (api and reason is Reason.ACCESS_DENIED)):
        what = repository
    return source_error(reason, _sentence(reason, status, what, with_token=bool(access.token), said=said), after=after)


def _by_status(status: int) -> Reason:
    if status >= 500:
        return Reason.SERVER_ERROR
    known = {
        401: Reason.UNAUTHORIZED,
        403: Reason.ACCESS_DENIED,
        404: Reason.FILE_NOT_FOUND,
        408: Reason.TIMEOUT,
        410: Reason.FILE_NOT_FOUND,
        416: Reason.SIZE_MISMATCH,
        425: Reason.SERVER_ERROR,
        429: Reason.RATE_LIMITED,
    }
    return known.get(status, Reason.REQUEST_REFUSED if status >= 400 else Reason.UNEXPECTED_CONTENT)


def _sentence(reason: Reason, status: int, what: str, *, with_token: bool, said: str) -> str:
    no_token = "no token was given"
    texts = {
        Reason.REPO_NOT_FOUND: f"not found: {what} does not exist, or it is private and "
        + ("the token may not see it" if with_token else no_token),
        Reason.GATED: f"access denied: {what} is gated, and "
        + ("the token has no permission" if with_token else no_token),
        Reason.ACCESS_DENIED: f"access denied (forbidden): {what}",
        Reason.UNAUTHORIZED: f"unauthorized: {what} needs a token"
        + (", and the one given is not valid" if with_token else f", and {no_token}"),
        Reason.REVISION_NOT_FOUND: f"revision not found: {what}",
        Reason.FILE_NOT_FOUND: f"not found: {what}",
        Reason.NOT_A_HUB: f"not a Hugging Face-compatible hub: {what}",
        Reason.RATE_LIMITED: f"too many requests (rate limited): {what}",
        Reason.SERVER_ERROR: f"server error: {what}",
        Reason.TIMEOUT: f"timed out: {what}",
        Reason.SIZE_MISMATCH: f"size mismatch: {what} is shorter than the repository says",
        Reason.UNEXPECTED_CONTENT: f"unexpected answer: {what}",
    }
    text = texts.get(reason, f"request refused: {what}")
    if status == 407:
        text = f"proxy authentication required: {what}"
    return f"{text} (HTTP {status}{': ' + said if said else ''})"


def retry_after(headers: Headers, now: datetime) -> float | None:
    """Seconds to wait as the server asked: Retry-After in seconds or as a date, else RateLimit; None if unsaid.

    A date is compared with the server's own clock (its Date header) where it tells it: ours may be wrong.
    """
    value = (headers.get("Retry-After") or "").strip()
    if re.fullmatch(r"\d{1,9}", value):
        return float(value)
    if value:
        date = _date(value)
        if date is None:
            return rate_limit(headers)
        return max(0.0, (date - (_date(headers.get("Date") or "") or now)).total_seconds())
    return rate_limit(headers)


def _date(value: str) -> datetime | None:
    try:
        date = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None
    return date if date.tzinfo else date.replace(tzinfo=UTC)


def rate_limit(headers: Headers) -> float | None:
    """Seconds until the quota is renewed from `RateLimit: "api";r=0;t=55`; None while requests remain or if unsaid."""
    value = headers.get("RateLimit") or ""
    remaining, reset = re.search(r"\br=(\d+)", value), re.search(r"\bt=(\d{1,9})", value)
    return float(reset[1]) if reset and remaining and int(remaining[1]) == 0 else None


def _shown(text: str) -> str:
    """`text` without what a terminal would obey or a pipe refuse: names of files come from whoever made them."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text[:_SAID]).strip()
