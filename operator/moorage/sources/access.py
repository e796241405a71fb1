"""What a source wants to see before it answers."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from moorage.errors import SourceError
from moorage.sources.reasons import Reason

_SENDABLE = re.compile(r"[\t\x20-\x7e\xa0-\xff]*")


def parse_headers(text: str) -> dict[str, str]:
    """Request headers written as one `Name: value` on each line, as curl's `--header @FILE` takes them.

    Raises ValueError where a line is none; it does not repeat the line, which may hold a secret.
    """
    pairs = [line.partition(":") for line in text.splitlines() if line.strip()]
    if not all(separator and name.strip() for name, separator, _ in pairs):
        raise ValueError("every line must be 'Name: value'")
    return {name.strip(): value.strip() for name, _, value in pairs}


@dataclass(frozen=True)
class Access:
    """A bearer `token`, other `headers`, and `ca`, a PEM bundle trusted beside the system's authorities.

    Token and headers go to the origin of the source only, never along a redirect to another.
    """

    token: str | None = field(default=None, repr=False)
    ca: str | None = field(default=None, repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)

    def sent(self) -> dict[str, str]:
        """The request headers for the source's own origin; raises SourceError(Unauthorized) where one cannot be sent.

        Secrets made from files end in a line break as a rule; it is no part of the token.
        """
        token = (self.token or "").strip()
        headers = {**self.headers, **({"Authorization": f"Bearer {token}"} if token else {})}
        for name, value in headers.items():
            if not _SENDABLE.fullmatch(value):  # HTTP libraries refuse it too, and say it aloud
                raise SourceError(
                    Reason.UNAUTHORIZED.value,
                    f"unauthorized: the {name} header cannot be sent: its value has a line break or a character"
                    " that is neither ASCII nor Latin-1; check the Secret it comes from",
                    retryable=False,
                )
        return headers

    def hide(self, text: str) -> str:
        """`text` without our secrets: a server may say back what it was sent."""
        for secret in filter(None, ((self.token or "").strip(), *self.headers.values())):
            text = text.replace(secret, "***")
        return text
