"""`vit-jax reconstruct WORKDIR PICTURE... --out x.png`: original, masked, prediction, visible pixels pasted back."""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp

from vit_jax.api import load
from vit_jax.commands.arguments import Parser, filled, local, whole
from vit_jax.commands.given import add_given, given_of
from vit_jax.commands.networks import add_networks, networks_of
from vit_jax.contracts import UserError
from vit_jax.methods import method_of
from vit_jax.run_figures import save
from vit_jax.visualisation import reconstructions

MOST = 32  # rows of one figure


def run(argv: list[str]) -> int:
    parser = Parser(prog="vit-jax reconstruct", description=__doc__)
    parser.add_argument(
        "workdir", type=filled, help="of a masked image model, or a file of weights that `vit-jax convert` reads"
    )
    parser.add_argument("pictures", type=filled, nargs="+", help="files of pictures")
    parser.add_argument(
        "--out", type=local, default="reconstructions.png", help="the file to draw (default reconstructions.png)"
    )
    parser.add_argument("--num-visible", type=whole(1), help="patches left visible (default: as trained)")
    parser.add_argument("--mask", choices=("random", "block", "grid"), help="default: as trained")
    parser.add_argument("--seed", type=whole(0), default=0, help="of the masks")
    add_networks(parser)
    add_given(parser)
    args = parser.parse_args(argv)

    if Path(args.out).suffix.lower() != ".png":
        raise UserError(f"Expected a file name ending in .png, got {args.out!r}: change --out.")
    trained = load(args.workdir, **given_of(args))
    picture, name = method_of(trained.config).picture, trained.config["objective"]
    if picture is None:
        raise UserError(
            f"Expected a run that fills in pictures, {args.workdir} was trained with objective {name!r}, which shows none: "
            "use `vit-jax predict`."
        )
    given = {field: value for field in ("num_visible", "mask") if (value := getattr(args, field)) is not None}
    if foreign := sorted(set(given) - set(trained.config.get(name, {}))):
        raise UserError(f"Expected no --{foreign[0].replace('_', '-')} with objective {name!r}: leave it out.")
    config = trained.config | ({name: trained.config[name] | given} if given else {})
    try:
        networks = networks_of(config, args).whole()
        found = picture(
            trained.model, jnp.asarray(trained.preprocess(args.pictures)), config, seed=args.seed, **networks
        )
    except ValueError as error:
        raise UserError(str(error).replace(f"{name}.num_visible", "--num-visible")) from error
    save(reconstructions.draw(found.columns, found.note, max_rows=MOST), Path(args.out))
    count = len(args.pictures)
    drawn = f"{count} pictures" if count <= MOST else f"the first {MOST} of {count} pictures"
    print(f"{args.out}: {drawn}, step {trained.step}; {found.note}")
    return 0
