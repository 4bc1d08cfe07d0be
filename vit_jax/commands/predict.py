"""`vit-jax predict WORKDIR PICTURE...`: class names and probabilities, preprocessed as in the run's evaluation."""

from __future__ import annotations

import argparse
import json

import jax
import numpy as np
from flax import nnx

from vit_jax.api import Trained, load
from vit_jax.contracts import UserError
from vit_jax.models.vit import ViT


def probabilities(trained: Trained, pictures: list, batch: int = 64) -> np.ndarray:
    """Rows of probabilities: softmax, or sigmoids for a run trained with them."""
    squash = jax.nn.sigmoid if trained.config["loss"] == "sigmoid" else jax.nn.softmax
    model = nnx.jit(lambda model, pixels: squash(model(pixels)))
    rows = [
        np.asarray(model(trained.model, trained.pixels(pictures[start : start + batch])))
        for start in range(0, len(pictures), batch)
    ]
    found = np.concatenate(rows)
    if wrong := [str(picture) for picture, row in zip(pictures, found, strict=True) if not np.isfinite(row).all()]:
        raise UserError(
            f"Expected probabilities, the model gives NaN for {wrong[0]} ({len(wrong)} of {len(pictures)} pictures): its "
            "weights are broken, use an earlier checkpoint or train again with a lower base_lr."
        )
    return found


def run(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="vit-jax predict", description=__doc__)
    parser.add_argument("workdir")
    parser.add_argument("pictures", nargs="+")
    parser.add_argument("--top", type=int, default=5, help="classes a picture (default 5)")
    parser.add_argument("--json", action="store_true", help="one JSON object a picture")
    args = parser.parse_args(argv)

    trained = load(args.workdir)
    classes = trained.model.cfg.num_classes if isinstance(trained.model, ViT) else None
    if not classes:
        raise UserError(
            f"Expected a classifier, {args.workdir} holds a {type(trained.model).__name__}: "
            "use `vit-jax reconstruct` or `embed`, or fine-tune it with config.init_from."
        )
    names = trained.class_names or tuple(f"class {number}" for number in range(classes))
    for picture, row in zip(args.pictures, probabilities(trained, args.pictures), strict=True):
        best = np.argsort(-row)[: args.top]
        named = {names[place]: float(row[place]) for place in best}
        if args.json:
            print(json.dumps({"picture": picture, "probabilities": named}))
        else:
            print(f"{picture}  " + "  ".join(f"{name} {value:.1%}" for name, value in named.items()))
    return 0
