"""Dropout and stochastic depth. Keys come one an example, so micro-batches and meshes draw the same numbers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key


def dropout(x: Float[Array, "b ..."], rate: float, keys: Key[Array, " b"] | None) -> Float[Array, "b ..."]:
    """Zero each number with probability `rate` and scale the rest; the identity without keys."""
    if keys is None or rate == 0.0:
        return x
    kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1.0 - rate, x.shape[1:]))(keys)
    return jnp.where(kept, x / (1.0 - rate), jnp.zeros((), x.dtype))


def drop_path(
    branch: Float[Array, "b n d"], rate: Float[Array, ""], keys: Key[Array, " b"] | None
) -> Float[Array, "b n d"]:
    """Drop a residual branch for whole examples, kept ones divided by the keep probability (timm, layers/drop.py)."""
    if keys is None:
        return branch
    kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1.0 - rate))(keys)
    scale = jnp.where(kept, 1.0 / (1.0 - rate), 0.0).astype(branch.dtype)
    return branch * scale[:, None, None]
