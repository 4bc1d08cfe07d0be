"""Averages kept as (sum, count) until somebody reads them, so that merging them never blurs an example."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


class Mean(NamedTuple):
    """A weighted mean in two halves. As "b" arrays it holds one entry an example; after `reduce`, scalars.

    A total may have more axes than the example's (a histogram): they stay.
    """

    total: Float[Array, "..."]
    count: Float[Array, "..."]  # type: ignore[assignment]  # tuple.count is not used

    def reduce(self) -> Mean:
        """Sum over examples, in float32."""
        return Mean(jnp.sum(self.total, axis=0, dtype=jnp.float32), jnp.sum(self.count, dtype=jnp.float32))

    def merge(self, other: Mean) -> Mean:
        return Mean(self.total + other.total, self.count + other.count)

    def value(self) -> Float[Array, "..."]:
        """total / count; 0 where nothing was counted."""
        return self.total / jnp.maximum(self.count, jnp.finfo(jnp.float32).tiny)


def weighted(values: Float[Array, " b"], weight: Float[Array, " b"]) -> Mean:
    """One value an example with its weight. Rows of weight 0 count for nothing, whatever they hold (also NaN)."""
    return Mean(jnp.where(weight > 0, values * weight, 0.0), weight)


def average(mean: Mean) -> Any:
    """total / count on the host, in float64: a float, or an array where totals are; NaN where nothing was counted."""
    total, count = (np.asarray(half, np.float64) for half in mean)
    found = total / count if count else np.full(total.shape, np.nan)
    return found if found.ndim else float(found)


def merge_all(left: dict[str, Mean], right: dict[str, Mean]) -> dict[str, Mean]:
    """Merge two sets of means name by name."""
    return jax.tree.map(Mean.merge, left, right, is_leaf=lambda node: isinstance(node, Mean))
