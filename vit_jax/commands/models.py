"""`vit-jax models [PATTERN]`: published files of weights that `vit_jax.load` and `vit-jax convert` read."""

from __future__ import annotations

import dataclasses
import json

from vit_jax.commands.arguments import Parser
from vit_jax.conversion.catalogue import PUBLISHED


def run(argv: list[str]) -> int:
    parser = Parser(prog="vit-jax models", description=__doc__)
    parser.add_argument("pattern", nargs="?", default="", help="part of a name, e.g. mae or B_16")
    parser.add_argument("--json", action="store_true", help="one JSON list")
    args = parser.parse_args(argv)

    found = [entry for entry in PUBLISHED if args.pattern.lower() in entry.name.lower()]
    if args.json:
        print(json.dumps([dataclasses.asdict(entry) for entry in found]))
        return 0
    print(f"{'name':34s} {'MB':>6s} {'holds':30s} {'ImageNet':>8s}  {'licence':13s} file")
    for entry in found:
        top1 = "-" if entry.top1 is None else f"{entry.top1:.2f}"
        print(f"{entry.name:34s} {entry.megabytes:6d} {entry.holds:30s} {top1:>8s}  {entry.licence:13s} {entry.path}")
    print("\nImageNet: published top-1 of that file, in %, at its size; '-' for files without an ImageNet-1k head.")
    print(
        "Licences are those of the weights; read them at the source. Nothing is fetched by this command; a name is fetched"
    )
    print(
        'where it is given for a file: vit_jax.load("deit/ti16"), vit-jax convert deit/ti16 OUT, init_from=deit/ti16.'
    )
    return 0
