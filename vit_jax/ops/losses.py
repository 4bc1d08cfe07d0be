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


def sigmoid_xent(logits: Float[Array, "b c"], targets: Float[Array, "b c"]) -> Float[Array, " b"]:
    """One binary cross-entropy a class, summed over classes (big_vision, utils.py)."""
    logits = logits.astype(jnp.float32)
    return -jnp.sum(targets * jax.nn.log_sigmoid(logits) + (1.0 - targets) * jax.nn.log_sigmoid(-logits), axis=-1)


LOSSES = {"softmax": softmax_xent, "sigmoid": sigmoid_xent}


def patch_errors(predicted: Float[Array, "b n p"], target: Float[Array, "b n p"]) -> Float[Array, "b n"]:
    """Mean squared error of each patch."""
    difference = predicted.astype(jnp.float32) - target.astype(jnp.float32)
    return jnp.mean(jnp.square(difference), axis=-1)
