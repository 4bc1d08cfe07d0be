"""`vit-jax embed WORKDIR PICTURE-or-FOLDER... --out features.npz|.parquet`: one vector a picture."""

from __future__ import annotations

from pathlib import Path
from typing import IO

import numpy as np

from vit_jax.api import load
from vit_jax.commands.arguments import Parser, filled, local, whole
from vit_jax.commands.given import add_given, given_of
from vit_jax.commands.pictures import Pictures
from vit_jax.contracts import UserError
from vit_jax.evaluation.features import pooled_features
from vit_jax.writing import written_whole


def run(argv: list[str]) -> int:
    parser = Parser(prog="vit-jax embed", description=__doc__)
    parser.add_argument("workdir", type=filled, help="or a file of weights that `vit-jax convert` reads")
    parser.add_argument("pictures", type=filled, nargs="+", help="pictures, or folders of them")
    parser.add_argument(
        "--out", type=local, default="features.npz", help="a .npz or .parquet file (default features.npz)"
    )
    parser.add_argument(
        "--pool",
        choices=("mean", "cls", "model"),
        default="mean",
        help="of the patch tokens, the class token, or as the model's head has it (default mean)",
    )
    parser.add_argument("--batch", type=whole(1, 2**20), default=64, help="pictures at a time (default 64)")
    add_given(parser)
    args = parser.parse_args(argv)

    out = Path(args.out)
    if out.suffix not in (".npz", ".parquet"):
        raise UserError(f"Expected --out ending in .npz or .parquet, got {args.out}.")
    pictures = Pictures(args.pictures)
    with written_whole(out) as file:
        trained = load(args.workdir, **given_of(args))
        names: list[str] = []
        rows: list[np.ndarray] = []
        try:
            for found, images in pictures.batches(trained, args.batch):
                names += found
                rows.append(np.asarray(pooled_features(trained.encoder, trained.normalised(images), args.pool)))
        except ValueError as error:
            raise UserError(str(error)) from error
        pictures.say_left_out()
        features = np.concatenate(rows)
        if odd := int(np.sum(~np.isfinite(features).all(axis=1))):
            raise UserError(
                f"Expected features that are finite numbers, {odd} of {len(features)} pictures gave others: "
                f"{args.workdir} holds no usable model."
            )
        write(file, out.suffix, names, features)
    print(f"{out}: {len(names)} pictures x {features.shape[1]} numbers, step {trained.step}")
    return 0


def write(file: IO[bytes], suffix: str, names: list[str], features: np.ndarray) -> None:
    """Arrays `name` and `feature` (.npz), or a table of the two columns (.parquet)."""
    if suffix == ".npz":
        np.savez(file, name=np.asarray(names), feature=features)
        return
    import pyarrow
    from pyarrow import parquet

    column = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(features.reshape(-1)), features.shape[1])
    parquet.write_table(pyarrow.table({"name": names, "feature": column}), file)
