"""Bytes <-> the numbers a model sees, and MAE's per-patch normalised target."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8


def _row(values: Sequence[float], channels: int) -> np.ndarray:
    if len(values) not in (1, channels):
        raise ValueError(f"Expected 1 or {channels} channel statistics, got {len(values)}: change pp.mean and pp.std.")
    return np.broadcast_to(np.asarray(values, np.float32), (channels,))[None, None, None, :]


def normalise(images: UInt8[Array, "b H W c"], mean: Sequence[float], std: Sequence[float]) -> Float[Array, "b H W c"]:
    """(pixel / 255 - mean) / std in float32; mean = std = 0.5 is Google's [-1, 1]."""
    channels = images.shape[-1]
    return (images.astype(jnp.float32) / 255.0 - _row(mean, channels)) / _row(std, channels)


def denormalise(
    images: Float[Array, "b H W c"], mean: Sequence[float], std: Sequence[float]
) -> Float[Array, "b H W c"]:
    """The inverse, as fractions clipped to [0, 1] for drawing."""
    channels = images.shape[-1]
    return jnp.clip(images * _row(std, channels) + _row(mean, channels), 0.0, 1.0)


class PatchStatistics(NamedTuple):
    mean: Float[Array, "b n 1"]
    std: Float[Array, "b n 1"]


def patch_statistics(patches: Float[Array, "b n p"]) -> PatchStatistics:
    """Mean and deviation of each patch: unbiased variance plus 1e-6, as torch's `.var` (models_mae.py, forward_loss)."""
    patches = patches.astype(jnp.float32)
    variance = jnp.var(patches, axis=-1, keepdims=True, ddof=1)
    return PatchStatistics(jnp.mean(patches, axis=-1, keepdims=True), jnp.sqrt(variance + 1e-6))


def normalise_patches(patches: Float[Array, "b n p"]) -> Float[Array, "b n p"]:
    """MAE's `norm_pix` target."""
    mean, std = patch_statistics(patches)
    return (patches - mean) / std
