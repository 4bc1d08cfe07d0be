"""`vit-jax probe WEIGHTS --dataset FOLDER`: how good are frozen features? Computed once, kept, and judged three ways.

k nearest neighbours; ridge regression from few labels (mean over three draws); linear heads over a grid of rates, with and
without standardised features, the rate chosen on held-out training pictures. Every pooling is reported. Ties count for
their share of chance, as in every accuracy here.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from vit_jax.api import Trained, load
from vit_jax.commands.arguments import Parser, filled, local, whole
from vit_jax.commands.given import add_given, given_of
from vit_jax.commands.inspect import digest
from vit_jax.contracts import UserError, to_json
from vit_jax.data.loader import eval_batches
from vit_jax.data.sources import Source, open_source
from vit_jax.data.transforms import Preprocess
from vit_jax.devices import use_compilation_cache
from vit_jax.evaluation.features import extract, poolings
from vit_jax.evaluation.probes import Split, few_shot, linear_heads, nearest_neighbours
from vit_jax.ops.paths import flat_params

RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)


def run(argv: list[str]) -> int:
    parser = Parser(prog="vit-jax probe", description=__doc__)
    parser.add_argument("weights", type=filled, help="a workdir, or a file that `vit-jax convert` reads")
    parser.add_argument(
        "--dataset", type=filled, required=True, help="a folder {train,test}/class/*.jpg, or a TFDS name"
    )
    parser.add_argument("--train", type=filled, default="train", help="split, TFDS syntax (default train)")
    parser.add_argument("--test", type=filled, default="test", help="split to judge on (default test)")
    parser.add_argument("--neighbours", type=whole(1), default=20, help="how many vote (default 20)")
    parser.add_argument(
        "--shots", type=whole(1), nargs="*", default=[1, 5, 10, 25], help="labels a class (default 1 5 10 25)"
    )
    parser.add_argument("--epochs", type=whole(1, 1_000_000), default=30, help="of the linear heads")
    parser.add_argument("--batch", type=whole(1, 2**20), default=128, help="pictures at a time through the encoder")
    parser.add_argument("--cache", type=local, help="folder for features (default: the user's cache folder)")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    add_given(parser)
    args = parser.parse_args(argv)

    use_compilation_cache()
    trained = load(args.weights, **given_of(args))
    sources = [open_source(args.dataset, split) for split in (args.train, args.test)]
    names = sources[0].class_names
    if not names or sources[1].class_names != names:
        raise UserError(
            f"Expected labelled pictures of the same classes in {args.train} and {args.test} of {args.dataset}."
        )
    for split, source, least in zip((args.train, args.test), sources, (2, 1), strict=True):
        if len(source) < least:
            raise UserError(f"Expected {least} or more pictures in {split} of {args.dataset}, it has {len(source)}.")
    train, test = (features(trained, source, args) for source in sources)
    rows = []
    for pooling in poolings(trained.encoder):
        split = Split(train[pooling], train["label"], test[pooling], test["label"], len(names))
        rows.append({"pooling": pooling, **judged(split, args)})
    if args.json:
        print(to_json({"weights": args.weights, "dataset": args.dataset, "step": trained.step, "results": rows}))
        return 0
    print(f"{len(train['label']):,} training and {len(test['label']):,} test pictures, accuracy in %")
    print("  ".join(f"{name:>12s}" for name in rows[0]))
    for row in rows:
        print(
            "  ".join(f"{value:>12s}" if isinstance(value, str) else f"{100 * value:12.2f}" for value in row.values())
        )
    return 0


def judged(split: Split, args: argparse.Namespace) -> dict[str, float]:
    """All judgements of one pooling."""
    found = {f"{args.neighbours}-nn": nearest_neighbours(split, args.neighbours)}
    for shots in args.shots:
        found[f"{shots}-shot"] = statistics.fmean(few_shot(split, shots, seed) for seed in range(3))
    for name, normalised in (("linear", False), ("linear+norm", True)):
        heads = linear_heads(split, RATES, normalised=normalised, epochs=args.epochs)
        found[name] = max(heads, key=lambda head: head.held_out).test
    return found


def features(trained: Trained, source: Source, args: argparse.Namespace) -> dict[str, Any]:
    """Of every picture of `source`, from the cache where they are there."""
    pp = trained.config["pp"]
    what = json.dumps([digest_of(trained), pp, digest_of_records(source)], sort_keys=True, default=str)
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = Path(args.cache) if args.cache else home / "vit_jax" / "features"
    path = folder / f"{hashlib.sha256(what.encode()).hexdigest()[:24]}.npz"
    if path.exists():
        with np.load(path) as stored:
            return dict(stored)
    batches = eval_batches(source, Preprocess.from_config(pp), batch=min(args.batch, len(source)))
    found = extract(trained.encoder, batches, pp["mean"], pp["std"], poolings(trained.encoder))
    usable = np.all([np.isfinite(found[pooling]).all(axis=1) for pooling in poolings(trained.encoder)], axis=0)
    if not usable.all():
        raise UserError(
            f"Expected features that are finite numbers, {np.sum(~usable)} of the {len(usable)} pictures of {source.name} "
            f"gave others: {args.weights} holds no usable model."
        )
    folder.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part.npz")
    np.savez(part, **found)
    part.rename(path)
    return found


def digest_of(trained: Trained) -> str:
    """sha256 of the parameters."""
    return digest({path: np.asarray(leaf) for path, leaf in flat_params(nnx.split(trained.model)[1]).items()})


def digest_of_records(source: Source) -> str:
    """sha256 of every picture as it is stored, and its label: a name and a number say nothing of a part, or of files that
    changed meanwhile."""
    found = hashlib.sha256()
    for index in range(len(source)):
        record = source[index]
        image = record.image if isinstance(record.image, bytes) else np.ascontiguousarray(record.image).tobytes()
        found.update(f"{len(image)} {record.label} ".encode() + image)
    return found.hexdigest()
