"""DALL-E's logit-Laplace distribution: Laplace noise on the logit of a pixel, so that no mass lies outside (0, 1).

Source: Ramesh et al. 2021, "Zero-Shot Text-to-Image Generation", appendix A.3 (equation 2).
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

EDGE = 0.1  # pixels 0 and 1 have no finite logit: they are moved inwards to [0.1, 0.9] (openai/DALL-E, utils.py)


def map_pixels(pixels: Float[Array, "..."]) -> Float[Array, "..."]:
    """Fractions in [0, 1] -> [0.1, 0.9]."""
    return (1.0 - 2.0 * EDGE) * pixels + EDGE


def unmap_pixels(mapped: Float[Array, "..."]) -> Float[Array, "..."]:
    """The inverse, clipped to [0, 1]."""
    return jnp.clip((mapped - EDGE) / (1.0 - 2.0 * EDGE), 0.0, 1.0)


def logit_laplace_nll(
    mapped: Float[Array, "b H W c"], mean: Float[Array, "b H W c"], log_scale: Float[Array, "b H W c"]
) -> Float[Array, "b H W c"]:
    """-log of the density of `mapped` in (0, 1), in nats: log(2 s x (1 - x)) + |logit(x) - mean| / s."""
    mapped, mean, log_scale = (x.astype(jnp.float32) for x in (mapped, mean, log_scale))
    inside, outside = jnp.log(mapped), jnp.log1p(-mapped)
    distance = jnp.abs(inside - outside - mean)
    return jnp.log(2.0) + log_scale + inside + outside + distance * jnp.exp(-log_scale)
