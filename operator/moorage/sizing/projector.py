"""How much memory llama.cpp needs to see or hear: a multimodal projector (`--mmproj`), by its GGUF header.

Weights are exact. The encoder's graph is computed for the largest image that is encoded at once, which llama-server's
own estimate is not: it reserves for a smaller one "to avoid OOM on warmup" (clip.cpp) and grows when a request brings
a larger. The formula is fitted to dry runs of llama-server on headers of five kinds; a test runs them again. Limits of
images: `clip_model_loader::load_hparams` in tools/mtmd/clip.cpp.
"""

from dataclasses import asdict, dataclass
from typing import Any, Final

from moorage.sizing.errors import HeaderError
from moorage.sizing.gguf import GgufHeader
from moorage.sizing.need import MIB
from moorage.sizing.stored import checked
from moorage.sizing.text import clean

ARCHITECTURE: Final = "clip"
MAX_NUMBER: Final = 1 << 16
"""Widths, sides and layers of an encoder; the largest known (6,144) is far below."""
MEASURED: Final = frozenset({"gemma3", "mlp", "internvl", "qwen2.5vl_merger", "pixtral"})
"""`clip.projector_type` whose dry run was compared."""
MOST_TOKENS: Final[dict[str, int]] = {
    "qwen2vl_merger": 4096, "qwen2.5vl_merger": 4096, "qwen3vl_merger": 4096, "glm4v": 4096, "pixtral": 1024,
    "lightonocr": 1024, "kimivl": 1024, "lfm2": 1024,
}  # fmt: skip
"""Types that take images of any size, and the most tokens one becomes where `--image-max-tokens` does not say."""
MERGE: Final[dict[str, int]] = {"pixtral": 1, "lightonocr": 1}
"""Patches of one side of a token where the header does not say; 2 for the other types of `MOST_TOKENS`."""
BATCHED: Final = frozenset({"internvl", "gemma4v", "deepseekocr", "deepseekocr2"})
"""Types that encode several tiles at once (`clip_graph::support_batch`), up to `--mtmd-batch-max-tokens`."""
BATCH_TOKENS: Final = 1024
"""That argument's own default."""
UNMEASURED_MIB: Final = 1024
"""Planning value of the working memory of other types, and of sound, at least."""
SLACK: Final = (1.05, 8 * MIB)


@dataclass(frozen=True)
class Projector:
    """What planning keeps of a projector's header.

    kind            `clip.projector_type`
    weight_bytes    all tensors
    patches         of an image, where their number is fixed; else of the largest by default
    token_patches   patches that become one token, where images may have any size; 0: their size is fixed
    tiles           images of that size encoded at once
    patch_values    f32 values alive for each patch in the widest part of the graph
    input_values    f32 values of a patch as it comes from the picture
    heads           attention heads, which count without flash attention
    windowed        attention has a mask
    measured        a dry run of this type was compared
    """

    kind: str
    weight_bytes: int
    patches: int
    token_patches: int
    tiles: int
    patch_values: int
    input_values: int
    heads: int
    windowed: bool
    measured: bool

    def to_json(self) -> dict[str, Any]:
        """Plain JSON for status."""
        return asdict(self)

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> "Projector":
        """The inverse of `to_json`; raises HeaderError where it is not such a thing."""
        try:
            return checked(cls(**plain))
        except TypeError as error:
            raise HeaderError(f"the stored projector facts cannot be read: {error}") from error

    def largest(self, image_max_tokens: int) -> int:
        """Patches of the largest image; `image_max_tokens` is `--image-max-tokens`, 0 where nobody says."""
        return image_max_tokens * self.token_patches if image_max_tokens and self.token_patches else self.patches

    def compute_bytes(self, *, flash_attention: bool, image_max_tokens: int = 0) -> int:
        """The graph's buffer on the device that encodes."""
        patches = self.largest(image_max_tokens)
        scores = 0 if flash_attention else 4 * self.heads * patches**2
        values = self.tiles * (4 * patches * (self.patch_values + self.input_values) + scores)
        factor, extra = SLACK
        found = factor * (values + self.mask_bytes(patches, flash_attention)) + extra
        return round(found if self.measured else max(found, UNMEASURED_MIB * MIB))

    def host_bytes(self, *, flash_attention: bool, image_max_tokens: int = 0) -> int:
        """What the host keeps beside a device that encodes: the picture and the mask."""
        patches = self.largest(image_max_tokens)
        return 4 * self.tiles * patches * self.input_values + self.mask_bytes(patches, flash_attention)

    def mask_bytes(self, patches: int, flash_attention: bool) -> int:
        """The mask of windowed attention: f16 with flash attention, f32 without."""
        return (2 if flash_attention else 4) * patches**2 if self.windowed else 0

    @property
    def reason(self) -> str:
        """Why a need with this projector is no more than bounded."""
        if self.measured:
            return "the working memory of the image encoder is fitted to dry runs of others of its kind"
        return f"the working memory of the projector ({self.kind}) is a planning value: its kind was never compared"


def projector_of(header: GgufHeader) -> Projector:
    """The projector that `header` describes; raises HeaderError where it is none, or a number is impossible."""
    if header.architecture != ARCHITECTURE:
        raise HeaderError(f"not a multimodal projector: its architecture is {clean(header.architecture, 40)!r}")
    kind = header.text("clip.projector_type") or header.text("clip.vision.projector_type")
    kind = clean(kind or header.text("clip.audio.projector_type") or "unknown", 40)
    seen, patch = _vision(header, "image_size"), max(_vision(header, "patch_size"), 1)
    tokens, merge = MOST_TOKENS.get(kind, 0), _vision(header, "spatial_merge_size") or MERGE.get(kind, 2)
    patches = tokens * merge**2 if tokens else (-(-seen // patch)) ** 2 + 1  # and the class's
    scale = max(_vision(header, "projector.scale_factor"), 1)
    batch = max(BATCH_TOKENS * scale**2 // patches, 1) if kind in BATCHED else 1
    return Projector(
        kind=kind,
        weight_bytes=_weight_bytes(header),
        patches=patches,
        token_patches=merge**2 if tokens else 0,
        tiles=batch,
        patch_values=_patch_values(header),
        input_values=3 * patch**2,
        heads=_vision(header, "attention.head_count"),
        windowed=bool(_vision(header, "n_wa_pattern")),
        measured=kind in MEASURED and not _flag(header, "clip.has_audio_encoder"),
    )


def _patch_values(header: GgufHeader) -> int:
    """The widest part: the feed-forward part (gate, up and their product), or the projector's two rows."""
    width, inner = _vision(header, "embedding_length"), _vision(header, "feed_forward_length")
    gated = any(".ffn_gate" in tensor.name for tensor in header.tensors or ())
    return max((3 if gated else 1) * inner + 3 * width, 2 * _vision(header, "projection_dim") + width)


def _weight_bytes(header: GgufHeader) -> int:
    sizes = [tensor.bytes for tensor in header.tensors or ()]
    if not sizes or None in sizes:
        raise HeaderError("the projector has no tensors, or one of an unknown type")
    return sum(size for size in sizes if size)


def _vision(header: GgufHeader, key: str) -> int:
    value = header.integer(f"clip.vision.{key}") or 0
    if value > MAX_NUMBER:
        raise HeaderError(f"clip.vision.{key} is {value}, which is impossible")
    return value


def _flag(header: GgufHeader, key: str) -> bool:
    return header.metadata.get(key) is True
