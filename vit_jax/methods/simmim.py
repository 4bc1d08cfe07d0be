"""SimMIM (Xie et al. 2022; microsoft/SimMIM models/simmim.py) around a ViT.

Squares of `mask_unit` pixels are hidden: their patches become a mask token after the embedding, all tokens go through the
encoder, and one linear layer predicts the pixels of each patch. The loss is L1 on hidden pixels.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Key, UInt8

from vit_jax.contracts import Config, UserError
from vit_jax.methods.drawing import filled_in
from vit_jax.methods.masked import Masked, outputs, over
from vit_jax.methods.method import Drawing, Inputs, Means, Method, Objective
from vit_jax.models.layers import Initializer
from vit_jax.models.registry import pair, vit_config
from vit_jax.ops.keys import fold, key_for
from vit_jax.ops.masks import unit_mask
from vit_jax.ops.means import Mean
from vit_jax.ops.pixels import normalise


def masking(config: Config) -> tuple[tuple[int, int], tuple[int, int], int]:
    """(grid of patches, patches of a square, squares hidden): ceil(mask_ratio of the squares).

    Raises:
      UserError: a unit that is no whole number of patches, or that does not divide the picture.
    """
    section, size = config["simmim"], pair(config["pp"]["crop"])
    patch = pair(config["model"]["patches"]["size"])
    unit = section["mask_unit"] or 2 * max(patch)
    if any(unit % side for side in patch) or any(side % unit for side in size):
        raise UserError(
            f"Expected simmim.mask_unit to be a whole number of patches of {patch[0]} x {patch[1]} and to divide the picture "
            f"of {size[0]} x {size[1]}, got {unit}: change simmim.mask_unit."
        )
    squares = (size[0] // unit) * (size[1] // unit)
    grid = (size[0] // patch[0], size[1] // patch[1])
    return grid, (unit // patch[0], unit // patch[1]), math.ceil(squares * section["mask_ratio"])


def hidden_squares(keys: Key[Array, " b"], config: Config) -> Bool[Array, "b n"]:
    """Hidden patches an example, by `config.simmim` (SimMIM's MaskGenerator)."""
    return unit_mask(keys, *masking(config))


def uniform(width: int) -> Initializer:
    """What PyTorch gives kernel and bias of a layer from `width` numbers: uniform within 1 / sqrt(width)."""
    bound = width**-0.5
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


def build(config: Config, num_classes: int | None, rngs: nnx.Rngs) -> Masked:
    """Classes are not asked for."""
    cfg = vit_config(config, num_classes=None)
    first = uniform(cfg.transformer.hidden_size)
    return Masked(cfg, cfg.patch_values, head_init=first, bias_init=first, rngs=rngs)


def objective(config: Config, num_classes: int | None) -> Objective:
    """Mean absolute error of hidden pixels. `baseline` is that of each patch's own mean."""
    pp, _ = config["pp"], masking(config)  # which refuses a wrong unit before anything is written

    def prepare(batch: Any, key: Key[Array, ""], train: bool) -> Inputs:
        keys = fold(jax.random.split(key, batch.image.shape[0]), 1)
        images = normalise(batch.image, pp["mean"], pp["std"])
        return {"images": images, "hidden": hidden_squares(keys, config), "weight": batch.weight}

    def losses(model: Masked, inputs: Inputs, keys: Key[Array, " b"] | None, train: bool) -> tuple[Mean, Means]:
        target, hidden = model.encoder.patches(inputs["images"]), inputs["hidden"]
        predicted = model(inputs["images"], hidden, train=train, keys=keys)
        flat = jnp.broadcast_to(jnp.mean(target, axis=-1, keepdims=True), target.shape)
        loss, baseline = (
            over(hidden, jnp.mean(jnp.abs(guess - target), axis=-1), inputs["weight"]) for guess in (predicted, flat)
        )
        return loss, {"baseline": baseline}

    return Objective(prepare, losses)


def in_words(config: Config) -> list[str]:
    """The side of the squares, where it was worked out."""
    if config["simmim"]["mask_unit"] is not None:
        return []
    side = 2 * max(pair(config["model"]["patches"]["size"]))
    return [f"simmim.mask_unit {side} (two patches)"]


def picture(model: Masked, images: UInt8[Array, "b H W c"], config: Config, *, seed: int = 0) -> Drawing:
    """Hide squares as `config.simmim` says and fill them in."""
    pp = config["pp"]
    hidden = hidden_squares(jax.random.split(key_for(seed, "reconstruct"), images.shape[0]), config)
    pixels = normalise(images, pp["mean"], pp["std"])
    predicted = nnx.jit(lambda model, pixels, hidden: model(pixels, hidden))(model, pixels, hidden)
    return filled_in(pixels, predicted, hidden, model.cfg.patch_size, pp["mean"], pp["std"])


METHOD = Method(build, objective, outputs, backbone_at="encoder", in_words=in_words, picture=picture)
