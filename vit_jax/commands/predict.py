"""`vit-jax predict WORKDIR PICTURE-or-FOLDER...`: classes with probabilities, or numbers; preprocessed as in evaluation."""

from __future__ import annotations

import contextlib
import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from vit_jax.api import load
from vit_jax.commands.arguments import Parser, filled, local, whole
from vit_jax.commands.given import add_given, given_of
from vit_jax.commands.pictures import Pictures
from vit_jax.contracts import Config, UserError
from vit_jax.data.decoding import printable
from vit_jax.methods import method_of
from vit_jax.models.vit import ViT
from vit_jax.writing import written_whole


def run(argv: list[str]) -> int:
    parser = Parser(prog="vit-jax predict", description=__doc__)
    parser.add_argument("workdir", type=filled, help="or a file of weights that `vit-jax convert` reads")
    parser.add_argument("pictures", type=filled, nargs="+", help="pictures, or folders of them")
    parser.add_argument("--top", type=whole(1), default=5, help="classes a picture (default 5)")
    parser.add_argument("--batch", type=whole(1, 2**20), default=64, help="pictures at a time (default 64)")
    parser.add_argument("--json", action="store_true", help="one JSON object a picture")
    parser.add_argument(
        "--csv", type=local, help="a file to write instead: the class and its probability, or every class or number"
    )
    add_given(parser)
    args = parser.parse_args(argv)

    pictures = Pictures(args.pictures)
    table = io.StringIO()
    with contextlib.ExitStack() as opened:
        file = opened.enter_context(written_whole(Path(args.csv), "--csv")) if args.csv else None
        trained = load(args.workdir, **given_of(args))
        config, model = trained.config, trained.model
        classes = model.cfg.num_classes if isinstance(model, ViT) else None
        answers = method_of(config).answers
        if not classes or answers is None:
            raise UserError(
                f"Expected a classifier, {args.workdir} holds a {type(model).__name__}: "
                "use `vit-jax reconstruct` or `embed`, or fine-tune it with config.init_from."
            )
        word = "number" if config["task"] == "regression" else "class"
        names = trained.class_names or tuple(f"{word} {number}" for number in range(classes))
        lines = csv.writer(table, lineterminator="\n")
        lines.writerow(["file", *(("label", "probability") if config["task"] == "classes" else names)])
        answered = nnx.jit(lambda model, pixels: answers(model(pixels), config))
        written = 0
        for found, images in pictures.batches(trained, args.batch):
            rows = np.asarray(answered(model, trained.normalised(images)))
            for picture, row in zip(found, rows, strict=True):
                check_finite(picture, row, config)
                if file:
                    lines.writerow([picture, *cells(row, names, config)])
                    written += 1
                elif args.json:
                    print(json.dumps({"picture": picture, **as_json(row, names, config, args.top)}))
                else:
                    print(f"{picture}  {in_words(row, names, config, args.top)}")
        pictures.say_left_out()
        if file:
            file.write(table.getvalue().encode())
    if args.csv:
        print(f"{args.csv}: {written} pictures, step {trained.step}")
    return 0


def check_finite(picture: str, row: np.ndarray, config: Config) -> None:
    if not np.isfinite(row).all():
        raise UserError(
            f"Expected {'numbers' if config['task'] == 'regression' else 'probabilities'}, the model gives NaN for "
            f"{picture}: its weights are broken, use an earlier checkpoint or train again with a lower base_lr."
        )


def best(row: np.ndarray, names: Sequence[str], top: int) -> dict[str, float]:
    """The `top` highest by name."""
    return {names[place]: float(row[place]) for place in np.argsort(-row)[:top]}


def as_json(row: np.ndarray, names: Sequence[str], config: Config, top: int) -> dict[str, Any]:
    if config["task"] == "regression":
        return {"numbers": dict(zip(names, row.tolist(), strict=True))}
    there = {"labels": labels_of_row(row, names, config)} if config["task"] == "multilabel" else {}
    return {**there, "probabilities": best(row, names, top)}


def in_words(row: np.ndarray, names: Sequence[str], config: Config, top: int) -> str:
    """The `top` classes; of any number of classes those that are there; all numbers."""
    if config["task"] == "regression":
        return "  ".join(f"{printable(name)} {value:.6g}" for name, value in zip(names, row, strict=True))
    shown = best(row, names, top)
    if config["task"] == "multilabel":
        shown = {name: float(row[names.index(name)]) for name in labels_of_row(row, names, config)}
    words = "  ".join(f"{printable(name)} {value:.1%}" for name, value in shown.items())
    return words or f"none of {len(names)} classes from {config['threshold']:.0%} on"


def labels_of_row(row: np.ndarray, names: Sequence[str], config: Config) -> list[str]:
    """Classes from the threshold on, likeliest first."""
    return [name for name, value in best(row, names, len(names)).items() if value >= config["threshold"]]


def cells(row: np.ndarray, names: Sequence[str], config: Config) -> list[Any]:
    """A line of the table after the picture's name."""
    if config["task"] == "classes":
        return [names[int(np.argmax(row))], f"{row.max():.6g}"]
    return [f"{value:.6g}" for value in row]
