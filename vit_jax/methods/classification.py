"""Supervised classification: softmax or sigmoid loss, with mixup, cutmix and label smoothing in training.

The model is the backbone itself with its head. Accuracies are against the pictures' own labels, in training, too, where
mixup blends others in.
"""

from __future__ import annotations

from typing import Any

from flax import nnx
from jaxtyping import Array, Float, Key

from vit_jax.contracts import Config, UserError
from vit_jax.methods.method import Inputs, Means, Method, Objective
from vit_jax.models.registry import vit_config
from vit_jax.models.vit import ViT
from vit_jax.ops.losses import LOSSES, smoothed_targets
from vit_jax.ops.means import Mean, weighted
from vit_jax.ops.mixing import mix
from vit_jax.ops.pixels import normalise
from vit_jax.ops.ranking import chance_right


def build(config: Config, num_classes: int | None, rngs: nnx.Rngs) -> ViT:
    """A ViT with a head of `num_classes` (None: without)."""
    return ViT(vit_config(config, num_classes), rngs=rngs)


def objective(config: Config, num_classes: int | None) -> Objective:
    """Cross-entropy; `accuracy`, and `top5` where there are more than five classes."""
    if not num_classes:
        raise UserError("Expected labelled pictures for objective 'classify', got none: use folders per class.")
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

    def losses(model: ViT, inputs: Inputs, keys: Key[Array, " b"] | None, train: bool) -> tuple[Mean, Means]:
        logits = model(inputs["images"], train=train, keys=keys)
        label, weight = inputs["label"], inputs["weight"]
        metrics = {"accuracy": weighted(chance_right(logits, label), weight)}
        if num_classes > 5:
            metrics["top5"] = weighted(chance_right(logits, label, k=5), weight)
        return weighted(loss_of(logits, inputs["targets"]), weight), metrics

    return Objective(prepare, losses)


def outputs(model: ViT, pixels: Float[Array, "b H W c"]) -> Float[Array, "b ... classes"]:
    """Logits."""
    return model(pixels)


METHOD = Method(build, objective, outputs, labels=True)
