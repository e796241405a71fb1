"""Shapes and random weights of the tiny Llama, independent of any file format."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from e2e.tinymodels.vocabulary import EOS_ID, Vocabulary

FloatArray = npt.NDArray[np.float32]

# Channel 0 of the hidden state is this constant for every token (no layer writes to it), which turns column 0 of
# the output matrix into a bias per token: single bytes are never generated, so answers are always valid UTF-8.
_BIAS_CHANNEL = 4.0
_NEVER = -10.0
_EOS_BIAS = 0.7  # at temperature 1 an answer ends after a few dozen words


@dataclass(frozen=True)
class Shape:
    """Dimensions of the model, in the terms of a Hugging Face Llama configuration."""

    vocab_size: int
    hidden_size: int = 64
    intermediate_size: int = 128
    layers: int = 2
    context_length: int = 4096  # tokens
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-5

    @property
    def head_dim(self) -> int:
        return 32 if self.hidden_size < 256 else 64

    @property
    def heads(self) -> int:
        return self.hidden_size // self.head_dim

    @property
    def matrix_weights(self) -> int:
        """Number of weights in matrices."""
        layer = 4 * self.hidden_size**2 + 3 * self.hidden_size * self.intermediate_size
        return self.layers * layer + 2 * self.vocab_size * self.hidden_size

    @property
    def norm_weights(self) -> int:
        """Number of weights in normalisation vectors."""
        return (2 * self.layers + 1) * self.hidden_size


# Hidden size and layers of ever larger models. One that only grew wider feed-forward layers would need several times
# its own size for the activations of a batch.
_LADDER = ((64, 2), (256, 4), (512, 8), (1024, 12), (2048, 16), (4096, 32))


def largest_shape(vocab_size: int, limit: int, size: Callable[[Shape], int]) -> Shape:
    """Return the best-proportioned shape whose `size` (linear in its width) is at most `limit`, as close as can be."""
    fitting = Shape(vocab_size)
    for hidden, layers in _LADDER:
        shape = Shape(vocab_size, hidden_size=hidden, intermediate_size=2 * hidden, layers=layers)
        if size(shape) <= limit:
            fitting = shape
    unit = size(replace(fitting, intermediate_size=fitting.intermediate_size + 1)) - size(fitting)
    wider = max(0, limit - size(fitting)) // unit
    return replace(fitting, intermediate_size=fitting.intermediate_size + wider)


class Source:
    """Uniform weights from a bit generator's raw stream, which NumPy promises never to change (unlike Generator)."""

    def __init__(self, seed: int) -> None:
        self._bits = np.random.PCG64(seed)

    def matrix(self, rows: int, columns: int, scale: float) -> FloatArray:
        """Return `rows` x `columns` weights, uniform in [-scale, scale)."""
        count = rows * columns
        words = np.asarray(self._bits.random_raw((count + 3) // 4), dtype="<u8")
        return (words.view("<i2")[:count].astype(np.float32) * (scale / 32768)).reshape(rows, columns)


def generate(shape: Shape, vocabulary: Vocabulary, *, seed: int) -> Iterator[tuple[str, FloatArray]]:
    """Yield (Hugging Face tensor name, weights as [out, in]) in the order of the layers, the same for the same seed."""
    source, hidden, wide = Source(seed), shape.hidden_size, shape.intermediate_size
    scale = 2.4 / hidden**0.5
    # Each layer adds to the hidden state: as in GPT-2, the deeper the model, the less.
    added = (2 / shape.layers) ** 0.5
    embedding = source.matrix(shape.vocab_size, hidden, 1.7)
    embedding[:, 0] = _BIAS_CHANNEL
    yield "model.embed_tokens.weight", embedding
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}."
        yield prefix + "input_layernorm.weight", np.ones(hidden, np.float32)
        for name in ("q_proj", "k_proj", "v_proj"):
            yield f"{prefix}self_attn.{name}.weight", source.matrix(hidden, hidden, scale)
        yield prefix + "self_attn.o_proj.weight", _quiet(source.matrix(hidden, hidden, scale * added))
        yield prefix + "post_attention_layernorm.weight", np.ones(hidden, np.float32)
        yield prefix + "mlp.gate_proj.weight", source.matrix(wide, hidden, scale)
        yield prefix + "mlp.up_proj.weight", source.matrix(wide, hidden, scale)
        yield prefix + "mlp.down_proj.weight", _quiet(source.matrix(hidden, wide, 2.0 / wide**0.5 * added))
    yield "model.norm.weight", np.ones(hidden, np.float32)
    yield "lm_head.weight", _output(source, shape, vocabulary)


def _quiet(weights: FloatArray) -> FloatArray:
    """Keep a projection back into the hidden state from writing to channel 0."""
    weights[0] = 0
    return weights


def _output(source: Source, shape: Shape, vocabulary: Vocabulary) -> FloatArray:
    output = source.matrix(shape.vocab_size, shape.hidden_size, 4.0 / shape.hidden_size**0.5)
    output[:, 0] = _NEVER
    output[sorted(vocabulary.word_ids), 0] = 0
    output[EOS_ID] = 0
    output[EOS_ID, 0] = _EOS_BIAS
    return output
