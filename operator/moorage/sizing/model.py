"""What planning keeps of a GGUF header: a few hundred numbers that give the need for any context and any split.

`LlamaModel` goes into status as JSON (`to_json`, a few hundred bytes; a file with a type of its own for every tensor
takes a few thousand), so that the need can be computed again without the hub.
"""

from dataclasses import asdict, astuple, dataclass, replace
from enum import StrEnum
from typing import Any, Final

from moorage.sizing.errors import HeaderError
from moorage.sizing.stored import checked

MAX_LAYERS: Final = 512
"""LLAMA_MAX_LAYERS: llama.cpp refuses more."""

UNEVEN_PERMILLE: Final = 7


class Confidence(StrEnum):
    """How far a need can be trusted."""

    EXACT = "Exact"
    """Weights and cache by the engine's own rules to the byte; the compute buffer from above, within a few percent."""
    BOUNDED = "Bounded"
    """Some part is an upper bound only; `reasons` say which."""
    GUESS = "Guess"
    """The architecture keeps memory that no formula here knows; `reasons` say what."""


@dataclass(frozen=True)
class Layer:
    """One layer: its weights, and what it remembers.

    `weight_bytes` bytes of tensors; `key_width` and `value_width` cached values per token (key-value heads times
    head length; 0 where nothing is cached); `window` tokens of sliding-window attention, 0 for all; `state` f32 values
    of recurrent state per sequence.
    """

    weight_bytes: int
    key_width: int
    value_width: int
    window: int
    state: int


@dataclass(frozen=True)
class LlamaModel:
    """A GGUF model as llama.cpp will lay it out in memory.

    layers             in order, without those for multi-token prediction (they are not loaded)
    idle_layers        number of those: they still count where layers are shared out over GPUs
    input_bytes        tensors that stay in host memory (token embeddings and their like)
    output_bytes       tensors loaded beside the last layer, a tied output matrix included
    head_length        length of one key head, which a quantized cache type must divide
    Values alive at once per token of a micro-batch, by the part of the graph that needs most:
    attention_values   flash attention; plain_attention_values without it, less scores (one row per head and cell)
    feed_forward_values, recurrent_values   the same for the other kinds of layer
    input_values       per-layer embeddings of a token, looked up beside its own
    pools_last         the vector of a text's last token stands for the text, as the header says
    """

    architecture: str
    context_length: int
    embedding: int
    vocabulary: int
    heads: int
    head_length: int
    attention_values: int
    plain_attention_values: int
    feed_forward_values: int
    recurrent_values: int
    input_values: int
    latent_attention: bool
    layers: tuple[Layer, ...]
    idle_layers: int
    input_bytes: int
    output_bytes: int
    confidence: Confidence
    reasons: tuple[str, ...] = ()
    pools_last: bool = False

    @property
    def units(self) -> int:
        """What `--gpu-layers` counts: all layers and the output."""
        return len(self.layers) + self.idle_layers + 1

    @property
    def file_bytes(self) -> int:
        """Bytes of all tensors as they are loaded, on whatever device."""
        return self.input_bytes + sum(layer.weight_bytes for layer in self.layers) + self.output_bytes

    def requantized(self, bytes_now: int, bytes_then: int, gpus: int = 1) -> "LlamaModel":
        """The same model in another quantization, whose weight files have `bytes_then` instead of `bytes_now` bytes.

        An upper bound as far as the files tell: the output matrix, which llama-quantize keeps wide, keeps up to 8.5
        bits a value; half of what the token embeddings are counted with goes to the GPU's side, for those that shrink
        more than the rest; and with several GPUs the layers get some more each, because a mix of types is not shared
        out evenly (seen on 30 models: 0.3 % on two GPUs, 1.4 % on four, 4.1 % on eight).
        """
        uneven = UNEVEN_PERMILLE * gpus if gpus > 1 else 0

        def then(size: int) -> int:
            return -(-size * bytes_then // bytes_now)

        wide = min(self.output_bytes, self.embedding * self.vocabulary * 17 // 16)
        layers = tuple(
            replace(layer, weight_bytes=then(layer.weight_bytes) * (1000 + uneven) // 1000) for layer in self.layers
        )
        output = max(wide, then(self.output_bytes + self.input_bytes // 2))
        confidence = Confidence.BOUNDED if self.confidence == Confidence.EXACT else self.confidence
        reasons = (*self.reasons, "weights are counted by the sizes of the files")
        return replace(
            self, layers=layers, output_bytes=output, input_bytes=then(self.input_bytes), confidence=confidence,
            reasons=reasons,
        )  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; equal layers are written once."""
        kinds = list(dict.fromkeys(self.layers))
        places = {kind: place for place, kind in enumerate(kinds)}
        plain = asdict(self) | {"reasons": list(self.reasons), "confidence": str(self.confidence)}
        plain["layers"] = [places[layer] for layer in self.layers]
        return plain | {"kinds": [list(astuple(kind)) for kind in kinds]}

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> "LlamaModel":
        """The inverse of `to_json`; raises HeaderError where it is not such a thing (another Moorage wrote it)."""
        try:
            fields = dict(plain)
            kinds = [checked(Layer(*kind)) for kind in fields.pop("kinds")]
            fields["layers"] = tuple(kinds[place] for place in fields["layers"])
            fields["confidence"] = Confidence(fields["confidence"])
            fields["reasons"] = tuple(fields["reasons"])
            model = checked(cls(**fields))
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise HeaderError(f"the stored model facts cannot be read: {error}") from error
        if not 0 < len(model.layers) + model.idle_layers <= MAX_LAYERS or not model.layers:
            raise HeaderError(f"the stored model facts tell of {len(model.layers)} layers")
        return model
