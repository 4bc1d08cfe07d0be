"""The Vision Transformer (Dosovitskiy et al. 2021; Google's models_vit.py and big_vision's vit.py), in named stages:

patches -> embed -> placed -> encode -> pool -> head

Options cover its published relatives: hybrids (a ResNet stem before the patches), DeiT (a distillation token).

The same object is the encoder of what pre-trains it: MAE leaves hidden patches out before they are projected (`embed` and
`placed` take the visible ones), others put a mask token in their place between `embed` and `placed`.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from vit_jax.models.encoder import MapHead, Transformer
from vit_jax.models.layers import INITS, BatchNorm, LayerNorm, Linear, TransformerConfig
from vit_jax.models.resnet import ResNetConfig, ResNetStem
from vit_jax.ops.keys import fold
from vit_jax.ops.masks import take
from vit_jax.ops.noise import dropout
from vit_jax.ops.patches import grid_of, patchify
from vit_jax.ops.positions import sincos2d

CLASSIFIERS = ("token", "gap", "map", "unpooled", "token_unpooled")
POSITIONS = ("learn", "sincos2d", "sincos2d_mae", "none")


@dataclasses.dataclass(frozen=True)
class ViTConfig:
    """Everything that decides a ViT's parameters and forward pass."""

    transformer: TransformerConfig
    image_size: tuple[int, int]  # (height, width)
    patch_size: tuple[int, int]
    channels: int = 3
    stem: ResNetConfig | None = None  # hybrids: patches are cut from its map, and patch_size counts its cells
    num_classes: int | None = None  # None: no head
    classifier: str = "token"  # see CLASSIFIERS
    cls_token: bool | None = None  # None: where the classifier needs it; MAE keeps it also for "gap"
    dist_token: bool = False  # DeiT's second token, with a head of its own; needs the class token
    dist_head: bool = True  # False: only the class token is classified (Hugging Face's DeiTForImageClassification)
    norm_after_pool: bool = False  # MAE's and BEiT's fine-tuning: mean of un-normed tokens, then the norm (fc_norm)
    head_norm: str = "none"  # or "batch": linear probes' affine-free BatchNorm before the head
    representation_size: int | None = None  # tanh layer before the head ("pre_logits")
    positions: str = "learn"  # see POSITIONS
    positions_std: float = 0.02  # learned: normal(0.02) in Google's ViT, 1/sqrt(d) in big_vision
    cls_position: bool = True  # False: the table has no row for the class token (big_vision, DeiT III)
    train_positions: bool = True  # sin-cos tables: False keeps them constant, as in MAE pre-training
    head_std: float = 0.0  # head kernel: zeros in Google's; MAE fine-tuning 2e-5
    head_bias: float = 0.0

    def __post_init__(self) -> None:
        if self.classifier not in CLASSIFIERS:
            raise ValueError(
                f"Expected a classifier of {CLASSIFIERS}, got {self.classifier!r}: change model.classifier."
            )
        if self.positions not in POSITIONS:
            raise ValueError(f"Expected positions of {POSITIONS}, got {self.positions!r}: change model.positions.")
        if self.classifier.startswith("token") and not self.has_cls:
            raise ValueError(
                f"Expected a class token for model.classifier {self.classifier!r}, got model.cls_token False: without it the "
                "first patch would be classified; set model.cls_token=None or model.classifier='gap'."
            )
        if self.dist_token and self.classifier != "token":
            raise ValueError(f"Expected model.classifier 'token' with model.dist_token, got {self.classifier!r}.")
        if self.head_norm not in ("none", "batch"):
            raise ValueError(f"Expected model.head_norm 'none' or 'batch', got {self.head_norm!r}.")
        _ = self.grid

    @property
    def grid(self) -> tuple[int, int]:
        """Patches down and across."""
        return grid_of(self.stem.out_size(self.image_size) if self.stem else self.image_size, self.patch_size)

    @property
    def patch_values(self) -> int:
        """Numbers in a patch."""
        return self.patch_size[0] * self.patch_size[1] * (self.stem.out_channels if self.stem else self.channels)

    @property
    def num_patches(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def has_cls(self) -> bool:
        return self.classifier.startswith("token") if self.cls_token is None else self.cls_token

    @property
    def has_positions(self) -> bool:
        """Whether the position table is a parameter (else it is a formula, or there is none)."""
        return self.positions == "learn" or (self.positions != "none" and self.train_positions)

    @property
    def num_prefix(self) -> int:
        """Tokens before the patches."""
        return int(self.has_cls) + int(self.dist_token)

    @property
    def prefix_rows(self) -> int:
        """Rows of the position table before the patches'."""
        return self.num_prefix if self.cls_position else 0


def positions_table(cfg: ViTConfig, width: int) -> np.ndarray:
    """The fixed table of `cfg` for tokens of `width`, zeros for the tokens before the patches."""
    origin: Literal["mae", "big_vision"] = "mae" if cfg.positions == "sincos2d_mae" else "big_vision"
    table = sincos2d(cfg.grid, width, origin)
    return np.concatenate([np.zeros((cfg.prefix_rows, width), np.float32), table])


class ViT(nnx.Module):
    """See the module's head. Call it with pictures "b H W c" (normalised floats) for logits, or use the stages."""

    def __init__(self, cfg: ViTConfig, *, rngs: nnx.Rngs):
        self.cfg = cfg
        body = cfg.transformer
        d, init = body.hidden_size, nnx.initializers
        first = INITS[body.init]
        if cfg.stem:
            self.stem = ResNetStem(cfg.stem, rngs=rngs)
        self.embedding = Linear(cfg.patch_values, d, kernel_init=first.patch, dtype=body.dtype, rngs=rngs)
        if cfg.has_cls:
            self.cls = nnx.Param(first.token(rngs.params(), (1, d), jnp.float32))
        if cfg.dist_token:
            self.dist = nnx.Param(0.02 * jax.random.normal(rngs.params(), (1, d)))
        if cfg.positions == "learn":
            rows = cfg.num_patches + cfg.prefix_rows
            self.positions = nnx.Param(cfg.positions_std * jax.random.normal(rngs.params(), (rows, d)))
        elif cfg.positions != "none" and cfg.train_positions:
            self.positions = nnx.Param(jnp.asarray(positions_table(cfg, d)))
        self.transformer = Transformer(body, rngs=rngs)
        self.norm = LayerNorm(d, eps=body.norm_eps, dtype=body.dtype)
        if cfg.classifier == "map":
            self.map_head = MapHead(body, rngs=rngs)
        if cfg.head_norm == "batch":
            self.head_norm = BatchNorm(d)
        if cfg.representation_size:
            self.pre_logits = Linear(
                d, cfg.representation_size, kernel_init=init.lecun_normal(), dtype=body.dtype, rngs=rngs
            )
        if cfg.num_classes:
            head_init = init.normal(cfg.head_std) if cfg.head_std else init.zeros_init()
            bias_init = init.constant(cfg.head_bias)
            width = cfg.representation_size or d
            # The head is small: float32 logits whatever the body computes in.
            self.head_out = Linear(width, cfg.num_classes, kernel_init=head_init, bias_init=bias_init, rngs=rngs)
            if cfg.dist_token and cfg.dist_head:
                self.head_dist = Linear(width, cfg.num_classes, kernel_init=head_init, bias_init=bias_init, rngs=rngs)

    @jax.named_scope("patches")
    def patches(self, images: Float[Array, "b H W c"]) -> Float[Array, "b n p"]:
        """Pixels of each patch (of the stem's map, in hybrids), row by row."""
        cfg = self.cfg
        if images.shape[1:] != (*cfg.image_size, cfg.channels):
            raise ValueError(
                f"Expected pictures of (height, width, channels) {(*cfg.image_size, cfg.channels)}, got "
                f"{images.shape[1:]}: change pp.crop and pp.channels, or load the model with image_size=."
            )
        return patchify(self.stem(images) if cfg.stem else images, cfg.patch_size)

    @jax.named_scope("patches")
    def embed(self, patches: Float[Array, "b n p"], visible: Int[Array, "b k"] | None = None) -> Float[Array, "b k d"]:
        """Project the visible patches (None: all) to tokens without positions."""
        return self.embedding(patches if visible is None else take(patches, visible))

    @jax.named_scope("patches")
    def placed(
        self,
        x: Float[Array, "b k d"],
        visible: Int[Array, "b k"] | None = None,
        keys: Key[Array, " b"] | None = None,
    ) -> Float[Array, "b t d"]:
        """Add the positions of the visible patches (None: all), prepend class and distillation token."""
        cfg, table = self.cfg, self._positions()
        if table is not None:
            body = jnp.broadcast_to(table[None, cfg.prefix_rows :], (x.shape[0], cfg.num_patches, x.shape[-1]))
            x = x + (body if visible is None else take(body, visible)).astype(x.dtype)
        if cfg.num_prefix:
            first = jnp.concatenate([self.cls[...], self.dist[...]]) if cfg.dist_token else self.cls[...]
            if table is not None and cfg.prefix_rows:
                first = first + table[: cfg.prefix_rows]
            first = jnp.broadcast_to(first[None].astype(x.dtype), (x.shape[0], *first.shape))
            x = jnp.concatenate([first, x], axis=1)
        return dropout(x, cfg.transformer.dropout_rate, keys)

    def _positions(self) -> Array | None:
        if hasattr(self, "positions"):
            return self.positions[...]
        if self.cfg.positions == "none":
            return None
        return jnp.asarray(positions_table(self.cfg, self.cfg.transformer.hidden_size))

    def encode(self, tokens: Float[Array, "b t d"], keys: Key[Array, " b"] | None = None) -> Float[Array, "b t d"]:
        """The blocks, and the final norm unless it comes after pooling."""
        tokens = self.transformer(tokens, keys)
        return tokens if self.cfg.norm_after_pool else self.norm(tokens)

    @jax.named_scope("head")
    def pool(self, tokens: Float[Array, "b t d"]) -> Float[Array, "b d"] | Float[Array, "b _ d"]:
        """One vector an example, by `classifier` ("unpooled" kinds: all tokens; with a distillation token: two)."""
        classifier = self.cfg.classifier
        if self.cfg.dist_token and self.cfg.dist_head:
            pooled = tokens[:, :2]
        elif classifier == "token":
            pooled = tokens[:, 0]
        elif classifier == "gap":
            pooled = jnp.mean(tokens[:, self.cfg.num_prefix :], axis=1)
        elif classifier == "map":
            pooled = self.map_head(tokens)
        else:
            pooled = tokens
        return self.norm(pooled) if self.cfg.norm_after_pool else pooled

    @jax.named_scope("head")
    def head(self, pooled: Float[Array, "... d"], *, train: bool = False) -> Float[Array, "... classes"]:
        """`representation_size` layer where there is one, then logits (the pooled vector itself without a head).

        DeiT's two heads give the mean of their logits (deit/models.py; the paper speaks of softmaxes).
        """
        if self.cfg.head_norm == "batch":
            pooled = self.head_norm(pooled, train=train)
        if self.cfg.representation_size:
            pooled = jnp.tanh(self.pre_logits(pooled))
        if self.cfg.dist_token and self.cfg.dist_head and self.cfg.num_classes:
            return (self.head_out(pooled[..., 0, :]) + self.head_dist(pooled[..., 1, :])) / 2
        return self.head_out(pooled) if self.cfg.num_classes else pooled

    def features(
        self, images: Float[Array, "b H W c"], *, train: bool = False, keys: Key[Array, " b"] | None = None
    ) -> Float[Array, "b t d"]:
        """Encoded tokens of whole pictures."""
        return self.contextual(self.embed(self.patches(images)), training_keys(train, keys))

    def contextual(
        self, embedded: Float[Array, "b n d"], keys: Key[Array, " b"] | None = None
    ) -> Float[Array, "b t d"]:
        """Embedded patches, some perhaps replaced, through positions, blocks and norm."""
        return self.encode(self.placed(embedded, keys=None if keys is None else fold(keys, 1_000_003)), keys)

    def __call__(
        self, images: Float[Array, "b H W c"], *, train: bool = False, keys: Key[Array, " b"] | None = None
    ) -> Float[Array, "b ... classes"]:
        """Logits. `train=True` switches dropout and drop path on and needs `keys`, one an example."""
        return self.head(self.pool(self.features(images, train=train, keys=keys)), train=train)


def training_keys(train: bool, keys: Key[Array, " b"] | None) -> Key[Array, " b"] | None:
    """The keys to use: in training they must be there (a forgotten key is an error, not a model without dropout)."""
    if train and keys is None:
        raise ValueError("Expected keys with train=True, got None: pass keys=jax.random.split(key, batch).")
    return keys if train else None
