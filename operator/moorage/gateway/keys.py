"""API keys: what a client may ask for, and how often. Pure.

In a cluster a key is a Secret in the gateway's own namespace. It never holds the key itself:

    metadata:
      labels: {moorage.dev/api-key: "true"}
      annotations:                              # each may be left out: no limit
        moorage.dev/namespaces: team-a, team-b  # whose Models and aliases; `*`: everybody's
        moorage.dev/aliases: chat, team-b/embed # of those, these alone; `*`: all
        moorage.dev/requests-per-minute: "600"
        moorage.dev/tokens-per-minute: "100000" # prompt and completion together
        moorage.dev/max-concurrency: "20"       # under way or waiting at once
        moorage.dev/expires-at: "2026-12-31T00:00:00Z"
    data:
      sha256: ...                               # hex digests, one per line: the old and the new key while one changes

What stands in annotations `kubectl describe` shows; the data of a Secret it does not. A plain SHA-256 is enough for
keys of 256 random bits, which no dictionary holds.
"""

import base64
import binascii
import hashlib
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from moorage import names
from moorage.errors import InvalidSpec

PREFIX = "sk-moorage-"  # scanners that look for leaked keys find it
SHORTEST_KEY = 24
_HEX = re.compile(r"[0-9a-fA-F]{64}")
_LARGEST = 10**12


@dataclass(frozen=True)
class Limits:
    """What a key may use of one gateway process; 0: no limit."""

    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    max_concurrency: int = 0


@dataclass(frozen=True)
class Key:
    """An API key: the SHA-256 digests of the texts that are it, and what it may use; None: everything.

    `namespaces` are looked through in their order for a name without one. `expires`: Unix seconds, 0 for never.
    """

    name: str
    digests: tuple[bytes, ...]
    names: frozenset[str] | None = None
    namespaces: tuple[str, ...] | None = None
    limits: Limits = Limits()
    expires: int = 0

    @property
    def limited(self) -> bool:
        """Whether there are Models that it may not use."""
        return self.names is not None or self.namespaces is not None


_FIELDS = {
    names.KEY_REQUESTS: "requests_per_minute",
    names.KEY_TOKENS: "tokens_per_minute",
    names.KEY_CONCURRENCY: "max_concurrency",
}


def digest(secret: str) -> bytes:
    """What a gateway keeps of the key `secret`."""
    return hashlib.sha256(secret.encode()).digest()


def new_secret() -> str:
    """A key that nobody can guess."""
    return PREFIX + secrets.token_urlsafe(32)


def manifest(key: Key, namespace: str) -> dict[str, Any]:
    """The Secret that `key` is in the gateway's `namespace`."""
    limits = {name: getattr(key.limits, field) for name, field in _FIELDS.items()}
    annotations = {
        names.KEY_NAMESPACES: ", ".join(key.namespaces) if key.namespaces is not None else "*",
        names.KEY_ALIASES: ", ".join(sorted(key.names)) if key.names is not None else "*",
        **{name: str(value) for name, value in limits.items() if value},
    }
    if key.expires:
        annotations[names.KEY_EXPIRES] = f"{datetime.fromtimestamp(key.expires, UTC):%Y-%m-%dT%H:%M:%SZ}"
    metadata = {"name": key.name, "namespace": namespace, "labels": {names.KEY_LABEL: "true"}}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {**metadata, "annotations": annotations},
        "stringData": {"sha256": "".join(f"{one.hex()}\n" for one in key.digests)},
    }


def key_of(secret: dict[str, Any]) -> Key:
    """The key that a Secret is. Raises InvalidSpec where it says anything that is not understood.

    Not understood means refused: a limit with a slip in its name would otherwise be no limit.
    """
    metadata = secret["metadata"]
    annotations: dict[str, str] = metadata.get("annotations") or {}
    known = {names.KEY_NAMESPACES, names.KEY_ALIASES, names.KEY_EXPIRES, *_FIELDS}
    if unknown := sorted(n for n in annotations if n.startswith(f"{names.GROUP}/") and n not in known):
        raise InvalidSpec("InvalidSpec", f"annotation {unknown[0]} means nothing; there are {', '.join(sorted(known))}")
    namespaces = _listed(annotations, names.KEY_NAMESPACES)
    aliases = _listed(annotations, names.KEY_ALIASES)
    return Key(
        name=metadata["name"],
        digests=_digests(secret.get("data") or {}),
        names=None if aliases is None else frozenset(aliases),
        namespaces=namespaces,
        limits=Limits(**{field: _number(annotations, name) for name, field in _FIELDS.items()}),
        expires=_moment(annotations, names.KEY_EXPIRES),
    )


def _digests(data: Mapping[str, str]) -> tuple[bytes, ...]:
    try:
        lines = base64.b64decode(data.get("sha256", ""), validate=True).decode("ascii").split()
    except (binascii.Error, UnicodeDecodeError):
        lines = ["?"]
    if not lines or not all(_HEX.fullmatch(line) for line in lines):
        raise InvalidSpec("InvalidSpec", "data.sha256 holds hex SHA-256 digests of 64 digits, one per line")
    return tuple(bytes.fromhex(line) for line in lines)


def _listed(annotations: Mapping[str, str], name: str) -> tuple[str, ...] | None:
    if name not in annotations:
        return None
    words = tuple(dict.fromkeys(word.strip() for word in annotations[name].split(",")))
    if words == ("*",):
        return None
    if "*" in words or not all(words):
        raise InvalidSpec("InvalidSpec", f"annotation {name} is a list of names with commas between them, or `*`")
    return words


def _moment(annotations: Mapping[str, str], name: str) -> int:
    if name not in annotations:
        return 0
    try:
        found = datetime.fromisoformat(annotations[name].strip())
    except ValueError:
        found = datetime.min
    if found.tzinfo is None:
        raise InvalidSpec("InvalidSpec", f"annotation {name} is a time with its zone, such as 2026-12-31T00:00:00Z")
    return max(int(found.timestamp()), 1)


def _number(annotations: Mapping[str, str], name: str) -> int:
    text = annotations.get(name, "").strip() if name in annotations else "0"
    if not (text.isascii() and text.isdecimal()) or (name in annotations and not 0 < int(text) <= _LARGEST):
        raise InvalidSpec("InvalidSpec", f"annotation {name} is a whole number above 0, not {text!r}")
    return int(text)
