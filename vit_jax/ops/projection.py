"""One matrix product for every dense layer."""

from __future__ import annotations

import math

import jax
from jaxtyping import Array, Float


def project(x: Float[Array, "..."], kernel: Float[Array, "..."], contracted: int = 1) -> Float[Array, "..."]:
    """x @ kernel over the last `contracted` axes of x and the first of the kernel; all others stay as they are.

    Axes are left apart so that one of them (heads) can be split over devices; merged, the split would be lost.
    On the CPU they are merged first. With more axes XLA's CPU backend copies both operands of the weight gradient into
    another layout, which costs as much time as the product itself (measured: ViT-B/16, a third of the step). On TPU
    merging would cost a relayout of its own, because 197 tokens do not fill its tiles.
    """
    leading, outputs = x.shape[: x.ndim - contracted], kernel.shape[contracted:]

    def merged(x: Array, kernel: Array) -> Array:
        inner = math.prod(kernel.shape[:contracted])
        return (x.reshape(-1, inner) @ kernel.reshape(inner, -1)).reshape(*leading, *outputs)

    def apart(x: Array, kernel: Array) -> Array:
        axes = tuple(range(x.ndim - contracted, x.ndim)), tuple(range(contracted))
        return jax.lax.dot_general(x, kernel, (axes, ((), ())))

    if x.ndim == kernel.ndim == 2:
        return x @ kernel
    return jax.lax.platform_dependent(x, kernel, cpu=merged, default=apart)
