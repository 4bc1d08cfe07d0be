"""Whether the right class comes first: one rule for every accuracy of the project."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

Scores = Float[Array, "b c"] | Float[np.ndarray, "b c"]
Labels = Int[Array, " b"] | Int[np.ndarray, " b"]


def chance_right(scores: Scores, labels: Labels, k: int = 1) -> Float[Array, " b"]:
    """The chance that a row's label is among its `k` highest scores when ties are broken at random.

    That is 0 or 1 where no score equals the label's. A tie counts for its share, so that a head of zeros has the accuracy
    of guessing, k / c, neither 1 nor 0. A row that holds a NaN is wrong, whatever its label: it ranks nothing.
    """
    scores = jnp.asarray(scores)
    own = jnp.take_along_axis(scores, jnp.asarray(labels)[:, None], axis=-1)
    better = jnp.sum(scores > own, axis=-1)
    tied = jnp.sum(scores == own, axis=-1)  # the label's own among them
    chance = jnp.clip((k - better) / jnp.maximum(tied, 1), 0.0, 1.0)
    return jnp.where(jnp.any(jnp.isnan(scores), axis=-1), 0.0, chance)
