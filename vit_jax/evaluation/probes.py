"""Judging frozen features: nearest neighbours, ridge regression from few shots, and a grid of linear heads.

Arrays of features in, plain numbers out; the backbone is never touched.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vit_jax.ops.keys import key_for
from vit_jax.ops.ranking import chance_right

Features = Float[np.ndarray, "n d"]
Labels = Int[np.ndarray, " n"]
MOMENTUM = 0.9


class Split(NamedTuple):
    """Training and test features of one pooling, with labels from 0 to classes - 1."""

    train: Float[np.ndarray, "n d"]
    train_labels: Int[np.ndarray, " n"]
    test: Float[np.ndarray, "m d"]
    test_labels: Int[np.ndarray, " m"]
    classes: int


def nearest_neighbours(split: Split, k: int = 20, temperature: float = 0.07, chunk: int = 512) -> float:
    """Accuracy of the k nearest training pictures by cosine, votes weighted by exp(similarity / temperature).

    As DINO does it (Caron et al. 2021, eval_knn.py), but for equal votes, which count for their share.
    """
    k = min(k, len(split.train))
    train = jnp.asarray(_unit(split.train))
    labels = jnp.asarray(split.train_labels)

    @jax.jit
    def right(rows: Array, wanted: Array) -> Array:
        similarity, places = jax.lax.top_k(rows @ train.T, k)
        weight = jnp.exp(similarity / temperature)
        votes = jnp.sum(jax.nn.one_hot(labels[places], split.classes) * weight[:, :, None], axis=1)
        return chance_right(votes, wanted)

    test, total = _unit(split.test), 0.0
    for start in range(0, len(test), chunk):
        rows, wanted = test[start : start + chunk], split.test_labels[start : start + chunk]
        short = chunk - len(rows)  # filled up, so that one program serves all chunks
        found = right(jnp.asarray(np.pad(rows, ((0, short), (0, 0)))), jnp.asarray(np.pad(wanted, (0, short))))
        total += float(np.asarray(found)[: len(rows)].sum())
    return total / len(test)


def few_shot(split: Split, shots: int, seed: int = 0, l2: float = 2.0**10, constant: float = 100.0) -> float:
    """Accuracy of ridge regression to +-1 targets from `shots` pictures a class.

    As big_vision's evaluators/fewshot_lsr.py: features whitened by the shots, a constant appended, l2 = 2^10.
    Classes with fewer pictures give what they have.
    """
    rng = np.random.default_rng(seed)
    chosen = np.concatenate(
        [rng.permutation(np.flatnonzero(split.train_labels == label))[:shots] for label in range(split.classes)]
    )
    x = split.train[chosen].astype(np.float64)
    targets = 2.0 * np.eye(split.classes)[split.train_labels[chosen]] - 1.0
    mean = x.mean(axis=0)
    std = np.sqrt(np.mean(np.square(x - mean), axis=0)) + 1e-5

    def whiten(rows: np.ndarray) -> np.ndarray:
        return np.concatenate([(rows - mean) / std, np.full((len(rows), 1), constant)], axis=1)

    x = whiten(x)
    if len(x) < x.shape[1]:  # the same solution from the smaller system
        weights = x.T @ np.linalg.solve(x @ x.T + l2 * np.eye(len(x)), targets)
    else:
        weights = np.linalg.solve(x.T @ x + l2 * np.eye(x.shape[1]), x.T @ targets)
    return float(np.mean(np.asarray(chance_right(whiten(split.test.astype(np.float64)) @ weights, split.test_labels))))


class Head(NamedTuple):
    """One linear head of the grid: its rate, and its accuracies on held-out training pictures and on the test set."""

    learning_rate: float
    held_out: float
    test: float


def linear_heads(
    split: Split,
    rates: Sequence[float],
    *,
    normalised: bool,
    epochs: int = 30,
    batch: int = 256,
    seed: int = 0,
    held_out: float = 0.1,
) -> list[Head]:
    """Softmax heads, one a rate, trained together by SGD with momentum and a cosine to 0.

    Args:
      normalised: features standardised over the training set first: what an affine-free BatchNorm comes to when the
        backbone is frozen.
      held_out: share of the training pictures that no head sees, to choose the rate by.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(split.train))
    kept = max(1, round(held_out * len(order)))
    mean, std = np.zeros(split.train.shape[1], np.float32), np.ones(split.train.shape[1], np.float32)
    if normalised:
        mean, std = split.train.mean(axis=0), np.sqrt(split.train.var(axis=0) + 1e-6)

    def ready(rows: np.ndarray) -> Array:
        return jnp.asarray((rows - mean) / std, jnp.float32)

    train, labels = ready(split.train[order[kept:]]), jnp.asarray(split.train_labels[order[kept:]])
    weights = _fit(train, labels, jnp.asarray(rates, jnp.float32), split.classes, epochs, min(batch, len(train)), seed)

    def accuracies(rows: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        kernel, bias = weights
        logits = jnp.einsum("nd,rdc->rnc", ready(rows), kernel) + bias[:, None, :]
        return np.asarray(jnp.mean(jax.vmap(chance_right, in_axes=(0, None))(logits, jnp.asarray(wanted)), axis=-1))

    chosen_by = accuracies(split.train[order[:kept]], split.train_labels[order[:kept]])
    tested = accuracies(split.test, split.test_labels)
    return [Head(float(rate), float(a), float(b)) for rate, a, b in zip(rates, chosen_by, tested, strict=True)]


def _fit(
    x: Array, labels: Array, rates: Array, classes: int, epochs: int, batch: int, seed: int
) -> tuple[Float[Array, "r d c"], Float[Array, "r c"]]:
    """Kernels and biases of all rates, in one compiled loop over the steps."""
    per_epoch = len(x) // batch
    steps = epochs * per_epoch

    def loss(params: tuple[Array, Array], rows: Array, wanted: Array) -> Array:
        logits = rows @ params[0] + params[1][None]
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), wanted[:, None], axis=-1))

    gradient = jax.vmap(jax.grad(loss), in_axes=(0, None, None))

    @jax.jit
    def run(x: Array, labels: Array) -> tuple[Array, Array]:
        def epoch(carry: tuple, number: Array) -> tuple[tuple, None]:
            order = jax.random.permutation(key_for(seed, "probe", number), len(x))  # a sort: once an epoch

            def step(carry: tuple, inside: Array) -> tuple[tuple, None]:
                params, trace = carry
                places = jax.lax.dynamic_slice(order, (inside * batch,), (batch,))
                grads = gradient(params, x[places], labels[places])
                trace = jax.tree.map(lambda t, g: MOMENTUM * t + g, trace, grads)
                now = rates * 0.5 * (1.0 + jnp.cos(jnp.pi * (number * per_epoch + inside) / steps))
                scaled = jax.tree.map(lambda t: now.reshape(-1, *(1,) * (t.ndim - 1)) * t, trace)
                return (jax.tree.map(jnp.subtract, params, scaled), trace), None

            return jax.lax.scan(step, carry, jnp.arange(per_epoch))

        zeros = (jnp.zeros((len(rates), x.shape[1], classes)), jnp.zeros((len(rates), classes)))
        return jax.lax.scan(epoch, (zeros, zeros), jnp.arange(epochs))[0][0]

    return run(x, labels)


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
