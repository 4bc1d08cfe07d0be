"""`vit-jax prepare FOLDER OUT`: a data set to train from in TFDS's ArrayRecord files, without TensorFlow.

FOLDER is a folder of pictures, with their labels in a labels.csv or as names of folders. In place of it, `--imagenet` takes
ImageNet's official tars (docs/imagenet.md), `--tfrecord` a data set that TFDS has prepared in TFRecord files. Stopped by
whatever it may be, the same command goes on where it was.
"""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

from vit_jax import configuration
from vit_jax.commands.arguments import Parser, filled, local, whole
from vit_jax.contracts import UserError
from vit_jax.data.imagenet import COUNTS, prepare_imagenet
from vit_jax.data.labels import Labels
from vit_jax.data.prepare import prepare
from vit_jax.data.tfrecord import prepare_tfrecord

TASKS = ("classes", "multilabel", "regression")


def run(argv: list[str]) -> int:
    parser = Parser(prog="vit-jax prepare", description=__doc__)
    parser.add_argument(
        "folder",
        type=filled,
        nargs="?",
        help="a folder a class, in train/ and test/ or not; or pictures without labels",
    )
    parser.add_argument("out", type=local, help="folder to write: give it to training as config.dataset")
    parser.add_argument("--imagenet", type=filled, nargs=2, metavar=("TRAIN.tar", "VAL.tar"), help="in place of FOLDER")
    parser.add_argument("--tfrecord", type=filled, metavar="FOLDER", help="in place of FOLDER")
    parser.add_argument("--seed", type=whole(0), default=0, help="of the split, where the folder has none")
    parser.add_argument("--task", choices=TASKS, default="classes", help="what a labels.csv holds, as config.task")
    parser.add_argument(
        "--label_columns", type=filled, nargs="+", default=[], metavar="COLUMN", help="of a labels.csv; default: all"
    )
    args = parser.parse_args(argv)
    given = [place for place in (args.folder, args.imagenet, args.tfrecord) if place]
    if not given:
        parser.error("the following arguments are required: out")
    if len(given) > 1:
        parser.error("one of FOLDER, --imagenet and --tfrecord is prepared at a time")
    if args.imagenet:
        return _imagenet(args)
    if args.tfrecord:
        return _tfrecord(args.tfrecord, args.out)
    return _folder(args)


def _folder(args: argparse.Namespace) -> int:
    labels = Labels(args.task, tuple(args.label_columns))
    summary = prepare(args.folder, args.out, seed=args.seed, metadata=seen(Path(args.folder)), labels=labels)
    for name, count in summary["splits"].items():
        print(f"{name:6s} {count} pictures")
    classes = summary["classes"]
    word = "numbers" if args.task == "regression" else "classes"
    print(f"{word} {len(classes)}: {', '.join(classes[:10])}" if classes else "no labels")
    for name in summary["unreadable"]:
        print(f"left out, unreadable: {name}")
    task = f" --config.task={args.task}" if args.task != "classes" else ""
    print(
        "next: vit-jax train --workdir=runs/mine "
        f"--config=folder.py:{'scratch' if classes else 'pretrain'},{args.out}{task}"
    )
    return 0


def _imagenet(args: argparse.Namespace) -> int:
    train, validation = args.imagenet
    summary = prepare_imagenet(train, validation, args.out)
    for name, count in summary["splits"].items():
        whole_one = COUNTS[name]
        said = "all of them" if count == whole_one else f"a part: ImageNet has {whole_one:,}"
        print(f"{name:10s} {count:,} pictures ({said})")
    print(f"{'classes':10s} {summary['classes']:,} of 1,000 have training pictures")
    if summary["rewritten"]:
        print(f"{'rewritten':10s} {len(summary['rewritten'])} as JPEG in RGB: {', '.join(summary['rewritten'])}")
    print(f"{'written to':10s} {summary['folder']}")
    print(f"next: vit-jax train --workdir=runs/mae --config=mae.py:b16 --config.tfds_data_dir={args.out}")
    return 0


def _tfrecord(folder: str, out: str) -> int:
    summary = prepare_tfrecord(folder, out)
    for name, count in summary["splits"].items():
        print(f"{name:10s} {count:,} records")
    print(f"{'written to':10s} {summary['folder']}")
    print(f"next: --config.dataset={summary['dataset']} --config.tfds_data_dir={out}")
    return 0


def seen(folder: Path) -> dict[str, int]:
    """What the recipe `folder.py` sees in a folder, to be found in its prepared twin: both are trained alike."""
    configuration.use_recipes()
    try:
        recipe = importlib.import_module("configs.folder")
        count, side = recipe.look_at(recipe.training_part(str(folder)))
    except ValueError as error:
        raise UserError(f"{error} Fix the path.") from error
    return {"pictures": count, "short_side": side}
