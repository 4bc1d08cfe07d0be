"""`vit-jax embed WORKDIR PICTURE-or-FOLDER... --out features.npz|.parquet`: one vector a picture."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from vit_jax.api import load
from vit_jax.commands.given import add_given, given_of
from vit_jax.contracts import UserError
from vit_jax.data.sources import PICTURE_SUFFIXES
from vit_jax.evaluation.features import pooled_features


def run(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="vit-jax embed", description=__doc__)
    parser.add_argument("workdir")
    parser.add_argument("pictures", nargs="+", help="pictures, or folders of them")
    parser.add_argument("--out", default="features.npz", help=".npz or .parquet")
    parser.add_argument("--pool", choices=("mean", "cls", "model"), default="mean")
    parser.add_argument("--batch", type=int, default=64)
    add_given(parser)
    args = parser.parse_args(argv)

    out = Path(args.out)
    if out.suffix not in (".npz", ".parquet"):
        raise UserError(f"Expected --out ending in .npz or .parquet, got {args.out}.")
    paths = [path for given in args.pictures for path in pictures_in(Path(given))]
    trained = load(args.workdir, **given_of(args))
    try:
        rows = [
            np.asarray(pooled_features(trained.encoder, trained.pixels(paths[start : start + args.batch]), args.pool))
            for start in range(0, len(paths), args.batch)
        ]
    except ValueError as error:
        raise UserError(str(error)) from error
    write(out, [str(path) for path in paths], np.concatenate(rows))
    print(f"{out}: {len(paths)} pictures x {rows[0].shape[1]} numbers, step {trained.step}")
    return 0


def pictures_in(place: Path) -> list[Path]:
    """A picture itself, or all in a folder, sorted."""
    if not place.is_dir():
        return [place]
    found = sorted(path for path in place.rglob("*") if path.suffix.lower() in PICTURE_SUFFIXES)
    if not found:
        raise UserError(f"Expected pictures in {place}, found none: give a folder of pictures.")
    return found


def write(out: Path, names: list[str], features: np.ndarray) -> None:
    """Arrays `name` and `feature` (.npz), or a table of the two columns (.parquet)."""
    if out.suffix == ".npz":
        np.savez(out, name=np.asarray(names), feature=features)
        return
    import pyarrow
    from pyarrow import parquet

    column = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(features.reshape(-1)), features.shape[1])
    parquet.write_table(pyarrow.table({"name": names, "feature": column}), out)
