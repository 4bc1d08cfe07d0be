"""`vit-jax inspect WORKDIR`: step, configuration, parameters, and a sha256 over them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

import numpy as np

from vit_jax.commands.arguments import Parser, filled
from vit_jax.configuration import default_fields, flatten, plain
from vit_jax.contracts import UserError
from vit_jax.training.checkpoints import Checkpoints


def digest(params: Mapping[str, np.ndarray]) -> str:
    """sha256 over names, shapes and bytes, in the order of the names: equal only for bit-equal parameters."""
    sha = hashlib.sha256()
    for name in sorted(params):
        value = np.ascontiguousarray(params[name])
        sha.update(f"{name} {value.shape} {value.dtype}".encode())
        sha.update(value.tobytes())
    return sha.hexdigest()


def run(argv: list[str]) -> int:
    parser = Parser(prog="vit-jax inspect", description=__doc__)
    parser.add_argument("workdir", type=filled, help="of a run, or of converted weights")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--parameters", action="store_true", help="list every parameter with its shape")
    args = parser.parse_args(argv)

    checkpoints = Checkpoints(args.workdir, read_only=True)
    newest = checkpoints.newest(
        lambda step: (*checkpoints.read(step), checkpoints.params(step, averaged=False), checkpoints.next_batch(step))
    )
    if newest is None:
        raise UserError(f"Expected a checkpoint in {args.workdir}, found none: train first.")
    step, (config, metadata, params, next_batch) = newest
    found = {
        "step": step,
        "next_batch": next_batch,
        "objective": config["objective"],
        "dataset": metadata["dataset"],
        "classes": metadata["num_classes"],
        "parameters": sum(value.size for value in params.values()),
        "sha256": digest(params),
        "config": config,
    }
    if args.json:
        print(json.dumps(found))
        return 0
    defaults = dict(flatten(plain(default_fields())))
    changed = {field: value for field, value in flatten(config) if defaults.get(field) != value}
    for name, value in found.items():
        if name != "config":
            print(f"{name:12s} {value}")
    print("config, where it differs from configs/common.py:")
    for field, value in changed.items():
        print(f"  {field} = {value}")
    if args.parameters:
        for name in sorted(params):
            print(f"  {name:60s} {params[name].shape}")
    return 0
