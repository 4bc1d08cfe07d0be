"""Supervised learning of a label: one class, any number of classes, or numbers (`config.task`), with mixup and cutmix.

The model is the backbone itself with its head. Metrics are against the pictures' own labels, in training, too, where mixup
blends others in. What one number an example cannot say (average precision, R²) is in evaluation/answers.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from vit_jax.contracts import Config, UserError
from vit_jax.methods.method import Inputs, Means, Method, Objective
from vit_jax.models.registry import vit_config
from vit_jax.models.vit import ViT
from vit_jax.ops.losses import LOSSES, huber, sigmoid_xent, smoothed_targets, softmax_xent
from vit_jax.ops.means import Mean, weighted
from vit_jax.ops.mixing import mix
from vit_jax.ops.pixels import normalise
from vit_jax.ops.ranking import chance_right

# Losses of each task, the first one unless config.loss is set.
TASKS = {"classes": ("softmax", "sigmoid"), "multilabel": ("sigmoid",), "regression": ("l2", "huber")}


class Task(NamedTuple):
    """What depends on the kind of label. `train` is of the step: what regularises is for training alone."""

    targets: Callable[[Any, bool], Float[Array, "b c"]]  # of (labels, train)
    loss: Callable[[Any, Any, Any, bool], Mean]  # of (logits, targets, weight, train)
    metrics: Callable[[Any, Any, Any], Means]  # of (logits, labels, weight)


def build(config: Config, num_classes: int | None, rngs: nnx.Rngs) -> ViT:
    """A ViT with a head of `num_classes` (None: without)."""
    return ViT(vit_config(config, num_classes), rngs=rngs)


def objective(config: Config, num_classes: int | None) -> Objective:
    """The loss of `config.task`; see `classes`, `multilabel` and `regression` for the metrics."""
    if not num_classes:
        raise UserError("Expected labelled pictures for objective 'classify', got none: use folders per class.")
    if config["model"]["classifier"] in ("unpooled", "token_unpooled"):
        raise UserError(
            f"Expected a classifier that gives one answer a picture, {config['model']['classifier']!r} gives one a patch: "
            "change model.classifier."
        )
    task, pp = {"classes": classes, "multilabel": multilabel, "regression": regression}[config["task"]], config["pp"]
    targets_of, loss_of, metrics_of = task(config, num_classes)

    def prepare(batch: Any, key: Key[Array, ""], train: bool) -> Inputs:
        images = normalise(batch.image, pp["mean"], pp["std"])
        targets = targets_of(batch.label, train)
        if train:
            images, targets = mix(key, images, targets, batch.weight, mixup=config["mixup"], cutmix=config["cutmix"])
        return {"images": images, "targets": targets, "label": batch.label, "weight": batch.weight}

    # The model is asked once, for logits: evaluation/answers.py listens to what it says.
    def losses(
        model: Callable[..., Array], inputs: Inputs, keys: Key[Array, " b"] | None, train: bool
    ) -> tuple[Mean, Means]:
        logits = model(inputs["images"], train=train, keys=keys)
        label, weight = inputs["label"], inputs["weight"]
        return loss_of(logits, inputs["targets"], weight, train), metrics_of(logits, label, weight)

    return Objective(prepare, losses)


def loss_name(config: Config) -> str:
    """A word of LOSSES; `UserError` for one that is not of the task."""
    words, given = TASKS[config["task"]], config["loss"]
    if given is not None and given not in words:
        raise UserError(
            f"Expected a loss of {', '.join(words)} for task {config['task']!r}, got {given!r}: change config.loss, or "
            "leave it at None."
        )
    return given or words[0]


def classes(config: Config, num_classes: int) -> Task:
    """One class a picture: `accuracy`, and `top5` where there are more than five classes.

    Weights of classes make the loss a weighted mean (PyTorch's cross_entropy with `weight`; with sigmoid its pos_weight).
    """
    weights, smoothing = class_weights(config, num_classes), config["label_smoothing"]
    entropy = _sigmoid(weights) if loss_name(config) == "sigmoid" else _softmax(weights)

    def metrics(logits: Array, label: Array, weight: Array) -> Means:
        found = {"accuracy": weighted(chance_right(logits, label), weight)}
        if num_classes > 5:
            found["top5"] = weighted(chance_right(logits, label, k=5), weight)
        return found

    return Task(
        lambda label, train: smoothed_targets(label, num_classes, smoothing if train else 0.0), entropy, metrics
    )


def multilabel(config: Config, num_classes: int) -> Task:
    """Yes or no for every class: `f1` over all classes together (micro), and `exact`, the share of pictures all right."""
    loss_name(config)
    smoothing, threshold = config["label_smoothing"], config["threshold"]

    def targets(label: Array, train: bool) -> Array:
        return label * (1.0 - smoothing) + 0.5 * smoothing if train and smoothing else label

    def metrics(logits: Array, label: Array, weight: Array) -> Means:
        said = (jax.nn.sigmoid(logits.astype(jnp.float32)) >= threshold).astype(jnp.float32)
        exact = jnp.all(said == label, axis=-1) & ~jnp.any(jnp.isnan(logits), axis=-1)
        right, both = jnp.sum(said * label, axis=-1), jnp.sum(said + label, axis=-1)
        # F1 = 2 right / (said + there): sums of examples, so any split of a set adds up to the same.
        real = (weight > 0).astype(jnp.float32)
        return {"f1": Mean(2.0 * right * real, both * real), "exact": weighted(exact.astype(jnp.float32), weight)}

    return Task(targets, _sigmoid(class_weights(config, num_classes)), metrics)


def regression(config: Config, num_classes: int) -> Task:
    """Numbers, learned in units of their deviation: `abs_error` in their own units, the mean over an example's numbers.

    `baseline` is the loss of always saying the mean: with l2 on a set of training's statistics, R² = 1 - loss / baseline.
    """
    if config["class_weights"] is not None:
        raise UserError("Expected class_weights None for task 'regression', which has no classes: unset it.")
    name, delta = loss_name(config), config["huber_delta"]
    mean, std = units(config, num_classes)

    def error(predicted: Array, targets: Array) -> Array:
        return huber(predicted, targets, delta) if name == "huber" else LOSSES[name](predicted, targets)

    def targets(label: Array, train: bool) -> Array:
        return (label - mean[None, :]) / std[None, :]

    def metrics(logits: Array, label: Array, weight: Array) -> Means:
        off = jnp.abs(logits.astype(jnp.float32) * std[None, :] + mean[None, :] - label)
        wanted = targets(label, False)
        baseline = error(jnp.zeros_like(wanted), wanted)
        return {"abs_error": weighted(jnp.mean(off, axis=-1), weight), "baseline": weighted(baseline, weight)}

    return Task(targets, lambda logits, wanted, weight, train: weighted(error(logits, wanted), weight), metrics)


def units(config: Config, num_classes: int) -> tuple[Float[Array, " c"], Float[Array, " c"]]:
    """Mean and deviation that the numbers of a regression are learned in; 0 and 1 where they are not known yet."""
    for field in ("target_mean", "target_std"):
        if config[field] is not None and len(config[field]) != num_classes:
            raise UserError(
                f"Expected a number for each of the {num_classes} to learn in {field}, got {len(config[field])}: change "
                f"config.{field}."
            )
    mean, std = config["target_mean"] or (0.0,) * num_classes, config["target_std"] or (1.0,) * num_classes
    return jnp.asarray(mean, jnp.float32), jnp.asarray(std, jnp.float32)


def class_weights(config: Config, num_classes: int) -> Float[Array, " c"] | None:
    """As set; ones for "balanced" where no labels have been counted (a plan, a benchmark)."""
    given = config["class_weights"]
    if given is None:
        return None
    if given == "balanced":
        return jnp.ones(num_classes)
    if len(given) != num_classes:
        raise UserError(
            f"Expected a weight for each of the {num_classes} classes, got {len(given)}: change config.class_weights."
        )
    return jnp.asarray(given, jnp.float32)


def _softmax(weights: Float[Array, " c"] | None) -> Callable[..., Mean]:
    def loss(logits: Array, targets: Array, weight: Array, train: bool) -> Mean:
        if weights is None or not train:
            return weighted(softmax_xent(logits, targets), weight)
        heavy = targets * weights[None, :]
        share = jnp.sum(heavy, axis=-1)
        return weighted(softmax_xent(logits, heavy) / share, weight * share)

    return loss


def _sigmoid(weights: Float[Array, " c"] | None) -> Callable[..., Mean]:
    def loss(logits: Array, targets: Array, weight: Array, train: bool) -> Mean:
        return weighted(sigmoid_xent(logits, targets, weights if train else None), weight)

    return loss


def answers(logits: Float[Array, "b c"], config: Config) -> Float[Array, "b c"]:
    """What the head says, in words a user reads: probabilities of classes, or numbers in the labels' own units."""
    if config["task"] == "regression":
        mean, std = units(config, logits.shape[-1])
        return logits.astype(jnp.float32) * std[None, :] + mean[None, :]
    return jax.nn.sigmoid(logits) if loss_name(config) == "sigmoid" else jax.nn.softmax(logits)


def outputs(model: ViT, pixels: Float[Array, "b H W c"]) -> Float[Array, "b ... classes"]:
    """Logits."""
    return model(pixels)


METHOD = Method(build, objective, outputs, answers)
