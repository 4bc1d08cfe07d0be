"""`vit-jax predict WORKDIR PICTURE-or-FOLDER...`: class names and probabilities, preprocessed as in evaluation."""

from __future__ import annotations

import json

import jax
import numpy as np
from flax import nnx

from vit_jax.api import load
from vit_jax.commands.arguments import Parser, filled, whole
from vit_jax.commands.given import add_given, given_of
from vit_jax.commands.pictures import Pictures
from vit_jax.contracts import UserError
from vit_jax.data.decoding import printable
from vit_jax.models.vit import ViT


def run(argv: list[str]) -> int:
    parser = Parser(prog="vit-jax predict", description=__doc__)
    parser.add_argument("workdir", type=filled)
    parser.add_argument("pictures", type=filled, nargs="+", help="pictures, or folders of them")
    parser.add_argument("--top", type=whole(1), default=5, help="classes a picture (default 5)")
    parser.add_argument("--batch", type=whole(1, 2**20), default=64, help="pictures at a time (default 64)")
    parser.add_argument("--json", action="store_true", help="one JSON object a picture")
    add_given(parser)
    args = parser.parse_args(argv)

    pictures = Pictures(args.pictures)
    trained = load(args.workdir, **given_of(args))
    classes = trained.model.cfg.num_classes if isinstance(trained.model, ViT) else None
    if not classes:
        raise UserError(
            f"Expected a classifier, {args.workdir} holds a {type(trained.model).__name__}: "
            "use `vit-jax reconstruct` or `embed`, or fine-tune it with config.init_from."
        )
    names = trained.class_names or tuple(f"class {number}" for number in range(classes))
    squash = jax.nn.sigmoid if trained.config["loss"] == "sigmoid" else jax.nn.softmax
    probabilities = nnx.jit(lambda model, pixels: squash(model(pixels)))
    for found, images in pictures.batches(trained, args.batch):
        rows = np.asarray(probabilities(trained.model, trained.normalised(images)))
        for picture, row in zip(found, rows, strict=True):
            if not np.isfinite(row).all():
                raise UserError(
                    f"Expected probabilities, the model gives NaN for {picture}: its weights are broken, use an earlier "
                    "checkpoint or train again with a lower base_lr."
                )
            named = {names[place]: float(row[place]) for place in np.argsort(-row)[: args.top]}
            if args.json:
                print(json.dumps({"picture": picture, "probabilities": named}))
            else:
                print(f"{picture}  " + "  ".join(f"{printable(name)} {value:.1%}" for name, value in named.items()))
    pictures.say_left_out()
    return 0
