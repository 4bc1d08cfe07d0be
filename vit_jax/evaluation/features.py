"""Frozen features of whole pictures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from vit_jax.contracts import Batch
from vit_jax.models.vit import ViT
from vit_jax.ops.pixels import normalise

Pooling = Literal["cls", "mean", "model"]


def pooled_features(encoder: ViT, pixels: Float[Array, "b H W c"], pooling: Pooling = "mean") -> Float[Array, "b d"]:
    """One vector a picture: the class token, the mean over patches, or as the model itself pools (before its head).

    MAE's loss never trains the class token, so "mean" is the default.
    """
    if pooling not in poolings(encoder):
        raise ValueError("Expected a model with a class token for pooling 'cls', this one has none: use 'mean'.")
    return nnx.jit(lambda encoder, pixels: pooled(encoder, encoder.features(pixels), pooling))(encoder, pixels)


def poolings(encoder: ViT) -> tuple[Pooling, ...]:
    """The ways to make one vector of this encoder's tokens."""
    return ("cls", "mean", "model") if encoder.cfg.has_cls else ("mean", "model")


def pooled(encoder: ViT, tokens: Float[Array, "b t d"], pooling: Pooling) -> Float[Array, "b d"]:
    """One vector an example, float32."""
    if pooling == "model":
        vectors = encoder.pool(tokens)
        vectors = vectors[:, 0] if vectors.ndim == 3 else vectors  # two tokens (DeiT), or all of them: the first
    else:
        vectors = tokens[:, 0] if pooling == "cls" else jnp.mean(tokens[:, encoder.cfg.num_prefix :], axis=1)
    return vectors.astype(jnp.float32)


def extract(
    encoder: ViT, batches: Iterable[Batch], mean: Sequence[float], std: Sequence[float], which: Sequence[Pooling]
) -> dict[str, Any]:
    """Features of every example by pooling, and `label`; rows that only fill up a batch are left out."""
    graph, params = nnx.split(encoder)

    @jax.jit
    def compute(params: Any, images: Array) -> dict[str, Array]:
        model = nnx.merge(graph, params)
        tokens = model.features(normalise(images, mean, std))
        return {pooling: pooled(model, tokens, pooling) for pooling in which}

    rows: dict[str, list[np.ndarray]] = {name: [] for name in (*which, "label")}
    for batch in batches:
        real = batch.weight > 0
        found = compute(params, jnp.asarray(batch.image))
        for name in which:
            rows[name].append(np.asarray(found[name])[real])
        rows["label"].append(batch.label[real])
    return {name: np.concatenate(parts) for name, parts in rows.items()}


Form = Literal["tokens", "NHWC", "pooled"]


def layer_features(
    encoder: ViT, pixels: Float[Array, "b H W c"], layers: Sequence[int], form: Form = "tokens", *, normed: bool = True
) -> list[Array]:
    """What leaves the blocks asked for (negative ones count from the end): for dense use and for probing depth.

    Args:
      form: "tokens" (b, prefix + patches, d); "NHWC" (b, rows, columns, d), the patches alone; "pooled" (b, d), their mean.
      normed: through the encoder's final norm, as every published use of inner layers has it.

    Raises:
      ValueError: a layer that the encoder does not have, or another form.
    """
    cfg = encoder.cfg
    depth = cfg.transformer.num_layers
    if any(not -depth <= layer < depth for layer in layers) or form not in ("tokens", "NHWC", "pooled"):
        raise ValueError(
            f"Expected layers from {-depth} to {depth - 1} and a form of tokens, NHWC, pooled; got {layers}, {form}."
        )

    def compute(encoder: ViT, pixels: Array) -> list[Array]:
        every = encoder.transformer.every_layer(encoder.placed(encoder.embed(encoder.patches(pixels))))
        found = []
        for layer in layers:
            tokens = encoder.norm(every[layer]) if normed else every[layer]
            patches = tokens[:, cfg.num_prefix :]
            grid = patches.reshape(patches.shape[0], *cfg.grid, -1)
            found.append({"tokens": tokens, "NHWC": grid, "pooled": jnp.mean(patches, axis=1)}[form])
        return found

    return nnx.jit(compute)(encoder, pixels)
