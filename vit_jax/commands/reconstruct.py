"""`vit-jax reconstruct WORKDIR PICTURE... --out x.png`: original, masked, prediction, visible pixels pasted back."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax.numpy as jnp

from vit_jax.api import load
from vit_jax.commands.arguments import Parser, filled, whole
from vit_jax.commands.given import add_given, given_of
from vit_jax.commands.run_figures import save
from vit_jax.contracts import UserError
from vit_jax.evaluation.reconstructions import reconstruct
from vit_jax.models.mae import MAE
from vit_jax.visualisation import reconstructions

MOST = 32  # rows of one figure


def run(argv: list[str]) -> int:
    parser = Parser(prog="vit-jax reconstruct", description=__doc__)
    parser.add_argument("workdir", type=filled)
    parser.add_argument("pictures", type=filled, nargs="+")
    parser.add_argument("--out", type=filled, default="reconstructions.png")
    parser.add_argument("--num-visible", type=whole(1), help="patches left visible (default: as trained)")
    parser.add_argument("--mask", choices=("random", "block", "grid"), help="default: as trained")
    parser.add_argument("--seed", type=whole(0), default=0, help="of the masks")
    add_given(parser)
    args = parser.parse_args(argv)

    if Path(args.out).suffix.lower() != ".png":
        raise UserError(f"Expected a file name ending in .png, got {args.out!r}: change --out.")
    trained = load(args.workdir, **given_of(args))
    if not isinstance(trained.model, MAE):
        raise UserError(f"Expected a masked autoencoder, {args.workdir} holds a classifier: use `vit-jax predict`.")
    changes = {name: value for name in ("num_visible", "mask") if (value := getattr(args, name)) is not None}
    try:
        trained.model.cfg = dataclasses.replace(trained.model.cfg, **changes)
    except ValueError as error:
        raise UserError(str(error).replace("mae.num_visible", "--num-visible")) from error
    pp = trained.config["pp"]
    found = reconstruct(
        trained.model, jnp.asarray(trained.preprocess(args.pictures)), pp["mean"], pp["std"], seed=args.seed
    )
    save(
        reconstructions.draw(found[:4], found.visible, true_statistics=found.true_statistics, max_rows=MOST),
        Path(args.out),
    )
    kind = "per-patch normalised pixels" if found.true_statistics else "pixels"
    note = " (drawn with each true patch's mean and deviation)" if found.true_statistics else ""
    count = len(args.pictures)
    drawn = f"{count} pictures" if count <= MOST else f"the first {MOST} of {count} pictures"
    print(f"{args.out}: {drawn}, step {trained.step}; the model predicts {kind}{note}")
    return 0
