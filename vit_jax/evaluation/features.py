"""Frozen features of whole pictures."""

from __future__ import annotations

from typing import Literal

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vit_jax.models.vit import ViT

Pooling = Literal["cls", "mean", "model"]


def pooled_features(encoder: ViT, pixels: Float[Array, "b H W c"], pooling: Pooling = "mean") -> Float[Array, "b d"]:
    """One vector a picture: the class token, the mean over patches, or as the model itself pools (before its head).

    MAE's loss never trains the class token, so "mean" is the default.
    """
    has_cls = encoder.cfg.has_cls
    if pooling == "cls" and not has_cls:
        raise ValueError("Expected a model with a class token for pooling 'cls', this one has none: use 'mean'.")

    def compute(encoder: ViT, pixels: Array) -> Array:
        tokens = encoder.features(pixels)
        if pooling == "model":
            return encoder.pool(tokens)
        return tokens[:, 0] if pooling == "cls" else jnp.mean(tokens[:, encoder.cfg.num_prefix :], axis=1)

    return nnx.jit(compute)(encoder, pixels).astype(jnp.float32)
