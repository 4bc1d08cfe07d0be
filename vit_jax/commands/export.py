"""`vit-jax export WORKDIR OUT`: the model with its preprocessing as one StableHLO program, which JAX alone runs."""

from __future__ import annotations

from pathlib import Path

from vit_jax.api import load
from vit_jax.commands.arguments import Parser, filled, local
from vit_jax.commands.given import add_given, given_of
from vit_jax.exporting import WAYS, write


def run(argv: list[str]) -> int:
    parser = Parser(prog="vit-jax export", description=__doc__)
    parser.add_argument("workdir", type=filled, help="or a file of weights that `vit-jax convert` reads")
    parser.add_argument("out", type=local, help="folder for the program and a note of what it takes and gives")
    parser.add_argument("--features", action="store_true", help="the mean of the patch tokens instead of answers")
    add_given(parser)
    args = parser.parse_args(argv)
    trained = load(args.workdir, **given_of(args))
    for path in write(trained, Path(args.out), WAYS[args.features]):
        print(f"{path}: {path.stat().st_size / 2**20:.1f} MiB")
    return 0
