"""Mixup and cutmix over a batch, on the device (timm/data/mixup.py, mode "batch": one draw a batch)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key


def mix(
    key: Key[Array, ""],
    images: Float[Array, "b H W c"],
    targets: Float[Array, "b k"],
    weight: Float[Array, " b"],
    *,
    mixup: float,
    cutmix: float,
    switch: float = 0.5,
) -> tuple[Float[Array, "b H W c"], Float[Array, "b k"]]:
    """Blend each picture with its partner in the flipped batch: lambda ~ Beta(a, a), cutmix with probability `switch`.

    `mixup` and `cutmix` are the Beta parameters, 0 for off. Cutmix's box has sides sqrt(1 - lambda) of the picture,
    and lambda is corrected for the part cut off at the border. Rows of weight 0 (padding) are never blended in.
    """
    if not mixup and not cutmix:
        return images, targets
    switch_key, beta_key, box_key = jax.random.split(key, 3)
    use_cutmix = jnp.asarray(cutmix > 0) & (jax.random.uniform(switch_key) < (switch if mixup else 1.0))
    alpha = jnp.where(use_cutmix, cutmix or 1.0, mixup or 1.0)
    lam = jax.random.beta(beta_key, alpha, alpha)
    height, width = images.shape[1:3]

    center = jax.random.uniform(box_key, (2,)) * jnp.asarray([height, width])
    half = 0.5 * jnp.sqrt(1.0 - lam) * jnp.asarray([height, width])
    low = jnp.clip(jnp.floor(center - half), 0, jnp.asarray([height, width]))
    high = jnp.clip(jnp.floor(center + half), 0, jnp.asarray([height, width]))
    rows, columns = jnp.arange(height)[:, None], jnp.arange(width)[None, :]
    box = (rows >= low[0]) & (rows < high[0]) & (columns >= low[1]) & (columns < high[1])
    share = jnp.where(use_cutmix, 1.0 - jnp.prod(high - low) / (height * width), lam)

    own = jnp.where(use_cutmix, 1.0 - box.astype(images.dtype), lam)[None, :, :, None]  # share of the own picture
    both_real = ((weight > 0) & (weight[::-1] > 0))[:, None]
    mixed = own * images + (1.0 - own) * images[::-1]
    mixed_targets = share * targets + (1.0 - share) * targets[::-1]
    return jnp.where(both_real[:, :, None, None], mixed, images), jnp.where(both_real, mixed_targets, targets)
