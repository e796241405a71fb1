"""Reads a section of `config.json`, whose maker wrote freely: under any name, and as a list where layers differ."""

from typing import Any, Final

from moorage.sizing.errors import HeaderError, UnsizedError
from moorage.sizing.text import shown

MAX_NUMBER: Final = 1 << 31
MAX_LAYERS: Final = 1024


class Section:
    """Numbers of one JSON object, each checked before it is believed; `odd` collects what was not understood."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.values = values
        self.odd: list[str] = []

    def has(self, *names: str) -> bool:
        """Whether one of `names` is there with a value."""
        return any(self.values.get(name) is not None for name in names)

    def number(self, *names: str, default: int = 0, limit: int = MAX_NUMBER) -> int:
        """The number under the first of `names` that has one; of a list, one for each layer, the largest.

        What is no number counts as absent and is noted. Raises HeaderError for a number that cannot be.
        """
        for name in names:
            value = self.values.get(name)
            if value is None:
                continue
            found = [item for item in value if item is not None] if isinstance(value, list) else [value]
            if not found or any(isinstance(item, bool) or not isinstance(item, int) for item in found):
                self._note(f"{name} in config.json is {shown(value)}, which is not understood")
                continue
            if min(found) < 0 or max(found) > limit:
                raise HeaderError(f"{name} in config.json is {shown(max(found, key=abs))}, which is impossible")
            return int(max(found))
        return default

    def required(self, *names: str, limit: int = MAX_NUMBER) -> int:
        """The same; raises UnsizedError where there is none."""
        value = self.number(*names, limit=limit)
        if value == 0:
            raise UnsizedError("; ".join([f"config.json lacks {names[0]}", *self.odd]))
        return value

    def words(self, *names: str) -> list[str]:
        """The list of texts under the first of `names` that has one; empty where none has."""
        for name in names:
            value = self.values.get(name)
            if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
                return value[:MAX_LAYERS]
        return []

    def text(self, name: str) -> str:
        """The text under `name`, else empty."""
        value = self.values.get(name)
        return value if isinstance(value, str) else ""

    def _note(self, what: str) -> None:
        if what not in self.odd:
            self.odd.append(what)
