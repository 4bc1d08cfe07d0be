"""A trained model asked about a data set's pictures: what `vit-jax eval` prints and reports show."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from vit_jax import sharding
from vit_jax.api import Trained
from vit_jax.contracts import Batch, UserError
from vit_jax.data.labels import labels_of
from vit_jax.data.sources import Source, check_classes, open_source
from vit_jax.evaluation.answers import Judged, judge_classes, judge_multilabel, judge_numbers, with_answers
from vit_jax.evaluation.evaluators import evaluate, make_eval_step
from vit_jax.methods import method_of
from vit_jax.methods.method import Networks
from vit_jax.training.step import laid_out


def open_tests(trained: Trained, dataset: str | None = None, split: str | None = None) -> Source:
    """The pictures that a run is evaluated on, or others.

    Raises:
      UserError: nothing there, or other classes than the model's.
    """
    config, labels = trained.config, method_of(trained.config).labels
    source = open_source(
        dataset or config["dataset"],
        split or config["pp"]["test"],
        tfds_data_dir=config["tfds_data_dir"],
        seed=config["seed"],
        labels=labels_of(config, trained.class_names) if labels else None,
    )
    check_same_classes(trained, source)
    if labels:
        check_classes(source, config["task"])
    return source


def check_same_classes(trained: Trained, source: Source) -> None:
    """Raise `UserError` where a data set has other classes than the model."""
    labels = method_of(trained.config).labels
    classes, found = trained.encoder.cfg.num_classes if labels else None, len(source.class_names or ())
    if classes and not trained.class_names and found != classes:
        raise UserError(f"Expected pictures of {classes} classes, {source.name} has {found}: give another --dataset.")
    if trained.class_names and source.class_names != trained.class_names:
        raise UserError(
            f"Expected the classes of the run ({len(trained.class_names)}: {', '.join(trained.class_names[:5])} ...), "
            f"got those of {source.name}: give --dataset with the same classes."
        )


def said_of(
    trained: Trained, batches: Iterable[Batch], answer: Callable[[Any], Any]
) -> tuple[dict[str, float], np.ndarray, np.ndarray]:
    """Metrics, and of every picture `answer` of what the method says (probabilities or numbers), and its label."""
    method, config = method_of(trained.config), trained.config
    assert method.answers is not None
    answers = method.answers
    graph, params = nnx.split(trained.model)
    objective = method.objective(config, trained.encoder.cfg.num_classes)
    return with_answers(objective, graph, params, lambda said: answer(answers(said, config)), batches, _one_device())


def measured(trained: Trained, batches: Iterable[Batch], networks: Networks) -> dict[str, float]:
    """Metrics of a method without labels; `networks` are its frozen ones."""
    method, mesh = method_of(trained.config), _one_device()
    graph, params = nnx.split(trained.model)
    asked = networks.asked
    frozen = laid_out(asked, mesh)
    step = make_eval_step(method.objective(trained.config, None), graph, None, mesh, asked, frozen)
    return method.summary(evaluate(step, params, batches, mesh) or {})


def judge(config: dict[str, Any], said: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> Judged:
    """What all answers together tell. Of one class a picture `said` is the class chosen (`answers.chosen`)."""
    if config["task"] == "multilabel":
        return judge_multilabel(said, labels, names, config["threshold"])
    return judge_numbers(said, labels, names) if config["task"] == "regression" else judge_classes(said, labels, names)


def _one_device() -> Any:
    return sharding.make_mesh({"data": 1}, jax.devices()[:1])
