"""Losses, one number an example, in float32 whatever the model computes in."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def smoothed_targets(labels: Int[Array, " b"], num_classes: int, label_smoothing: float = 0.0) -> Float[Array, "b c"]:
    """One-hot rows with `label_smoothing` spread evenly over all classes (timm: off = s/K, on = 1 - s + s/K)."""
    off = label_smoothing / num_classes
    return jax.nn.one_hot(labels, num_classes) * (1.0 - label_smoothing) + off


def softmax_xent(logits: Float[Array, "b c"], targets: Float[Array, "b c"]) -> Float[Array, " b"]:
    """Cross-entropy against a distribution over classes."""
    return -jnp.sum(targets * jax.nn.log_softmax(logits.astype(jnp.float32)), axis=-1)


def sigmoid_xent(
    logits: Float[Array, "b c"], targets: Float[Array, "b c"], weights: Float[Array, " c"] | None = None
) -> Float[Array, " b"]:
    """One binary cross-entropy a class, summed over classes (big_vision, utils.py).

    `weights`: of each class in the pictures that have it (`pos_weight` of PyTorch's BCEWithLogitsLoss).
    """
    logits = logits.astype(jnp.float32)
    there = targets if weights is None else targets * weights[None, :]
    return -jnp.sum(there * jax.nn.log_sigmoid(logits) + (1.0 - targets) * jax.nn.log_sigmoid(-logits), axis=-1)


def squared_error(predicted: Float[Array, "b c"], targets: Float[Array, "b c"]) -> Float[Array, " b"]:
    """Mean over the numbers of an example."""
    return jnp.mean(jnp.square(predicted.astype(jnp.float32) - targets), axis=-1)


def huber(predicted: Float[Array, "b c"], targets: Float[Array, "b c"], delta: float = 1.0) -> Float[Array, " b"]:
    """Half the squared error, from `delta` on linear (Huber 1964); mean over the numbers of an example."""
    error = jnp.abs(predicted.astype(jnp.float32) - targets)
    near = jnp.minimum(error, delta)
    return jnp.mean(near * (error - 0.5 * near), axis=-1)


LOSSES = {"softmax": softmax_xent, "sigmoid": sigmoid_xent, "l2": squared_error, "huber": huber}


def patch_errors(predicted: Float[Array, "b n p"], target: Float[Array, "b n p"]) -> Float[Array, "b n"]:
    """Mean squared error of each patch."""
    difference = predicted.astype(jnp.float32) - target.astype(jnp.float32)
    return jnp.mean(jnp.square(difference), axis=-1)
