"""`vit-jax eval WORKDIR`: exact metrics of the last checkpoint, on any data set; of each class, and what is confused."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from vit_jax import sharding
from vit_jax.api import Trained, load
from vit_jax.commands.arguments import Parser, filled, whole
from vit_jax.commands.embed import written_whole
from vit_jax.commands.given import add_given, given_of
from vit_jax.commands.networks import add_networks, networks_of
from vit_jax.contracts import UserError, to_json
from vit_jax.data.decoding import printable
from vit_jax.data.labels import labels_of
from vit_jax.data.loader import eval_batches
from vit_jax.data.sources import Source, check_classes, open_source
from vit_jax.data.transforms import Preprocess
from vit_jax.evaluation.answers import Judged, chosen, judge_classes, judge_multilabel, judge_numbers, with_answers
from vit_jax.evaluation.evaluators import evaluate, make_eval_step
from vit_jax.methods import method_of
from vit_jax.methods.method import Method
from vit_jax.run_figures import save
from vit_jax.training.step import laid_out
from vit_jax.visualisation import confusion

FEW = 20  # classes that are printed one by one


def run(argv: list[str]) -> int:
    parser = Parser(prog="vit-jax eval", description=__doc__)
    parser.add_argument("workdir", type=filled, help="or a file of weights that `vit-jax convert` reads")
    parser.add_argument("--dataset", type=filled, help="another data set than the run's: a folder or a TFDS name")
    parser.add_argument("--split", type=filled, help="default: the run's pp.test")
    parser.add_argument("--batch", type=whole(1, 2**20), help="default: the run's batch_eval")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument(
        "--out", type=filled, help="folder for per_class.csv, confusion.csv and confusion.png (per_number.csv)"
    )
    add_networks(parser)
    add_given(parser)
    args = parser.parse_args(argv)

    trained = load(args.workdir, **given_of(args))
    config, method = trained.config, method_of(trained.config)
    if args.out and not method.labels:
        raise UserError(f"Expected a classifier or a regression for --out, {args.workdir} has no labels: leave it out.")
    source = open_source(
        args.dataset or config["dataset"],
        args.split or config["pp"]["test"],
        tfds_data_dir=config["tfds_data_dir"],
        seed=config["seed"],
        labels=labels_of(config, trained.class_names) if method.labels else None,
    )
    check_same_classes(trained, source)
    if method.labels:
        check_classes(source, config["task"])
    batches = eval_batches(source, Preprocess.from_config(config["pp"]), batch=args.batch or config["batch_eval"])
    mesh = sharding.make_mesh({"data": 1}, jax.devices()[:1])
    graph, params = nnx.split(trained.model)
    objective = method.objective(config, trained.encoder.cfg.num_classes if method.labels else None)
    judged = Judged({}, {})
    if method.labels:
        metrics, said, labels = with_answers(objective, graph, params, answer_of(method, config), batches, mesh)
        judged = judge(config, said, labels, trained.class_names or source.class_names or ())
        metrics |= judged.whole
    else:
        networks = networks_of(config, args).asked
        frozen = laid_out(networks, mesh)
        step = make_eval_step(objective, graph, None, mesh, networks, frozen)
        metrics = method.summary(evaluate(step, params, batches, mesh) or {})
    title = "per_number" if config["task"] == "regression" else "per_class"
    if args.json:
        print(to_json({"step": trained.step, **metrics, **({title: judged.each} if judged.each else {})}))
    else:
        print(f"step {trained.step} on {source.name}: " + "  ".join(f"{k} {v:.6g}" for k, v in metrics.items()))
        show(judged)
    if args.out:
        for path in write(Path(args.out), title, judged):
            print(path) if not args.json else None
    return 0


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


def answer_of(method: Method, config: dict[str, Any]) -> Any:
    """What is kept of every picture: the class chosen, or all probabilities or numbers."""
    answers = method.answers
    assert answers is not None
    if config["task"] == "classes":
        return lambda said: chosen(answers(said, config))
    return lambda said: answers(said, config)


def judge(config: dict[str, Any], said: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> Judged:
    if config["task"] == "multilabel":
        return judge_multilabel(said, labels, names, config["threshold"])
    return judge_numbers(said, labels, names) if config["task"] == "regression" else judge_classes(said, labels, names)


def show(judged: Judged) -> None:
    """A line a class, where they are few."""
    if len(judged.each) > FEW:
        print(f"each of the {len(judged.each)} classes: --out FOLDER")
        return
    for name, numbers in judged.each.items():
        print(f"  {printable(name):20s} " + "  ".join(f"{key} {value:.6g}" for key, value in numbers.items()))


def write(out: Path, title: str, judged: Judged) -> list[Path]:
    """The numbers of each class; the confusion matrix, where there is one, and its picture."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"Expected a folder to write to, {out} is none ({error.strerror}): change --out.") from error
    header = ["name", *next(iter(judged.each.values()))]
    drawn = [out / f"{title}.csv"]
    write_table(drawn[0], header, ([name, *numbers.values()] for name, numbers in judged.each.items()))
    if judged.confusion is not None:
        names = list(judged.each)
        rows = ([name, *row] for name, row in zip(names, judged.confusion.tolist(), strict=True))
        drawn += [out / "confusion.csv", out / "confusion.png"]
        write_table(drawn[1], ["label \\ answer", *names], rows)
        save(confusion.draw(judged.confusion, [printable(name) for name in names]), drawn[2])
    return drawn


def write_table(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    with written_whole(path) as file:
        file.write(text.getvalue().encode())
