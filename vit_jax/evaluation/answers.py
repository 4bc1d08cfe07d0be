"""What only all answers together tell: confusion of classes, average precision, F1 of each class, R².

NumPy arrays of answers and labels in, plain numbers out, in float64. What is a sum over examples is the objective's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from vit_jax import sharding
from vit_jax.contracts import Batch
from vit_jax.evaluation.evaluators import evaluate, sums
from vit_jax.ops.means import Mean


class Judged(NamedTuple):
    """Numbers of the whole set, numbers of each class (or number to learn), and where classes were taken for others."""

    whole: dict[str, float]
    each: dict[str, dict[str, float]]
    confusion: Int[np.ndarray, "c c"] | None = None  # rows: the label; columns: the answer


def with_answers(
    objective: Any, graph: Any, params: Any, answer: Callable[[Array], Array], batches: Iterable[Batch], mesh: Mesh
) -> tuple[dict[str, float], np.ndarray, np.ndarray]:
    """`evaluate`, with `answer` of what the model said of every picture and the labels, a row each; one pass.

    For methods whose losses call the model once, with pictures (methods.method.Method.labels); on one process.
    """

    @jax.jit
    def step(params: Any, batch: Batch, number: Any) -> tuple[dict[str, Mean], Array]:
        with sharding.over(mesh):
            model, said = nnx.merge(graph, params), []

            def heard(*args: Any, **named: Any) -> Array:
                said.append(model(*args, **named))
                return said[-1]

            means = sums(objective, heard, batch, number)
            (only,) = said
            return means, answer(only)

    answers: list[np.ndarray] = []
    labels: list[np.ndarray] = []

    def keep(params: Any, batch: Batch, number: Any) -> dict[str, Mean]:
        means, found = step(params, batch, number)
        real = np.asarray(batch.weight) > 0
        answers.append(np.asarray(found)[real])
        labels.append(np.asarray(batch.label)[real])
        return means

    metrics = evaluate(keep, params, batches, mesh)
    assert metrics is not None  # nobody told it to stop
    return metrics, np.concatenate(answers), np.concatenate(labels)


def chosen(probabilities: Float[Array, "b c"]) -> Int[Array, " b"]:
    """The class of the highest probability; -1 where one is NaN, which chooses nothing."""
    broken = jnp.any(jnp.isnan(probabilities), axis=-1)
    return jnp.where(broken, -1, jnp.argmax(probabilities, axis=-1))


def judge_classes(answers: Int[np.ndarray, " n"], labels: Int[np.ndarray, " n"], names: Sequence[str]) -> Judged:
    """Accuracy of each class, their mean (`class_accuracy`, the balanced accuracy), and the confusion matrix.

    Classes without a picture have NaN, and are left out of the mean. Pictures without an answer are wrong, in no column.
    """
    classes = len(names)
    confusion, pictures = np.zeros((classes, classes), np.int64), np.bincount(labels[labels >= 0], minlength=classes)
    real = (answers >= 0) & (labels >= 0)
    np.add.at(confusion, (labels[real], answers[real]), 1)
    accuracy = _share(np.diagonal(confusion), pictures)
    each = {
        name: {"pictures": int(count), "accuracy": float(right)}
        for name, count, right in zip(names, pictures, accuracy, strict=True)
    }
    return Judged({"class_accuracy": _mean(accuracy)}, each, confusion)


def judge_multilabel(
    probabilities: Float[np.ndarray, "n c"], labels: Float[np.ndarray, "n c"], names: Sequence[str], threshold: float
) -> Judged:
    """`mAP`, the mean of the classes' average precisions, and `f1_macro`, the mean of their F1 at `threshold`.

    What is undefined is NaN and left out of the means: AP of a class that no picture has, precision of one never said.
    """
    there, said = labels > 0.5, probabilities >= threshold  # NaN is not said
    right, pictures, answers = ((x.sum(axis=0)).astype(np.float64) for x in (there & said, there, said))
    columns = {
        "pictures": pictures,
        "AP": np.asarray([average_precision(*pair) for pair in zip(probabilities.T, there.T, strict=True)]),
        "precision": _share(right, answers),
        "recall": _share(right, pictures),
        "F1": _share(2 * right, pictures + answers),
    }
    each = {name: {key: float(column[place]) for key, column in columns.items()} for place, name in enumerate(names)}
    return Judged({"mAP": _mean(columns["AP"]), "f1_macro": _mean(columns["F1"])}, each)


def average_precision(scores: Float[np.ndarray, " n"], there: np.ndarray) -> float:
    """Sum of precision times gain in recall over the thresholds, equal scores being one; NaN without a positive.

    No interpolation (scikit-learn's average_precision_score; COCO's and VOC's interpolate). NaN ranks last.
    """
    if not there.any():
        return float("nan")
    scores = np.where(np.isnan(scores), -np.inf, scores)
    order = np.argsort(-scores, kind="stable")
    last = np.append(scores[order][1:] != scores[order][:-1], True)  # of those with an equal score
    right = np.cumsum(there[order])[last]
    precision = right / (np.flatnonzero(last) + 1)
    return float(np.sum(np.diff(right, prepend=0) * precision) / there.sum())


def judge_numbers(answers: Float[np.ndarray, "n c"], labels: Float[np.ndarray, "n c"], names: Sequence[str]) -> Judged:
    """Mean absolute error, root mean squared error and R² of each number; `r2` is the mean of theirs.

    R² compares with always saying the mean of these labels; NaN where they are all the same, and left out of the mean.
    """
    answers, labels = answers.astype(np.float64), labels.astype(np.float64)
    squares = np.square(answers - labels).mean(axis=0)
    r2 = 1.0 - _share(squares, labels.var(axis=0))
    columns = {"abs_error": np.abs(answers - labels).mean(axis=0), "rms_error": np.sqrt(squares), "R2": r2}
    each = {name: {key: float(column[place]) for key, column in columns.items()} for place, name in enumerate(names)}
    return Judged({"r2": _mean(r2)}, each)


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.where(whole > 0, part / np.where(whole > 0, whole, 1), np.nan)


def _mean(values: np.ndarray) -> float:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else float("nan")
