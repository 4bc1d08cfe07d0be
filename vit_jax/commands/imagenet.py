"""`vit-jax imagenet WEIGHTS [--sets val real v2 a r sketch c]`: an ImageNet-1k classifier on ImageNet and its relatives.

The sets are TFDS data sets in ArrayRecord files (`tfds build NAME --file_format=array_record`). A and R are judged among
their own 200 classes, ReaL by its rule of several right answers, C by the mean corruption error against AlexNet's. Ties
count for their share, a row of logits with NaN is wrong.
"""

from __future__ import annotations

import jax
import numpy as np
from flax import nnx

from vit_jax.api import Trained, load
from vit_jax.commands.arguments import Parser, filled, whole
from vit_jax.commands.given import add_given, given_of
from vit_jax.contracts import UserError, to_json
from vit_jax.data.loader import eval_batches
from vit_jax.data.sources import Source, Tfds, open_source
from vit_jax.data.transforms import Preprocess
from vit_jax.devices import use_compilation_cache
from vit_jax.evaluation.imagenet import ALEXNET_ERRORS, SEVERITIES, accuracy, mean_corruption_error
from vit_jax.models.vit import ViT
from vit_jax.ops.pixels import normalise

# name: (TFDS name, split, judged among the classes that occur)
SETS = {
    "val": ("imagenet2012", "validation", False),
    "real": ("imagenet2012_real", "validation", False),
    "v2": ("imagenet_v2/matched-frequency", "test", False),
    "a": ("imagenet_a", "test", True),
    "r": ("imagenet_r", "test", True),
    "sketch": ("imagenet_sketch", "test", False),
}
CLASSES = 1000
CORRUPTED = "imagenet2012_corrupted/{name}_{severity}"


def run(argv: list[str]) -> int:
    parser = Parser(prog="vit-jax imagenet", description=__doc__)
    parser.add_argument("weights", type=filled, help="a workdir, or a file that `vit-jax convert` reads")
    parser.add_argument(
        "--sets", nargs="+", choices=[*SETS, "c"], default=list(SETS), help="to judge on (default: all but c)"
    )
    parser.add_argument(
        "--tfds_data_dir", type=filled, help="where the prepared data sets lie (default: TFDS's own folder)"
    )
    parser.add_argument("--batch", type=whole(1, 2**20), default=128, help="pictures at a time (default 128)")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    add_given(parser)
    args = parser.parse_args(argv)

    use_compilation_cache()
    trained = load(args.weights, **given_of(args))
    classes = trained.model.cfg.num_classes if isinstance(trained.model, ViT) else None
    if classes != CLASSES:
        raise UserError(f"Expected a classifier of ImageNet's {CLASSES} classes, {args.weights} has {classes}.")
    judge = Judge(trained, args.batch, args.tfds_data_dir)
    found: dict[str, float] = {}
    for name in args.sets:
        found[name] = corruption_error(judge) if name == "c" else judge(*SETS[name])
        if not args.json:
            word = "mean corruption error" if name == "c" else "top-1"
            print(f"{name:8s} {100 * found[name]:6.2f} % {word}", flush=True)
    if args.json:
        print(to_json(found))
    return 0


class Judge:
    """Accuracy of one model on one data set after another; compiled once."""

    def __init__(self, trained: Trained, batch: int, data_dir: str | None):
        self.pp, self.batch, self.data_dir = trained.config["pp"], batch, data_dir
        graph, self.params = nnx.split(trained.encoder)  # of a classifier, the whole model
        mean, std = self.pp["mean"], self.pp["std"]
        self.logits = jax.jit(lambda params, images: nnx.merge(graph, params)(normalise(images, mean, std)))

    def __call__(self, dataset: str, split: str, subset: bool) -> float:
        source = open_source(dataset, split, tfds_data_dir=self.data_dir)
        rows: list[np.ndarray] = []
        answers: list[tuple[int, ...]] = []
        index = 0
        for batch in eval_batches(source, Preprocess.from_config(self.pp), batch=self.batch):
            found = np.asarray(self.logits(self.params, jax.numpy.asarray(batch.image)))
            for row, weight in zip(found, batch.weight, strict=True):
                if weight:
                    rows.append(row)
                    answers.append(answers_of(source, index))
                index += 1
        named = {answer for labels in answers for answer in labels}
        if not named or min(named) < 0 or max(named) >= CLASSES:
            raise UserError(
                f"Expected pictures with labels from 0 to {CLASSES - 1} in {source.name}, it has none or others: prepare "
                "the data set again, or leave it out of --sets."
            )
        return accuracy(np.stack(rows), answers, named if subset else None)


def answers_of(source: Source, index: int) -> tuple[int, ...]:
    """The right classes of a picture; all sources but TFDS's know one."""
    return source.answers(index) if isinstance(source, Tfds) else (int(source[index].label),)


def corruption_error(judge: Judge) -> float:
    """ImageNet-C: all 15 corruptions at all 5 severities."""
    return mean_corruption_error(
        {
            (name, severity): 1.0 - judge(CORRUPTED.format(name=name, severity=severity), "validation", False)
            for name in ALEXNET_ERRORS
            for severity in SEVERITIES
        }
    )
