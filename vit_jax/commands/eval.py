"""`vit-jax eval WORKDIR`: exact metrics of the last checkpoint, on any data set; of each class, and what is confused."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from vit_jax.api import load
from vit_jax.commands.arguments import Parser, filled, local, whole
from vit_jax.commands.given import add_given, given_of
from vit_jax.commands.networks import add_networks, networks_of
from vit_jax.contracts import UserError, to_json
from vit_jax.data.decoding import printable
from vit_jax.data.loader import eval_batches
from vit_jax.data.transforms import Preprocess
from vit_jax.evaluation.answers import Judged, chosen
from vit_jax.judging import judge, measured, open_tests, said_of
from vit_jax.methods import method_of
from vit_jax.run_figures import save
from vit_jax.visualisation import confusion
from vit_jax.writing import written_whole

FEW = 20  # classes that are printed one by one


def run(argv: list[str]) -> int:
    parser = Parser(prog="vit-jax eval", description=__doc__)
    parser.add_argument("workdir", type=filled, help="or a file of weights that `vit-jax convert` reads")
    parser.add_argument("--dataset", type=filled, help="another data set than the run's: a folder or a TFDS name")
    parser.add_argument("--split", type=filled, help="default: the run's pp.test")
    parser.add_argument("--batch", type=whole(1, 2**20), help="default: the run's batch_eval")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument(
        "--out", type=local, help="folder for per_class.csv, confusion.csv and confusion.png (per_number.csv)"
    )
    add_networks(parser)
    add_given(parser)
    args = parser.parse_args(argv)

    trained = load(args.workdir, **given_of(args))
    config, method = trained.config, method_of(trained.config)
    if args.out and not method.labels:
        raise UserError(f"Expected a classifier or a regression for --out, {args.workdir} has no labels: leave it out.")
    source = open_tests(trained, args.dataset, args.split)
    batches = eval_batches(source, Preprocess.from_config(config["pp"]), batch=args.batch or config["batch_eval"])
    judged = Judged({}, {})
    if method.labels:
        kept = chosen if config["task"] == "classes" else lambda probabilities: probabilities
        metrics, said, labels = said_of(trained, batches, kept)
        judged = judge(config, said, labels, trained.class_names or source.class_names or ())
        metrics |= judged.whole
    else:
        metrics = measured(trained, batches, networks_of(config, args))
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
