"""The numbers of one architecture out of a GGUF header, each checked before it is believed."""

from typing import Final

from moorage.sizing.errors import HeaderError
from moorage.sizing.gguf import GgufHeader, Skipped
from moorage.sizing.model import MAX_LAYERS
from moorage.sizing.text import clean, shown

MAX_NUMBER: Final = 1 << 31
"""Of any one number; what they make together is bounded by `limits`."""


class Hparams:
    """Reads `{architecture}.*` keys; a per-layer key may be one number for all layers or a list."""

    def __init__(self, header: GgufHeader) -> None:
        self.architecture = header.architecture
        if not self.architecture:
            raise HeaderError("the header names no architecture (general.architecture)")
        self._header = header
        self.layer_count = self.required("block_count")
        if not 0 < self.layer_count <= MAX_LAYERS:
            raise HeaderError(f"{self.layer_count} layers are impossible, 1 to {MAX_LAYERS} are")
        self.idle_layers = self.number("nextn_predict_layers")
        if self.idle_layers >= self.layer_count:
            raise HeaderError(f"{self.idle_layers} of {self.layer_count} layers cannot all be for prediction")

    @property
    def trunk(self) -> int:
        """Layers that are loaded and run for every token."""
        return self.layer_count - self.idle_layers

    def has(self, key: str) -> bool:
        """Whether the header has `{architecture}.{key}`."""
        return f"{self.architecture}.{key}" in self._header.metadata

    def number(self, key: str, default: int = 0) -> int:
        """A whole number; `default` where the header has none."""
        value = self._header.integer(f"{self.architecture}.{key}")
        return default if value is None else self._checked(key, value)

    def required(self, key: str) -> int:
        """A whole number that must be there; raises HeaderError where it is missing."""
        if not self.has(key):
            raise HeaderError(f"the header lacks {clean(self.architecture, 40)}.{key}")
        return self.number(key)

    def per_layer(self, key: str, default: int = 0) -> list[int]:
        """One number for each trunk layer."""
        value = self._header.metadata.get(f"{self.architecture}.{key}")
        if not isinstance(value, tuple):
            return [self.number(key, default)] * self.trunk
        return [self._checked(key, item) for item in self._whole_list(key, value)]

    def flags(self, key: str) -> list[bool] | None:
        """One yes or no for each trunk layer, where the header has a list."""
        value = self._header.metadata.get(f"{self.architecture}.{key}")
        return [bool(item) for item in self._whole_list(key, value)] if isinstance(value, tuple) else None

    def vocabulary(self) -> int:
        """Number of tokens, else 0 where only the embedding matrix tells."""
        tokens = self._header.metadata.get("tokenizer.ggml.tokens")
        known = tokens.length if isinstance(tokens, Skipped) else 0
        return self.number("vocab_size", known)

    def _whole_list(self, key: str, value: tuple[object, ...]) -> tuple[object, ...]:
        if len(value) < self.trunk:
            raise HeaderError(f"{key} has {len(value)} entries for {self.trunk} layers")
        return value[: self.trunk]

    def _checked(self, key: str, value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_NUMBER:
            raise HeaderError(f"{key} is {shown(value)}, which is impossible")
        return value
