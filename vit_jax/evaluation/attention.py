"""Where a trained encoder looks. Weights are computed again from the tokens, so any kernel may have been used to train."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from vit_jax.models.attention import attention_weights
from vit_jax.models.vit import ViT


def layer_inputs(encoder: ViT, pixels: Float[Array, "b H W c"]) -> Float[Array, "l b t d"]:
    """The tokens that enter each block."""
    tokens = encoder.placed(encoder.embed(encoder.patches(pixels)))
    after = encoder.transformer.every_layer(tokens)
    return jnp.concatenate([tokens[None].astype(after.dtype), after[:-1]])


def weights_of(encoder: ViT, tokens: Float[Array, "b t d"], layer: int) -> Float[Array, "b h t t"]:
    """Attention of one block, given what enters it. Rows are queries and sum to 1."""
    graph, params = nnx.split(encoder.transformer.blocks)
    block = nnx.merge(graph, jax.tree.map(lambda leaf: leaf[layer], params))
    query, key, _ = block.attention.projected(block.norm1(tokens))
    return attention_weights(query, key, block.attention.bias(encoder.transformer.shared_bias()))


def attention(encoder: ViT, pixels: Float[Array, "b H W c"], layers: list[int]) -> Float[np.ndarray, "l b h t t"]:
    """Of the layers asked for (negative ones count from the end) and no other.

    Raises:
      ValueError: a layer that the encoder does not have.
    """
    depth = encoder.cfg.transformer.num_layers
    wrong = [layer for layer in layers if not -depth <= layer < depth]
    if wrong:
        raise ValueError(f"Expected layers from {-depth} to {depth - 1}, got {wrong}.")

    def compute(encoder: ViT, pixels: Array) -> Array:
        inputs = layer_inputs(encoder, pixels)
        return jnp.stack([weights_of(encoder, inputs[layer], layer % depth) for layer in layers])

    return np.asarray(nnx.jit(compute)(encoder, pixels))


def rollout(encoder: ViT, pixels: Float[Array, "b H W c"]) -> Float[np.ndarray, "b t t"]:
    """Attention followed through all blocks (Abnar and Zuidema 2020): heads averaged, half of it the residual path."""
    depth = encoder.cfg.transformer.num_layers

    def compute(encoder: ViT, pixels: Array) -> Array:
        inputs = layer_inputs(encoder, pixels)
        count = inputs.shape[2]
        total = jnp.broadcast_to(jnp.eye(count), (pixels.shape[0], count, count))
        for layer in range(depth):
            mean = jnp.mean(weights_of(encoder, inputs[layer], layer), axis=1)
            total = (0.5 * mean + 0.5 * jnp.eye(count)[None]) @ total
        return total

    return np.asarray(nnx.jit(compute)(encoder, pixels))


def mean_distances(encoder: ViT, pixels: Float[Array, "b H W c"]) -> Float[np.ndarray, "l h"]:
    """How far each head looks, in pixels, averaged over queries and pictures (Dosovitskiy et al. 2021, Figure 7).

    Tokens that are no patches are left out and the rest weighted anew.
    """
    cfg = encoder.cfg
    depth, first = cfg.transformer.num_layers, cfg.num_prefix
    cell = np.asarray(cfg.image_size) / np.asarray(cfg.grid)
    rows, columns = np.mgrid[: cfg.grid[0], : cfg.grid[1]]
    places = np.stack([rows.reshape(-1), columns.reshape(-1)], axis=1) * cell
    apart = jnp.asarray(np.linalg.norm(places[:, None] - places[None], axis=-1), jnp.float32)

    def compute(encoder: ViT, pixels: Array) -> Array:
        inputs = layer_inputs(encoder, pixels)
        found = []
        for layer in range(depth):
            weights = weights_of(encoder, inputs[layer], layer)[:, :, first:, first:]
            # A query that looks at the class token alone would divide zero by zero.
            weights = weights / jnp.maximum(jnp.sum(weights, axis=-1, keepdims=True), 1e-20)
            found.append(jnp.mean(jnp.sum(weights * apart[None, None], axis=-1), axis=(0, 2)))
        return jnp.stack(found)

    return np.asarray(nnx.jit(compute)(encoder, pixels))


def to_patches(encoder: ViT, weights: Float[np.ndarray, "... t t"]) -> Float[np.ndarray, "... rows columns"]:
    """What the picture as a whole looks at: the class token's row, or the mean over patches without one."""
    first = encoder.cfg.num_prefix
    row = weights[..., 0, first:] if encoder.cfg.has_cls else weights[..., first:].mean(axis=-2)
    return row.reshape(*row.shape[:-1], *encoder.cfg.grid)
