"""What a source wants to see before it answers."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Access:
    """A bearer `token`, other `headers`, and `ca`, a PEM bundle trusted beside the system's authorities.

    Token and headers go to the origin of the source only, never along a redirect to another.
    """

    token: str | None = field(default=None, repr=False)
    ca: str | None = field(default=None, repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)

    def sent(self) -> dict[str, str]:
        """The request headers for the source's own origin."""
        return {**self.headers, **({"Authorization": f"Bearer {self.token}"} if self.token else {})}

    def hide(self, text: str) -> str:
        """`text` without our secrets: a server may say back what it was sent."""
        for secret in filter(None, (self.token, *self.headers.values())):
            text = text.replace(secret, "***")
        return text
