"""`vit-jax export WORKDIR OUT [--to onnx]`: the model with its preprocessing as one program for JAX or onnxruntime."""

from __future__ import annotations

from pathlib import Path

from vit_jax import exporting, onnx_exporting
from vit_jax.api import load
from vit_jax.commands.arguments import Parser, filled, local
from vit_jax.commands.given import add_given, given_of


def run(argv: list[str]) -> int:
    parser = Parser(prog="vit-jax export", description=__doc__)
    parser.add_argument("workdir", type=filled, help="or a file of weights that `vit-jax convert` reads")
    parser.add_argument("out", type=local, help="folder for the program and a note of what it takes and gives")
    parser.add_argument("--to", choices=("stablehlo", "onnx"), default="stablehlo", help="default stablehlo")
    parser.add_argument("--features", action="store_true", help="the mean of the patch tokens instead of answers")
    add_given(parser)
    args = parser.parse_args(argv)
    trained, out, what = load(args.workdir, **given_of(args)), Path(args.out), exporting.WAYS[args.features]
    if args.to == "onnx":
        paths, difference = onnx_exporting.write(trained, out, what)
    else:
        paths = exporting.write(trained, out, what)
    for path in paths:
        print(f"{path}: {path.stat().st_size / 2**20:.1f} MiB")
    if args.to == "onnx":
        print(f"checked: onnxruntime and this library on noise, largest relative difference {difference:.1e}")
    return 0
