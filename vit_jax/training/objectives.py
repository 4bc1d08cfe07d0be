"""Ways to train. A new one is one function here, one config and one test; never a new loop.

An objective has two halves. `prepare` sees the whole batch once (pixels to floats, mixing, masks: whatever needs
neighbours or must not depend on micro-batches). `losses` sees any slice of what `prepare` returned and gives one
(total, count) an example, so slices add up to the full batch exactly.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from vit_jax import derived
from vit_jax.contracts import Config, UserError
from vit_jax.models.mae import MAE
from vit_jax.models.registry import pair
from vit_jax.ops.keys import fold
from vit_jax.ops.losses import LOSSES, patch_errors, smoothed_targets
from vit_jax.ops.masks import make_mask
from vit_jax.ops.means import Mean, weighted
from vit_jax.ops.mixing import mix
from vit_jax.ops.patches import grid_of
from vit_jax.ops.pixels import normalise, normalise_patches
from vit_jax.ops.ranking import chance_right

Inputs = dict[str, Any]  # arrays with a leading "b"
Means = dict[str, Mean]  # per example: total and count of shape "b"


class Objective(NamedTuple):
    """`prepare(Batch on the device, key, train) -> inputs`; `losses(model, inputs, keys, train) -> (loss, metrics)`."""

    prepare: Callable[[Any, Key[Array, ""], bool], Inputs]
    losses: Callable[[Any, Inputs, Key[Array, " b"] | None, bool], tuple[Mean, Means]]


def classification(config: Config, num_classes: int) -> Objective:
    """Supervised: softmax or sigmoid loss, with mixup, cutmix and label smoothing in training.

    Accuracies are against the pictures' own labels, in training, too, where mixup blends others in.
    """
    if config["model"]["classifier"] in ("unpooled", "token_unpooled"):
        raise UserError(
            f"Expected a classifier that gives one answer a picture, {config['model']['classifier']!r} gives one a patch: "
            "change model.classifier."
        )
    if config["loss"] not in LOSSES:
        raise UserError(f"Expected a loss of {sorted(LOSSES)}, got {config['loss']!r}: change config.loss.")
    loss_of, pp = LOSSES[config["loss"]], config["pp"]

    def prepare(batch: Any, key: Key[Array, ""], train: bool) -> Inputs:
        images = normalise(batch.image, pp["mean"], pp["std"])
        targets = smoothed_targets(batch.label, num_classes, config["label_smoothing"] if train else 0.0)
        if train:
            images, targets = mix(key, images, targets, batch.weight, mixup=config["mixup"], cutmix=config["cutmix"])
        return {"images": images, "targets": targets, "label": batch.label, "weight": batch.weight}

    def losses(model: Any, inputs: Inputs, keys: Key[Array, " b"] | None, train: bool) -> tuple[Mean, Means]:
        logits = model(inputs["images"], train=train, keys=keys)
        label, weight = inputs["label"], inputs["weight"]
        metrics = {"accuracy": weighted(chance_right(logits, label), weight)}
        if num_classes > 5:
            metrics["top5"] = weighted(chance_right(logits, label, k=5), weight)
        return weighted(loss_of(logits, inputs["targets"]), weight), metrics

    return Objective(prepare, losses)


def masked_autoencoding(config: Config) -> Objective:
    """MAE: mean squared error on hidden patches (models_mae.py, forward_loss).

    `baseline` is the error of predicting each patch's own mean; learning anything about shape goes below it.
    """
    pp, mae = config["pp"], config["mae"]
    patch_size = pair(config["model"]["patches"]["size"])
    grid = grid_of(pair(pp["crop"]), patch_size)
    visible = derived.num_visible(mae, grid[0] * grid[1])

    def prepare(batch: Any, key: Key[Array, ""], train: bool) -> Inputs:
        images = normalise(batch.image, pp["mean"], pp["std"])
        keys = fold(jax.random.split(key, images.shape[0]), 1)
        mask = make_mask(mae["mask"], keys, grid, visible)
        return {"images": images, "mask": mask, "weight": batch.weight}

    def losses(model: MAE, inputs: Inputs, keys: Key[Array, " b"] | None, train: bool) -> tuple[Mean, Means]:
        mask, weight = inputs["mask"], inputs["weight"]
        predicted = model(inputs["images"], mask, train=train, keys=keys)
        patches = model.encoder.patches(inputs["images"])
        target = normalise_patches(patches) if mae["normalised_target"] else patches
        hidden = mask.hidden.astype(jnp.float32)
        count = jnp.sum(hidden, axis=-1)

        def over_hidden(errors: Array) -> Mean:
            per_example = weighted(jnp.sum(errors * hidden, axis=-1), weight)
            return Mean(per_example.total, count * weight)

        flat = jnp.broadcast_to(jnp.mean(target, axis=-1, keepdims=True), target.shape)
        return over_hidden(patch_errors(predicted, target)), {"baseline": over_hidden(patch_errors(flat, target))}

    return Objective(prepare, losses)


def make_objective(config: Config, num_classes: int | None) -> Objective:
    """The objective that `config.objective` names."""
    kind = config["objective"]
    if kind == "mae":
        return masked_autoencoding(config)
    if kind == "classify":
        if not num_classes:
            raise UserError("Expected labelled pictures for objective 'classify', got none: use folders per class.")
        return classification(config, num_classes)
    raise UserError(f"Expected objective 'classify' or 'mae', got {kind!r}: change config.objective.")
