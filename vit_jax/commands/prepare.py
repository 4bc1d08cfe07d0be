"""`vit-jax prepare FOLDER OUT`: a folder of pictures -> a TFDS ArrayRecord data set."""

from __future__ import annotations

import importlib
from pathlib import Path

from vit_jax import configuration
from vit_jax.commands.arguments import Parser, filled, whole
from vit_jax.contracts import UserError
from vit_jax.data.prepare import prepare


def run(argv: list[str]) -> int:
    parser = Parser(prog="vit-jax prepare", description=__doc__)
    parser.add_argument(
        "folder", type=filled, help="a folder a class, in train/ and test/ or not; or pictures without labels"
    )
    parser.add_argument("out", type=filled, help="folder to write: give it to training as config.dataset")
    parser.add_argument("--seed", type=whole(0), default=0, help="of the split, where the folder has none")
    args = parser.parse_args(argv)
    summary = prepare(args.folder, args.out, seed=args.seed, metadata=seen(Path(args.folder)))
    for name, count in summary["splits"].items():
        print(f"{name:6s} {count} pictures")
    classes = summary["classes"]
    print(f"classes {len(classes)}: {', '.join(classes[:10])}" if classes else "no labels")
    for name in summary["unreadable"]:
        print(f"left out, unreadable: {name}")
    print(
        f"next: vit-jax train --workdir=runs/mine --config=folder.py:{'scratch' if classes else 'pretrain'},{args.out}"
    )
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
