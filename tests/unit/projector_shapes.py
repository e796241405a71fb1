"""Headers of published multimodal projectors, built from their shapes: what `mmproj-*.gguf` of that model would say.

Keys and tensor names as clip.cpp of llama.cpp reads them.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

from tests.unit.gguf_bytes import header

Tensor = tuple[str, tuple[int, ...], str]


@dataclass(frozen=True)
class Encoder:
    """The published shape of an encoder of images; `width` and `inner` are its rows, `output` the model's."""

    kind: str
    width: int
    inner: int
    layers: int
    image: int
    patch: int
    output: int
    heads: int = 16
    gated: bool = False
    positions: bool = True  # learned ones, and biases, as CLIP has them
    classified: bool = False  # a class token before the patches
    extra: dict[str, object] = field(default_factory=dict)
    beside: tuple[Tensor, ...] = ()

    @property
    def metadata(self) -> dict[str, object]:
        vision: dict[str, object] = {
            "image_size": self.image,
            "patch_size": self.patch,
            "embedding_length": self.width,
            "feed_forward_length": self.inner,
            "block_count": self.layers,
            "attention.head_count": self.heads,
            "attention.layer_norm_epsilon": 1e-6,
            "projection_dim": self.output,
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5],
        }
        named = {"general.architecture": "clip", "clip.has_vision_encoder": True, "clip.projector_type": self.kind}
        return {**named, **{f"clip.vision.{key}": value for key, value in vision.items()}, **self.extra}

    @cached_property
    def tensors(self) -> list[Tensor]:
        return [*self._first(), *(t for at in range(self.layers) for t in self._layer(f"v.blk.{at}.")), *self.beside]

    @cached_property
    def header(self) -> bytes:
        return header(self.metadata, self.tensors)

    def _first(self) -> Iterator[Tensor]:
        yield "v.patch_embd.weight", (self.patch, self.patch, 3, self.width), "F16"
        yield "v.post_ln.weight", (self.width,), "F32"
        if self.positions:
            yield "v.patch_embd.bias", (self.width,), "F32"
            yield "v.post_ln.bias", (self.width,), "F32"
            yield "v.position_embd.weight", (self.width, (self.image // self.patch) ** 2 + self.classified), "F32"
        if self.classified:
            yield "v.class_embd", (self.width,), "F32"

    def _layer(self, name: str) -> Iterator[Tensor]:
        matrices = dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_out"), (self.width, self.width))
        matrices |= {"ffn_up": (self.width, self.inner), "ffn_down": (self.inner, self.width)}
        matrices |= {"ffn_gate": (self.width, self.inner)} if self.gated else {}
        for part, dims in matrices.items():
            yield f"{name}{part}.weight", dims, "F16"
            yield f"{name}{part}.bias", (dims[1],), "F32"
        for norm in ("ln1", "ln2"):
            yield f"{name}{norm}.weight", (self.width,), "F32"
            if self.positions:
                yield f"{name}{norm}.bias", (self.width,), "F32"


def _matrix(name: str, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    return (f"{name}.weight", (rows, columns), "F16"), (f"{name}.bias", (columns,), "F32")


ENCODERS = {
    "gemma3-12b": Encoder(
        "gemma3", 1152, 4304, 27, 896, 14, 3840, extra={"clip.use_gelu": True},
        beside=(("mm.input_projection.weight", (3840, 1152), "F16"), ("mm.soft_emb_norm.weight", (1152,), "F32")),
    ),
    "llava-1.6 llama3": Encoder(
        "mlp", 1024, 4096, 23, 336, 14, 4096, classified=True,
        beside=(
            ("v.pre_ln.weight", (1024,), "F32"), ("v.pre_ln.bias", (1024,), "F32"),
            *_matrix("mm.0", 1024, 4096), *_matrix("mm.2", 4096, 4096),
        ),
    ),
    "qwen2.5-vl-7b": Encoder(
        "qwen2.5vl_merger", 1280, 3420, 32, 560, 14, 3584, gated=True, positions=False,
        extra={"clip.use_silu": True, "clip.vision.n_wa_pattern": 8, "clip.vision.window_size": 112},
        beside=(
            ("v.patch_embd.weight.1", (14, 14, 3, 1280), "F16"),
            *_matrix("mm.0", 5120, 5120), *_matrix("mm.2", 5120, 3584),
        ),
    ),
    "pixtral-12b": Encoder(
        "pixtral", 1024, 4096, 24, 1024, 16, 5120, gated=True, positions=False,
        extra={"clip.use_silu": True, "clip.vision.spatial_merge_size": 1},
        beside=(
            ("v.pre_ln.weight", (1024,), "F32"), ("v.token_embd.img_break", (5120,), "F32"),
            *_matrix("mm.1", 1024, 5120), *_matrix("mm.2", 5120, 5120),
        ),
    ),
    "internvl3-8b": Encoder(
        "internvl", 1024, 4096, 24, 448, 14, 3584, classified=True,
        extra={"clip.use_gelu": True, "clip.vision.projector.scale_factor": 2},
        beside=(
            ("mm.model.mlp.0.weight", (4096,), "F32"), ("mm.model.mlp.0.bias", (4096,), "F32"),
            *_matrix("mm.model.mlp.1", 4096, 3584), *_matrix("mm.model.mlp.3", 3584, 3584),
            *((f"v.blk.{at}.ls{part}.weight", (1024,), "F32") for at in range(24) for part in (1, 2)),
        ),
    ),
}  # fmt: skip
