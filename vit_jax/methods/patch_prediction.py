"""Masked patch prediction, the ViT paper's own self-supervision (Dosovitskiy et al. 2021, section 4.6 and appendix B.1.2).

Half of the patch embeddings are corrupted: 80% of those become a learned mask embedding, 10% the embedding of another patch,
10% stay. Of each corrupted patch the model predicts one of the paper's three targets from its token:

- mean_colour: the patch's mean colour in 3 bits a channel, one of 512 classes (the paper's choice)
- colours_4x4: the same of each cell of the patch shrunk to 4 x 4, 16 predictions side by side
- pixels: the patch itself, by L2

The paper released no code for it. What it leaves open is decided here: the number of corrupted patches is the same in every
picture, the other patch is one of the same picture, and the head is one linear layer.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key, UInt8

from vit_jax.contracts import Config, UserError
from vit_jax.methods.drawing import filled_in
from vit_jax.methods.masked import Masked, outputs, over
from vit_jax.methods.method import Drawing, Inputs, Means, Method, Objective
from vit_jax.models.layers import XAVIER
from vit_jax.models.registry import pair, vit_config
from vit_jax.ops.keys import fold, key_for
from vit_jax.ops.losses import patch_errors
from vit_jax.ops.masks import make_mask
from vit_jax.ops.means import Mean
from vit_jax.ops.patches import grid_of, patchify
from vit_jax.ops.pixels import normalise
from vit_jax.ops.ranking import chance_right

LEVELS = 8  # 3 bits
CELLS = {"mean_colour": 1, "colours_4x4": 4}  # a side of the shrunk patch


class Corruption(NamedTuple):
    """Which patches the loss asks for, which of them become the mask embedding, and where each embedding comes from."""

    corrupted: Bool[Array, "b n"]
    masked: Bool[Array, "b n"]
    source: Int[Array, "b n"]


def corrupt(keys: Key[Array, " b"], grid: tuple[int, int], section: Config) -> Corruption:
    """Draw a corruption an example. `mask_share` and `swap_share` of the corrupted patches, each drawn by itself."""
    n = grid[0] * grid[1]
    count = min(max(1, round(section["mask_ratio"] * n)), n - 1)
    corrupted = make_mask("random", fold(keys, 0), grid, n - count).hidden
    lot = jax.vmap(lambda key: jax.random.uniform(key, (n,)))(fold(keys, 1))
    ahead = jax.vmap(lambda key: jax.random.randint(key, (n,), 1, n))(fold(keys, 2))  # never itself
    mask_share, swap_share = section["mask_share"], section["swap_share"]
    swapped = corrupted & (lot >= mask_share) & (lot < mask_share + swap_share)
    own = jnp.arange(n)[None, :]
    return Corruption(corrupted, corrupted & (lot < mask_share), jnp.where(swapped, (own + ahead) % n, own))


def colour_classes(
    images: UInt8[Array, "b H W c"], patch_size: tuple[int, int], cells: int
) -> Int[Array, "b n {cells*cells}"]:
    """Class of the mean colour of each cell of each patch: 3 bits a channel, the first channel the highest digit."""
    cell = (patch_size[0] // cells, patch_size[1] // cells)
    patches = patchify(images, patch_size).astype(jnp.float32)
    channels = images.shape[-1]
    parts = patches.reshape(*patches.shape[:2], cells, cell[0], cells, cell[1], channels)
    means = jnp.mean(parts, axis=(3, 5)).reshape(*patches.shape[:2], cells * cells, channels)
    levels = jnp.clip(jnp.floor(means * (LEVELS / 256.0)), 0, LEVELS - 1).astype(jnp.int32)
    digits = LEVELS ** np.arange(channels)[::-1]
    return jnp.sum(levels * digits[None, None, None, :], axis=-1)


def build(config: Config, num_classes: int | None, rngs: nnx.Rngs) -> Masked:
    """Classes are not asked for.

    Raises:
      UserError: shares above one in sum, or patches that have no 4 x 4 cells.
    """
    section, cfg = config["patch_prediction"], vit_config(config, num_classes=None)
    target, channels = section["target"], cfg.channels
    if section["mask_share"] + section["swap_share"] > 1:
        raise UserError(
            "Expected patch_prediction.mask_share and patch_prediction.swap_share of at most 1 together, got "
            f"{section['mask_share']} and {section['swap_share']}: lower one."
        )
    cells = CELLS.get(target, 1)
    if any(side % cells for side in cfg.patch_size):
        raise UserError(
            f"Expected patches of whole {cells} x {cells} cells for patch_prediction.target={target!r}, got "
            f"{cfg.patch_size}: change model.patches.size or patch_prediction.target."
        )
    outputs = cfg.patch_values if target == "pixels" else cells**2 * LEVELS**channels
    return Masked(cfg, outputs, head_init=XAVIER, rngs=rngs)


def objective(config: Config, num_classes: int | None) -> Objective:
    """Cross-entropy of colours, or squared error of pixels, over corrupted patches. `accuracy` of colours by chance_right.

    `baseline` of pixels is the error of each patch's own mean, as in MAE.
    """
    pp, section = config["pp"], config["patch_prediction"]
    patch_size = pair(config["model"]["patches"]["size"])
    grid, target = grid_of(pair(pp["crop"]), patch_size), section["target"]

    def prepare(batch: Any, key: Key[Array, ""], train: bool) -> Inputs:
        keys = jax.random.split(key, batch.image.shape[0])
        inputs = {
            "images": normalise(batch.image, pp["mean"], pp["std"]),
            "corruption": corrupt(fold(keys, 1), grid, section),
            "weight": batch.weight,
        }
        if target != "pixels":
            inputs["classes"] = colour_classes(batch.image, patch_size, CELLS[target])
        return inputs

    def losses(model: Masked, inputs: Inputs, keys: Key[Array, " b"] | None, train: bool) -> tuple[Mean, Means]:
        corruption, weight = inputs["corruption"], inputs["weight"]
        predicted = model(inputs["images"], corruption.masked, source=corruption.source, train=train, keys=keys)
        if target != "pixels":
            return _colours(predicted, inputs["classes"], corruption.corrupted, weight)
        patches = model.encoder.patches(inputs["images"])
        flat = jnp.broadcast_to(jnp.mean(patches, axis=-1, keepdims=True), patches.shape)
        loss, baseline = (
            over(corruption.corrupted, patch_errors(guess, patches), weight) for guess in (predicted, flat)
        )
        return loss, {"baseline": baseline}

    return Objective(prepare, losses)


def _colours(
    predicted: Float[Array, "b n o"],
    classes: Int[Array, "b n s"],
    corrupted: Bool[Array, "b n"],
    weight: Float[Array, " b"],
) -> tuple[Mean, Means]:
    """Mean cross-entropy and accuracy over the cells of corrupted patches."""
    logits = predicted.reshape(*classes.shape, -1)
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), classes[..., None], axis=-1)[..., 0]
    right = chance_right(logits.reshape(-1, logits.shape[-1]), classes.reshape(-1)).reshape(classes.shape)
    loss, accuracy = (over(corrupted, jnp.mean(values, axis=-1), weight) for values in (-chosen, right))
    return loss, {"accuracy": accuracy}


def picture(model: Masked, images: UInt8[Array, "b H W c"], config: Config, *, seed: int = 0) -> Drawing:
    """Corrupted patches filled with what the model says of them: pixels, or the middle of each colour class."""
    pp, section, cfg = config["pp"], config["patch_prediction"], model.cfg
    keys = jax.random.split(key_for(seed, "reconstruct"), images.shape[0])
    corruption, pixels = corrupt(keys, cfg.grid, section), normalise(images, pp["mean"], pp["std"])
    predicted = nnx.jit(lambda model, pixels, seen: model(pixels, seen.masked, source=seen.source))(
        model, pixels, corruption
    )
    if section["target"] != "pixels":
        predicted = _coloured(predicted, cfg.patch_size, CELLS[section["target"]], cfg.channels)
        predicted = (predicted - jnp.asarray(_row(pp["mean"], predicted))) / jnp.asarray(_row(pp["std"], predicted))
    more = "; of the grey patches some were swapped or left as they are when the model saw them"
    return filled_in(pixels, predicted, corruption.corrupted, cfg.patch_size, pp["mean"], pp["std"], more)


def _coloured(
    predicted: Float[Array, "b n o"], patch_size: tuple[int, int], cells: int, channels: int
) -> Float[Array, "b n p"]:
    """Patches as fractions in [0, 1], each cell of the middle of its likeliest class's colour."""
    batch, n = predicted.shape[:2]
    found = jnp.argmax(predicted.reshape(batch, n, cells, 1, cells, 1, -1), axis=-1)
    digits = LEVELS ** np.arange(channels)[::-1]
    levels = found[..., None] // digits.reshape(1, 1, 1, 1, 1, 1, -1) % LEVELS
    shape = (batch, n, cells, patch_size[0] // cells, cells, patch_size[1] // cells, channels)
    return jnp.broadcast_to((levels + 0.5) / LEVELS, shape).reshape(batch, n, -1)


def _row(values: Any, patches: Float[Array, "b n p"]) -> np.ndarray:
    """Statistics of channels, repeated over the numbers of a patch."""
    return np.resize(np.asarray(values, np.float32), patches.shape[-1])[None, None, :]


METHOD = Method(build, objective, outputs, backbone_at="encoder", picture=picture)
