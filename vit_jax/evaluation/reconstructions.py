"""Pictures that a masked autoencoder fills in, as arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, UInt8

from vit_jax.models.mae import MAE
from vit_jax.ops.keys import key_for
from vit_jax.ops.masks import Mask, make_mask
from vit_jax.ops.patches import patchify, unpatchify
from vit_jax.ops.pixels import denormalise, normalise, patch_statistics


class Reconstructions(NamedTuple):
    """Fractions in [0, 1]. `true_statistics`: the model predicts normalised patches, and the pictures' own mean and
    deviation of each patch were used to bring them back."""

    original: Float[np.ndarray, "b H W c"]
    masked: Float[np.ndarray, "b H W c"]  # hidden patches grey
    predicted: Float[np.ndarray, "b H W c"]
    pasted: Float[np.ndarray, "b H W c"]
    visible: Bool[np.ndarray, "b H W"]  # pixels that the model saw
    true_statistics: bool


def reconstruct(
    model: MAE,
    images: UInt8[Array, "b H W c"],
    mean: Sequence[float],
    std: Sequence[float],
    *,
    mask: Mask | None = None,
    seed: int = 0,
) -> Reconstructions:
    """Hide patches of `images` (uint8), predict them, and paste the visible ones back."""
    cfg, encoder = model.cfg, model.cfg.encoder
    if mask is None:
        keys = jax.random.split(key_for(seed, "reconstruct"), images.shape[0])
        mask = make_mask(cfg.mask, keys, encoder.grid, cfg.num_visible)
    pixels = normalise(images, mean, std)
    predicted = nnx.jit(lambda model, pixels, mask: model(pixels, mask))(model, pixels, mask)
    patches = patchify(pixels, encoder.patch_size)
    if cfg.normalised_target:
        statistics = patch_statistics(patches)
        predicted = predicted * statistics.std + statistics.mean
    hidden = mask.hidden[:, :, None]

    def picture(rows: Array) -> np.ndarray:
        return np.asarray(denormalise(unpatchify(rows, encoder.grid, encoder.patch_size), mean, std))

    original = picture(patches)
    hidden_pixels = unpatchify(jnp.broadcast_to(hidden, patches.shape), encoder.grid, encoder.patch_size)
    return Reconstructions(
        original=original,
        masked=np.where(np.asarray(hidden_pixels), np.float32(0.5), original),
        predicted=picture(predicted),
        pasted=picture(jnp.where(hidden, predicted, patches)),
        visible=~np.asarray(hidden_pixels)[:, :, :, 0],
        true_statistics=cfg.normalised_target,
    )
